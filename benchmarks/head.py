"""The head, hidden states to log-probs and back, against the plain log-softmax and against its matrix products alone.

    .venv/bin/python benchmarks/head.py [--sizes 512x128 256x896] [--pairs 5] [--device cuda --dtype bfloat16]

Forward and backward of log-probs and entropy at Qwen's vocabulary, the loss a weighted sum of the log-probs (with
--entropy of the entropies as well). Three sides take turns in one process:

    tiled      pspo.logprobs.token_log_probs
    full       torch's log_softmax over the logits of all tokens at once, in fp32
    products   the four matrix products that tiled does, in its tiles, and nothing else: the least time it can take

Prints one table, medians over the rounds with their range, and writes benchmarks/results/head.json. Extra memory is the
peak less what was there before, gradients of hidden and weight included; on a CPU resident memory (Linux only).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable

import torch
from _common import ratios, resident, spread, start_peak, table, write_results
from torch import Tensor

from pspo.logprobs import tile_sizes, token_log_probs

MIB = 1 << 20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Side = Callable[[], None]


def make_sides(tokens: int, width: int, options: argparse.Namespace) -> dict[str, Side]:
    """The three sides on the same random tensors: fp32 sums, hidden of unit variance, logits of about unit variance."""
    device, dtype, vocabulary = torch.device(options.device), DTYPES[options.dtype], options.vocabulary
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(device, dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator).to(device)
    upstream = torch.randn(tokens, generator=generator).to(device)

    def learn(log_probs: Tensor, entropy: Tensor) -> None:
        loss = (upstream * log_probs).sum()
        (loss + 0.01 * entropy.sum() if options.entropy else loss).backward()
        hidden.grad = weight.grad = None

    def tiled() -> None:
        learn(*token_log_probs(hidden, weight, targets, options.temperature))

    def full() -> None:
        log_p = ((hidden @ weight.T).float() / options.temperature).log_softmax(dim=1)
        log_probs = log_p.gather(1, targets[:, None]).squeeze(1)
        with torch.set_grad_enabled(options.entropy):
            entropy = -(log_p.exp() * log_p).sum(dim=1)
        learn(log_probs, entropy)

    return {"tiled": tiled, "full": full, "products": products(hidden.detach(), weight.detach())}


def products(hidden: Tensor, weight: Tensor) -> Side:
    """Logits twice, d_hidden and d_weight, in fp32 on a CPU (as the head does there) and in the tensors' dtype else."""
    if hidden.device.type == "cpu":
        hidden, weight = hidden.float(), weight.float()
    rows, cols = tile_sizes(len(hidden), len(weight), hidden.device.type)
    logits = torch.zeros(rows * cols, dtype=hidden.dtype, device=hidden.device)
    d_hidden, d_block = torch.zeros_like(hidden), torch.zeros_like(weight[:cols])

    @torch.no_grad()
    def run() -> None:
        for column in range(0, len(weight), cols):
            block = weight[column : column + cols]
            for row in range(0, len(hidden), rows):
                states = hidden[row : row + rows]
                tile = logits[: len(states) * len(block)].view(len(states), len(block))
                for _ in range(2):
                    torch.mm(states, block.T, out=tile)
                d_hidden[row : row + rows].addmm_(tile, block, beta=0)
                d_block[: len(block)].addmm_(tile.T, states, beta=0)

    return run


def measure(side: Side, device: str) -> tuple[float, float]:
    """Seconds and peak extra MiB of one run."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / MIB
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed goes back to the system, not into this run's start
        start_peak()
        before = resident("VmRSS")
    start = time.perf_counter()
    side()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, (torch.cuda.max_memory_allocated() / MIB if device == "cuda" else resident("VmHWM")) - before


def compare(tokens: int, width: int, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Per side the seconds and extra MiB of each round, after one round that is not counted."""
    sides = make_sides(tokens, width, options)
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "extra_mib": []} for name in sides}
    for turn in range(-1, options.pairs):
        # every other round in reverse, so that no side always follows the same one
        for name in list(sides) if turn % 2 else reversed(sides):
            seconds, extra = measure(sides[name], options.device)
            if turn >= 0:
                found[name]["seconds"].append(seconds)
                found[name]["extra_mib"].append(extra)
    return found


def rows_of(size: str, found: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """One line a side: seconds, tokens/s, time over that of the products in the same round, extra memory."""
    tokens = int(size.split("x")[0])
    rows = []
    for name, side in found.items():
        share = ratios(found["products"]["seconds"], side["seconds"])
        memory = "" if name == "products" else spread(side["extra_mib"], 3)
        rate = f"{tokens / statistics.median(side['seconds']):,.0f}"
        rows.append([size, name, spread(side["seconds"], 3), rate, spread(share, 3), memory])
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["512x128", "256x896"], help="tokens x width of hidden")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--pairs", type=int, default=5, help="rounds counted")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--entropy", action="store_true", help="the loss has the entropies too")
    options = parser.parse_args()
    for size in options.sizes:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
            parser.error(f"--sizes: {size!r} is not TOKENSxWIDTH, as in 512x896")
    if options.pairs < 1 or options.vocabulary < 1:
        parser.error("--pairs and --vocabulary must be positive")
    return options


def main() -> None:
    options = parse()
    results = {}
    for size in options.sizes:
        tokens, width = (int(number) for number in size.split("x"))
        results[size] = compare(tokens, width, options)
    print(f"{options.device}, {options.dtype}, vocabulary {options.vocabulary:,}, {torch.get_num_threads()} threads")
    columns = ["s", "tokens/s", "products' time / its", "extra MiB"]
    rows = [row for size, found in results.items() for row in rows_of(size, found)]
    print(table(["tokens x width", f"median of {options.pairs} (range)", *columns], rows))
    name = "head" if options.device == "cpu" else f"head-{options.device}"
    write_results(name, options={**vars(options), "threads": torch.get_num_threads()}, sizes=results)


if __name__ == "__main__":
    main()
