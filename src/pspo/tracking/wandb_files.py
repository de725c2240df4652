"""What a run directory keeps for W&B: wandb.json with the run's id, and the files in wandb/ that `wandb sync` uploads.

Imports the standard library; wandb's own reader where a file of its is to be read.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pspo.config import TrainConfig
from pspo.errors import PspoError
from pspo.files import write_whole


def run_id(run_dir: Path, before: str | None = None) -> str:
    """The W&B run of a run directory: drawn once; `before` where it had one and wandb.json is lost. Raises PspoError
    where that is not as it was written."""
    if not (run_dir / "wandb.json").exists():
        # Drawn, not derived from the settings: two people who run the same thing have two runs.
        write_whole(run_dir / "wandb.json", json.dumps({"id": before or secrets.token_hex(5)}) + "\n")
    return str(_stored(run_dir)["id"])


@dataclass(frozen=True)
class Sent:
    """What the server is known to have of a run: steps 0 to `last` (-1: none), and whether that is the whole run."""

    last: int = -1
    whole: bool = False


def remember(run_dir: Path, cfg: TrainConfig, sent: Sent) -> None:
    stored = {"id": run_id(run_dir), "project": cfg.tracking.project, **asdict(sent)}
    if stored != _stored(run_dir):
        write_whole(run_dir / "wandb.json", json.dumps(stored) + "\n")


def remembered(run_dir: Path, cfg: TrainConfig) -> Sent:
    """What `remember` wrote of the same project. A run that has no DONE goes on, and is not whole."""
    stored = _stored(run_dir)
    if stored.get("project") != cfg.tracking.project:
        return Sent()
    return Sent(stored["last"], stored["whole"] and (run_dir / "DONE").exists())


def _stored(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "wandb.json"
    try:
        found = json.loads(path.read_text())
        types = {"id": str} | ({"last": int, "whole": bool} if "project" in found else {})
        sound = all(type(found[name]) is kind for name, kind in types.items())
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise PspoError(f"{path} is damaged; put it back, or remove it and the next start writes it anew")
    return dict(found)


def clear(run_dir: Path, cfg: TrainConfig) -> int:
    """Removes what earlier starts left in wandb/, whose steps are in metrics.jsonl; returns the last step that the
    server is known to have, -1 for none: uploaded by us, or by `wandb sync`, which marks what it has uploaded. The run
    is not whole from here on."""
    synced = [_last_step(path) for path in _offline(run_dir) if _is_synced(path)]
    sent = max([remembered(run_dir, cfg).last, *synced])
    remember(run_dir, cfg, Sent(sent))
    for path in [*run_dir.glob("wandb/run-*"), *run_dir.glob("wandb/offline-run-*")]:
        shutil.rmtree(path, ignore_errors=True)
    return sent


def mark_synced(run_dir: Path) -> None:
    """So that `wandb sync` passes over the files whose steps are all uploaded."""
    for path in _offline(run_dir):
        _marker(path).touch()


def _offline(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))


def _marker(path: Path) -> Path:
    """What `wandb sync` puts beside a file that it has uploaded, and looks for."""
    return path.with_name(f"{path.name}.synced")


def _is_synced(path: Path) -> bool:
    """Has all of it been uploaded? Not what was written since."""
    marker = _marker(path)
    return marker.exists() and marker.stat().st_mtime_ns > path.stat().st_mtime_ns


def _last_step(path: Path) -> int:
    """The last step in a .wandb file, -1 for none, as wandb's own reader has it; a torn end does not matter to it."""
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "-no-observability", "-json", "-summary", "-run-file", str(path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)["step"]
    return -1 if found is None else int(found)
