"""Parts of benchmarks/gpu.py, each for a process of its own: matrix products, the learner's update, TRL's."""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from _common import Peak, Seen, batch_of, clock, find_missing
from _gpu_common import Work, machine_of, model_flops, packs_of_samples, planned_mib, planned_s

from pspo.plan.shapes import read_shape

if TYPE_CHECKING:
    from pspo.learner import Learner
    from pspo.types import Sample

ROUNDS, AT_ONCE = 7, 10
"""Timed rounds of matrix products, and products in each."""
VARIANTS = {
    "learner": (),
    "learner, layers computed twice": ("learner.gradient_checkpointing=true",),
    "learner, moments offloaded": ("learner.offload_optimizer=true",),
    "learner, layers compiled": ("model.compile=true",),
}
# TRL's side, and every variant of ours, does the same update.
SAME = (
    "surrogate=clip",
    "surrogate.epsilon_low=0.2",
    "surrogate.epsilon_high=0.2",
    "learner.lr=1e-6",
    "learner.warmup_updates=0",
    "learner.schedule=constant",
    "rollout.temperature=1.0",
)


def measure_products(work: Work) -> dict[str, Any]:
    """Tflops of the products that a layer's MLP and its output projection are made of, tokens x from x to."""
    import torch

    arch, tokens = work.sizes.learner, work.sizes.matmul_tokens
    width, mlp = arch.hidden_size, arch.mlp_size
    rates = {}
    for before, after in ((width, mlp), (mlp, width), (width, width)):
        dtype = getattr(torch, work.dtype)
        rows, weight = (torch.randn(n, before, device=work.device, dtype=dtype) for n in (tokens, after))
        found = []
        for turn in range(-1, ROUNDS):
            started = clock(work.device)
            for _ in range(AT_ONCE):
                rows @ weight.T
            seconds = clock(work.device) - started
            if turn >= 0:
                found.append(2 * tokens * before * after * AT_ONCE / seconds / 1e12)
        rates[f"{tokens} x {before} x {after}"] = found
    return {"dtype": work.dtype, "tflops": rates, "best_tflops": max(map(statistics.median, rates.values()))}


def measure_learner(work: Work, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Updates of the same batch as TRL's: seconds, peak memory, and what the plan says of it. The first is not counted:
    its ratios are not 1, and what is compiled is compiled in it.
    """
    from pspo.learner import make_learner
    from pspo.ranks import Ranks
    from pspo.startup import prepare

    cfg = work.config("learner", *SAME, *overrides)
    prepare(cfg.device, cfg.threads)
    sizes, shape = work.sizes, read_shape(work.policies / "learner" / "config.json")
    samples = batch_of(sizes.groups, sizes.group_size, sizes.vocabulary)
    packs = packs_of_samples(samples, cfg.learner.token_budget)
    machine = machine_of(work.device)
    set_up(work)
    peak = Peak(work.device)
    learner = make_learner(cfg, str(work.policies / "learner"), Ranks())
    seen, peaks = [], []
    for number in range(sizes.updates + 1):
        peak.reset()
        seen.append(update(learner, samples, work.device, number))
        peaks.append(peak.read())
    return {
        "updates": [one._asdict() for one in seen],
        "tokens": sum(map(len, samples)),
        "packs": [vars(pack) for pack in packs],
        "model_flops": model_flops(shape, packs),
        "peak_mib": max(peaks[1:]),
        "planned_mib": planned_mib(cfg, shape, packs),
        "planned_s": None if machine is None else planned_s(cfg, shape, machine, packs),
    }


def set_up(work: Work) -> None:
    """An update of the small policy, so that what is set up once is in nobody's peak."""
    from pspo.learner import make_learner
    from pspo.ranks import Ranks

    learner = make_learner(work.config("loop", *SAME), str(work.policies / "loop"), Ranks())
    update(learner, batch_of(1, 2, work.sizes.vocabulary), work.device, 0)
    del learner
    gc.collect()  # what refers to itself would otherwise be given back during the measurement


def update(learner: Learner, samples: list[Sample], device: str, number: int) -> Seen:
    """The first has ratios to the sampler's log-probs; in later ones they are 1."""
    from pspo.batching import Batch

    batch = Batch.of(samples, device)
    if number == 0:
        batch.old = batch.sampler.clone()
    started = clock(device)
    stats = learner.update(batch, range(len(samples)), number)
    return Seen(clock(device) - started, stats.loss, stats.grad_norm)


def measure_trl(work: Work) -> dict[str, Any]:
    """GRPOTrainer's updates of the same batch from the same weights, as benchmarks/learner.py has it do them."""
    if missing := find_missing():
        return {"left_out": f"not installed: {', '.join(missing)}"}
    from learner import run_trl

    from pspo.models import load_policy

    sizes = work.sizes
    samples = batch_of(sizes.groups, sizes.group_size, sizes.vocabulary)
    options = argparse.Namespace(device=work.device, groups=sizes.groups, group_size=sizes.group_size)
    peak, peaks = Peak(work.device), []
    model = load_policy(work.policies / "learner", dtype="float32", device=work.device).train()
    seen = run_trl(
        model,
        options,
        samples,
        sizes.micro,
        sizes.updates + 1,
        before=lambda number: peak.reset(),
        after=lambda number: peaks.append(peak.read()),
    )
    return {"updates": [one._asdict() for one in seen], "peak_mib": max(peaks[1:]), "micro": sizes.micro}
