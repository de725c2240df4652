"""The study `smoke` from nothing to its table with the real programs: warm start, evaluation, four runs, report."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENGINE = "vllm" if importlib.util.find_spec("vllm") else "hf"
ROOT = Path(__file__).resolve().parents[1]


def reproduce(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    places = [f"{name}={folder / name}" for name in ("results", "runs", "models")]
    program = [
        sys.executable,
        "experiments/reproduce.py",
        "study=smoke",
        "scale=cpu",
        f"rollout={ENGINE}",
        *places,
        *overrides,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_nothing_to_a_table_and_again(tmp_path: Path) -> None:
    first = reproduce(tmp_path)
    assert first.returncode == 0, first.stderr
    table = Path(first.stdout.splitlines()[-1])
    assert table == tmp_path / "results" / "smoke" / "table_main.md"

    rows = json.loads(table.with_suffix(".json").read_text())["rows"]
    assert [row["arm"] for row in rows] == [None, "no_clip", "pspo"]
    assert [(row["done"], row["planned"], row["problems"]) for row in rows] == [(1, 1, 16), (2, 2, 16), (2, 2, 16)]
    assert all(not any(row["texts"]["failed"].values()) for row in rows)
    assert {path.name for path in table.parent.iterdir()} >= {f"table_main.{e}" for e in ("md", "csv", "tex", "json")}
    assert (table.parent / "report.html").stat().st_size > 10_000

    # What was run is what the run directories say, and the second call leaves every one of their files as it is.
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*-s?-*/**/*") if path.is_file()}
    assert sum(path.name == "DONE" for path in files) == 4
    started = time.monotonic()
    again = reproduce(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "nothing to run: all 4 runs of study smoke complete" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*-s?-*/**/*") if path.is_file()} == files
    assert time.monotonic() - started < 60

    # A run that cannot work: the others go on, the table says which is missing, and the status is not 0.
    lost = next(path.parent for path in files if path.name == "DONE" and path.parent.name.startswith("pspo"))
    (lost / "DONE").unlink()
    (lost / "config.yaml").write_text("not: a run\n")
    failed = reproduce(tmp_path)
    assert failed.returncode == 1
    assert f"log: {tmp_path / 'runs' / 'logs' / lost.name}.log" in failed.stderr
    assert "1 of 2, incomplete" in failed.stdout and failed.stdout.splitlines()[-1] == str(table)
