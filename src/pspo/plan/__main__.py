"""python -m pspo.plan scale=paper gpus=8 gpu=h100: memory, speed, hours and scaling of a run, before it is started.

Takes every setting of pspo.train. Ends with status 1 where the run does not fit, and says what to change.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pspo.config import PlanConfig, program, warm_start_dir
from pspo.errors import ConfigError
from pspo.plan.forecast import ASLEEP, GIB, Forecast, forecast, lengths_of, remedies
from pspo.plan.memory import CUDA_CONTEXT, ranks_per_engine
from pspo.plan.shapes import shape_of

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@program("plan", PlanConfig, cells_are="answers")
def main(cfg: PlanConfig) -> None:
    if cfg.gpu.kind == "cpu" and cfg.gpus > 1:  # they share cores and memory, and no rate in conf/gpu/ is of a share
        allowed = "must be 1 for a CPU, whose ranks share it: two took no less time than one (docs/scaling.md)"
        raise ConfigError("gpus", cfg.gpus, allowed)
    shape = shape_of(cfg.model, warm_start_dir(cfg))
    lengths = lengths_of(cfg, cfg.prompt_tokens, cfg.completion_tokens)
    plan = forecast(cfg, shape, cfg.gpu, cfg.gpus, lengths)
    print("\n".join([*head(plan), "", *memory_lines(plan), "", *speed_lines(plan)]))
    if cfg.gpu.kind == "cuda":  # more processes on the same cores are no more devices
        print("\n".join(["", *scaling_lines(plan)]))
    if not plan.fits:
        sys.exit(1)


def head(plan: Forecast) -> list[str]:
    cfg, shape = plan.cfg, plan.shape
    size = f"x {cfg.rollout.group_size} completions" if cfg.train_on == "samples" else "and a solution"
    return [
        f"{cfg.model.path or cfg.model.name} ({shape.total / 1e6:,.1f} million parameters) on {cfg.data.name}, "
        f"{plan.ranks} x {plan.machine.name}",
        f"a step: {cfg.rollout.prompts} prompts of {plan.lengths.prompt} tokens {size} "
        f"of {plan.lengths.completion}, learned from {cfg.learner.passes} times",
    ]


def memory_lines(plan: Forecast) -> list[str]:
    """Of a device, by part."""
    learner, engine = plan.learner, plan.engine
    parts = {
        "weights": learner.weights,
        "gradients": learner.gradients,
        "moments": learner.moments,
        "reference": learner.reference,
        "weights in the computing dtype": learner.copies,
        "activations of the fullest pack": learner.activations,
        "output head": learner.head,
        "the learner at its fullest": learner.peak,
        "engine: weights": engine.weights,
        "engine: keys and values": engine.cache,
        "engine: a step": engine.work,
    }
    if plan.machine.kind == "cuda":
        parts |= {
            "the learner's fragments": plan.learner_bytes - learner.peak,
            f"the engine's share, {plan.engine_share:.2f}": int(plan.engine_share * plan.machine.memory_gib * GIB),
            "CUDA's context": CUDA_CONTEXT,
        }
    if plan.sleeps:
        parts["engine asleep"] = ASLEEP
        parts["the learner while the engine samples"] = plan.learner.held
    parts["needed"] = plan.needed
    if plan.host_bytes:
        parts["of the host, for each device"] = plan.host_bytes
    lines = [
        f"memory of a device, GiB ({plan.machine.memory_gib:g}, planned with {plan.machine.utilisation:.0%} of it)"
    ]
    lines += [f"  {name:<34}{size / GIB:8.2f}" for name, size in parts.items() if size]
    if plan.fits:
        spare = (plan.available - plan.needed) / GIB
        return [*lines, f"  fits; {spare:.1f} to spare"]
    if not plan.engine_fits:
        lines.append("  DOES NOT FIT: the engine needs more than its share. It would with:")
    else:
        lines.append(f"  DOES NOT FIT: {(plan.needed - plan.available) / GIB:.1f} GiB too much. It would with:")
    found = [f"    {what:<66}{other.step.total:7.2f} s a step" for what, other in remedies(plan)]
    return [*lines, *(found or ["    nothing that is known here: take a smaller policy, or a device with more memory"])]


def speed_lines(plan: Forecast) -> list[str]:
    step = plan.step
    phases = {name: getattr(step, name) for name in ("rollout", "learn", "exchange", "optimizer", "sync")}
    phases["of it at the same time, at best"] = -step.ahead
    tokens = plan.cfg.rollout.sequences * plan.lengths.completion
    return [
        "a step, s",
        *(f"  {name:<34}{seconds:8.2f}" for name, seconds in phases.items() if seconds),
        f"  {'together':<34}{step.total:8.2f}   {plan.completions_per_s:,.1f} completions/s, "
        f"{tokens / step.total:,.0f} completion tokens/s",
        f"a run of {plan.cfg.steps} steps, its evaluations included: {hours(plan.hours)}, "
        f"{plan.hours * plan.ranks:,.1f} device-hours; checkpoints {plan.checkpoint_bytes / GIB:,.1f} GiB",
    ]


def scaling_lines(plan: Forecast, sizes: Sequence[int] = SIZES) -> list[str]:
    """The same run over 1 to 1,024 devices, and what stops it."""
    prompts, sequences = plan.cfg.rollout.prompts, plan.cfg.rollout.sequences
    lines = [f"{'devices':>8}{'GiB each':>10}{'s a step':>10}{'speed':>8}{'a device':>10}"]
    each = ranks_per_engine(plan.cfg)
    one = each * forecast(plan.cfg, plan.shape, plan.machine, each, plan.lengths).step.total
    for ranks in sorted({each * size for size in sizes if each * size <= max(sizes)} | {plan.ranks}):
        at = forecast(plan.cfg, plan.shape, plan.machine, ranks, plan.lengths)
        speed = one / at.step.total
        notes = [] if at.fits else ["does not fit"]
        if prompts * each < ranks <= 2 * prompts * each:
            notes.append(f"only {prompts * each} devices sample: a prompt's completions stay together")
        if sequences < ranks <= 2 * sequences:
            notes.append(f"only {sequences} devices learn")
        figures = f"{at.needed / GIB:>10.1f}{at.step.total:>10.2f}{speed:>8.2f}{speed / ranks:>10.0%}"
        lines.append(f"{ranks:>8}{figures}  {'; '.join(notes)}".rstrip())
    return [
        *lines,
        f"A step has {prompts} prompts and {sequences} completions to deal, and no more for more devices than that.",
        "Runs of a study share nothing: one on each device, or on the fewest that hold it, scale to their number.",
    ]


def hours(value: float) -> str:
    return f"{60 * value:.0f} min" if value < 1 else f"{value:.1f} h"


if __name__ == "__main__":
    main()
