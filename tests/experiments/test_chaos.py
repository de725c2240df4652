"""What tells whether a disturbed run has ended as an undisturbed one, and a short round of real kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import chaoschain
import chaosrun
from chaoschain import LET_GO, STUCK, Chain, Difference, Pace, Quota, plan
from chaosrun import Ended, Moment, Watch, damage, expected, identity_of, last_line
from samebits import differences

PACE = Pace(steps=8, set_up=10.0, rest=5.0)


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """The files of a small complete run."""
    run_dir = tmp_path / "reference"
    lines = [{"step": k, "reward/mean": 0.5, "time/step_s": 0.1 * k} for k in range(3)]
    summary = {"steps": 2, "seconds": {"learn": 1.5}, "made_with": [{"ranks": 1}], "test": {"last": {"accuracy": 0.5}}}
    files = {"model.safetensors": {"sha256": "ab"}, "state/state.safetensors": {"sha256": "s"}}
    manifest = {"step": 2, "files": files, "memory": {"seconds": {}, "moved": True}}
    for name, text in {
        "config.yaml": f"seed: 0\nrun_dir: {run_dir}\n",
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "checkpoints/step-2/model.safetensors": "weights",
        "checkpoints/step-2/manifest.json": json.dumps(manifest),
        "eval/wordproblems.jsonl": '{"id": 1}\n',
        "summary.json": json.dumps(summary),
        "DONE": "",
        ".lock": "",
    }.items():
        path = run_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return run_dir


def changed(name: str, before: str, after: str) -> Callable[[Path], object]:
    def change(run_dir: Path) -> None:
        text = (run_dir / name).read_text()
        assert before in text
        (run_dir / name).write_text(text.replace(before, after, 1))

    return change


def test_times_places_and_what_a_run_was_made_with_are_no_difference(complete: Path, tmp_path: Path) -> None:
    other = shutil.copytree(complete, tmp_path / "other")
    changed("config.yaml", "reference", "other")(other)
    changed("metrics.jsonl", '"time/step_s": 0.2', '"time/step_s": 7')(other)
    changed("summary.json", "1.5", "99")(other)
    changed("summary.json", '{"ranks": 1}', '{"ranks": 1}, {"ranks": 2}')(other)
    changed("checkpoints/step-2/manifest.json", '"seconds": {}', '"seconds": {"learn": 3}')(other)
    assert list(differences(complete, other)) == []


LAST_LINE = '{"step": 2, "reward/mean": 0.5, "time/step_s": 0.2}\n'


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("checkpoints/step-2/model.safetensors", "w", "v"), "step-2/model.safetensors: the bytes differ"),
        (changed("checkpoints/step-2/manifest.json", '"s"', '"t"'), "files.state/state.safetensors.sha256 is 't'"),
        (changed("eval/wordproblems.jsonl", "1", "2"), "eval/wordproblems.jsonl: the bytes differ"),
        (changed("metrics.jsonl", "0.5", "0.25"), "step 0: reward/mean is 0.25, in the reference 0.5"),
        (changed("metrics.jsonl", LAST_LINE, ""), "its steps are [0, 1] instead of [0, 1, 2]"),
        (changed("metrics.jsonl", LAST_LINE, 2 * LAST_LINE), "its steps are [0, 1, 2, 2]"),
        (changed("metrics.jsonl", LAST_LINE, LAST_LINE + '{"step": 3, "rew'), "[0, 1, 2, 'torn: "),
        (changed("metrics.jsonl", LAST_LINE, "\n" + LAST_LINE), "its steps are [0, 1, None, 2]"),
        (changed("config.yaml", "seed: 0", "seed: 1"), "config.yaml: the settings differ"),
        (changed("summary.json", '"accuracy": 0.5', '"accuracy": 1'), "test.last.accuracy is 1, in the reference 0.5"),
        (changed("checkpoints/step-2/manifest.json", '"ab"', '"cd"'), "files.model.safetensors.sha256 is 'cd'"),
        (changed("checkpoints/step-2/manifest.json", "true", "false"), "memory.moved is False"),
        (lambda run: (run / "DONE").unlink(), "DONE is missing"),
        (lambda run: (run / ".summary.json.123").touch(), ".summary.json.123 is left behind"),
        (lambda run: (run / "checkpoints/.step-1.writing").mkdir(), "checkpoints/.step-1.writing is left behind"),
        (lambda run: (run / "checkpoints/step-2/state").mkdir(), "checkpoints/step-2/state is left behind"),
    ],
)
def test_every_difference_is_told(complete: Path, tmp_path: Path, change: Callable[[Path], object], said: str) -> None:
    other = shutil.copytree(complete, tmp_path / "other")
    change(other)
    (told,) = differences(complete, other)
    assert said in told


def test_moments_follow_from_the_seed_and_fall_everywhere() -> None:
    def moments(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [plan(rng, left, stuck=0, pace=PACE) for left in range(9) for _ in range(40)]

    assert moments(1) == moments(1) != moments(2)
    events = {moment.event for moment in moments(1)}
    assert events == {
        *("start", "begun", "aside", "line", "writing", "saved", "removing", "part", "graded", "summary", "done")
    }


def test_a_run_that_does_not_get_on_is_left_alone_for_longer() -> None:
    rng = random.Random(0)
    assert all(plan(rng, 3, STUCK, PACE).event == "saved" for _ in range(20))
    assert plan(rng, 0, STUCK, PACE) is None and plan(rng, 3, LET_GO, PACE) is None


def test_events_are_counted_as_they_appear(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("a line\nhalf a l")
    watch = Watch(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("a line\n")  # as a start does it, before it says where it goes on
    watch.poll()
    assert not watch.counts
    for step in (1, 2):
        aside = tmp_path / f"checkpoints/.step-{step}.writing"
        aside.mkdir(parents=True)
        watch.poll()
        aside.rename(tmp_path / f"checkpoints/step-{step}")
        watch.poll()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("another\n")
    (tmp_path / "DONE").touch()
    watch.poll()
    assert watch.counts == {"writing": 2, "saved": 2, "line": 1, "done": 1}


def test_damage_is_done_and_known(tmp_path: Path) -> None:
    seen = set()
    for k in range(40):
        run_dir = tmp_path / str(k)
        for step in (1, 2):
            (run_dir / f"checkpoints/step-{step}/state").mkdir(parents=True)
            (run_dir / f"checkpoints/step-{step}/model.safetensors").write_text("weights")
        (run_dir / "metrics.jsonl").write_text('{"step": 2}\n')
        assert expected(run_dir, {}, steps=8) == (2, [])
        did, spoilt = damage(run_dir, 2, random.Random(k))
        seen.add(did.split()[0])
        file = run_dir / "checkpoints/step-2/model.safetensors"
        assert (not file.exists() or file.read_bytes() != b"weights") == spoilt != (last_line(run_dir) == -1)
        if spoilt:
            assert expected(run_dir, {2: identity_of(run_dir, 2)}, steps=8) == (1, [2])
    assert seen == {"a", "cut", "removed:", "half"}


def test_only_the_last_step_is_whole_without_state(tmp_path: Path) -> None:
    """Between what only training needs is removed and DONE, a run goes on after its last step."""
    for name in ("step-1/state", "step-2"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert expected(tmp_path, {}, steps=2) == (2, [])
    assert expected(tmp_path, {}, steps=8) == (1, [])
    assert expected(tmp_path, {2: identity_of(tmp_path, 2)}, steps=2) == (1, [2])


def test_a_checkpoint_written_anew_is_not_the_damaged_one(tmp_path: Path) -> None:
    """Also where its directory got the number of the one that was removed: that is the same number, changed later."""
    folder = tmp_path / "checkpoints/step-2"
    folder.mkdir(parents=True)
    damaged = {2: identity_of(tmp_path, 2)}
    os.utime(folder, ns=(0, folder.stat().st_mtime_ns + 1))
    assert expected(tmp_path, damaged, steps=2) == (2, [])


DEAF = """
import json, pathlib, signal, sys, time
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
run_dir = pathlib.Path(sys.argv[1])
run_dir.mkdir(exist_ok=True)
with open(run_dir / "metrics.jsonl", "w") as metrics:
    for step in range(9):
        print(json.dumps({"step": step}), file=metrics, flush=True)
        time.sleep(0.1)
(run_dir / "DONE").touch()
"""


def test_a_request_to_stop_that_is_not_heard_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends well, and is what the reference is; but it has begun steps after it was told."""

    def start(run: str, moment: Moment | None, number: signal.Signals) -> Ended:
        command = [sys.executable, "-c", DEAF, str(tmp_path / run)]
        return chaosrun.start(command, tmp_path / run, tmp_path / "log", moment, number, 60, lambda: False)

    start("reference", None, signal.SIGKILL)
    monkeypatch.setattr(chaoschain, "TOLD_SHARE", 1.0)
    chain = Chain("a", tmp_path, 0, Pace(steps=8, set_up=0.1, rest=0.9), start, Quota(8))
    with pytest.raises(Difference, match=r"was told to stop by SIG\w+ in step \d, and went on to step 8"):
        chain.go(lambda stop: None)


def test_a_request_to_stop_in_the_last_step_may_be_too_late(tmp_path: Path) -> None:
    chain = Chain("a", tmp_path, 0, PACE, lambda *_: pytest.fail("nothing is started"), Quota(1))
    victim = chaoschain._Victim(chain, "a1", lambda stop: None)
    victim.dir.mkdir()
    (victim.dir / "metrics.jsonl").write_text('{"step": 7}\n{"step": 8}\n')
    ended = Ended(0, False, True, 9.0, 5.0, "", ())
    victim._check_heard(ended, signal.SIGTERM, goes_on_after=0)  # never sent
    victim._check_heard(replace(ended, sent_at=7), signal.SIGTERM, goes_on_after=0)
    victim._check_heard(replace(ended, sent_at=0), signal.SIGTERM, goes_on_after=7)
    with pytest.raises(Difference, match="told to stop by SIGTERM in step 7, and went on to step 8"):
        victim._check_heard(replace(ended, sent_at=6), signal.SIGTERM, goes_on_after=5)


def chaos(root: Path, place: Path, *program: str, **env: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    """A real round without an engine to set up, and its record."""
    command = [sys.executable, *program, "--seed", "1", "rollout=hf"]
    done = subprocess.run(
        [*command, "--place", str(place), "--json", str(place.parent / "record.json")],
        cwd=root / "experiments", capture_output=True, text=True, env={**os.environ, **env},
    )  # fmt: skip
    assert (place.parent / "record.json").exists(), done.stderr[-3000:]
    return done, json.loads((place.parent / "record.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_and_killed_again_ends_with_the_same_bits(root: Path, tmp_path: Path) -> None:
    done, record = chaos(root, tmp_path / "runs", "chaos.py", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert record["difference"] is None and record["kills"] == 6 == sum(record["kills_by_place"].values())
    assert all(stop["status"] == -9 for stop in record["stops"] if stop["signal"] == "SIGKILL")
    assert not list((tmp_path / "runs").iterdir())


IN_THE_MIDDLE = """
import sys
sys.path.insert(0, "")
import chaos, chaoschain
chaoschain.plan = lambda rng, left, *_: chaoschain.Moment("saved", 2, 0.0) if left == 8 else None
sys.exit(chaos.main())
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_resume_that_forgets_the_optimiser_is_found_out(root: Path, tmp_path: Path) -> None:
    """A copy of the program with one line broken, killed once, between its first checkpoint and its last."""
    for name in ("src", "conf"):
        shutil.copytree(root / name, tmp_path / "broken" / name)
    changed("src/pspo/trainstate.py", "owner[id(parameter)].state[parameter][key] = tensor", "pass")(
        tmp_path / "broken"
    )
    broken = str(tmp_path / "broken/src")
    done, record = chaos(root, tmp_path / "runs", "-c", IN_THE_MIDDLE, "1", PYTHONPATH=broken)
    [stop] = record["stops"]
    assert stop["signal"] == "SIGKILL" and 0 < stop["saved"] < 8
    assert done.returncode == 1 and "is not what the reference is" in record["difference"]
    assert "model.safetensors: the bytes differ" in record["difference"] or "metrics.jsonl" in record["difference"]
    (kept,) = (tmp_path / "runs").iterdir()
    assert (kept / "reference/DONE").exists() and record["difference"] in done.stderr
