"""Work in processes beside this one: the same results, the same errors, the same files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import psutil
import pytest
from written_runs import write_run

import report
from meanwhile import Meanwhile
from pspo.config import StudyConfig
from pspo.errors import ConfigError, PspoError
from records import read_json
from studies import Cell, load_study


@pytest.mark.parametrize("apart", [False, True])
def test_results_and_errors_come_back(tmp_path: Path, apart: bool) -> None:
    with Meanwhile(apart) as meanwhile:
        assert (meanwhile.start(os.getpid)() != os.getpid()) == apart
        with pytest.raises(PspoError, match=r"none\.json is missing"):
            meanwhile.start(read_json, tmp_path / "none.json")()
        with pytest.raises(ConfigError, match=r"study=none: must be one of") as caught:
            meanwhile.start(load_study, "none")()
        assert caught.value.setting == "study"


def test_a_process_that_was_killed_is_one_line() -> None:
    with Meanwhile(apart=True) as meanwhile, pytest.raises(PspoError, match="the process of raise_signal was killed"):
        meanwhile.start(signal.raise_signal, signal.SIGKILL)()


def test_a_result_that_nobody_asks_for_holds_nothing_up() -> None:
    """More than a pipe takes at once."""
    with Meanwhile(apart=True) as meanwhile:
        before = set(active_children())
        meanwhile.start(bytes, 10_000_000)
        (child,) = set(active_children()) - before
    assert not psutil.pid_exists(child.pid)


def test_what_is_under_way_ends_with_an_error_here() -> None:
    before = set(active_children())
    with pytest.raises(KeyboardInterrupt), Meanwhile(apart=True) as meanwhile:
        meanwhile.start(time.sleep, 600)
        (child,) = set(active_children()) - before
        raise KeyboardInterrupt
    assert not psutil.pid_exists(child.pid)


@pytest.mark.parametrize("told", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_program_and_ctrl_c_is_for_it_alone(root: Path, told: signal.Signals) -> None:
    """SIGINT goes to the whole group, as from a terminal."""
    code = (
        "import sys, time; sys.path.insert(0, 'experiments')\n"
        "from meanwhile import Meanwhile\n"
        "if __name__ == '__main__':\n"
        "    with Meanwhile(apart=True) as meanwhile:\n"
        "        result = meanwhile.start(time.sleep, 600); print('started', flush=True); result()\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        assert program.stdout is not None and program.stdout.readline() == "started\n"
        children = psutil.Process(program.pid).children()
        (child,) = [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
        deaf = int(status["SigBlk"], 16) | int(status["SigIgn"], 16)
        assert deaf & 1 << signal.SIGINT - 1  # from its first moment on
        if told == signal.SIGKILL:
            program.kill()
        else:
            os.killpg(program.pid, told)
        _, said = program.communicate(timeout=60)
        gone, alive = psutil.wait_procs([child], timeout=60)
        assert gone and not alive
        assert said.count("Traceback") == (told == signal.SIGINT)  # its own
    finally:
        program.kill()


def test_a_report_is_the_same_with_and_without(
    smoke: tuple[StudyConfig, list[Cell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, cells = smoke
    for cell in cells:
        write_run(cell, [cell.seed == 0, cell.arm == "pspo", True])

    def made(many: int) -> dict[str, bytes]:
        monkeypatch.setattr(report, "MANY", many)
        report.rebuild(load_study("smoke"), cells, cfg)
        files = [path for path in (Path(cfg.results) / "smoke").rglob("*") if path.is_file()]
        dated = re.compile(rb"20\d\d-\d\d-\d\d \d\d:\d\d")
        return {str(path): dated.sub(b"", path.read_bytes()) for path in files}

    here = made(len(cells) + 1)
    assert len(here) > 30 and made(0) == here
