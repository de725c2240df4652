"""What tells whether a disturbed run has ended as an undisturbed one, and a short round of real kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chaoschain import LET_GO, STUCK, Pace, plan
from chaosrun import Watch, damage, expected, inode_of, last_line
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
    (tmp_path / "metrics.jsonl").write_text("a line\n")
    watch = Watch(tmp_path)
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
        assert expected(run_dir, {}) == (2, [])
        did, spoilt = damage(run_dir, 2, random.Random(k))
        seen.add(did.split()[0])
        file = run_dir / "checkpoints/step-2/model.safetensors"
        assert (not file.exists() or file.read_bytes() != b"weights") == spoilt != (last_line(run_dir) == -1)
        if spoilt:
            assert expected(run_dir, {2: inode_of(run_dir, 2)}) == (1, [2])
    assert seen == {"a", "cut", "removed:", "half"}


def chaos(root: Path, place: Path, kills: int, **environment: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    """A real round without an engine to set up, and its record."""
    command = [sys.executable, "experiments/chaos.py", str(kills), "--seed", "1", "rollout=hf"]
    done = subprocess.run(
        [*command, "--place", str(place), "--json", str(place.parent / "record.json")],
        cwd=root, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert (place.parent / "record.json").exists(), done.stderr[-3000:]
    return done, json.loads((place.parent / "record.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_and_killed_again_ends_with_the_same_bits(root: Path, tmp_path: Path) -> None:
    done, record = chaos(root, tmp_path / "runs", kills=6)
    assert done.returncode == 0, done.stdout + done.stderr
    assert record["difference"] is None and record["kills"] == 6 == sum(record["kills_by_place"].values())
    assert all(stop["status"] == -9 for stop in record["stops"] if stop["signal"] == "SIGKILL")
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_resume_that_forgets_the_optimiser_is_found_out(root: Path, tmp_path: Path) -> None:
    """A copy of the program with one line broken. Of three kills one at least comes after a checkpoint (STUCK)."""
    for name in ("src", "conf"):
        shutil.copytree(root / name, tmp_path / "broken" / name)
    changed("src/pspo/trainstate.py", "owner[id(parameter)].state[parameter][key] = tensor", "pass")(
        tmp_path / "broken"
    )
    done, record = chaos(root, tmp_path / "runs", kills=3, PYTHONPATH=str(tmp_path / "broken/src"))
    assert done.returncode == 1 and "is not what the reference is" in record["difference"]
    assert "model.safetensors: the bytes differ" in record["difference"] or "metrics.jsonl" in record["difference"]
    (kept,) = (tmp_path / "runs").iterdir()
    assert (kept / "reference/DONE").exists() and record["difference"] in done.stderr
