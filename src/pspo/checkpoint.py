"""Checkpoints: everything that the next step of a run depends on, complete or absent.

    checkpoints/step-N/
      config.json, model.safetensors, tokenizer ...   the policy; AutoModelForCausalLM.from_pretrained loads it
      state/*.safetensors    tensors that only training needs: optimiser, adapters, generators; each rank's shard
      manifest.json          the step, what the run remembers, and size and BLAKE2b sum of every file

A checkpoint is written beside its place, flushed, and renamed. Before it is loaded every file is compared with the
manifest. State is read by torch.distributed.checkpoint, which deals shards of N ranks out to M; nothing is pickled.
Checkpoints are taken between two steps, where there is no batch under way, no inner pass begun, and every seed follows
from the number of the step. Imports: torch, safetensors, the rooms of files and ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from pspo.errors import PspoError
from pspo.files import flush, publish, remove, set_aside
from pspo.ranks import Ranks
from pspo.rundir import CHECKPOINT

FORMAT = 2
STATE, MANIFEST, SUM = "state", "manifest.json", "blake2b"
UNWRITABLE = (OSError, SafetensorError, CheckpointException)
NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Of a checkpoint: that is damage. Other errors of reading may pass, and what cannot be read now is not given up."""
GARBLED = (*NOT_THERE, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that has been verified: `memory` is what the run noted beside the tensors."""

    step: int
    path: Path
    memory: dict[str, Any]


class Checkpoints:
    """Those of one run of `steps` steps, in `directory`, which it holds. Every rank calls every method."""

    def __init__(self, directory: Path, steps: int, ranks: Ranks) -> None:
        self.directory, self.last, self.ranks = directory, steps, ranks

    def at(self, step: int) -> Path:
        return self.directory / f"step-{step}"

    def steps(self) -> list[int]:
        """Of those that are there, whole or damaged."""
        found = (re.fullmatch(CHECKPOINT, name) for name in self._names())
        return sorted(int(match[1]) for match in found if match)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _not_now(self.directory, error) from error

    def save(
        self, step: int, policy: Callable[[Path], None], state: Mapping[str, Tensor], memory: Mapping[str, Any]
    ) -> None:
        """Writes step-N. `policy(directory)` writes the policy's files; the first rank alone calls it.

        Raises PspoError where it cannot be written; what was there before is as it was.
        """
        what, target = f"writing step-{step}", self.at(step)
        fresh = target.with_name(f".{target.name}.writing")

        def begin() -> None:
            shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
            if not self.directory.exists():
                self.directory.mkdir()
                flush(self.directory.parent)
            fresh.mkdir()
            (fresh / STATE).mkdir()
            policy(fresh)

        def end() -> None:
            manifest = {"format": FORMAT, "step": step, "memory": memory, "files": dict(sorted(sums.items()))}
            (fresh / MANIFEST).write_text(json.dumps({**manifest, "sum": _sum_of_json(manifest)}, indent=1) + "\n")
            publish(fresh, target)

        try:
            self.ranks.from_first(begin, what)
            self.ranks.together(lambda: _write_tensors(fresh / STATE, state, self.ranks), what)
            # A rank sees its own files for certain, and those of another machine perhaps later.
            files = sorted({name for names in self.ranks.gather(_files_of(fresh), what) for name in names})
            mine = self.ranks.together(lambda: {name: _sum_of(fresh / name) for name in self.ranks.share(files)}, what)
            sums = {name: entry for share in self.ranks.gather(mine, what) for name, entry in share.items()}
            self.ranks.from_first(end, what)
        except UNWRITABLE as error:
            before = [f"step-{other}" for other in self.steps() if other != step][-1:]
            goes_on = f"the same command goes on from {before[0]}" if before else "nothing was saved before it"
            raise PspoError(f"{target} cannot be written: {' '.join(str(error).split())[:500]}; {goes_on}") from error
        finally:
            if self.ranks.first:
                shutil.rmtree(fresh, ignore_errors=True)

    def newest(self) -> Saved | None:
        """The newest that is whole and holds a state, which after the last step is not needed; None where there is
        none. Says which it skips, and why. Raises PspoError where one cannot be read, which need not be damage."""
        for step in reversed(self.ranks.from_first(self._tidied, "looking for checkpoints")):
            saved = self._verified(step)
            if isinstance(saved, Saved):
                return saved
            if self.ranks.first:
                print(f"pspo: {self.at(step)} is skipped: {saved}", file=sys.stderr, flush=True)
        return None

    def policy(self, step: int) -> Path:
        """The directory of a policy; raises PspoError where that is damaged."""
        found = self._verified(step, state=False)
        if isinstance(found, str):
            again = f"remove {self.directory} to have all steps done again"
            raise PspoError(f"{self.at(step)} is damaged ({found}) and there is no other of that step: {again}")
        return found.path

    def _tidied(self) -> list[int]:
        for name in self._names():
            if name.startswith(".step-"):  # left by a process that was killed while it wrote or removed
                remove(self.directory / name)
        return self.steps()

    def _verified(self, step: int, state: bool = True) -> Saved | str:
        """The checkpoint, or what is wrong with it; without `state` with its policy."""
        path = self.at(step)

        def read() -> dict[str, Any] | str:
            try:
                manifest = dict(json.loads((path / MANIFEST).read_text()))
                whole = manifest.pop("sum", None) == _sum_of_json(manifest)
                if manifest["format"] != FORMAT and (whole or manifest["format"] == 1):  # which had no sum
                    raise _of_another_version(path, manifest["format"])
                if not whole:
                    return f"its {MANIFEST} is not what was written: its sum differs"
                if manifest["step"] != step:
                    return f"its {MANIFEST} is of another step"
                if "config.json" not in manifest["files"]:
                    return f"its {MANIFEST} names no policy"
                has_state = (path / STATE).is_dir()
                if state and not has_state and step != self.last:
                    return "it holds a policy alone"
                wanted = (name for name in manifest["files"] if has_state or not name.startswith(f"{STATE}/"))
                return {"memory": manifest["memory"], "files": {name: manifest["files"][name] for name in wanted}}
            except GARBLED as error:
                return f"its {MANIFEST} cannot be read ({error})"
            except OSError as error:
                raise _not_now(path / MANIFEST, error) from error

        manifest = self.ranks.from_first(read, f"reading step-{step}")
        if isinstance(manifest, str):
            return manifest
        share = self.ranks.share(sorted(manifest["files"].items()))
        verify = f"verifying step-{step}"
        mine = self.ranks.together(lambda: [_damage(path / name, entry) for name, entry in share], verify)
        found = [text for texts in self.ranks.gather(mine, verify) for text in texts if text]
        return found[0] if found else Saved(step, path, manifest["memory"])

    def read(self, saved: Saved, into: Callable[[str, torch.Size, torch.dtype], Tensor | None]) -> dict[str, Tensor]:
        """The state's tensors. `into(name, shape, dtype)` gives the tensor that one is read into, a sharded one for
        this rank's part, or None for one that this rank does not need. {} where there is no state."""
        if not (saved.path / STATE).is_dir():
            return {}
        folder = str(saved.path / STATE)
        with _quiet():
            reader = dcp.HuggingFaceStorageReader(folder)
            known: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
            wanted = {name: into(name, about.size, about.properties.dtype) for name, about in known.items()}
            tensors = {name: tensor for name, tensor in wanted.items() if tensor is not None}
            with self.ranks.expecting(f"reading the state of step-{saved.step}"):
                try:
                    dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(folder), no_dist=self.ranks.size == 1)
                except CheckpointException as error:  # a BaseException
                    raise PspoError(f"{folder} cannot be read: {' '.join(str(error).split())[:500]}") from error
        return tensors

    def prune(self, step: int, keep: int, best: int) -> None:
        """After `step` was saved: lets go of all but the newest `keep` and the best; of an older best the state goes.

        Later ones go as well: they were skipped because they are damaged, and will be made again.
        """
        if self.ranks.first:
            newest = [other for other in self.steps() if other <= step][-keep:]
            for other in set(self.steps()) - {*newest, best if best <= step else step}:
                remove(set_aside(self.at(other)))
            if best not in newest:
                self._strip(best)

    def strip(self) -> None:
        """After the last step: removes what only training needs."""
        if self.ranks.first:
            for step in self.steps():
                self._strip(step)

    def _strip(self, step: int) -> None:
        if (state := self.at(step) / STATE).is_dir():
            hidden = state.rename(self.directory / f".step-{step}.{STATE}")
            shutil.rmtree(hidden, ignore_errors=True)


def verify_policy(path: Path) -> None:
    """Raises PspoError where `path` is a checkpoint of a run, and its policy is not what was written."""
    if (path / MANIFEST).is_file() and (step := re.fullmatch(CHECKPOINT, path.name)):
        found = Checkpoints(path.parent, -1, Ranks())._verified(int(step[1]), state=False)
        if isinstance(found, str):
            raise PspoError(f"{path} is damaged: {found}")


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    if ranks.size == 1:  # the same format; DCP takes far longer over many small tensors than the disk does
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "state.safetensors")
        return
    with _quiet():
        dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _sum_of_json(manifest: Mapping[str, Any]) -> str:
    """As it is read back, where all keys are text."""
    return hashlib.blake2b(json.dumps(json.loads(json.dumps(manifest)), sort_keys=True).encode()).hexdigest()


def _sum_of(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        # Not SHA-256, which is slower on processors that have no instructions for it.
        return {"bytes": path.stat().st_size, SUM: hashlib.file_digest(file, SUM).hexdigest()}


def _damage(path: Path, expected: Mapping[str, Any]) -> str:
    """What is wrong with a file; "" where nothing is."""
    name = f"{path.parent.name}/{path.name}" if path.parent.name == STATE else path.name
    try:
        found = _sum_of(path)
    except NOT_THERE as error:
        return f"{name} cannot be read ({error.strerror})"
    except OSError as error:
        raise _not_now(path, error) from error
    if found["bytes"] != expected["bytes"]:
        return f"{name} has {found['bytes']} bytes instead of {expected['bytes']}"
    return "" if found == expected else f"{name} is not what was written: its sum differs"


def _of_another_version(path: Path, number: object) -> PspoError:
    remedy = "nothing was changed; go on with the version that wrote it, or name another run_dir"
    return PspoError(f"{path} is of format {number}, and this version reads {FORMAT}: {remedy}")


def _not_now(path: Path, error: OSError) -> PspoError:
    remedy = "nothing was changed; where it stays so, remove that checkpoint to go on from the one before"
    return PspoError(f"{path} cannot be read: {error.strerror}; {remedy}")


class _quiet(warnings.catch_warnings):
    """DCP warns of every single process."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
