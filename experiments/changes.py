"""Says when a study is not what it was when it was last run here: which runs are new, which belong to it no more.

A run is its settings, so an edited study never changes a run: it has other runs, and those that it has no more stay
where they are. What it had is in <runs>/.study-<study>-<scale>.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pspo.config import StudyConfig
from pspo.files import write_whole
from studies import Cell


def tell(cfg: StudyConfig, cells: Sequence[Cell]) -> None:
    """Compares the study with what it was at the last call, prints the differences, and keeps what it is now."""
    path = Path(cfg.runs) / f".study-{cfg.study}-{cfg.scale}.json"
    now = {cell.run_dir.name: cell.name for cell in cells}
    before = _read(path)
    for line in differences(before, now, cfg):
        print(line, file=sys.stderr, flush=True)
    if now != before:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(now, indent=1) + "\n")


def differences(before: dict[str, str] | None, now: dict[str, str], cfg: StudyConfig) -> list[str]:
    """Of two states of a study, each run directory's name -> cell; None: it has not been run here."""
    if before is None or before.keys() == now.keys():
        return []
    new = [now[run] for run in now if run not in before]
    gone = [run for run in before if run not in now and (Path(cfg.runs) / run).exists()]
    lines = [f"study {cfg.study} is not what it was when it was last run in {cfg.runs}:"]
    if new:
        lines.append(f"  {len(new)} new: {_some(new)}")
    if gone:
        lines.append(f"  {len(gone)} belong to it no more, and stay in {cfg.runs}: {_some(gone)}")
    if not new and not gone:
        lines.append(f"  {len(before) - len(now)} that had not begun belong to it no more")
    return lines


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read(path: Path) -> dict[str, str] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # a file that cannot be read is worth no more than none
        return None
