"""Parts of benchmarks/gpu.py, each for a process of its own: sampling, new weights to the engine, whole steps."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import MIB, clock
from _gpu_common import Work, machine_of

from pspo.plan.forecast import forecast
from pspo.plan.memory import Lengths
from pspo.plan.shapes import read_shape

if TYPE_CHECKING:
    from pspo.config import TrainConfig
    from pspo.rollout import Sampler

PROMPT, GROUP = 100, 4
TURNS = 3
ENGINE = ("rollout.max_prompt_tokens=128", "rollout.temperature=1.0")
SHARE = "rollout.vllm.gpu_memory_utilization=0.4"
PHASES = ("rollout", "learn", "sync")


def measure_sampling(work: Work) -> dict[str, Any]:
    """Completion tokens a second by the number of sequences at once; random weights hardly ever end one."""
    from pspo.rollout import Decoding, sample

    cfg = _config(work)
    sampler = _sampler(work, cfg)
    decoding = Decoding(work.sizes.new_tokens[work.engine], n=GROUP)
    draw = random.Random(0)
    found = {}
    for sequences in work.sizes.sequences[work.engine]:
        turns = []
        for turn in range(TURNS + 1):
            prompts = [
                tuple(draw.randrange(2, work.sizes.vocabulary) for _ in range(PROMPT))
                for _ in range(sequences // GROUP)
            ]
            sampler.forget()
            started = clock(work.device)
            drawn = sample(sampler, prompts, range(turn, turn + len(prompts)), decoding)
            seconds = clock(work.device) - started
            lengths = [len(completion.token_ids) for group in drawn for completion in group]
            if turn:
                turns.append({"seconds": seconds, "tokens": sum(lengths), "longest": max(lengths)})
        found[sequences] = turns
    sampler.close()
    return {"engine": work.engine, "prompt": PROMPT, "sequences": found}


def measure_sync(work: Work) -> dict[str, Any]:
    """Seconds of `Learner.weights()` into `Sampler.load()`, of an engine that is awake and, where it can, of one that
    slept meanwhile; seconds of falling asleep, and what that gives back of the device's memory."""
    from pspo.learner import make_learner
    from pspo.ranks import Ranks

    cfg = _config(work, *(["rollout.vllm.sleep=true"] if work.engine == "vllm" else []))
    sampler = _sampler(work, cfg)
    learner = make_learner(cfg, str(work.policies / "learner"), Ranks())

    def load() -> float:
        started = clock(work.device)
        sampler.load(learner.weights())
        return clock(work.device) - started

    load()  # sets up what later ones use
    found: dict[str, Any] = {
        "engine": work.engine,
        "bytes": sum(p.numel() * p.element_size() for p in learner.model.parameters()),
        "awake_s": [load() for _ in range(work.sizes.loads)],
    }
    if work.engine == "vllm":
        found |= {"asleep_s": [], "falling_asleep_s": [], "given_back_mib": []}
        for _ in range(work.sizes.loads):
            before, started = _free_mib(work.device), clock(work.device)
            sampler.sleep()
            found["falling_asleep_s"].append(clock(work.device) - started)
            found["given_back_mib"].append(_free_mib(work.device) - before)
            found["asleep_s"].append(load())
    sampler.close()
    return found


def measure_steps(work: Work) -> dict[str, Any]:
    """A run of pspo.train, as it is: median seconds of its phases, without the first two steps; the plan's beside them
    where conf/gpu/ knows the device. Rewards are random, so that a policy of random weights has something to learn, and
    no group is left out."""
    from pspo.train import train

    with tempfile.TemporaryDirectory() as folder:
        cfg = work.config(
            "loop",
            f"run_dir={folder}/run",
            f"steps={work.sizes.steps}",
            "reward=random",
            "learner.drop_no_signal=false",
            "rollout.max_prompt_tokens=128",
            f"rollout.prompts={work.sizes.groups}",
            f"rollout.max_new_tokens={work.sizes.new_tokens['vllm']}",
            "rollout.max_gap=1.0",  # reported, not judged
        )
        train(cfg)
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    steps = lines[1:]
    medians = {
        name: statistics.median(line.get(name, 0.0) for line in steps[2:])
        for name in ("time/step_s", *(f"time/{phase}_s" for phase in PHASES), "length/mean")
    }
    gaps = [line["gap/abs_dev_mean"] for line in steps if "gap/abs_dev_mean" in line]
    found: dict[str, Any] = {
        "engine": work.engine,
        "medians": medians,
        "gap": max(gaps),
    }
    if (machine := machine_of(work.device)) is not None:
        lengths = Lengths(_prompt_tokens(work), max(1, round(medians["length/mean"])))
        plan = forecast(cfg, read_shape(work.policies / "loop" / "config.json"), machine, 1, lengths).step
        learn = plan.learn + plan.exchange + plan.optimizer
        found["planned"] = {"rollout": plan.rollout, "learn": learn, "sync": plan.sync, "step": plan.total}
    return found


def _prompt_tokens(work: Work) -> int:
    """Of a problem of the small world, on average."""
    from pspo.data import load_problems, load_tokenizer, make_prompter

    cfg = work.config("loop")
    prompter = make_prompter(cfg.prompt, cfg.data, load_tokenizer(str(work.policies / "loop")))
    problems = load_problems(cfg.data, "train", 0)
    return round(statistics.mean(len(prompter.encode(problems[k].question)) for k in range(64)))


def _config(work: Work, *overrides: str) -> TrainConfig:
    share = [SHARE] if work.engine == "vllm" else []
    return work.config("learner", *ENGINE, *share, *overrides)


def _sampler(work: Work, cfg: TrainConfig) -> Sampler:
    from pspo.data import load_tokenizer
    from pspo.rollout import make_sampler
    from pspo.startup import prepare

    prepare(cfg.device, cfg.threads)
    path = str(work.policies / "learner")
    most = PROMPT + work.sizes.new_tokens[work.engine]
    return make_sampler(path, cfg.rollout, load_tokenizer(path), cfg.device, most)


def _free_mib(device: str) -> float:
    """Of the device; 0 on a CPU, where vLLM keeps its memory."""
    if device == "cpu":
        return 0.0
    import torch

    return torch.cuda.mem_get_info()[0] / MIB
