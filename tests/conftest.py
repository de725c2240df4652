"""Shared by all tests: a small model and tokenizer of the real kinds, and samples to learn from."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background: the programs under test inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Beside each other (-n): what takes longest first, so that no worker is left with it at the end."""
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        slow.update(item.path for item in items if item.get_closest_marker("vllm"))
        items.sort(key=lambda item: (item.get_closest_marker("slurm") is None, -slow[item.path], item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """--dist loadfile, with all tests on a cluster on one worker: two clusters would want the cores at the same time,
    where one leaves them to the other worker while it waits for SLURM."""
    from xdist.scheduler import LoadFileScheduling

    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # by number of tests, which is not what they take

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return (
                "slurm"
                if nodeid.startswith(("tests/slurm/", "tests/experiments/test_slurm_jobs.py"))
                else super()._split_scope(nodeid)
            )

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory):
    """A function that saves the small world's architecture and tokenizer with random weights, larger than usual so that
    choices are clear and what it writes varies; returns the directory. `overrides` are settings of training."""
    import torch

    from pspo.config import TrainConfig, compose
    from pspo.data import eos_ids
    from pspo.data.tokenizer import build_tokenizer
    from pspo.models import build, save_policy

    def make(*overrides: str) -> Path:
        cfg = compose("train", TrainConfig, overrides)
        tokenizer = build_tokenizer(cfg.data)
        model = build(cfg.model.arch, len(tokenizer), eos_ids(tokenizer)[0], tokenizer.pad_token_id, seed=1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)
        return save_policy(model, tokenizer, tmp_path_factory.mktemp("random") / "checkpoint")

    return make


@pytest.fixture
def make_samples():
    """A function that makes ragged samples of random tokens, the same for the same seed; `group` share a prompt."""
    from pspo.types import Sample

    def make(count: int, vocab: int, seed: int = 0, longest: int = 12, group: int = 1) -> list[Sample]:
        rng = random.Random(seed)

        def ids(least: int) -> tuple[int, ...]:
            return tuple(rng.randrange(vocab) for _ in range(rng.randint(least, longest)))

        def sample(prompt: tuple[int, ...]) -> Sample:
            completion = ids(1)
            log_probs = tuple(-rng.random() for _ in completion)
            return Sample(prompt, completion, log_probs, advantage=rng.choice([-1.5, -0.5, 0.5, 2.0]))

        prompts = [ids(2) for _ in range(-(-count // group))]
        return [sample(prompts[k // group]) for k in range(count)]

    return make


@pytest.fixture
def make_model():
    """A function that makes a small policy (tests/programs/small.py), in fp64 unless told otherwise."""
    from small import small_policy

    return small_policy
