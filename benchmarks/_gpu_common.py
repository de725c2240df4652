"""What the parts of benchmarks/gpu.py share: sizes, settings of a run, flops and memory of an update by formula."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _common import MIB

from pspo.config import TrainConfig, compose, load_yaml
from pspo.config.compose import CONF
from pspo.config.machine import Machine
from pspo.config.schema import Architecture
from pspo.plan.memory import Pack, learning
from pspo.plan.speed import optimizer_s, pass_s

if TYPE_CHECKING:
    from pspo.plan.shapes import Shape
    from pspo.types import Sample

DATA_SHEET = {"a100": 312.0, "h100": 989.0, "h200": 989.0, "l40s": 362.0, "rtx4090": 165.0}
"""Tflops in bf16, dense, by the data sheets of the cards in conf/gpu/."""


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    learner: Architecture
    """Of the policy that is learned, sampled from and handed over."""
    loop: Architecture
    """Of the policy of whole steps, whose last checkpoint is three times its weights."""
    vocabulary: int
    groups: int
    group_size: int
    updates: int
    """Timed, after one that is not."""
    matmul_tokens: int
    sequences: dict[str, tuple[int, ...]]
    """Sampled at once, by engine."""
    new_tokens: dict[str, int]
    """Of each of them, by engine."""
    loads: int
    steps: int
    micro: int
    """TRL's per_device_train_batch_size."""


QWEN2_1_5B = Architecture(1536, 28, 12, 2, 8960, 1024, 1e6, True)
QWEN2_0_5B = Architecture(896, 24, 14, 2, 4864, 1024, 1e6, True)
FULL = Sizes(
    learner=QWEN2_1_5B,
    loop=QWEN2_0_5B,
    vocabulary=151_936,
    groups=16,  # with their size those of conf/sampling/released.yaml
    group_size=4,
    updates=5,
    matmul_tokens=8192,
    sequences={"vllm": (64, 256), "hf": (16, 64)},
    new_tokens={"vllm": 128, "hf": 32},
    loads=5,
    steps=6,
    micro=8,
)
SMALL = Sizes(
    learner=Architecture(128, 4, 4, 2, 256, 1024, 1e6, True),
    loop=Architecture(64, 2, 2, 1, 128, 1024, 1e6, True),
    vocabulary=512,
    groups=2,
    group_size=4,
    updates=2,
    matmul_tokens=256,
    sequences={"vllm": (4, 8), "hf": (4, 8)},
    new_tokens={"vllm": 16, "hf": 16},
    loads=2,
    steps=3,
    micro=4,
)


@dataclass(frozen=True)
class Work:
    """What a part is asked: its sizes, where, and the directory of the policies `learner` and `loop`."""

    sizes: Sizes
    device: str
    engine: str
    policies: Path
    settings: tuple[str, ...]

    @classmethod
    def of(cls, options: argparse.Namespace) -> Work:
        sizes = SMALL if options.small else FULL
        return cls(sizes, options.device, options.engine, options.policies, tuple(options.set))

    @property
    def dtype(self) -> str:
        """A GPU's is the paper's; a CPU has no fast bfloat16."""
        return "bfloat16" if self.device == "cuda" else "float32"

    def config(self, policy: str, *overrides: str) -> TrainConfig:
        """The released code's settings of sampling and learning with a policy made here, on the small world's problems:
        nothing is fetched."""
        settings = [
            "scale=paper",
            "data=wordproblems",
            "prompt=plain",
            "experiment=custom",
            "tracking=none",
            "tracking.progress=false",
            "steps=1000",
            f"device={self.device}",
            f"rollout={self.engine}",
            f"model.path={self.policies / policy}",
            "model.revision=null",
            f"model.dtype={self.dtype}",
            "eval.every=0",
            "eval.at_end=false",
            *(["threads=1"] if self.device == "cpu" else []),
        ]
        return compose("train", TrainConfig, [*settings, *overrides, *self.settings])


def card_of(device: str) -> str:
    """The card's name, or `cpu`."""
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name()


def machine_of(device: str) -> Machine | None:
    """What conf/gpu/ knows of this machine's device; None for a card that is not there."""
    card = card_of(device).lower().replace(" ", "")
    known = [path for path in sorted((CONF / "gpu").glob("*.yaml")) if path.stem in card]
    return load_yaml(known[0], Machine) if known else None


def packs_of_samples(samples: Sequence[Sample], token_budget: int) -> list[Pack]:
    """What the learner's packs of one update hold, by the plan's own description of a pack."""
    from pspo.batching import Batch, balanced

    batch = Batch.of(samples)
    [laid] = balanced(batch, range(len(samples)), token_budget)
    return [_pack([[samples[k] for k in group] for group in groups]) for groups, _ in laid]


def _pack(groups: Sequence[Sequence[Sample]]) -> Pack:
    tokens = targets = keys = pairs = 0
    for group in groups:
        prompt = len(group[0].prompt_ids)
        tokens, keys, pairs = tokens + prompt, keys + prompt, pairs + prompt * (prompt + 1) // 2
        for sample in group:
            own, length = len(sample.completion_ids) - 1, len(sample.completion_ids)  # the last one predicts nothing
            tokens, targets, keys = tokens + own, targets + length, keys + prompt + own
            pairs += own * prompt + own * (own + 1) // 2
    return Pack(tokens, targets, keys, pairs / tokens)


def model_flops(shape: Shape, packs: Sequence[Pack]) -> float:
    """Of one update, what the model needs; what is computed again (checkpointed layers, the head's tiles) is not in it.

    For each weight that a token is multiplied with 2 flops forward and 4 backward (Kaplan et al., arXiv 2001.08361,
    section 2.1; Chowdhery et al., arXiv 2204.02311, appendix B): the layers' matrices for each row of a pack, in which
    a prompt is once, the head for each log-prob. For each pair of a query and a key that it sees, in each layer, two
    products of the queries' width, forward once and backward twice: 12 flops for each of its elements.
    """
    layers = 6 * shape.layers * shape.matrices * sum(pack.tokens for pack in packs)
    head = 6 * shape.embedding * sum(pack.targets for pack in packs)
    attention = 12 * shape.layers * shape.query_size * sum(pack.visible * pack.tokens for pack in packs)
    return layers + head + attention


def planned_mib(cfg: TrainConfig, shape: Shape, packs: Sequence[Pack]) -> float:
    """Peak of an update of these packs, by the plan's formula."""
    return learning(cfg, shape, 1, len(packs), max(packs, key=lambda pack: pack.tokens)).peak / MIB


def planned_s(cfg: TrainConfig, shape: Shape, machine: Machine, packs: Sequence[Pack]) -> float:
    """Of an update of these packs, by the plan's formula; layers that are computed twice are a third more."""
    again = 4 / 3 if cfg.learner.gradient_checkpointing else 1.0
    passes = sum(pass_s(cfg, shape, machine, 1, pack) for pack in packs)
    return again * passes + optimizer_s(cfg, shape, machine, 1)
