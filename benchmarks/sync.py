"""The learner's weights into the sampler, against the size of the policy: time of a load, and memory on top.

    .venv/bin/python benchmarks/sync.py [--sizes tiny 20M 200M 20M+qwen] [--sharded 20M] [--loads 7]

Policies of random fp32 weights, the smallest with the small world's architecture, the last with Qwen's vocabulary,
whose tied embedding is one parameter of 297 MiB. What is timed is the whole of `Run.sync`: `Learner.weights()` into
`Sampler.load()`, parameter by parameter, for either engine. A process for each size, since an engine of vLLM's that is
closed takes others with it. The sizes of --sharded are measured on two ranks as well: the policy is spread over them
(FSDP2, gloo), and each has an engine of its own.

Extra memory is the largest resident set during a load less that before it, of one rank; Linux only. It is taken in a
process of its own in which malloc is told from the start to give back what is freed, which makes loads twice as slow. A
sync that gathered the whole policy first would show all of it there.

Prints one table, medians over the loads after the first with their range, and writes benchmarks/results/sync.json.
Without vLLM it says so and measures plain transformers alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from _common import (
    GIVEN_BACK,
    MIB,
    QWEN,
    ROOT,
    architecture,
    make_checkpoint,
    resident,
    spread,
    start_peak,
    table,
    write_results,
)

if TYPE_CHECKING:
    from pspo.learner import Learner
    from pspo.ranks import Ranks
    from pspo.rollout import Sampler

GIB = 1 << 30
SMALL = 369  # entries of the small world's vocabulary


class Size(NamedTuple):
    """Shape of a policy."""

    width: int
    layers: int
    vocabulary: int = SMALL


SIZES = {
    "tiny": Size(128, 4),
    "5M": Size(256, 8),
    "20M": Size(512, 8),
    "80M": Size(1024, 8),
    "200M": Size(1024, 21),
    "20M+qwen": Size(512, 8, QWEN),
}
DEFAULT = ["tiny", "20M", "200M", "20M+qwen"]


# --- one process of one size ------------------------------------------------------------------------------------------


def measure(checkpoint: Path, engine: str, loads: int, ranks: Ranks) -> dict[str, Any]:
    """Seconds of each load and MiB on top during it, of this rank."""
    from pspo.config import TrainConfig, compose
    from pspo.data import load_tokenizer
    from pspo.learner import make_learner
    from pspo.rollout import make_sampler
    from pspo.startup import prepare

    cfg = compose("train", TrainConfig, [f"rollout={engine}", f"model.path={checkpoint}", "model.arch=null"])
    prepare(cfg.device, cfg.threads)
    tokenizer = load_tokenizer(str(checkpoint))
    sampler = ranks.together(
        lambda: make_sampler(str(checkpoint), cfg.rollout, tokenizer, cfg.device, 192, ranks=ranks), "the samplers"
    )
    learner = ranks.together(lambda: make_learner(cfg, str(checkpoint), ranks), "the policy")
    of_all, of_a_layer = (
        [p.numel() * p.element_size() for p in module.parameters()]
        for module in (learner.model, learner.model.base_model.layers[0])
    )
    load = partial(one_load, learner, sampler, ranks)
    load()  # sets up what later ones use
    seconds, extra = zip(*(load() for _ in range(loads)), strict=True)
    sampler.close()
    sizes = {"bytes": sum(of_all), "layer_bytes": sum(of_a_layer), "largest_parameter_bytes": max(of_all)}
    return {"seconds": seconds, "extra_mib": extra, **sizes}


def one_load(learner: Learner, sampler: Sampler, ranks: Ranks) -> tuple[float, float]:
    """Seconds and MiB."""
    ranks.barrier("the next load")
    start_peak()
    before, started = resident("VmRSS"), time.perf_counter()
    with ranks.expecting("handing the weights to the samplers"):
        sampler.load(learner.weights())
    return time.perf_counter() - started, resident("VmHWM") - before


def child(checkpoint: Path, engines: list[str], loads: int, out: Path) -> None:
    """All engines in turn, vLLM last."""
    from pspo.ranks import joined

    with joined("cpu", timeout=300) as ranks:
        found = {engine: measure(checkpoint, engine, loads, ranks) for engine in engines}
        if ranks.first:
            out.write_text(json.dumps(found))


# ----------------------------------------------------------------------------------------------------------------------


def measured_apart(checkpoint: Path, engines: list[str], loads: int, ranks: int) -> dict[str, Any]:
    """What `child` finds by engine: seconds of one program (or one a rank), memory of another."""
    timed = run_child(checkpoint, engines, loads, ranks, {})
    held = run_child(checkpoint, engines, loads, ranks, GIVEN_BACK)
    return {engine: timed[engine] | {"extra_mib": held[engine]["extra_mib"]} for engine in engines}


def run_child(checkpoint: Path, engines: list[str], loads: int, ranks: int, told: dict[str, str]) -> dict[str, Any]:
    """`told`: variables of its environment."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    out = checkpoint.with_name("found.json")
    asked = [str(checkpoint), "--engines", *engines, "--loads", str(loads), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | told
    command = [sys.executable, *launch, __file__, "--child", *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=DEFAULT)
    parser.add_argument("--loads", type=int, default=7)
    parser.add_argument("--sharded", nargs="*", choices=list(SIZES), default=["20M"], help="on two ranks as well")
    parser.add_argument("--child", type=Path, metavar="CHECKPOINT", help=argparse.SUPPRESS)
    parser.add_argument("--engines", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.engines, options.loads, options.out)
        return

    engines = ["hf", "vllm"]
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed: plain transformers alone")
        engines = ["hf"]
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder, "checkpoint")
            size = SIZES[name]
            make_checkpoint(architecture(size.width, size.layers), size.vocabulary, checkpoint)
            found[name] = {
                ranks: measured_apart(checkpoint, engines, options.loads, ranks)
                for ranks in ((1, 2) if name in options.sharded else (1,))
            }
    report(options, found)


def report(options: argparse.Namespace, found: dict[str, dict[int, dict[str, Any]]]) -> None:
    rows = []
    for by_ranks in found.values():
        for ranks, by_engine in by_ranks.items():
            for engine, seen in by_engine.items():
                size, seconds = seen["bytes"], seen["seconds"]
                rows.append(
                    [
                        f"{size / 4e6:.3g} M",
                        f"{size / MIB:,.1f}",
                        engine,
                        str(ranks),
                        spread([1000 * s for s in seconds], 3),
                        spread([size / GIB / s for s in seconds], 3),
                        spread(seen["extra_mib"], 3),
                        *(f"{seen[part] / MIB:,.3g}" for part in ("layer_bytes", "largest_parameter_bytes")),
                    ]
                )
    print(f"fp32, 1 thread a rank; median of {options.loads} loads (range)")
    head = ["parameters", "weights, MiB", "engine", "ranks", "load, ms", "GiB/s", "extra memory, MiB"]
    print(table([*head, "a layer, MiB", "largest parameter, MiB"], rows))
    kept = {name: value for name, value in vars(options).items() if name not in ("child", "engines", "out")}
    write_results("sync", options=kept, sizes=found)


if __name__ == "__main__":
    main()
