"""Some updates of a small policy under torchrun, or in one process: python updates.py OUT [key=value ...]

Writes the weights, the statistics and what the batch knows of its tokens to OUT, from rank 0.
"""

import random
import sys
from dataclasses import replace

import torch
from small import small_policy
from torch._dynamo.utils import counters

from pspo import offload
from pspo.batching import Batch, minibatches
from pspo.config import TrainConfig, compose, schema
from pspo.learner import Learner
from pspo.objective import UpdateStats
from pspo.ranks import joined
from pspo.surrogates import clip
from pspo.types import Sample

VOCAB = 31


def samples_of(groups):
    rng = random.Random(0)

    def ids(n):
        return tuple(rng.randrange(VOCAB) for _ in range(n))

    prompts = [(k, *ids(rng.randint(1, 9))) for k in range(groups)]
    return [
        Sample(prompt, (c := ids(rng.randint(1, 14))), tuple(-rng.random() * 6 for _ in c), rng.choice([-1.0, 0.4]))
        for prompt in prompts
        for _ in range(4)
    ]


def main():
    out, *settings = sys.argv[1:]
    torch.set_num_threads(1)
    chosen = dict(setting.split("=") for setting in settings)
    groups, parts, lora = (int(chosen.pop(name, at)) for name, at in (("groups", 6), ("parts", 2), ("lora", 0)))
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}[chosen.pop("dtype", "fp64")]
    compute, compiler = chosen.pop("compute", "float32"), chosen.pop("compiler", None)
    budget = int(chosen.pop("token_budget", 1024))
    offload.PIECE = int(chosen.pop("piece", offload.PIECE))
    overrides = [f"learner.{name}={value}" for name, value in chosen.items()]
    cfg = compose("train", TrainConfig, [*overrides, "learner.old_log_probs=learner"]).learner
    cfg = replace(cfg, token_budget=budget, lr=1e-2, warmup_updates=0, schedule="constant")
    with joined("cpu", timeout=150) as ranks:  # layers may be compiled meanwhile
        model = small_policy(dtype=dtype, vocab=VOCAB)
        reference = small_policy(dtype=dtype, vocab=VOCAB) if cfg.kl_coef and not lora else None
        if lora:
            from pspo.adapters import add_lora

            add_lora(model, schema.Lora(4, 8.0, ("all-linear",)), seed=0)
        learner = Learner(
            model,
            clip,
            cfg,
            compute_dtype=compute,
            temperature=0.8,
            max_tokens=14,
            planned_updates=100,
            reference=reference,
            ranks=ranks,
            compiler=compiler,
        )
        number, ghosts, norms, stats = 0, 0, [], UpdateStats()
        for step in range(2):
            batch = Batch.of(samples_of(groups))
            if cfg.kl_coef:
                batch.reference = learner.reference_log_probs(batch)
            for inner in range(2):
                for part in minibatches(batch, parts, seed=10 * step + inner, of=cfg.minibatch_of):
                    ghosts += sum(pack.ghost for pack in learner._packs(batch, part))
                    mine = learner.update(batch, part, number)
                    norms.append(mine.grad_norm)
                    stats = stats + mine
                    number += 1
        nothing = learner.log_probs(Batch.of([]), [])  # of a step in which no group gave a signal
        assert len(nothing) == 0
        learner.log_probs(batch, [0])  # leaves a sharded policy's embedding whole, were it not for a reshard
        all_stats = UpdateStats.total(ranks.gather(stats, "statistics"))
        weights = {name: weight.clone() for name, weight in learner.weights()}
        found = {"weights": weights, "norms": torch.tensor(norms), "old": batch.old, "before": batch.before}
        found["graphs"] = torch.tensor(counters["stats"]["unique_graphs"])
        found["ghosts"] = torch.tensor(ranks.sum([ghosts], "ghosts"))
        found["stats"] = torch.tensor([all_stats.tokens, all_stats.abs_dev, all_stats.entropy, all_stats.loss])
        if ranks.first:
            torch.save(found, out)


if __name__ == "__main__":
    main()
