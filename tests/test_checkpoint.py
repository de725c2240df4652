"""Checkpoints: whole or absent, verified before they are loaded, for any number of ranks."""

import errno
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pspo.checkpoint import Checkpoints, verify_policy
from pspo.errors import PspoError
from pspo.ranks import Ranks

STATE = {
    "optimizer.exp_avg.a": torch.arange(6.0).view(2, 3),
    "optimizer.step.a": torch.tensor(3.0),
    "generator.torch.0": torch.get_rng_state(),
}


def policy(directory):
    save_file({"weight": torch.arange(1000.0)}, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")


def like(name, shape, dtype):
    return torch.empty(shape, dtype=dtype)


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", 9, Ranks())


@pytest.fixture
def three(checkpoints):
    """Of steps 1 to 3."""
    for step in (1, 2, 3):
        checkpoints.save(step, policy, STATE, {"validated": {"0": step / 10}})
    return checkpoints


def test_what_was_saved_is_read_back(three):
    saved = three.newest()
    assert (saved.step, saved.memory) == (3, {"validated": {"0": 0.3}})
    state = three.read(saved, like)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) and state[name].dtype == STATE[name].dtype for name in STATE)
    assert three.read(saved, lambda name, *_: like(name, *_) if "step" in name else None).keys() == {"optimizer.step.a"}


def test_nothing_is_pickled_and_every_file_is_in_the_manifest(three):
    files = {p.relative_to(three.at(3)).as_posix() for p in three.at(3).rglob("*") if p.is_file()}
    assert files == {"config.json", "model.safetensors", "state/state.safetensors", "manifest.json"}
    manifest = json.loads((three.at(3) / "manifest.json").read_text())
    assert manifest["files"].keys() == files - {"manifest.json"}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda d: flip(d / "model.safetensors"), "model.safetensors is not what was written: its sum differs"),
        (lambda d: flip(d / "state/state.safetensors"), "state/state.safetensors is not what was written"),
        (lambda d: os.truncate(d / "model.safetensors", 100), "model.safetensors has 100 bytes instead of "),
        (lambda d: (d / "config.json").unlink(), "config.json cannot be read (No such file"),
        (lambda d: (d / "manifest.json").unlink(), "its manifest.json cannot be read"),
        (lambda d: (d / "manifest.json").write_text('{"step": 3, '), "its manifest.json cannot be read"),
        (lambda d: shutil.copy(d.parent / "step-2/manifest.json", d), "of another step"),
        (lambda d: replace(d / "manifest.json", "0.3", "0.4"), "its manifest.json is not what was written"),
        (lambda d: (d / "manifest.json").write_text("[]"), "its manifest.json cannot be read"),
        (lambda d: (d / "manifest.json").write_text("[" * 200_000), "its manifest.json cannot be read"),
        (lambda d: shutil.rmtree(d / "state"), "it holds a policy alone"),
    ],
)
def test_a_damaged_one_is_named_and_skipped_for_the_one_before(three, capsys, damage, said):
    damage(three.at(3))
    assert three.newest().step == 2
    told = capsys.readouterr().err
    assert f"{three.at(3)} is skipped: " in told and said in told and told.count("\n") == 1
    three.save(3, policy, STATE, {})  # it makes way for a whole one
    assert three.newest().step == 3


@pytest.mark.parametrize("written", [{"format": 1, "step": 3}, {"format": 3, "step": 3, "sum": None}])
def test_one_of_another_version_is_no_damage(three, written):
    """Of the first format, which had no sum, and of one to come: what is skipped as damaged is done again, and lost."""
    if "sum" in written:
        rest = {key: value for key, value in written.items() if key != "sum"}
        text = json.dumps(rest, sort_keys=True).encode()
        written["sum"] = hashlib.blake2b(text).hexdigest()
    (three.at(3) / "manifest.json").write_text(json.dumps(written))
    with pytest.raises(PspoError, match=f"is of format {written['format']}, and this version reads 2: nothing was"):
        three.newest()


def test_one_takes_the_place_of_whatever_has_its_name(three):
    three.at(4).write_text("a file")
    three.save(4, policy, STATE, {})
    assert {path.name for path in three.directory.iterdir()} == {"step-1", "step-2", "step-3", "step-4"}


def fails_with(number, name, of=None):
    """As on a disk or server that has trouble: `open` and `listdir` of what is called so raise this error."""

    def broken(path, *more, **options):
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return of(path, *more, **options)

    return broken


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize(
    "call, name",
    [("builtins.open", "step-3/model.safetensors"), ("io.open", "step-3/manifest.json"), ("os.listdir", "s")],
)
def test_one_that_cannot_be_read_now_is_not_given_up(three, monkeypatch, number, call, name):
    module, _, function = call.rpartition(".")
    of = getattr(importlib.import_module(module), function)
    with monkeypatch.context() as trouble:
        trouble.setattr(call, fails_with(number, name, of))
        with pytest.raises(PspoError, match=f"{name}.* cannot be read: {os.strerror(number)}; nothing was changed"):
            three.newest()
    assert three.steps() == [1, 2, 3] and three.newest().step == 3


def test_what_is_flushed_before_it_gets_its_name(checkpoints, monkeypatch):
    """All files and directories of a checkpoint, then the rename, then the directory that has the name."""
    done, fsync, rename = [], os.fsync, Path.rename
    monkeypatch.setattr("os.fsync", lambda fd: (done.append(Path(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda path, to: (done.append(("rename", path, to)), rename(path, to))[1])
    checkpoints.save(1, policy, STATE, {})
    place, fresh, whole = checkpoints.directory, checkpoints.directory / ".step-1.writing", checkpoints.at(1)
    named = done.index(("rename", fresh, whole))
    written = {fresh / path.relative_to(whole) for path in whole.rglob("*")}
    assert {*written, fresh, place.parent} <= set(done[:named]) and place in done[named:]


def test_where_all_are_damaged_there_is_none(three):
    for step in three.steps():
        flip(three.at(step) / "model.safetensors")
    assert three.newest() is None


def test_what_is_only_like_a_checkpoint_is_none(three):
    for name in ("step-007", "step-\u0663", "step-1x", "step-"):
        shutil.copytree(three.at(2), three.directory / name)
    (three.directory / "step-9").write_text("a file")
    assert three.steps() == [1, 2, 3, 9] and three.newest().step == 3
    three.save(4, policy, STATE, {})
    three.prune(4, keep=1, best=4)
    assert three.steps() == [4] and not list(three.directory.glob(".*"))
    assert (three.directory / "step-007").exists()


@pytest.mark.parametrize("left", [".step-4.writing", ".step-2.old-77", ".step-1.state"])
def test_what_a_killed_process_left_is_cleared_away(three, left):
    (three.directory / left).mkdir()
    (three.directory / left / "model.safetensors").write_bytes(b"half")
    assert three.newest().step == 3
    assert sorted(p.name for p in three.directory.iterdir()) == ["step-1", "step-2", "step-3"]


def test_the_newest_and_the_best_are_kept_and_an_older_best_as_a_policy_alone(three):
    three.prune(3, keep=1, best=1)
    assert three.steps() == [1, 3]
    assert not (three.at(1) / "state").exists() and (three.at(1) / "model.safetensors").exists()
    assert three.newest().step == 3
    assert three.policy(1) == three.at(1)
    three.strip()
    assert not (three.at(3) / "state").exists()
    assert sorted(p.name for p in three.directory.iterdir()) == ["step-1", "step-3"]


def test_after_the_last_step_the_policy_is_enough(checkpoints):
    for step in (8, 9):
        checkpoints.save(step, policy, STATE, {})
    checkpoints.strip()  # a run that is killed now has its last evaluation before it
    saved = checkpoints.newest()
    assert saved.step == 9 and checkpoints.read(saved, like) == {}


def test_damaged_ones_that_were_skipped_make_way_for_what_is_done_again(three):
    for step in (2, 3):
        flip(three.at(step) / "model.safetensors")
    assert three.newest().step == 1
    three.save(2, policy, STATE, {})
    three.prune(2, keep=2, best=9)
    assert three.steps() == [1, 2] and three.newest().step == 2


def test_a_damaged_best_policy_is_not_evaluated(three):
    three.prune(3, keep=1, best=1)
    flip(three.at(1) / "model.safetensors")
    with pytest.raises(PspoError, match=r"step-1 is damaged \(model.safetensors is not what was written.*remove"):
        three.policy(1)


def test_a_damaged_policy_is_no_start_of_anything(three, tmp_path):
    verify_policy(three.at(3))
    verify_policy(tmp_path)  # of somebody else, without a manifest
    shutil.rmtree(three.at(3) / "state")
    verify_policy(three.at(3))
    flip(three.at(3) / "model.safetensors")
    with pytest.raises(PspoError, match=r"step-3 is damaged: model.safetensors is not what was written"):
        verify_policy(three.at(3))


def test_a_full_disk_leaves_what_was_there_and_says_where_the_run_goes_on(three):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # writing past it fails as on a full disk
    try:
        with pytest.raises(PspoError, match=r"step-4 cannot be written: .*; the same command goes on from step-3"):
            three.save(4, policy, STATE, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in three.directory.iterdir()) == ["step-1", "step-2", "step-3"]
    assert three.newest().step == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from pspo.checkpoint import Checkpoints
from pspo.ranks import Ranks
def policy(directory):
    (directory / "model.safetensors").write_bytes(b"x" * 10)
    os.kill(os.getpid(), signal.SIGKILL)
Checkpoints(Path(sys.argv[1]), 9, Ranks()).save(4, policy, {}, {})
"""


def test_killed_while_it_writes_it_leaves_no_checkpoint(three):
    done = subprocess.run([sys.executable, "-c", KILLED, str(three.directory)])
    assert done.returncode == -signal.SIGKILL
    assert (three.directory / ".step-4.writing").exists()
    assert three.steps() == [1, 2, 3] and three.newest().step == 3
    assert not (three.directory / ".step-4.writing").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after, moments", [(1, 2, "dd"), (2, 1, "dd"), (2, 3, "dd"), (2, 3, "hh"), (2, 1, "hd"), (1, 2, "dh")]
)
def test_saved_on_some_ranks_it_is_loaded_on_others_to_the_same_bits(root, tmp_path, before, after, moments):
    """Weights and optimiser of a sharded policy after two updates, adapters among them; moments on the device or in the
    host's memory."""
    digests = []
    for ranks, act, where in ((before, "save", moments[0]), (after, "load", moments[1])):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
        command = [sys.executable, *launch, str(root / "tests/programs/saving.py"), act, str(tmp_path)]
        command.append(f"learner.offload_optimizer={str(where == 'h').lower()}")
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        digests.append([line for line in done.stdout.splitlines() if line.startswith("digest")])
    assert len(digests[0]) == 2 and digests[0] == digests[1]
