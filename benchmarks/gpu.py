"""What one NVIDIA card does of this project's work: rates, memory, and the plan's figures beside them.

    .venv/bin/python benchmarks/gpu.py [--only learner sync] [--minutes 9.5] [--set model.attention=padded ...]
    .venv/bin/python benchmarks/gpu.py --device cpu --small        # the same code at toy sizes, to see that it runs

Random weights in the shapes of Qwen2-1.5B and, for whole steps, Qwen2-0.5B; nothing is fetched. Parts, each a process
of its own, in this order:

    products  bf16 matrix products of the policy's sizes: the rate that the card reaches
    learner   updates of 64 completions in 16 groups, as long as GSM8K's: tokens/s, model-flops utilisation against that
              rate and the data sheet's, peak memory, and the plan's figures; as it is, with layers computed twice, with
              moments in the host's memory, and with layers compiled
    trl       TRL's GRPOTrainer with the same batch, from the same weights; losses and gradient norms are compared
    sampling  completion tokens/s of the engine, at two numbers of sequences
    sync      new weights to the engine, which is awake or, where it is vLLM, has slept
    loop      a run of pspo.train: seconds of its phases, and the plan's

Model-flops utilisation: the flops that the model needs for the batch (`_gpu_common.model_flops`: 6 for each weight and
token, 12 for each element of a query that meets a key), over the seconds of an update, over a rate of matrix products.

What is not installed, fails, or no longer fits into --minutes is left out and says so. On a GPU it writes
benchmarks/results/gpu-<card>.json; at toy sizes and on a CPU only where --out names a directory. Without a card it says
so and ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from _common import GIVEN_BACK, RESULTS, Seen, gap, make_checkpoint, spread, table, write_results
from _gpu_common import DATA_SHEET, Work, card_of, machine_of
from _gpu_engine import PHASES, measure_sampling, measure_steps, measure_sync
from _gpu_learner import VARIANTS, measure_learner, measure_products, measure_trl

Found = dict[str, Any]
POLICIES = "policies"
PARTS: dict[str, Callable[[Work], Found]] = {
    "products": measure_products,
    **{name: partial(measure_learner, overrides=overrides) for name, overrides in VARIANTS.items()},
    "trl": measure_trl,
    "sampling": measure_sampling,
    "sync": measure_sync,
    "loop": measure_steps,
}
SECTIONS = tuple(dict.fromkeys(name.split(",")[0] for name in PARTS))
LEAST_S = 20.0
"""A part that has less time than this is not begun."""


# --- processes --------------------------------------------------------------------------------------------------------


def make_policies(work: Work) -> Found:
    """The policies of the parts; what the device is called, and what is known of it."""
    for name in ("learner", "loop"):
        make_checkpoint(getattr(work.sizes, name), work.sizes.vocabulary, work.policies / name, work.dtype)
    machine = machine_of(work.device)
    return {"card": card_of(work.device), "machine": None if machine is None else vars(machine)}


def measured_apart(name: str, policies: str, seconds: float) -> Found:
    """What a part finds in a process of its own, with the options of this one; `left_out` where it finds nothing."""
    if seconds < LEAST_S:
        return {"left_out": "no time left"}
    with tempfile.TemporaryDirectory() as folder:
        found, said = Path(folder, "found.json"), Path(folder, "said")
        command = [sys.executable, __file__, *sys.argv[1:], "--part", name, "--policies", policies, "--found", found]
        with said.open("w") as stream:
            child = subprocess.Popen(
                command, stdout=stream, stderr=stream, env=os.environ | GIVEN_BACK, start_new_session=True
            )
        try:
            status = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"left_out": f"took more than the {seconds:.0f} s that were left"}
        finally:
            end_group(child)
        if status == 0:
            return json.loads(found.read_text())
        lines = said.read_text(errors="replace").strip().splitlines() or ["nothing said"]
        return {"left_out": f"failed with status {status}: {lines[-1][:500]}", "said": lines[-40:]}


def end_group(child: subprocess.Popen[Any]) -> None:
    """The process, and those that it has left behind: graders, an engine."""
    with suppress(ProcessLookupError):  # it has ended, and left none
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_part(options: argparse.Namespace) -> None:
    work = Work.of(options)
    found = make_policies(work) if options.part == POLICIES else PARTS[options.part](work)
    options.found.write_text(json.dumps(found))


# --- what is printed --------------------------------------------------------------------------------------------------


def report(device: Found, parts: Mapping[str, Found]) -> Found:
    """Prints the tables; what was computed for them."""
    there = {name: found for name, found in parts.items() if "left_out" not in found}
    print(f"\n{device['card']}; median (range)\n")
    derived: Found = {}
    if "products" in there:
        rates = there["products"]["tflops"]
        rows = [[size, spread(values)] for size, values in rates.items()]
        print(table([f"products in {there['products']['dtype']}", "Tflops"], rows), end="\n\n")
    learners = {name: found for name, found in there.items() if name in VARIANTS}
    if learners:
        derived["learner"] = report_learner(device, there, learners)
    if "sampling" in there:
        derived["sampling"] = report_sampling(there["sampling"])
    if "sync" in there:
        derived["sync"] = report_sync(there["sync"])
    if "loop" in there:
        report_loop(there["loop"])
    for name, found in parts.items():
        if "left_out" in found:
            print(f"left out: {name}: {found['left_out']}")
    return derived


def report_learner(device: Found, there: Mapping[str, Found], learners: Mapping[str, Found]) -> Found:
    """Tokens/s, utilisation by the rate that it is of, and memory, of our variants and TRL's trainer."""
    against = {"products": there["products"]["best_tflops"]} if "products" in there else {}
    known = device["machine"] or {}
    if known.get("name") in DATA_SHEET:
        against["data sheet"] = DATA_SHEET[known["name"]]
    same = next(iter(learners.values()))  # the batch is that of all
    sides = {**learners, **({"TRL": there["trl"]} if "trl" in there else {})}
    derived: Found = {}
    rows = []
    for name, found in sides.items():
        seconds = [update["seconds"] for update in found["updates"][1:]]
        rates = [same["tokens"] / s for s in seconds]
        used = {of: [same["model_flops"] / s / 1e12 / rate for s in seconds] for of, rate in against.items()}
        derived[name] = {"tokens_per_s": rates, "utilisation": used}
        planned = [f"{same['tokens'] / found['planned_s']:,.4g}" if found.get("planned_s") else "-"]
        planned += [f"{found['planned_mib']:,.0f}" if "planned_mib" in found else "-"]
        peak = f"{found['peak_mib']:,.0f}"
        rows.append(
            [name, spread(rates), planned[0], *(spread(values, 3) for values in used.values()), peak, planned[1]]
        )
    head = [
        "an update",
        "tokens/s",
        "planned",
        *(f"utilisation of {of}" for of in against),
        "peak, MiB",
        "planned, MiB",
    ]
    print(table(head, rows), end="\n\n")
    for name, found in learners.items() if "trl" in there else ():
        loss, norm = derived[name]["difference_from_trl"] = differences(found, there["trl"])
        print(f"{name}: loss within {loss:.1e} of TRL's, gradient norm within {norm:.1e} of it")
    return derived


def differences(ours: Found, theirs: Found) -> tuple[float, float]:
    """Largest of the losses, and of the gradient norms relative to theirs."""
    both = zip(ours["updates"], theirs["updates"], strict=True)
    losses, norms = zip(*(gap(Seen(**a), Seen(**b)) for a, b in both), strict=True)
    return max(losses), max(norms)


def report_sampling(found: Found) -> Found:
    rates = {n: [turn["tokens"] / turn["seconds"] for turn in turns] for n, turns in found["sequences"].items()}
    rows = [[n, spread(values)] for n, values in rates.items()]
    print(table([f"sequences at once, {found['engine']}", "completion tokens/s"], rows), end="\n\n")
    return {"tokens_per_s": rates}


def report_sync(found: Found) -> Found:
    """GB/s of fp32 weights; what falling asleep gives back."""
    rates = {
        state: [found["bytes"] / s / 1e9 for s in found[f"{state}_s"]]
        for state in ("awake", "asleep")
        if f"{state}_s" in found
    }
    rows = [[state, spread(found[f"{state}_s"], 3), spread(gbs, 3)] for state, gbs in rates.items()]
    print(table([f"new weights, {found['bytes'] / 1e9:.3g} GB, {found['engine']}", "s", "GB/s"], rows), end="\n\n")
    if "asleep" in rates:
        slept, freed = spread(found["falling_asleep_s"], 3), spread(found["given_back_mib"])
        print(f"falling asleep takes {slept} s and gives back {freed} MiB\n")
    return {"gb_per_s": rates}


def report_loop(found: Found) -> None:
    planned: Mapping[str, float] = found.get("planned", {})
    rows = [
        [phase, f"{found['medians'][f'time/{phase}_s']:.3g}", f"{planned[phase]:.3g}" if phase in planned else "-"]
        for phase in (*PHASES, "step")
    ]
    print(table([f"of a step, {found['engine']}", "s", "planned, s"], rows), end="\n\n")
    print(f"learner and engine: ratios within {found['gap']:.1e} of 1 on average\n")


# ----------------------------------------------------------------------------------------------------------------------


def chosen_parts(only: Iterable[str]) -> list[str]:
    return [name for name in PARTS if name in only or name.split(",")[0] in only]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    installed = "vllm" if importlib.util.find_spec("vllm") else "hf"
    parser.add_argument("--engine", choices=["vllm", "hf"], default=installed)
    parser.add_argument("--only", nargs="+", choices=sorted({*SECTIONS, *PARTS}), default=SECTIONS, metavar="PART")
    parser.add_argument("--minutes", type=float, default=9.5, help="what has not begun or ended by then is left out")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of pspo.train")
    parser.add_argument("--out", type=Path, help="the directory of the JSON")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--policies", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.minutes >= LEAST_S / 60:  # so that nan is none as well
        parser.error(f"--minutes {options.minutes}: at least {LEAST_S / 60:.1f}")
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out {options.out}: {error}")
    return options


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def main() -> None:
    options = parsed()
    if options.part:
        run_part(options)
        return
    if options.device == "cuda" and not has_gpu():
        print("skipped: needs an NVIDIA GPU; --device cpu --small runs the same code at toy sizes")
        return
    ends = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as policies:
        device = measured_apart(POLICIES, policies, ends - time.monotonic())
        if "left_out" in device:
            sys.exit("\n".join(["the policies could not be made", *device.get("said", [device["left_out"]])]))
        parts = {}
        for name in chosen_parts(options.only):
            started = time.monotonic()
            parts[name] = measured_apart(name, policies, ends - started)
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    derived = report(device, parts)
    out = options.out or (RESULTS if options.device == "cuda" and not options.small else None)
    if out is not None:
        card = re.sub(r"[^a-z0-9]+", "-", device["card"].lower()).strip("-")
        asked = {key: value for key, value in vars(options).items() if key not in ("part", "policies", "found", "out")}
        write_results(f"gpu-{card}", out, options=asked, device=device, parts=parts, derived=derived)


if __name__ == "__main__":
    main()
