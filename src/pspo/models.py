"""Policies: a small one made here, or one loaded from a checkpoint; and how a checkpoint's model is written.

Imports torch and transformers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from pspo.config.schema import Architecture
from pspo.data.tokenizer import HUB_FILES, first_line, looks_local
from pspo.errors import PspoError
from pspo.files import publish
from pspo.seeds import derive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What transformers raises for files that are no checkpoint, or that do not fit together.
UNLOADABLE = (OSError, ValueError, ImportError, RuntimeError, AssertionError, TypeError, KeyError, SafetensorError)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build(
    arch: Architecture, vocab_size: int, eos_id: int, pad_id: int, seed: int, attention: str = "eager"
) -> Qwen2ForCausalLM:
    """A Qwen2-architecture model with random weights that follow from `seed` alone, in float32 on the CPU.

    The global random state is as before afterwards. Nothing is padded: the embedding has `vocab_size` rows, so that no
    token without a text can be sampled.
    """
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=arch.hidden_size,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        intermediate_size=arch.mlp_size,
        max_position_embeddings=arch.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": arch.rope_theta},
        tie_word_embeddings=arch.tie_embeddings,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        attn_implementation=attention,
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "model"))
        return Qwen2ForCausalLM(config)


def load_policy(
    path: str | Path,
    revision: str | None = None,
    dtype: str = "float32",
    attention: str = "sdpa",
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """The model of a checkpoint directory or hub id, in `dtype` on `device`; code that comes with it is not executed.

    Raises PspoError where there is none, where its weights are not safetensors or not all there, or where `attention`
    is not to be had.
    """
    path = local_checkpoint(path, revision)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except UNLOADABLE as error:
        raise PspoError(f"{path}: no model could be loaded: {first_line(error)}") from error
    if missing := sorted(found["missing_keys"]):  # transformers draws them at random
        raise PspoError(f"{path}: its files lack {len(missing)} parameters of the model, the first {missing[0]}")
    return model.to(device)


def local_checkpoint(path: str | Path, revision: str | None = None) -> str:
    """The directory of a checkpoint: `path` itself, or where the hub's files of that id were stored on this machine.

    Of a hub repository only configs, tokenizer files and safetensors are fetched. Raises PspoError where there is none.
    """
    if looks_local(path):
        if not Path(path).is_dir():
            raise PspoError(f"{path}: no such checkpoint directory")
        return str(path)
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(str(path), revision=revision, allow_patterns=list(HUB_FILES))
    except (OSError, ValueError) as error:
        at = f" at revision {revision} (null takes the newest)" if revision else ""
        raise PspoError(
            f"{path}: neither a checkpoint directory nor found on the hub{at}: {first_line(error)}"
        ) from error


def read_weights(directory: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a checkpoint's safetensors files, one at a time; raises PspoError where there are none."""
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise PspoError(f"{directory}: no *.safetensors in it")
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - the file is no mapping
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise PspoError(f"{path} is damaged: {first_line(error)}") from error


def write_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """The files of a policy, into a directory that is there; arguments as of `save_policy`."""
    model.save_pretrained(directory, state_dict=weights)
    tokenizer.save_pretrained(directory)


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """Writes a checkpoint that `AutoModelForCausalLM` and `AutoTokenizer` load: weights as safetensors, and tokenizer.

    `weights`: instead of the model's own, where it is sharded or has adapters (`pspo.adapters.state_dict_to_save`).

    Complete or absent: everything is written beside `directory`, flushed to the disk, and then renamed. A directory
    that is already there is replaced.
    """
    target = Path(directory)
    fresh = target.with_name(f".{target.name}.writing-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        write_policy(model, tokenizer, fresh, weights)
        publish(fresh, target)
    except (OSError, SafetensorError) as error:
        raise PspoError(f"{target} cannot be written: {first_line(error)}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target
