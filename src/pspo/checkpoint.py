"""Checkpoints on disk: where a policy's files are, and its weights read one by one. Imports: safetensors, huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from pspo.data.tokenizer import looks_local
from pspo.errors import PspoError


def local_checkpoint(path: str, revision: str | None) -> str:
    """A directory with the files of a checkpoint directory or hub id, fetched where needed.

    Learner, sampler and tokenizer then load from the same files, whatever changes on the hub meanwhile. Raises PspoError
    where there is no such directory, or the hub cannot be reached and its cache does not hold the files.
    """
    if Path(path).is_dir():
        return path
    if looks_local(path):
        raise PspoError(f"{path}: no such checkpoint directory")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(path, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])
    except Exception as error:  # the hub client's many kinds of failure, all of them the user's to mend
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PspoError(f"{path}: cannot be fetched from the hub and is no directory: {reason}") from error


def read_weights(directory: str | Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint's safetensors files under their names, one at a time."""
    for file in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  not a mapping
                yield name, opened.get_tensor(name)
