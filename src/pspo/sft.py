"""The warm start: makes the small world's tokenizer and model, and fine-tunes it on demonstrations.

    python -m pspo.sft [model.arch.layers=3 sft.steps=100 out=DIR ...]

As a library: `warm_start(cfg)`. What comes out is a checkpoint directory with, beside model and tokenizer,

    config.yaml   the resolved config
    sft.json      loss by step, seconds, and what was reached on the validation part
    DONE          written last; with it there, nothing is done

Torch and transformers are imported inside the functions, so that a wrong setting is told first.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspo.config import SftConfig, program, schema, to_yaml, warm_start_dir
from pspo.data import Prompter
from pspo.data.wordproblems import (
    Example,
    WordProblemSequence,
    arithmetic_holds,
    demonstration,
    style_of,
    train_example,
)
from pspo.errors import ConfigError, NonFiniteError
from pspo.evaluation import stop_if_not_finite
from pspo.files import publish, set_aside
from pspo.grading import grade
from pspo.rollout import Decoding, sample
from pspo.rundir import claimed
from pspo.seeds import derive
from pspo.stopping import Stop, stoppable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pspo.checkpoint import Checkpoints, Saved
    from pspo.rollout import Sampler

FIRST_INDEX = 10_000_000  # far behind the problems that RL trains on: those are new to the policy
MICRO_BATCH = 16  # sequences of similar length computed together
SAVE_EVERY = 20  # steps
SAMPLES = 4  # completions of a validation problem at temperature 1


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Token ids of a prompt and of its solution, EOS included."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def warm_start(cfg: SftConfig) -> Path:
    """The directory of the warm start; made if it is not there, complete or not at all. The same config and number of
    threads give the same bits, also where it was interrupted and goes on from a checkpoint of its own."""
    target = Path(cfg.out) if cfg.out is not None else warm_start_dir(cfg)
    making = target.with_name(f".{target.name}.making")
    if (target / "DONE").exists():
        print(f"warm start: {target} is there")
        _remove(making)  # of a process that was killed at its very end
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not (target / "config.yaml").exists():
        raise ConfigError("out", target, "is there and holds no warm start; name another directory")
    with stoppable() as stop, claimed(making, cfg, apart=("models", "out", "rollout", "eval")):  # not of the weights
        if not (target / "DONE").exists():  # else another process has made it while this one waited
            _make(cfg, target, making, stop)
        _remove(making)
    return target


def _remove(making: Path) -> None:
    """Under another name first, so that what a kill leaves of it is in nobody's way."""
    with suppress(FileNotFoundError):  # another process was quicker
        shutil.rmtree(set_aside(making), ignore_errors=True)
    for left in making.parent.glob(f".{making.name}.old-*"):
        shutil.rmtree(left, ignore_errors=True)


def _make(cfg: SftConfig, target: Path, making: Path, stop: Stop) -> None:
    """Makes the warm start; what is not finished is in `making`."""
    arch, data = cfg.model.arch, cfg.data
    assert arch is not None and isinstance(data, schema.WordProblems)  # SftConfig's own checks

    import torch

    from pspo.checkpoint import Checkpoints
    from pspo.data.tokenizer import build_tokenizer
    from pspo.models import build, load_policy, write_policy
    from pspo.ranks import Ranks
    from pspo.rollout import make_sampler
    from pspo.startup import prepare

    prepare(cfg.device, threads=None)
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.sft.threads)
    try:
        started = time.perf_counter()
        tokenizer = build_tokenizer(data)
        checkpoints = Checkpoints(making / "checkpoints", cfg.sft.steps, Ranks())
        saved = checkpoints.newest()
        if saved is None:
            eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
            model: PreTrainedModel = build(arch, len(tokenizer), eos, pad, cfg.sft.seed, "sdpa").to(cfg.device)
        else:
            model = load_policy(saved.path, device=cfg.device)
        size = sum(p.numel() for p in model.parameters())
        print(f"warm start: {size:,} parameters, {cfg.sft.steps} steps -> {target}")
        losses = fine_tune(model, tokenizer, cfg, checkpoints, saved, stop)
        trained = time.perf_counter()

        fresh = making / "warm-start"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        write_policy(model, tokenizer, fresh)
        longest = cfg.rollout.max_prompt_tokens + cfg.eval.max_new_tokens
        sampler = make_sampler(str(fresh), cfg.rollout, tokenizer, cfg.device, longest)
        reached = measure(sampler, tokenizer, cfg, WordProblemSequence(data, "validation"))
        sampler.close()
        seconds = {"training": trained - started, "measuring": time.perf_counter() - trained}
        record = {"seconds": seconds, "resumed_at": saved.step if saved else None, "reached": reached, "loss": losses}
        (fresh / "config.yaml").write_text(to_yaml(cfg))
        (fresh / "sft.json").write_text(json.dumps(record, indent=1) + "\n")
        (fresh / "DONE").touch()
        publish(fresh, target)
    finally:
        torch.set_num_threads(threads)
    greedy, sampled = (reached[name]["all"]["accuracy"] for name in ("greedy", "sampled"))
    print(f"warm start: {target} in {sum(seconds.values()):.0f} s; accuracy {greedy:.3f} at T=0, {sampled:.3f} at T=1")


# --- training --------------------------------------------------------------------------------------------------------


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cfg: SftConfig,
    checkpoints: Checkpoints,
    saved: Saved | None,
    stop: Stop,
) -> list[float]:
    """Trains `model` in place on fresh demonstrations, from the first step or from after `saved`, whose weights it has;
    returns the mean loss of a completion token at each step."""
    import torch

    from pspo.models import write_policy
    from pspo.muon import Muon
    from pspo.trainstate import blank, optimizer_tensors, set_optimizers

    sft = cfg.sft
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=sft.lr, weight_decay=sft.weight_decay),
        torch.optim.AdamW(others, lr=sft.lr, betas=sft.betas, weight_decay=sft.weight_decay, fused=True),
    ]
    losses: list[float] = []
    if saved is not None:
        set_optimizers(named, checkpoints.read(saved, partial(blank, named)), *optimizers)
        losses = saved.memory["losses"]
        print(f"  goes on after step {saved.step}", flush=True)
    started = time.perf_counter()
    model.train()
    stop.wait()
    for step in range(len(losses), sft.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = sft.lr * rate(step, sft)
        losses.append(backward(model, demonstrations(step, tokenizer, cfg)))
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), sft.max_grad_norm)
        if not torch.isfinite(norm):
            raise NonFiniteError(f"warm start, step {step}: the gradient is not finite")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            print(f"  step {step + 1:4d}  loss {losses[-1]:.3f}  {time.perf_counter() - started:.0f} s", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == sft.steps or stop.asked:
            state = optimizer_tensors(named.items(), *optimizers)
            write = partial(write_policy, model, tokenizer)
            checkpoints.save(step + 1, write, state, {"losses": losses})
            checkpoints.prune(step + 1, keep=2, best=step + 1)
        if stop.asked:
            break
    stop.at_once()
    return losses


def rate(step: int, sft: schema.WarmStart) -> float:
    """Factor of the learning rate at a step, counted from 0: up linearly, constant, and down linearly towards 0."""
    up = (step + 1) / sft.warmup_steps if sft.warmup_steps else 1.0
    down = (sft.steps - step) / (sft.decay_share * sft.steps) if sft.decay_share else 1.0
    return min(1.0, up, down)


def demonstrations(step: int, tokenizer: PreTrainedTokenizerBase, cfg: SftConfig) -> list[Demonstration]:
    """The batch of a step: problems that no other step has, in a style drawn for each."""
    assert isinstance(cfg.data, schema.WordProblems)
    prompter, batch = Prompter(cfg.prompt, tokenizer), []
    for index in range(FIRST_INDEX + step * cfg.sft.batch, FIRST_INDEX + (step + 1) * cfg.sft.batch):
        example = train_example(cfg.data, index)
        text = demonstration(example, "terse" if is_terse(example, index, step, cfg.sft) else "steps")
        prompt_ids = prompter.encode(example.problem.question)
        batch.append(Demonstration(prompt_ids, (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)))
    return batch


def is_terse(example: Example, index: int, step: int, sft: schema.WarmStart) -> bool:
    """Is the demonstration of this problem a terse one? Those appear late, and the more often the fewer operations."""
    level = len(example.operations)
    drawn = random.Random(derive(sft.seed, "style", index)).random()
    return step >= sft.terse_after * sft.steps and drawn < sft.terse[level]  # type: ignore[index]


def backward(model: PreTrainedModel, batch: Sequence[Demonstration]) -> float:
    """Adds the gradient of the mean loss over all completion tokens of the batch; returns that loss.

    Sequences are computed in order of length, a few at a time: little padding, and activations that fit into the cache.
    """
    import torch
    from torch.nn.functional import cross_entropy, linear

    tokens = sum(len(item.completion_ids) for item in batch)
    total = 0.0
    for input_ids, targets in micro_batches(batch, model.device):
        hidden = model.base_model(input_ids, use_cache=False).last_hidden_state
        wanted = targets >= 0
        # Only where a completion token is predicted are logits needed, a third of all positions.
        logits = linear(hidden[wanted], model.get_output_embeddings().weight)
        loss = cross_entropy(logits, targets[wanted], reduction="sum") / tokens
        torch.autograd.backward(loss)
        total += loss.item()
    return total


def micro_batches(batch: Sequence[Demonstration], device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Input ids and targets [N, T], padded on the right; a target is the next token where that one belongs to a
    completion, else -1. Padding needs no mask: it comes after everything that is predicted."""
    import torch

    ordered = sorted(batch, key=len)
    for start in range(0, len(ordered), MICRO_BATCH):
        rows = ordered[start : start + MICRO_BATCH]
        input_ids = torch.zeros(len(rows), len(rows[-1]), dtype=torch.long)
        targets = torch.full_like(input_ids, -1)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)] = torch.tensor(row.prompt_ids + row.completion_ids)
            targets[i, len(row.prompt_ids) - 1 : len(row) - 1] = torch.tensor(row.completion_ids)
        yield input_ids.to(device), targets.to(device)


# --- what was reached ------------------------------------------------------------------------------------------------


def measure(
    sampler: Sampler, tokenizer: PreTrainedTokenizerBase, cfg: SftConfig, problems: WordProblemSequence
) -> dict[str, Any]:
    """Accuracy on `problems` at temperature 0 and 1, by level, by style, and by both; see `table`."""
    prompter = Prompter(cfg.prompt, tokenizer)
    prompts = [prompter.encode(problem.question) for problem in problems]
    seeds = [derive(cfg.sft.seed, "measure", problem.id) for problem in problems]
    reached = {}
    for name, temperature, n in (("greedy", 0.0, 1), ("sampled", 1.0, SAMPLES)):
        drawn = sample(sampler, prompts, seeds, Decoding(cfg.eval.max_new_tokens, temperature, n=n))
        stop_if_not_finite(completion for row in drawn for completion in row)
        reached[name] = table(
            (problem.level, completion.text, completion.finished and grade(completion.text, problem.gold).correct)
            for problem, row in zip(problems, drawn, strict=True)
            for completion in row
        )
    return reached


def table(graded: Iterator[tuple[str, str, bool]]) -> dict[str, Any]:
    """{cell: {"count", "share", "accuracy", "false_arithmetic"}} over (level, text, correct).

    The cells are "all", each level, each style, and "<level> <style>". `share` is of all completions or its level's;
    `false_arithmetic` is the share with an equation that does not hold: the other errors are misread problems.
    """
    cells: dict[str, Counter[str]] = defaultdict(Counter)
    for level, text, correct in graded:
        style = style_of(text)
        for name in ("all", level, style, f"{level} {style}"):
            cells[name].update(count=1, correct=int(correct), false=int(not arithmetic_holds(text)))
    return {
        name: {
            "count": cell["count"],
            "share": cell["count"] / cells[name.split()[0] if " " in name else "all"]["count"],
            "accuracy": cell["correct"] / cell["count"],
            "false_arithmetic": cell["false"] / cell["count"],
        }
        for name, cell in sorted(cells.items())
    }


@program("sft", SftConfig)
def main(cfg: SftConfig) -> None:
    """Makes the warm start that the config describes."""
    warm_start(cfg)


if __name__ == "__main__":
    main()
