"""vLLM inside the process, CPU or CUDA; the only module that imports it. Facts about it: docs/engines.md.

Token ids go in and come out: the tokenizer is ours, so vLLM's cannot differ from it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pspo.config import schema
from pspo.data import Ends
from pspo.errors import PspoError
from pspo.plan.memory import PREFILL
from pspo.ranks import Ranks
from pspo.rollout import Decoding
from pspo.rollout.completions import completion_of
from pspo.types import Completion

ALONE = 0.9
"""Share of a GPU for an engine that has it to itself: vLLM's default."""


class VllmSampler:
    """`pspo.rollout.Sampler` by vLLM."""

    def __init__(
        self,
        checkpoint: str,
        cfg: schema.Rollout,
        tokenizer: PreTrainedTokenizerBase,
        device: str,
        max_tokens: int,
        ends: Ends,
        ranks: Ranks,
    ) -> None:
        assert cfg.vllm is not None  # checked by the schema
        self.sleeps = cfg.vllm.sleep
        self.tokenizer, self.device, self.eos, self.stop = tokenizer, device, ends.ids, ends.strings
        _prepare(cfg.vllm, device)
        from vllm import LLM

        options: dict[str, Any] = {
            "model": checkpoint,
            "skip_tokenizer_init": not ends.strings,  # it looks for stop strings in its own decoded text
            "dtype": cfg.dtype,
            "enforce_eager": cfg.vllm.enforce_eager,
            "max_model_len": max_tokens,
            "max_num_seqs": cfg.vllm.max_sequences,
            "tensor_parallel_size": cfg.vllm.tensor_parallel,
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
            options |= {
                "gpu_memory_utilization": cfg.vllm.gpu_memory_utilization or ALONE,
                "max_num_batched_tokens": max(PREFILL, max_tokens),
                "enable_sleep_mode": cfg.vllm.sleep,  # memory that can be given back is allocated otherwise
            }
        if ranks.size > 1:
            # Engines in a process group that is there already: vLLM's name for it. Ranks that share one are neighbours.
            # A process alone, which evaluates, has vLLM start others for its parts.
            options |= {"distributed_executor_backend": "external_launcher"}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # vLLM seeds the global generators
            warnings.simplefilter("ignore")
            self.engine: Any = LLM(**options)

    def stream(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], decoding: Decoding
    ) -> Iterator[tuple[int, list[Completion]]]:
        from vllm.inputs import TokensPrompt

        if self.asleep:
            raise RuntimeError("the engine is asleep: it samples after new weights")
        engine = self.engine.llm_engine
        waiting: dict[str, int] = {}  # id of a request in the engine -> index of its prompt
        try:
            for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                tokens = TokensPrompt(prompt_token_ids=list(prompt))
                engine.add_request(str(index), tokens, self._parameters(decoding, seed))
                waiting[str(index)] = index
            while engine.has_unfinished_requests():
                for answer in engine.step():
                    if answer.finished:
                        index = waiting.pop(answer.request_id)
                        yield index, [self._completion(output) for output in answer.outputs]
        finally:  # whoever listened has stopped early: the engine must not go on with the rest
            if waiting:
                engine.abort_request(list(waiting))

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Woken in this order, memory for keys and values is taken when what streaming weights needs has been given
        back, and nothing that was computed with the old weights is found in it. After an error it is of no use."""
        if asleep := self.asleep:
            self.engine.wake_up(["weights"])
        self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self.device == "cpu":
            self.engine.apply_model(_repack_head)
        self.forget()
        if asleep:
            self.engine.wake_up(["kv_cache"])

    def sleep(self) -> None:
        """Level 2: the weights are dropped, not copied to the host, since new ones come. On a CPU vLLM goes through the
        same states and keeps its memory."""
        if self.sleeps and not self.asleep:
            self.engine.sleep(level=2)

    @property
    def asleep(self) -> bool:
        return self.engine.llm_engine.is_sleeping()

    def forget(self) -> None:
        if not self.engine.reset_prefix_cache():
            raise PspoError("vLLM kept its prefix cache: requests were still running")

    def close(self) -> None:
        self.engine.llm_engine.engine_core.shutdown()
        del self.engine

    def _parameters(self, decoding: Decoding, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=decoding.n,
            seed=seed,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            max_tokens=decoding.max_new_tokens,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,  # as one list, instead of a dictionary with an object for each token
            stop=list(self.stop),
            stop_token_ids=list(self.eos),
            detokenize=bool(self.stop),
            skip_special_tokens=False,  # as in our own text, in which the stop strings are looked for
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, output: Any) -> Completion:
        log_probs = output.logprobs.logprobs
        assert output.logprobs.token_ids == list(output.token_ids)  # one entry a token, its own
        return completion_of(tuple(output.token_ids), log_probs, self.tokenizer, self.eos, self.stop)


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
        # A helper of vLLM's is compiled at first use, which needs a C++ compiler and 3 s for nothing gained here: torch
        # captures it and runs its operators as they are. Not switched off for the process: model.compile is in it too.
        from vllm.platforms import current_platform

        current_platform.simple_compile_backend = "eager"
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # it warns that a CPU has none
    logging.getLogger("transformers").setLevel(logging.ERROR)
