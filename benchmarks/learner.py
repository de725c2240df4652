"""The learner's update beside TRL's on the same ragged batch: tokens a second and peak memory.

    .venv/bin/python benchmarks/learner.py [--device cpu] [--groups 1] [--pairs 5] [--micro 8] [--lean 2] [--threads 2]

A Qwen2-architecture model with random weights and Qwen's whole vocabulary; groups of completions that share a prompt,
with lengths like those of GSM8K. TRL's side is its GRPOTrainer in its own `train()`, from the batch on that its
`_generate_and_score_completions` returns: shuffling, splitting, `training_step` of every micro-batch, clipping, AdamW
and scheduler are its own. Its time runs from its callback on_step_begin to on_step_end: what it logs is not counted.
Ours is `Learner.update` on all samples. The two take turns in one process. `--micro` are values of TRL's
per_device_train_batch_size, each a column; `--lean` are more of them, of which only the memory is measured. Tokens are
the real ones, prompt and completion, the same number on both sides.

The first update is not timed: its ratios are not 1. In this one and in each timed one, where ratios are 1, both sides
must find the same loss and the same gradient norm.

The timed process keeps the memory that it frees (`--malloc default`: as glibc does it, which maps every tensor above
32 MiB anew; both sides then wait for the pages, TRL's, whose temporaries are the larger, most of its time).

Memory is taken in a process for each side, in its second update. On a CPU: the largest resident set during the update,
less that before the model was made, with malloc told to give back what is freed. On CUDA: torch's own count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from _common import (
    GIVEN_BACK,
    KEPT,
    MIB,
    QWEN,
    Peak,
    Seen,
    batch_of,
    clock,
    gap,
    quiet,
    ratios,
    spread,
    table,
    trl_settings,
    write_results,
)

quiet()

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import PrinterCallback, Qwen2Tokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
from trl.trainer.utils import pad  # noqa: E402

from pspo.batching import Batch  # noqa: E402
from pspo.config import TrainConfig, compose  # noqa: E402
from pspo.config.schema import Architecture  # noqa: E402
from pspo.learner import Learner  # noqa: E402
from pspo.models import build  # noqa: E402
from pspo.surrogates import from_config  # noqa: E402
from pspo.types import Sample  # noqa: E402

PAD, EOS = 0, 1
LR = 1e-6
SURROGATE = ["surrogate=clip", "surrogate.epsilon_low=0.2", "surrogate.epsilon_high=0.2"]


# --- the work ---------------------------------------------------------------------------------------------------------


def model_of(options: argparse.Namespace) -> Any:
    arch = Architecture(
        hidden_size=options.hidden,
        layers=options.layers,
        heads=options.hidden // 64,
        kv_heads=max(1, options.hidden // 128),
        mlp_size=4 * options.hidden,
        max_positions=1024,
        rope_theta=10000.0,
        tie_embeddings=True,
    )
    model = build(arch, QWEN, eos_id=EOS, pad_id=PAD, seed=0, attention="sdpa")
    return model.to(options.device).train()


# --- ours -------------------------------------------------------------------------------------------------------------


class Ours:
    def __init__(self, options: argparse.Namespace, samples: list[Sample]) -> None:
        settings = [*SURROGATE, f"learner.lr={LR}", "learner.warmup_updates=0", "learner.schedule=constant"]
        settings += [f"learner.token_budget={options.token_budget}", *options.set]
        cfg = compose("train", TrainConfig, settings)
        self.samples, self.device, self.number = samples, options.device, 0
        dtype = "bfloat16" if options.device == "cuda" else "float32"
        self.learner = Learner(
            model_of(options),
            from_config(cfg.surrogate),
            cfg.learner,
            compute_dtype=dtype,
            temperature=1.0,
            max_tokens=256,
            planned_updates=1000,
        )

    def update(self, sampled: bool) -> Seen:
        """One update; `sampled`: the ratios are to the sampler's log-probs, else 1."""
        batch = Batch.of(self.samples, self.device)
        if sampled:
            batch.old = batch.sampler.clone()
        started = clock(self.device)
        stats = self.learner.update(batch, range(len(self.samples)), self.number)
        seconds = clock(self.device) - started
        self.number += 1
        return Seen(seconds, stats.loss, stats.grad_norm)


# --- TRL's ------------------------------------------------------------------------------------------------------------


class GivenBatch(GRPOTrainer):
    """GRPOTrainer that is handed its samples instead of generating them; everything after that is its own."""

    given: Callable[[], dict[str, Any]]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        return self.given()


class Turns(TrainerCallback):
    """Takes the time of each of TRL's updates, and lets the other side have its turn after it."""

    def __init__(self, device: str, before: Callable[[int], None], after: Callable[[int], None]) -> None:
        self.device, self.before, self.after = device, before, after
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before(state.global_step)
        self.started = clock(self.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(clock(self.device) - self.started)
        self.after(state.global_step - 1)
        control.should_log = True  # for loss and gradient norm; after the time is taken


def padded(samples: list[Sample], device: str) -> dict[str, Any]:
    """The batch as `_generate_and_score_completions` returns it: prompts padded left, completions right, to the longest
    of the whole batch."""

    def padded_rows(rows: list[Any], value: float, side: str) -> Any:
        return pad([torch.tensor(row) for row in rows], padding_value=value, padding_side=side).to(device)

    prompts, completions = [s.prompt_ids for s in samples], [s.completion_ids for s in samples]
    return {
        "prompt_ids": padded_rows(prompts, PAD, "left"),
        "prompt_mask": padded_rows([[1] * len(row) for row in prompts], 0, "left"),
        "completion_ids": padded_rows(completions, PAD, "right"),
        "completion_mask": padded_rows([[1] * len(row) for row in completions], 0, "right"),
        "advantages": torch.tensor([s.advantage for s in samples], device=device),
        "num_items_in_batch": torch.tensor(sum(map(len, completions)), device=device),
        "old_per_token_logps": padded_rows([s.sampler_log_probs for s in samples], 0.0, "right"),
    }


def run_trl(
    model: Any,
    options: argparse.Namespace,
    samples: list[Sample],
    micro: int,
    updates: int,
    before: Callable[[int], None] = lambda number: None,
    after: Callable[[int], None] = lambda number: None,
) -> list[Seen]:
    """`updates` updates of GRPOTrainer.train(), the first with ratios to the sampler; `before` and `after` each.

    `options` has device, groups and group_size.
    """
    given = padded(samples, options.device)
    on_policy = {name: value for name, value in given.items() if name != "old_per_token_logps"}
    with tempfile.TemporaryDirectory() as folder:
        settings = trl_settings(
            folder,
            options.device,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=len(samples) // micro,
            num_generations=options.group_size,
            max_completion_length=256,
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_steps=updates,
        )
        turns = Turns(options.device, before, after)
        trainer = GivenBatch(
            model=model,
            reward_funcs=lambda completions, **rest: [0.0] * len(completions),
            args=GRPOConfig(**settings),
            train_dataset=Dataset.from_dict({"prompt": ["a"] * options.groups}),
            processing_class=Qwen2Tokenizer(
                vocab={"<pad>": PAD, "<eos>": EOS}, merges=[], pad_token="<pad>", eos_token="<eos>"
            ),
            callbacks=[turns],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.given = lambda: dict(on_policy if trainer.state.global_step else given)
        trainer.train()
        told = [line for line in trainer.state.log_history if "grad_norm" in line]
    return [Seen(s, t["loss"], float(t["grad_norm"])) for s, t in zip(turns.seconds, told, strict=True)]


# --- time -------------------------------------------------------------------------------------------------------------


def in_turns(options: argparse.Namespace, samples: list[Sample], micro: int) -> dict[str, list[Seen]]:
    """Updates of the two sides in turn; the first of each, which is not timed, with ratios that are not 1."""
    ours, seen = Ours(options, samples), []
    theirs = run_trl(
        model_of(options),
        options,
        samples,
        micro,
        options.pairs + 1,
        after=lambda number: seen.append(ours.update(sampled=number == 0)),
    )
    for a, b in zip(seen, theirs, strict=True):
        if max(gap(a, b)) > (1e-3 if options.device == "cpu" else 2e-2):  # fp32, bf16
            sys.exit(f"not the same update: ours {a}, TRL's {b}")
    return {"ours": seen, "trl": theirs}


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_of(options: argparse.Namespace, samples: list[Sample], side: str) -> float:
    """MiB in the second update of one side; for the process that is there for nothing else."""
    model_of(argparse.Namespace(**vars(options) | {"hidden": 64, "layers": 1}))  # what is set up once counts for none
    peak, found = Peak(options.device), []
    if side == "ours":
        ours = Ours(options, samples)
        for number in range(2):
            if number == 1:
                peak.reset()
            ours.update(sampled=True)
        return peak.read()
    run_trl(
        model_of(options),
        options,
        samples,
        int(side),
        2,
        before=lambda number: peak.reset() if number == 1 else None,
        after=lambda number: found.append(peak.read()),
    )
    return found[-1]


def measured_apart(side: str) -> float:
    """`peak_of` in a process of its own, whose malloc gives back what is freed."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", side]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | GIVEN_BACK)
    return float(answer.stdout.splitlines()[-1])


# ----------------------------------------------------------------------------------------------------------------------


def report(
    options: argparse.Namespace,
    samples: list[Sample],
    runs: dict[int, dict[str, list[Seen]]],
    memory: dict[str, float],
) -> None:
    tokens, completion = sum(map(len, samples)), sum(len(s.completion_ids) for s in samples)
    widest = max(len(s.prompt_ids) for s in samples) + max(len(s.completion_ids) for s in samples)
    rates = {
        micro: {side: [tokens / seen.seconds for seen in run[side][1:]] for side in run} for micro, run in runs.items()
    }
    gaps = {micro: [gap(a, b) for a, b in zip(run["ours"], run["trl"], strict=True)] for micro, run in runs.items()}
    resident = 3 * sum(p.numel() * 4 for p in model_of(options).parameters()) / MIB
    mine = memory["ours"]

    def row(name: str, ours: str, theirs: Callable[[int], str]) -> list[str]:
        return [name, ours, *(theirs(m) if m in runs or "MiB" in name else "-" for m in columns)]

    columns = [*options.micro, *options.lean]
    peak = {micro: memory[str(micro)] for micro in columns}
    rows = [
        row("tokens/s", spread([x for r in rates.values() for x in r["ours"]]), lambda m: spread(rates[m]["trl"])),
        row("ours over TRL's, by pairs", "", lambda m: spread(ratios(rates[m]["ours"], rates[m]["trl"]), 3)),
        row("peak memory, MiB", f"{mine:,.0f}", lambda m: f"{peak[m]:,.0f}"),
        row("ours over TRL's, of MiB", "", lambda m: f"{mine / peak[m]:.2f}"),
        row("above weights and moments, MiB", f"{mine - resident:,.0f}", lambda m: f"{peak[m] - resident:,.0f}"),
        row("ours over TRL's, of these MiB", "", lambda m: f"{(mine - resident) / (peak[m] - resident):.2f}"),
        row("largest difference of losses", "", lambda m: f"{max(loss for loss, _ in gaps[m]):.1e}"),
        row("of gradient norms, relative", "", lambda m: f"{max(norm for _, norm in gaps[m]):.1e}"),
    ]
    print(
        f"{len(samples)} samples in {options.groups} groups: {tokens} tokens, {completion} of them completions', "
        f"{len(samples) * widest} when padded. {options.device}, {options.threads} threads; width {options.hidden}, "
        f"{options.layers} layers; median of {options.pairs} updates (range)"
    )
    print(table(["", "ours", *(f"TRL, {micro} a micro-batch" for micro in columns)], rows))
    write_results(
        "learner" if options.device == "cpu" else f"learner-{options.device}",
        options=vars(options),
        tokens={"all": tokens, "completions": completion, "padded": len(samples) * widest},
        updates={micro: {side: [seen._asdict() for seen in run[side]] for side in run} for micro, run in runs.items()},
        tokens_per_s=rates,
        peak_memory_mib=memory,
        weights_and_moments_mib=resident,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--micro", type=int, nargs="+", default=[8], help="TRL's per_device_train_batch_size")
    parser.add_argument("--lean", type=int, nargs="*", default=[2], help="the same, for memory alone")
    parser.add_argument("--token-budget", type=int, default=2048, help="ours: tokens of a micro-batch")
    parser.add_argument("--set", nargs="*", default=[], help="ours: further settings of pspo.train")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--malloc", choices=["kept", "default"], default="kept", help="what the timed process does")
    options = parser.parse_args()
    if options.malloc == "kept" and not options.memory_of and os.environ.get("MALLOC_MMAP_MAX_") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEPT)
    torch.set_num_threads(options.threads)
    samples = batch_of(options.groups, options.group_size)
    if options.memory_of:
        print(peak_of(options, samples, options.memory_of))
        return

    runs = {micro: in_turns(options, samples, micro) for micro in options.micro}
    memory = {side: measured_apart(side) for side in ("ours", *map(str, [*options.micro, *options.lean]))}
    report(options, samples, runs, memory)


if __name__ == "__main__":
    main()
