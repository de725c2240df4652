"""metrics.jsonl: whole, and every step in it once, however often a run was started."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pspo.config import TrainConfig, compose, load_yaml
from pspo.errors import PspoError
from pspo.tracking import Tracker
from pspo.tracking.record import Record, lines_of


@pytest.fixture
def cfg():
    return compose("train", TrainConfig, ["tracking.progress=false"])


def logged(run_dir, cfg, after, last):
    with Tracker(run_dir, cfg, after) as tracker:
        for step in range(0 if after is None else after + 1, last + 1):
            tracker.log(step, {"reward/mean": step / 8})


def test_tracker_writes_one_object_a_step(tmp_path, cfg):
    with Tracker(tmp_path, cfg) as tracker:
        tracker.log(0, {"eval/validation_accuracy": 0.5})
        tracker.log(1, {"reward/mean": float("nan"), "ratio/max": 2.0})
        with pytest.raises(ValueError, match="reward/maen"):
            tracker.log(2, {"reward/maen": 1.0})
        assert tracker.ids() == {}
    (tmp_path / "other").mkdir()
    assert Tracker(tmp_path / "other", cfg, None, {"wandb": "id"}).ids() == {"wandb": "id"}  # for when it is on again
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, "eval/validation_accuracy": 0.5}, {"step": 1, "reward/mean": None, "ratio/max": 2.0}]
    assert load_yaml(tmp_path / "config.yaml", TrainConfig) == cfg


def test_a_run_that_begins_drops_the_lines_of_an_earlier_attempt(tmp_path, cfg):
    logged(tmp_path, cfg, None, 5)
    logged(tmp_path, cfg, None, 2)
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [0, 1, 2]


@settings(deadline=None)  # it waits for the disk
@given(last=st.integers(0, 5), after=st.integers(0, 5), cut=st.integers(0, 400))
def test_cut_anywhere_after_a_saved_step_it_goes_on_to_the_same_bytes(tmp_path_factory, last, after, cut):
    """A kill leaves any prefix that has the saved step in it whole; whatever it is, the end is that of no kill."""
    undisturbed = record_of(tmp_path_factory.mktemp("whole") / "metrics.jsonl", None, 6)
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    whole = record_of(path, None, last)
    after = min(after, last)
    least = len(b"".join(whole.splitlines(keepends=True)[: after + 1]))
    path.write_bytes(whole[: max(cut, least)])
    assert record_of(path, after, 6) == undisturbed


def record_of(path, after, last):
    record = Record(path, after)
    for step in range(0 if after is None else after + 1, last + 1):
        record.append({"step": step, "reward/mean": step / 8, "time/step_s": 0.25 * step})
    record.close()
    return path.read_bytes()


def test_a_record_that_needs_no_repair_is_not_rewritten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record_of(path, None, 3)
    before = path.stat().st_ino
    record_of(path, 3, 5)
    assert path.stat().st_ino == before
    record_of(path, 4, 5)
    assert path.stat().st_ino != before  # the check above would see it


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines[:2] + lines[3:], "lacks step 2, and steps 0 to 3 are done"),
        (lambda lines: lines[1:], "lacks step 0"),
        (lambda lines: lines[:3], "lacks step 3"),
        (lambda lines: [], "lacks step 0"),
        (lambda lines: lines[:3] + lines[2:], "has step 2 twice or out of order, at line 4"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "lacks step 0"),
        (lambda lines: [*lines[:2], "12\n", *lines[2:]], "line 3 is no object of a step"),
        (lambda lines: [*lines[:2], "\n", *lines[2:]], "line 3 is no object of a step"),
        (lambda lines: [*lines[:2], '{"step": "2"}\n', *lines[3:]], "line 3 is no object of a step"),
        (lambda lines: [*lines[:2], lines[2][:9] + "\n", *lines[3:]], "line 3 is no object of a step"),
    ],
)
def test_a_record_that_is_not_this_runs_is_refused_as_it_is(tmp_path, change, says):
    path = tmp_path / "metrics.jsonl"
    record_of(path, None, 4)
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    before = path.read_bytes()
    with pytest.raises(PspoError, match=says) as error:
        Record(path, 3)
    assert str(path) in str(error.value) and "remove the run's directory to begin anew" in str(error.value)
    assert path.read_bytes() == before


def test_a_record_that_is_gone_is_refused(tmp_path):
    with pytest.raises(PspoError, match="lacks step 0"):
        Record(tmp_path / "metrics.jsonl", 0)


def test_what_a_failing_disk_left_after_the_saved_step_is_dropped(tmp_path):
    """Blocks that were never written read as zeros, or as bytes that are no text."""
    path = tmp_path / "metrics.jsonl"
    before = record_of(path, None, 2)
    path.write_bytes(before + b'{"step": 3, \xff\xfe\n' + bytes(100) + b"\n" + b'{"step": 3')
    assert record_of(path, 2, 2) == before


def test_a_full_disk_ends_in_one_line_and_the_next_start_repairs(root, tmp_path):
    """The limit on a file's size is the kernel's, as a full disk is; the line is written up to it."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    code = (
        "import sys, pspo.tracking.record as r; from pathlib import Path; from pspo.config.compose import *\n"
        "with one_line_errors():\n"
        "    record = r.Record(Path(sys.argv[1]), None)\n"
        "    for step in range(1000): record.append({'step': step, 'reward/mean': 1 / 3})"
    )
    path = tmp_path / "metrics.jsonl"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, preexec_fn=limited, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"pspo: {path} cannot be written: File too large\n"
    assert path.stat().st_size == 4096 and not path.read_text().endswith("\n")
    whole = [line["step"] for line in lines_of(path)]
    assert whole == list(range(len(whole))) and len(whole) > 50
    record = Record(path, whole[-1] - 1)
    record.append({"step": whole[-1]})
    record.close()
    assert [line["step"] for line in lines_of(path)] == whole


@pytest.mark.parametrize("after", [None, 2])
def test_a_record_that_cannot_be_opened_is_told(tmp_path, after):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(PspoError, match="cannot be written: Is a directory"):
        Record(tmp_path / "metrics.jsonl", after)


@pytest.mark.parametrize("at_once", [1, 1000])
def test_a_line_is_on_the_disk_when_log_returns(tmp_path, cfg, monkeypatch, at_once):
    """Flushed after its last byte, and the file's name before; however many bytes the system takes at once."""
    path, seen = tmp_path / "metrics.jsonl", []
    write, fsync, directory = os.write, os.fsync, os.open(tmp_path, os.O_RDONLY)

    def flushed(descriptor):
        fsync(descriptor)
        if path.exists() and os.path.sameopenfile(descriptor, directory):
            seen.append("the name")
        elif path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            seen.append(path.read_text())

    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:at_once]))
    monkeypatch.setattr(os, "fsync", flushed)
    with Tracker(tmp_path, cfg) as tracker:
        assert seen == ["the name"]
        for step in range(3):
            seen.clear()
            tracker.log(step, {"reward/mean": step / 8})
            assert seen == ["".join(f'{{"step": {k}, "reward/mean": {k / 8}}}\n' for k in range(step + 1))]


def test_nothing_of_a_line_is_in_buffers_of_the_process(root, tmp_path):
    """It is killed at its first word after a step."""
    program = [sys.executable, "tests/programs/logs_steps.py", str(tmp_path), "none", "3", "waits", "tracking=none"]
    with subprocess.Popen(program, cwd=root, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            if line.startswith("step 3"):
                running.kill()
                break
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


def test_the_bar_begins_at_the_steps_that_are_done(tmp_path, monkeypatch):
    from pspo.tracking.bar import Bar

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = Bar(steps=8, title="run", done=5)
    try:
        assert (bar.bar.tasks[0].completed, bar.bar.tasks[0].total) == (5, 8)
    finally:
        bar.stop()
