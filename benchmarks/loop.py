"""The whole loop of the small world beside TRL's on the same work: completions a second, and where the time goes.

    .venv/bin/python benchmarks/loop.py [--steps 12] [--pairs 5] [--threads 1 2] [--generation dynamic]

Ours is `python -m pspo.train` with vLLM as the sampler; TRL's is its GRPOTrainer with its own generation. Both start
from the same warm start and take the same problems in the same order: 16 prompts a step, 8 completions of each, at most
64 tokens long, at temperature 1; then 4 updates of 32 completions, GRPO-clip, AdamW, fp32, with the same number of
threads and the same grader. Ours learns here from groups without signal too, as TRL does.

The two are run alternately, as programs of their own. Start-up and the first two steps are not counted. TRL logs
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import ROOT, quiet, ratios, spread, table, trl_settings, write_results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pspo.config import TrainConfig

SKIPPED = 2
UPDATES = 4
SAME = [
    "surrogate=clip",
    "surrogate.epsilon_low=0.2",
    "surrogate.epsilon_high=0.2",
    "experiment=gentle",
    "learner.drop_no_signal=false",
    f"learner.minibatches={UPDATES}",
]
PHASES = ("rollout", "grade", "learn", "sync", "other")
GENERATION = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "continuous": {
        "use_transformers_continuous_batching": True,
        # Without these it takes its sizes from a GPU's memory, and on a CPU does not come to an end.
        "transformers_continuous_batching_config": {
            "page_size": 32,
            "num_blocks": 640,
            "max_batch_tokens": 1024,
            "max_requests_per_batch": 128,
        },
    },
    # Outside the versions that TRL names. Wants TORCHDYNAMO_DISABLE=1 VLLM_USE_AOT_COMPILE=0 VLLM_CPU_KVCACHE_SPACE=1
    # VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_ENABLE_V1_MULTIPROCESSING=0 on a CPU, and goes on sampling with the output
    # layer that it started with (pspo.rollout.vllm, _repack_head): no comparison, only a look.
    "vllm": {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 256},
}


# --- ours -------------------------------------------------------------------------------------------------------------


def ours(folder: str, steps: int, threads: int) -> list[dict[str, float]]:
    """One run; per counted step the seconds of each phase, reward and length."""
    settings = [*SAME, "rollout=vllm", f"run_dir={folder}/run", f"steps={steps}", f"threads={threads}"]
    settings += ["eval.every=0", "eval.at_end=false", "tracking.progress=false"]
    run_program([sys.executable, "-m", "pspo.train", *settings], threads)
    lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    found = []
    for line in (line for line in lines if line["step"] > SKIPPED):
        seconds = {phase: line.get(f"time/{phase}_s", 0.0) for phase in (*PHASES, "step")}
        found.append(seconds | {"reward": line["reward/mean"], "length": line["length/mean"]})
    return found


# --- TRL's ------------------------------------------------------------------------------------------------------------


def theirs(folder: str, steps: int, threads: int, generation: str) -> list[dict[str, float]]:
    """The same of a run of `trl_program`."""
    path = Path(folder, "trl.json")
    options = ["--trl", str(path), "--steps", str(steps), "--threads", str(threads), "--generation", generation]
    run_program([sys.executable, __file__, *options], threads)
    return json.loads(path.read_text())[SKIPPED:]


def trl_program(path: str, steps: int, threads: int, generation: str) -> None:
    """GRPOTrainer.train() over `steps` batches of prompts; writes what each took."""
    quiet()
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from pspo.config import TrainConfig, compose
    from pspo.data import load_tokenizer, make_prompter
    from pspo.grading import Grader
    from pspo.models import load_policy
    from pspo.startup import starting_checkpoint

    torch.set_num_threads(threads)
    cfg = compose("train", TrainConfig, [*SAME, f"steps={steps}", f"threads={threads}"])
    checkpoint = starting_checkpoint(cfg)
    tokenizer = load_tokenizer(checkpoint)
    prompter = make_prompter(cfg.prompt, cfg.data, tokenizer)
    problems = problems_of(cfg)
    rows = {"prompt": [prompter.text(p.question) for p in problems], "gold": [p.gold for p in problems]}
    grader, steps_seen = Grader(cfg.grading.workers, cfg.grading.timeout), []
    seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def clock(phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[phase] += time.perf_counter() - started

    def reward(prompts: Any, completions: list[str], completion_ids: list[list[int]], gold: list[str], **rest: Any):
        """As ours: 1 for a right answer in a completion that ended by itself."""
        grades = grader.grade([(c, g, prompter.style) for c, g in zip(completions, gold, strict=True)])
        ended = [ids[-1] in prompter.ends.ids for ids in completion_ids]
        found = [float(grade.correct and end) for grade, end in zip(grades, ended, strict=True)]
        told.update(reward=statistics.mean(found), length=statistics.mean(map(len, completion_ids)))
        return found

    told: dict[str, float] = {}

    class Timed(GRPOTrainer):
        """Where the time goes; nothing else is changed."""

        def _generate(self, prompts: Any) -> Any:
            with clock("rollout"):
                return super()._generate(prompts)

        def _calculate_rewards(self, *args: Any) -> Any:
            with clock("grade"):
                return super()._calculate_rewards(*args)

    class Steps(TrainerCallback):
        """A step is what lies between the ends of every fourth update, the data loader's time included."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % UPDATES == 0:
                now = time.perf_counter()
                whole, self.started = now - self.started, now
                learn = whole - seconds["rollout"] - seconds["grade"]
                steps_seen.append({**seconds, "learn": learn, "step": whole, **told})
                seconds.clear()

    with tempfile.TemporaryDirectory() as folder:
        per_update = cfg.rollout.sequences // UPDATES
        settings = trl_settings(
            folder,
            "cpu",
            per_device_train_batch_size=per_update,
            steps_per_generation=UPDATES,
            num_generations=cfg.rollout.group_size,
            max_completion_length=cfg.rollout.max_new_tokens,
            learning_rate=cfg.learner.lr,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=cfg.learner.warmup_updates,
            max_steps=steps * UPDATES,
            seed=cfg.seed,
            **GENERATION[generation],
        )
        trainer = Timed(
            model=load_policy(checkpoint),
            reward_funcs=reward,
            args=GRPOConfig(**settings),
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
            callbacks=[Steps()],
        )
        trainer.remove_callback(PrinterCallback)
        ids = [tuple(tokenizer(prompt)["input_ids"]) for prompt in rows["prompt"]]
        if ids != [prompter.encode(p.question) for p in problems] or {*trainer.eos_token_ids} != {*prompter.ends.ids}:
            sys.exit("TRL would be asked other prompts than ours, or end its completions elsewhere")
        trainer.train()
    grader.close()
    Path(path).write_text(json.dumps(steps_seen))


def problems_of(cfg: TrainConfig) -> list[Any]:
    """The problems of a run, step by step."""
    from pspo.data import load_problems
    from pspo.data.order import problems_of_step

    train = load_problems(cfg.data, "train", seed=cfg.seed)
    steps = range(1, cfg.steps + 1)
    return [p for step in steps for p in problems_of_step(train, cfg.seed, step, cfg.rollout.prompts)]


# ----------------------------------------------------------------------------------------------------------------------


def run_program(command: list[str], threads: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def medians(steps: list[dict[str, float]]) -> dict[str, float]:
    """Of a run: median seconds by phase, means of reward and length, completions a second over all counted steps."""
    found = {phase: statistics.median(step.get(phase, 0.0) for step in steps) for phase in (*PHASES, "step")}
    found |= {name: statistics.mean(step[name] for step in steps) for name in ("reward", "length")}
    return found | {"completions/s": 128 * len(steps) / sum(step["step"] for step in steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--generation", choices=sorted(GENERATION), default="dynamic", help="TRL's: kind of cache")
    parser.add_argument("--trl", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trl:
        trl_program(options.trl, options.steps, options.threads[0], options.generation)
        return

    subprocess.run([sys.executable, "-m", "pspo.sft"], cwd=ROOT, check=True)
    runs: dict[int, dict[str, list[dict[str, float]]]] = {}
    for threads in options.threads:
        runs[threads] = {"ours": [], "TRL": []}
        for _ in range(options.pairs):
            with tempfile.TemporaryDirectory() as folder:
                runs[threads]["ours"].append(medians(ours(folder, options.steps, threads)))
                runs[threads]["TRL"].append(medians(theirs(folder, options.steps, threads, options.generation)))

    columns = [(threads, side) for threads in runs for side in ("ours", "TRL")]
    rows = []
    for name in ("completions/s", "step", *PHASES, "reward", "length"):
        rows.append([name, *(spread([run[name] for run in runs[t][side]], 3) for t, side in columns)])
    faster = [ratios(*([run["completions/s"] for run in runs[t][s]] for s in ("ours", "TRL"))) for t in runs]
    rows.insert(1, ["ours over TRL's, by pairs", *(cell for ratio in faster for cell in (spread(ratio, 3), ""))])
    print(f"median of {options.pairs} runs (range); phases and step in seconds, of the median step of a run")
    print(table(["", *(f"{side}, {threads} threads" for threads, side in columns)], rows))
    write_results("loop", options=vars(options), runs=runs)


if __name__ == "__main__":
    main()
