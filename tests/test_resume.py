"""A run that was interrupted ends as one that was not: the same weights, metrics and evaluations, bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from known import SETTINGS, make_policy, outcome
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from pspo.config import TrainConfig, compose
from pspo.errors import ConfigError, PspoError
from pspo.files import write_whole
from pspo.layers import check_compiler
from pspo.provenance import provenance
from pspo.ranks import Ranks
from pspo.run import Run
from pspo.stopping import AGAIN, Stopped, stoppable
from pspo.train import train

SHORT = ["steps=4", "eval.every=2", "eval.validation_problems=8", "rollout=hf"]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return make_policy(tmp_path_factory.mktemp("resume") / "checkpoint")


@pytest.fixture
def start(checkpoint):
    """A function that starts a run in this process, or goes on with it."""

    def start(run_dir: Path, *overrides: str) -> Path:
        settings = [*SETTINGS, *SHORT, f"model.path={checkpoint}", f"run_dir={run_dir}", *overrides]
        train(compose("train", TrainConfig, settings))
        return run_dir

    return start


@pytest.fixture
def signalled(monkeypatch):
    """A function that sends this process a signal in the middle of the steps named, each only once."""

    def at(*steps: int, number: int = signal.SIGTERM, times: int = 1) -> None:
        left, batch = set(steps), Run.batch

        def in_the_middle(run, groups, advantages, rewards):
            made = batch(run, groups, advantages, rewards)
            step = len((run.dir / "metrics.jsonl").read_text().splitlines())  # the first line is of step 0
            if step in left:
                left.discard(step)
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return made

        monkeypatch.setattr(Run, "batch", in_the_middle)

    return at


VARIANTS = {
    "plain": [],
    "every-inner-option": [
        "learner.passes=2", "learner.old_log_probs=learner", "learner.kl_coef=0.1", "learner.entropy_bonus=0.01",
        "learner.schedule=linear", "rollout.refill=1", "learner.minibatch_of=samples",
    ],
    "adapters": ["lora=all_linear", "learner.kl_coef=0.1", "learner.lr=3e-3"],
    "moments-in-the-hosts-memory": ["learner.offload_optimizer=true"],
    "sgd": ["learner.optimizer=sgd", "learner.lr=3e-2"],
    "supervised": ["train_on=solutions", "surrogate=no_clip", "learner.passes=1", "rollout.max_new_tokens=32"],
    "sampled-ahead": ["rollout.ahead=true"],
    "sampled-ahead-and-corrected": [
        "rollout.ahead=true", "learner.old_log_probs=learner", "learner.correction=token", "rollout.refill=1",
    ],
    "few-checkpoints": ["saving.every=100", "saving.keep=1"],
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_by_signals_it_ends_as_undisturbed(start, signalled, tmp_path, variant):
    undisturbed = outcome(start(tmp_path / "a", *VARIANTS[variant]))
    signalled(1, 2, 3)
    for step in (1, 2, 3):
        with pytest.raises(Stopped) as stopped:
            start(tmp_path / "b", *VARIANTS[variant])
        assert stopped.value.code == AGAIN
        assert (tmp_path / "b/checkpoints" / f"step-{step}" / "manifest.json").exists()
    assert outcome(start(tmp_path / "b", *VARIANTS[variant])) == undisturbed
    moved = {path: data for path, data in undisturbed["files"].items() if path.endswith("model.safetensors")}
    assert len(set(moved.values())) == len(moved)  # there was something to lose
    made_with = json.loads((tmp_path / "b/summary.json").read_text())["made_with"]
    assert [entry["from_step"] for entry in made_with] == [0]  # all with the same


@pytest.mark.slow
@pytest.mark.vllm
def test_with_vllm_too(start, signalled, tmp_path):
    pytest.importorskip("vllm")
    undisturbed = outcome(start(tmp_path / "a", "rollout=vllm"))
    signalled(2, 3)
    for _ in range(2):
        with pytest.raises(Stopped):
            start(tmp_path / "b", "rollout=vllm")
    assert outcome(start(tmp_path / "b", "rollout=vllm")) == undisturbed


def can_compile() -> bool:
    try:
        check_compiler("cpu")
    except ConfigError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.skipif(not can_compile(), reason="torch finds no C++ compiler, or no Python headers")
def test_with_compiled_layers_beside_vllm(start, signalled, tmp_path):
    """Gone on with in a process that compiles anew; and next to the run without, whose kernels round otherwise."""
    pytest.importorskip("vllm")
    settings = ["rollout=vllm", "steps=2", "eval.at_end=false"]
    torch._dynamo.reset()
    counters.clear()
    undisturbed = outcome(start(tmp_path / "a", "model.compile=true", *settings))
    assert counters["aot_autograd"]["ok"] > 4  # the layers: forward and backward, and forward alone
    signalled(1)
    with pytest.raises(Stopped):
        start(tmp_path / "b", "model.compile=true", *settings)
    torch._dynamo.reset()
    assert outcome(start(tmp_path / "b", "model.compile=true", *settings)) == undisturbed
    start(tmp_path / "c", *settings)
    weights, others = (load_file(tmp_path / name / "checkpoints/step-2/model.safetensors") for name in "ac")
    assert weights.keys() == others.keys()
    apart = torch.cat([(weights[name] - others[name]).abs().flatten() for name in weights])
    assert apart.max() > 0 and apart.mean() < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_with_kernels_that_promise_it(start, signalled, tmp_path, dtype):
    settings = ["device=cuda", "deterministic=true", f"model.dtype={dtype}", "rollout.max_gap=1"]
    undisturbed = outcome(start(tmp_path / "a", *settings))
    signalled(1, 3)
    for _ in range(2):
        with pytest.raises(Stopped):
            start(tmp_path / "b", *settings)
    assert outcome(start(tmp_path / "b", *settings)) == undisturbed


def test_a_damaged_checkpoint_costs_a_step_and_nothing_else(start, signalled, tmp_path, capsys):
    undisturbed = outcome(start(tmp_path / "a"))
    signalled(3)
    with pytest.raises(Stopped):
        start(tmp_path / "b")
    (tmp_path / "b/checkpoints/step-3/model.safetensors").write_bytes(b"damaged")
    with open(tmp_path / "b/metrics.jsonl", "a") as file:
        file.write('{"step": 4, "reward/me')
    assert outcome(start(tmp_path / "b")) == undisturbed
    said = capsys.readouterr().err
    assert "step-3 is skipped: model.safetensors has 7 bytes" in said and "goes on after step 2" in said


def test_killed_at_the_very_end_it_is_completed(start, tmp_path):
    undisturbed = outcome(start(tmp_path / "a"))
    (tmp_path / "a/DONE").unlink()  # what only training needs has gone by then
    (tmp_path / "a/.DONE.4711").touch()
    assert outcome(start(tmp_path / "a")) == undisturbed
    assert {path.name for path in (tmp_path / "a").iterdir() if path.name[0] == "."} == {".lock"}


def test_where_every_checkpoint_is_lost_it_says_so_and_begins_again(start, signalled, tmp_path, capsys):
    undisturbed = outcome(start(tmp_path / "a"))
    signalled(3)
    with pytest.raises(Stopped):
        start(tmp_path / "b")
    shutil.rmtree(tmp_path / "b/checkpoints")
    assert outcome(start(tmp_path / "b")) == undisturbed
    assert f"{tmp_path / 'b'} begins again, steps 1 to 3 too: no checkpoint is whole" in capsys.readouterr().err


def test_interrupted_in_its_last_evaluation(start, tmp_path, monkeypatch):
    settings = ["eval.test_problems=8", "eval.chunk=2"]
    undisturbed = outcome(start(tmp_path / "a", *settings))
    parts = tmp_path / "b/eval/.wordproblems.jsonl.parts"

    def write(path, text):
        write_whole(path, text)
        if path.parent == parts and path.suffix == ".jsonl":  # the first chunk is there
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as told:
        told.setattr("pspo.evalfile.write_whole", write)
        with pytest.raises(Stopped):
            start(tmp_path / "b", *settings)
    assert not (tmp_path / "b/DONE").exists() and list(parts.glob("0*.jsonl"))
    assert outcome(start(tmp_path / "b", *settings)) == undisturbed


def test_a_signal_while_the_ranks_ask_each_other_is_not_lost(start, tmp_path, monkeypatch):
    gather, left = Ranks.gather, {"the end of step 2": True}

    def told_meanwhile(ranks, value, what):
        if left.pop(what, False):
            os.kill(os.getpid(), signal.SIGTERM)  # `value`, nothing, is on its way already
        return gather(ranks, value, what)

    monkeypatch.setattr(Ranks, "gather", told_meanwhile)
    with pytest.raises(Stopped):
        start(tmp_path / "a")
    assert len((tmp_path / "a/metrics.jsonl").read_text().splitlines()) == 1 + 3  # one step later


def test_ctrl_c_once_saves_and_twice_quits(start, signalled, tmp_path, capfd):
    signalled(1, number=signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        start(tmp_path / "a")
    assert stopped.value.code == 130 and (tmp_path / "a/checkpoints/step-1").exists()
    assert "SIGINT: saving after this step; Ctrl-C again quits now" in capfd.readouterr().err
    signalled(2, number=signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "a")
    assert not (tmp_path / "a/checkpoints/step-2").exists()
    start(tmp_path / "a")
    assert (tmp_path / "a/DONE").exists()


def test_nothing_depends_on_global_generators(start, tmp_path, monkeypatch):
    undisturbed, sync = outcome(start(tmp_path / "a")), Run.sync

    def stirred(run):
        for generator in (random.random, np.random.rand, torch.rand):
            for _ in range(int(time.time_ns() % 7) + 1):
                generator(*() if generator is random.random else (1,))
        sync(run)

    monkeypatch.setattr(Run, "sync", stirred)
    changed = outcome(start(tmp_path / "b", "saving.every=100"))
    assert changed == undisturbed


def test_generators_go_on_where_they_were(start, signalled, tmp_path, monkeypatch):
    drawn, save = {}, Run.save

    def draw(run, step):
        drawn.setdefault(step, []).append((random.random(), np.random.rand(), torch.rand(()).item()))
        return save(run, step)

    monkeypatch.setattr(Run, "save", draw)
    start(tmp_path / "a")
    signalled(2)
    with pytest.raises(Stopped):
        start(tmp_path / "b")
    start(tmp_path / "b")
    assert all(len(draws) == 2 and draws[0] == draws[1] for draws in drawn.values()) and drawn.keys() == {1, 2, 3, 4}


def test_another_machine_or_package_is_told_and_kept_on_record(start, signalled, tmp_path, capsys, monkeypatch):
    signalled(2)
    with pytest.raises(Stopped):
        start(tmp_path / "a")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("pspo.run.provenance", lambda: {**provenance(), "packages": "torch 1.0"})
        start(tmp_path / "a")
    assert "goes on after step 2, perhaps not with the same bits: it has another packages (" in capsys.readouterr().err
    made_with = json.loads((tmp_path / "a/summary.json").read_text())["made_with"]
    assert [entry["from_step"] for entry in made_with] == [0, 3]


def test_a_policy_that_has_changed_under_its_name_is_told(start, signalled, checkpoint, tmp_path):
    policy = shutil.copytree(checkpoint, tmp_path / "policy")
    signalled(2)
    with pytest.raises(Stopped):
        start(tmp_path / "a", f"model.path={policy}")
    config = (policy / "config.json").read_text()
    (policy / "config.json").write_text(config + " ")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    with pytest.raises(PspoError, match="cannot go on: the starting policy are not those it began with"):
        start(tmp_path / "a", f"model.path={policy}")
    assert {path: path.read_bytes() for path in before} == before
    (policy / "config.json").write_text(config)
    start(tmp_path / "a", f"model.path={policy}")


def test_a_clock_that_jumps_changes_nothing(start, signalled, tmp_path, monkeypatch):
    undisturbed = outcome(start(tmp_path / "a"))
    signalled(2)
    with pytest.raises(Stopped):
        start(tmp_path / "b")
    monkeypatch.setattr("time.time", lambda: 1e9)  # 2001
    for path in (tmp_path / "b").rglob("*"):
        os.utime(path, (4e9, 4e9))  # 2096
    assert outcome(start(tmp_path / "b")) == undisturbed


def test_outside_the_steps_a_signal_ends_at_once_and_handlers_are_given_back():
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Stopped) as stopped, stoppable():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stopped.value.code == AGAIN and signal.getsignal(signal.SIGUSR1) is before


def test_a_program_that_listens_twice_is_told_once(capfd):
    with pytest.raises(Stopped) as stopped, stoppable(), stoppable() as inner:
        inner.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        inner.end()
    assert stopped.value.code == AGAIN and capfd.readouterr().err.count("\n") == 1


def test_a_handler_from_before_has_the_last_word():
    """As submitit's, which sends a job back to the queue."""
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda *_: heard.append("requeue"))
    try:
        with pytest.raises(Stopped), stoppable() as stop:
            stop.wait()
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop.asked == signal.SIGUSR2 and not heard
            stop.end()
        assert heard == ["requeue"]
    finally:
        signal.signal(signal.SIGUSR2, before)


# --- processes -------------------------------------------------------------------------------------------------------


def command(checkpoint, run_dir, ranks, *overrides):
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"] if ranks > 1 else []
    settings = [*SETTINGS, *SHORT, f"model.path={checkpoint}", f"run_dir={run_dir}", *overrides]
    return [sys.executable, "-m", *launch, "pspo.train", *settings]


@pytest.mark.parametrize(
    "then, told, status",
    [("SIGUSR1", "SIGUSR1", AGAIN), ("SIGTERM", "SIGUSR1", AGAIN), ("SIGTERM", None, 0), ("SIGINT", None, 130)],
)
def test_after_its_work_a_program_ends_with_its_own_status_whatever_it_hears(tmp_path, then, told, status):
    """Of a second warning Python's own end would die, when handlers are gone; of Ctrl-C it would show a traceback."""
    text = f"""
import atexit, os, signal
from pspo.config import StudyConfig, program
atexit.register(lambda: os.kill(os.getpid(), signal.{then}))

@program("study", StudyConfig)
def main(cfg):
    {f"os.kill(os.getpid(), signal.{told})" if told else "pass"}

main()
"""
    (tmp_path / "it.py").write_text(text)
    done = subprocess.run([sys.executable, tmp_path / "it.py"], capture_output=True, text=True)
    assert done.returncode == status and "Traceback" not in done.stderr


FULL_DISK = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (AT_MOST, resource.RLIM_INFINITY))
sys.argv[0] = "train"
runpy.run_module("pspo.train", run_name="__main__")
"""


def test_a_launchers_signal_after_slurms_is_heard_and_a_stop_crosses_processes():
    with pytest.raises(Stopped) as stopped, stoppable() as stop:
        stop.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        stop.end()
    assert stopped.value.asked == signal.SIGUSR2
    again = pickle.loads(pickle.dumps(stopped.value))
    assert (again.code, again.asked) == (AGAIN, signal.SIGUSR2)


@pytest.mark.slow
def test_on_a_full_disk_it_stops_with_one_line_and_loses_nothing(start, checkpoint, tmp_path, root):
    undisturbed = outcome(start(tmp_path / "a", "saving.every=2"))
    weights = (tmp_path / "a/checkpoints/step-4/model.safetensors").stat().st_size
    [_, _, *arguments] = command(checkpoint, tmp_path / "b", 1, "saving.every=2")
    for bytes_, said in ((weights - 1000, "step-2 cannot be written: "), (None, "")):
        program = FULL_DISK.replace("AT_MOST", str(bytes_ or -1))
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments[1:]], cwd=root, capture_output=True, text=True, env=ENV
        )
        assert (done.returncode, "Traceback" in done.stderr) == (1 if bytes_ else 0, False), done.stderr[-2000:]
        assert said in done.stderr
    assert outcome(tmp_path / "b") == undisturbed


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a disk with these options, or gives it others; its directory."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        again = ["-o", f"remount,{options}"] if place.is_mount() else ["-t", "tmpfs", "-o", options, "tmpfs"]
        done = subprocess.run(["mount", *again, str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def test_where_nothing_can_be_written_it_says_so_and_nothing_is_lost(start, signalled, disk, tmp_path):
    undisturbed, place = outcome(start(tmp_path / "a")), disk("size=64m")
    signalled(2)
    with pytest.raises(Stopped):
        start(place / "b")
    disk("ro")
    with pytest.raises(PspoError, match="b cannot be written: Read-only file system"):
        start(place / "b")
    disk("rw")
    assert outcome(start(place / "b")) == undisturbed


@pytest.mark.slow
def test_on_a_disk_that_is_full_within_a_line_it_goes_on_without_what_is_torn(start, checkpoint, disk, tmp_path, root):
    settings = ["steps=12", "saving.every=100", "eval.every=0"]
    undisturbed = outcome(start(tmp_path / "a", *settings))
    page = resource.getpagesize()
    config = -(-(tmp_path / "a/config.yaml").stat().st_size // page)
    for size, status in ((2 * config * page, 1), (64 << 20, 0)):  # while it is replaced, config.yaml is there twice
        place = disk(f"size={size}")
        run = command(checkpoint, place / "b", 1, *settings)
        done = subprocess.run(run, cwd=root, capture_output=True, text=True, env=ENV)
        assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr[-2000:]
        if status:
            assert "metrics.jsonl cannot be written: No space left on device" in done.stderr
            assert not (place / "b/metrics.jsonl").read_text().endswith("\n")  # torn
    assert outcome(place / "b") == undisturbed


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_as_two_or_as_one(checkpoint, tmp_path, root):
    def run(name, ranks, *overrides, **more):
        return subprocess.run(
            command(checkpoint, tmp_path / name, ranks, *overrides), cwd=root, env=ENV, capture_output=True, text=True
        )

    assert run("a", 2).returncode == 0
    with subprocess.Popen(
        command(checkpoint, tmp_path / "b", 2), cwd=root, env=ENV, stderr=subprocess.PIPE, text=True
    ) as launcher:
        deadline = time.monotonic() + 100
        while not (tmp_path / "b/metrics.jsonl").exists() or not (tmp_path / "b/metrics.jsonl").read_text():
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        ranks = [p for p in psutil.Process(launcher.pid).children() if "RANK" in p.environ()]
        next(p for p in ranks if p.environ()["RANK"] == "1").send_signal(signal.SIGUSR1)  # one of them alone
        _, said = launcher.communicate(timeout=100)
    assert f"exitcode  : {AGAIN}" in said and "exitcode  : 1 " not in said, said[-3000:]
    assert (tmp_path / "b/checkpoints").exists() and not (tmp_path / "b/DONE").exists()
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    assert run("b", 2).returncode == 0
    assert outcome(tmp_path / "b") == outcome(tmp_path / "a")
    as_one = run("c", 1)
    assert as_one.returncode == 0 and "another ranks (1; before: 2)" in as_one.stderr
    two, one = outcome(tmp_path / "a"), outcome(tmp_path / "c")
    for line, other in zip(two["metrics"], one["metrics"], strict=True):
        assert line["step"] == other["step"] and line.get("reward/mean") == pytest.approx(other.get("reward/mean"))
    assert one["files"].keys() == two["files"].keys()
