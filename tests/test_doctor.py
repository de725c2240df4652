"""The preflight: each line is right about this machine, and says what to do where something is missing."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pspo import doctor
from pspo.config import TrainConfig, compose, load_yaml
from pspo.config.compose import CONF
from pspo.config.machine import Machine
from pspo.doctor import Line
from pspo.ranks import Ranks

WORDS = ("ok", "note", "BAD")


def run(root: Path, *words: str, ranks: int = 1, **env: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "pspo.doctor", *words]
    return subprocess.run(command, cwd=root, env=os.environ | env, capture_output=True, text=True, timeout=300)


def states(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    lines = [line for line in done.stdout.splitlines() if line[:5].strip() in WORDS]
    return {line[5:19].strip(): line[:5].strip() for line in lines}


@pytest.fixture
def answers() -> Iterator[str]:
    """A server that has nothing; its address."""

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Not into the test's output."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_small_world_can_run_here(root: Path, tmp_path: Path) -> None:
    done = run(root, f"runs={tmp_path}/not/yet/runs", f"models={tmp_path}/models")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"versions", "device", "memory", "engine", "policy", "problems", "disk", "file system", "W&B"} <= set(
        states(done)
    )
    assert "BAD" not in states(done).values() and states(done)["policy"] == "note"
    assert list(tmp_path.iterdir()) == []  # nothing is left behind, no directory made


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="for machines without a GPU")
def test_what_the_papers_scale_lacks_here_is_named(root: Path, tmp_path: Path) -> None:
    done = run(root, "scale=paper", f"runs={tmp_path}", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    found = states(done)
    assert [found[what] for what in ("driver", "device", "engine", "policy", "problems")] == ["BAD"] * 5
    assert "HF_HUB_OFFLINE is set: fetch it first, or give model.path=<directory>" in done.stdout


def test_two_ranks_reach_each_other_and_see_the_same_files(root: Path, tmp_path: Path) -> None:
    done = run(root, f"runs={tmp_path}", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks, gloo: a sum right" in done.stdout and "locks, seen by all ranks" in done.stdout
    assert len(states(done)) == len([line for line in done.stdout.splitlines() if line[:5].strip() in WORDS])
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_one_line(root: Path) -> None:
    done = run(root, "rollout=abacus")
    assert done.returncode == 2 and done.stderr.startswith("pspo: wrong setting: rollout=abacus")


def small(*overrides: str) -> TrainConfig:
    return compose("train", TrainConfig, overrides)


def test_another_version_than_the_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    there = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: "0.1" if name == "transformers" else there(name))
    line = doctor.versions()
    assert line.state == "BAD" and "transformers 0.1, not 5." in line.text and "make setup" in line.text


def test_a_compiler_is_asked_for_where_layers_are_compiled(tmp_path: Path) -> None:
    import torch._inductor.config

    cfg = compose("train", TrainConfig, ["model.compile=true"])
    with torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "none"))}):
        line = doctor.compiler(cfg)
    assert line is not None and line.state == "BAD" and "a C++ compiler (g++, or CXX); install it" in line.text
    assert doctor.compiler(compose("train", TrainConfig, [])) is None


def test_a_run_that_does_not_fit_is_told_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_yaml(CONF / "gpu" / "rtx4090.yaml", Machine)
    monkeypatch.setattr(doctor, "this_machine", lambda cfg: card)
    line = doctor.memory(compose("train", TrainConfig, ["scale=paper"]), Ranks())
    assert line.state == "BAD" and "does not fit; it would with " in line.text
    monkeypatch.setattr(doctor, "this_machine", lambda cfg: replace(card, memory_gib=400.0))
    assert doctor.memory(compose("train", TrainConfig, ["scale=paper"]), Ranks()).state == "ok"


def test_policies_and_problems_that_are_here(tmp_path: Path) -> None:
    cfg = compose("train", TrainConfig, ["scale=paper", f"model.path={tmp_path}", f"data.path={tmp_path}"])
    assert doctor.policy(cfg).state == "ok"
    (tmp_path / "test.jsonl").write_text("{}\n")
    line = doctor.problems(cfg)
    assert line.state == "BAD" and "has no train part" in line.text
    (tmp_path / "train.jsonl").write_text("{}\n")
    assert doctor.problems(cfg).state == "ok"


def test_what_is_not_here_can_be_fetched_where_the_hub_answers(
    tmp_path: Path, answers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose("train", TrainConfig, ["scale=paper", "model.path=someone/something"])
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", answers)
    assert [doctor.policy(cfg).state, doctor.problems(cfg).state] == ["note", "note"]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    lines = [doctor.policy(cfg), doctor.problems(cfg)]
    assert [line.state for line in lines] == ["BAD", "BAD"] and all("does not answer" in line.text for line in lines)


def test_a_disk_without_room_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    line = doctor.disk(small(f"runs={tmp_path}", "saving.keep=100000000"))
    assert line.state == "BAD" and "make room, or name another runs=" in line.text
    line = doctor.shared(small("runs=/proc/runs"), Ranks())
    assert line.state == "BAD" and "/proc cannot be written" in line.text


def test_tracking(tmp_path: Path, answers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", answers)
    online = small("tracking=online")
    assert doctor.tracking(online).state == "note" and "wandb login" in doctor.tracking(online).text
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password " + "0" * 40 + "\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert doctor.tracking(online) == Line("W&B", "ok", f"{answers} answers")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert doctor.tracking(online).state == "note" and "goes on offline" in doctor.tracking(online).text
    assert doctor.tracking(small("tracking=offline")).state == doctor.tracking(small()).state == "ok"


@pytest.mark.parametrize(
    ("program", "state", "says"),
    [
        ("echo debug up 2; echo long up 8", "ok", "partitions: debug up 2; long up 8"),
        ("echo no controller >&2; exit 1", "note", "does not answer: no controller"),
        ("sleep 60", "note", "does not answer: no answer in 1 s"),
    ],
)
def test_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, state: str, says: str) -> None:
    for name in ("sbatch", "squeue", "scontrol", "sinfo"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(doctor, "ANSWER_S", 1.0)
    line = doctor.cluster()
    assert line.state == state and says in line.text
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "not on this machine" in doctor.cluster().text


def test_ranks_that_differ_are_each_a_line() -> None:
    same, one, other = Line("a", "ok", "x"), Line("b", "ok", "y"), Line("b", "BAD", "z")
    found = doctor.merged([[same, one], [same, other]])
    assert [str(line) for line in found] == [
        "ok   a             x",
        "ok   b             rank 0: y",
        "BAD  b             rank 1: z",
    ]
