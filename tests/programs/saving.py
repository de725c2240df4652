"""Saves a sharded policy and its optimiser, or loads them: torchrun saving.py save|load DIRECTORY [SETTINGS...]

Prints a digest of weights and optimiser, gathered from all ranks: once with all weights learned, once with adapters.
"""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from small import small_policy
from torch.distributed.tensor import DTensor
from updates import VOCAB, samples_of

from pspo.adapters import add_lora
from pspo.batching import Batch
from pspo.checkpoint import Checkpoints
from pspo.config import TrainConfig, compose, schema
from pspo.learner import Learner
from pspo.models import read_weights
from pspo.ranks import Ranks, joined
from pspo.surrogates import clip


def main() -> None:
    act, directory, settings = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    with joined("cpu", timeout=60) as ranks:
        for lora in (False, True):
            checkpoints = Checkpoints(directory / f"lora={lora}", 9, ranks)
            learner = (saved if act == "save" else loaded)(checkpoints, partial(make, ranks, lora, settings), ranks)
            digest = digest_of(learner)
            if ranks.first:
                print("digest", digest, flush=True)


def make(ranks: Ranks, lora: bool, settings: list[str], weights: Path | None = None) -> Learner:
    model = small_policy(dtype=torch.float32, vocab=VOCAB)
    if lora:
        add_lora(model, schema.Lora(4, 8.0, ("all-linear",)), seed=0)
    elif weights is not None:
        model.load_state_dict(dict(read_weights(weights)), strict=False)  # the tied head stands in no file
    cfg = compose("train", TrainConfig, ["learner.old_log_probs=learner", *settings]).learner
    cfg = replace(cfg, lr=1e-2, warmup_updates=0)
    return Learner(model, clip, cfg, temperature=1.0, max_tokens=14, planned_updates=10, ranks=ranks)


def saved(checkpoints: Checkpoints, make: Callable[..., Learner], ranks: Ranks) -> Learner:
    learner = make()
    batch = Batch.of(samples_of(3))
    for number in range(2):
        learner.update(batch, range(len(batch)), number)
    weights = learner.state_dict(keep=ranks.first)
    write = partial(learner.model.save_pretrained, state_dict=weights)
    checkpoints.save(7, write, learner.training_state(), {})
    return learner


def loaded(checkpoints: Checkpoints, make: Callable[..., Learner], ranks: Ranks) -> Learner:
    found = checkpoints.newest()
    assert found is not None and found.step == 7
    learner = make(found.path)
    learner.load_training_state(checkpoints.read(found, learner.blank))
    return learner


def digest_of(learner: Learner) -> str:
    whole = hashlib.sha256()
    for name, tensor in (*learner.weights(), *sorted(learner.training_state().items())):
        value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        whole.update(f"{name} {tuple(value.shape)}".encode() + value.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


if __name__ == "__main__":
    main()
