"""vLLM inside the process, CPU or CUDA; the only module that imports it. Facts about it: docs/engines.md.

Token ids go in and come out: the tokenizer is ours, so vLLM's cannot differ from it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pspo.config import schema
from pspo.data import eos_ids
from pspo.errors import PspoError
from pspo.types import Completion


class VllmSampler:
    """`pspo.rollout.Sampler` by vLLM."""

    def __init__(
        self, checkpoint: str, cfg: schema.Rollout, tokenizer: PreTrainedTokenizerBase, device: str, max_tokens: int
    ) -> None:
        assert cfg.vllm is not None  # checked by the schema
        self.tokenizer, self.eos, self.device = tokenizer, eos_ids(tokenizer), device
        _prepare(cfg.vllm, device)
        from vllm import LLM

        options: dict[str, Any] = {
            "model": checkpoint,
            "skip_tokenizer_init": True,
            "dtype": cfg.dtype,
            "enforce_eager": cfg.vllm.enforce_eager,
            "max_model_len": max_tokens,
            "max_num_seqs": cfg.vllm.max_sequences,
            "logprobs_mode": "processed_logprobs",  # after temperature and top-p: of the distribution sampled from
            "disable_log_stats": True,
            "trust_remote_code": False,
            "seed": 0,  # every request carries its own
            "use_tqdm_on_load": False,
        }
        if device == "cpu":
            # A seeded request whose prompt is prefilled in pieces dies on the CPU (vLLM 0.32.0): no pieces.
            options |= {
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": cfg.vllm.max_sequences * max_tokens,
                # A group shares its prompt's blocks; of the default 128 tokens no short prompt fills one.
                "block_size": 32,
            }
        else:
            options["gpu_memory_utilization"] = cfg.vllm.gpu_memory_utilization
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # vLLM seeds the global generators
            warnings.simplefilter("ignore")
            self.engine: Any = LLM(**options)

    def sample(
        self,
        prompts: Sequence[tuple[int, ...]],
        n: int,
        seeds: Sequence[int],
        temperature: float,
        top_p: float,
        max_new_tokens: int,
    ) -> list[list[Completion]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        parameters = [
            SamplingParams(
                n=n,
                seed=seed,
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_new_tokens,
                logprobs=0,  # of the sampled token alone
                stop_token_ids=list(self.eos),
                detokenize=False,
            )
            for seed in seeds
        ]
        requests = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        answers = self.engine.generate(requests, parameters, use_tqdm=False)
        return [[self._completion(output) for output in answer.outputs] for answer in answers]

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self.device == "cpu":
            self.engine.apply_model(_repack_head)
        if not self.engine.reset_prefix_cache():
            raise PspoError("vLLM kept its prefix cache after new weights: requests were still running")

    def close(self) -> None:
        self.engine.llm_engine.engine_core.shutdown()
        del self.engine

    def _completion(self, output: Any) -> Completion:
        ids = tuple(output.token_ids)
        finished = output.finish_reason == "stop"
        log_probs = tuple(at[token].logprob for token, at in zip(ids, output.logprobs, strict=True))
        return Completion(ids, log_probs, self.tokenizer.decode(ids[:-1] if finished else ids), finished)


def _repack_head(model: Any) -> None:
    """On a CPU vLLM multiplies by a packed copy of the output weight. Where that is tied to the embedding a reload
    renews the embedding and leaves the copy as it was (vLLM 0.32.0), so that the engine would go on sampling with the
    output layer it started with.
    """
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


def _prepare(cfg: schema.Vllm, device: str) -> None:
    """What vLLM reads from its environment, set before it is imported; a user's own setting wins."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process: weights are handed over as tensors
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if device == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(cfg.kv_cache_gib))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # One helper of vLLM's is compiled at first use, which needs a C++ compiler and 3 s for nothing gained here.
        import torch._dynamo

        torch._dynamo.config.disable = True
    logging.getLogger("transformers").setLevel(logging.ERROR)
