"""Work in processes beside this one: the same results, the same errors, the same files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from written_runs import write_run

import page
from meanwhile import Meanwhile
from pspo.config import StudyConfig
from pspo.errors import PspoError
from records import read_json
from studies import Cell, load_study


@pytest.mark.parametrize("processes", [0, 1])
def test_results_and_errors_come_back(tmp_path: Path, processes: int) -> None:
    with Meanwhile(processes) as meanwhile:
        assert (meanwhile.start(os.getpid)() == os.getpid()) == (processes == 0)
        with pytest.raises(PspoError, match=r"none\.json is missing"):
            meanwhile.start(read_json, tmp_path / "none.json")()


def test_a_report_is_the_same_with_and_without(
    smoke: tuple[StudyConfig, list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, cells = smoke
    for cell in cells:
        write_run(cell, [cell.seed == 0, cell.arm == "pspo", True])

    def made(many: int) -> dict[str, bytes]:
        monkeypatch.setattr(page, "MANY", many)
        page.rebuild(load_study("smoke"), cells, cfg)
        files = [path for path in (Path(cfg.results) / "smoke").rglob("*") if path.is_file()]
        dated = re.compile(rb"20\d\d-\d\d-\d\d \d\d:\d\d")
        return {str(path): dated.sub(b"", path.read_bytes()) for path in files}

    here = made(len(cells) + 1)
    assert len(here) > 30 and made(0) == here
