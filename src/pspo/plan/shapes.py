"""Sizes of a policy, from its config.json or settings, and the parameters that follow. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pspo.config import schema
from pspo.data.tokenizer import VOCABULARY
from pspo.errors import ConfigError, PspoError

KNOWN = Path(__file__).with_name("shapes.yaml")

FIELDS = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_size": "intermediate_size",
    "vocabulary": "vocab_size",
    "tied": "tie_word_embeddings",
}
"""Ours -> those of config.json."""
DENSE = ("qwen2", "qwen3", "llama", "mistral")
"""Architectures with these parts; what else they have, norms of heads or no biases, is a thousandth."""
LARGEST = 1 << 30


@dataclass(frozen=True)
class Shape:
    """A Qwen2-architecture policy: attention with grouped heads and biases on q, k and v, a gated MLP, two norms."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    mlp_size: int
    vocabulary: int
    tied: bool
    head_size: int | None = None
    """None: the width over the heads."""

    @property
    def kv_size(self) -> int:
        """Width of the keys, and of the values, of one token in one layer."""
        return self.kv_heads * (self.head_size or self.hidden_size // self.heads)

    @property
    def query_size(self) -> int:
        """The same of the queries, and of attention's output."""
        return self.heads * (self.head_size or self.hidden_size // self.heads)

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return self.matrices + self.query_size + 2 * self.kv_size + 2 * self.hidden_size

    @property
    def matrices(self) -> int:
        """Those of them that tokens are multiplied with: without norms and biases."""
        return self.hidden_size * (2 * self.query_size + 2 * self.kv_size + 3 * self.mlp_size)

    @property
    def embedding(self) -> int:
        """Parameters of the embedding; the output head has as many, its own or the same."""
        return self.vocabulary * self.hidden_size

    @property
    def total(self) -> int:
        return self.layers * self.layer + self.embedding * (1 if self.tied else 2) + self.hidden_size


def check_shared(shape: Shape, each: int) -> None:
    """Raises ConfigError for an engine of so many devices among which vLLM cannot deal the policy's heads: each has as
    many as the others, of keys and values whole ones or the same one as others."""
    if shape.heads % each or (shape.kv_heads % each and each % shape.kv_heads):
        allowed = f"must deal out the policy's {shape.heads} heads, and its {shape.kv_heads} of keys and values"
        raise ConfigError("rollout.vllm.tensor_parallel", each, allowed)


def shape_of(model: schema.Model, made: Path | None = None) -> Shape:
    """Of the policy that a config names: of the directory or the stored hub files, or from shapes.yaml. Of one that is
    made here (`made`: where, if it has been), whose vocabulary is at most so large before that.

    Raises PspoError where none of them has it.
    """
    if model.path is None:
        assert model.arch is not None  # checked by the schema
        if made is not None and (made / "config.json").is_file():
            return read_shape(made / "config.json")
        arch = model.arch
        sizes = (arch.hidden_size, arch.layers, arch.heads, arch.kv_heads, arch.mlp_size)
        return Shape(*sizes, vocabulary=VOCABULARY, tied=arch.tie_embeddings)
    if Path(model.path).is_dir():
        return read_shape(Path(model.path) / "config.json")
    if (stored := _stored(model.path, model.revision)) is not None:
        return read_shape(stored)
    known = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))
    if model.path not in known:
        raise PspoError(f"{model.path}: its sizes are not known here; fetch it first, or name its directory")
    return Shape(**known[model.path])


def read_shape(path: Path) -> Shape:
    """From a checkpoint's config.json. Raises PspoError where it is not there, is of an architecture that is counted
    otherwise, or lacks a size."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PspoError(f"{path}: no sizes can be read: {error}") from error
    if not isinstance(config, dict):
        raise PspoError(f"{path}: no sizes can be read: not an object")
    if (kind := config.get("model_type", "qwen2")) not in DENSE:
        raise PspoError(f"{path}: model_type {kind!r} is not counted here, only {', '.join(DENSE)}")
    heads = config.get("num_attention_heads")
    config = {"num_key_value_heads": heads, "tie_word_embeddings": False, **config}
    sizes: dict[str, Any] = {ours: config.get(theirs) for ours, theirs in FIELDS.items()}
    sizes["tied"] = sizes["tied"] is True
    if (width := config.get("head_dim")) is not None:
        sizes["head_size"] = width
    for ours, size in sizes.items():
        if ours != "tied" and not (type(size) is int and 0 < size < LARGEST):
            raise PspoError(f"{path}: {FIELDS.get(ours, 'head_dim')} is {size!r}, not a size")
    shape = Shape(**sizes)
    if shape.heads % shape.kv_heads or (shape.head_size is None and shape.hidden_size % shape.heads):
        raise PspoError(f"{path}: {shape.heads} heads do not divide among {shape.kv_heads}, or {shape.hidden_size}")
    return shape


def _stored(hub_id: str, revision: str | None) -> Path | None:
    """config.json of a hub repository, where it is on this machine; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    except ValueError:  # no id of a repository
        return None
    return Path(found) if isinstance(found, str) else None
