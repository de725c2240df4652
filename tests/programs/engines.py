"""What an engine is asked on a CPU and on a GPU alike: its gap to the learner, and its answers after a sleep."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pspo.batching import Batch
from pspo.config import TrainConfig, compose
from pspo.data import load_tokenizer
from pspo.learner import Learner
from pspo.measures import gap_metrics
from pspo.models import load_policy
from pspo.rollout import Decoding, Sampler, make_sampler, sample
from pspo.surrogates import no_clip
from pspo.types import Completion, Sample

PROMPTS = [tuple(range(20 + k, 25 + 3 * k)) for k in range(8)]
NEW_TOKENS = 24
SHARE = 0.1
"""Of a GPU, for vLLM."""
Weights = list[tuple[str, Tensor]]
Groups = list[list[Completion]]


def settings(engine: str, device: str, dtype: str) -> TrainConfig:
    """The released code's temperature; a vLLM engine that can sleep."""
    vllm = ["rollout.vllm.sleep=true", f"rollout.vllm.gpu_memory_utilization={SHARE}"] if engine == "vllm" else []
    chosen = [f"rollout={engine}", f"device={device}", f"model.dtype={dtype}", "rollout.temperature=0.8"]
    return compose("train", TrainConfig, [*chosen, *vllm])


def engine_of(cfg: TrainConfig, checkpoint: str) -> Sampler:
    longest = max(map(len, PROMPTS)) + NEW_TOKENS
    return make_sampler(checkpoint, cfg.rollout, load_tokenizer(checkpoint), cfg.device, longest)


def draw(cfg: TrainConfig, engine: Sampler) -> Groups:
    """Four completions of each prompt, from the same seeds each time."""
    return sample(engine, PROMPTS, range(len(PROMPTS)), Decoding(NEW_TOKENS, cfg.rollout.temperature, n=4))


def gap(cfg: TrainConfig, checkpoint: str, engine: Sampler, temperature: float) -> float:
    """gap/abs_dev_mean: mean |r - 1| of what `engine` draws, r to a learner that applies `temperature`."""
    samples = [
        Sample(prompt, completion.token_ids, completion.log_probs, 1.0)
        for prompt, group in zip(PROMPTS, draw(cfg, engine), strict=True)
        for completion in group
    ]
    learner = Learner(
        load_policy(checkpoint, dtype="float32", device=cfg.device),
        no_clip,
        cfg.learner,
        compute_dtype=cfg.model.dtype,
        temperature=temperature,
        max_tokens=NEW_TOKENS,
        planned_updates=1,
    )
    batch = Batch.of(samples, cfg.device)
    return gap_metrics(learner.log_probs(batch, range(len(batch))) - batch.sampler)["gap/abs_dev_mean"]


def weights_of(cfg: TrainConfig, checkpoint: str) -> tuple[Weights, Weights]:
    """The checkpoint's, and others, on the device and in fp32, as the learner hands them over."""
    model = load_policy(checkpoint, dtype="float32", device=cfg.device)
    own = [(name, parameter.detach().clone()) for name, parameter in model.named_parameters()]
    generator = torch.Generator().manual_seed(5)
    other = [(name, value + 0.05 * torch.randn(value.shape, generator=generator).to(value)) for name, value in own]
    return own, other


def drawn_awake_and_after_sleep(
    cfg: TrainConfig, checkpoint: str, engine: Sampler, free: Callable[[], int]
) -> Iterator[tuple[Groups, Groups, int]]:
    """For the checkpoint's weights and for others: what is drawn where they came to an engine that was awake; to one
    that slept; and the bytes that `free` had more while it did. The engine held the other weights before it slept."""
    own, other = weights_of(cfg, checkpoint)
    for weights, before in ((own, other), (other, own)):
        engine.load(iter(weights))
        awake = draw(cfg, engine)
        engine.load(iter(before))
        had = free()
        engine.sleep()
        assert engine.asleep
        given_back = free() - had
        engine.load(iter(weights))
        assert not engine.asleep
        yield awake, draw(cfg, engine), given_back
