"""W&B beside a run, with the real package: its service, its files and its reader of them.

Where steps have to be counted on a server, one stands in on the loopback that keeps what the real client sends.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import pairwise

import psutil
import pytest
from known import SETTINGS, make_policy
from wandb.util import get_core_path
from wandb_server import Server

from pspo.config import TrainConfig, compose, to_yaml
from pspo.errors import PspoError
from pspo.files import write_whole
from pspo.tracking.record import Record, lines_of
from pspo.tracking.sync import runs_of
from pspo.tracking.wandb_files import Sent, clear, remember, remembered, run_id

KEY = "0" * 40
PATIENCE_S = 200.0
"""For what takes seconds, on a machine with other things to do; how long it may take is asserted where it matters."""


@pytest.fixture
def environment(tmp_path):
    """Of a user who never logged in."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return kept | {"HOME": str(home), "WANDB_ERROR_REPORTING": "false", "NETRC": str(home / "netrc")}


@pytest.fixture
def run(root, tmp_path, environment):
    """A function that runs tests/programs/logs_steps.py in the run directory tmp_path/run, or starts it for a block."""

    def go(after, last, how, *settings, start=False, **variables):
        program = [sys.executable, "tests/programs/logs_steps.py", str(tmp_path / "run"), str(after).lower(), str(last)]
        kept = {"cwd": root, "text": True, "env": environment | variables, "stdin": subprocess.DEVNULL}
        if start:
            return started([*program, how, *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kept)
        return subprocess.run([*program, how, *settings], capture_output=True, timeout=PATIENCE_S, **kept)

    return go


@contextmanager
def started(*command, **kept):
    with subprocess.Popen(*command, **kept) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.fixture
def sync(root, tmp_path, environment):
    def go(*arguments, **variables):
        command = [sys.executable, "-m", "pspo.tracking.sync", *map(str, arguments or [tmp_path / "run"])]
        return subprocess.run(
            command, cwd=root, env=environment | variables, capture_output=True, text=True, timeout=PATIENCE_S
        )

    return go


@contextmanager
def silent_server():
    """Takes connections and never answers, as behind a firewall that drops what it does not like."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def online(url):
    return {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def id_of(run_dir):
    return json.loads((run_dir / "wandb.json").read_text())["id"]


def records(path, kind):
    """The records of one kind in a .wandb file, by wandb's own reader, which stops where the file is torn."""
    command = [get_core_path(), "leet", "inspect", "-no-observability", "-json", "-run-file", str(path)]
    read = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S).stdout
    return [record[kind] for record in map(json.loads, read.splitlines()) if record["type"] == kind]


def steps_in(path):
    return [record["step"]["num"] for record in records(path, "history")]


def offline_files(run_dir):
    return sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))


def eventually(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def flushed(run_dir, steps):
    """Waits until the one offline file has these steps; W&B flushes each second."""
    eventually(lambda: [steps_in(path) for path in offline_files(run_dir)] == [steps])


def until(running, words):
    """Reads what the program prints up to a line that begins with the words."""
    lines = []
    for line in running.stdout:
        lines.append(line)
        if line.startswith(words):
            return lines
    raise AssertionError(f"ended without {words!r}: {lines} {running.stderr.read()}")


def kill(running):
    """With W&B's service, which ends when it sees that."""
    services = psutil.Process(running.pid).children()
    running.kill()
    running.wait()
    eventually(lambda: all(gone(service) for service in services))


def seconds(done, words):
    return [
        float(line.split()[-1 if words != "started" else 1]) for line in done.splitlines() if line.startswith(words)
    ]


def on_record(tmp_path):
    return [line["step"] for line in lines_of(tmp_path / "run/metrics.jsonl")]


# --- offline ----------------------------------------------------------------------------------------------------------


def test_an_offline_run_is_one_w_and_b_run_with_group_tags_name_and_config(run, tmp_path):
    done = run(None, 2, "done", "tracking=offline", "tracking.tags=[mine]", "seed=3", "surrogate=clip")
    assert done.returncode == 0 and done.stderr == ""
    (written,) = offline_files(tmp_path / "run")
    (about, *_) = records(written, "run")
    assert about["run_id"] == id_of(tmp_path / "run") and about["project"] == "pspo"
    assert (about["display_name"], about["run_group"], about["job_type"]) == ("run", "study-a", "train")
    assert set(about["tags"]) >= {"study-a", "clip", "seed=3", "mine"}
    assert about["config"]["update"]["surrogate"]["name"] == "clip"
    lines = [record["item"] for record in records(written, "history")]
    assert [line["reward/mean"] for line in lines] == [0.0, 0.125, 0.25]
    assert all(line["ratio/max"] == "NaN" for line in lines)
    assert [record.get("exit_code", 0) for record in records(written, "exit")] == [0]


def test_killed_and_started_again_offline_has_every_step_once_under_one_id(run, tmp_path):
    with run(None, 5, "waits", "tracking=offline", start=True) as running:
        until(running, "step 5")
        flushed(tmp_path / "run", [0, 1, 2, 3, 4, 5])
        kill(running)
    (first,) = offline_files(tmp_path / "run")
    name = id_of(tmp_path / "run")
    while 5 in steps_in(first):  # and the machine went down on top
        first.write_bytes(first.read_bytes()[:-40])

    with run(3, 7, "waits", "tracking=offline", start=True) as running:  # 4 and 5 are done again
        until(running, "step 7")
        kill(running)  # before W&B has flushed anything
    assert run(6, 9, "done", "tracking=offline").returncode == 0
    (last,) = offline_files(tmp_path / "run")
    assert steps_in(last) == list(range(10)) == on_record(tmp_path)
    assert {about["run_id"] for about in records(last, "run")} == {name} == {id_of(tmp_path / "run")}


def test_wandb_sync_of_what_each_start_left_sends_no_step_twice(root, run, environment, tmp_path):
    """Plain `wandb sync`, after a kill and after the end: the second file begins where the first one ended."""

    def wandb_sync():
        command = [sys.executable, "-m", "wandb", "sync", *map(str, (tmp_path / "run/wandb").glob("offline-run-*"))]
        variables = environment | online(server.url)
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr

    with Server() as server:
        with run(None, 5, "waits", "tracking=offline", start=True) as running:
            until(running, "step 5")
            flushed(tmp_path / "run", [0, 1, 2, 3, 4, 5])
            kill(running)
        wandb_sync()
        name = id_of(tmp_path / "run")
        assert server.steps(name) == [0, 1, 2, 3, 4, 5]
        run(3, 8, "done", "tracking=offline")
        (last,) = offline_files(tmp_path / "run")
        assert steps_in(last) == [6, 7, 8]
        wandb_sync()
        wandb_sync()
        assert server.steps(name) == list(range(9))


def test_what_was_written_after_wandb_sync_is_in_the_next_file(run, tmp_path):
    run(None, 5, "ends", "tracking=offline")
    (first,) = offline_files(tmp_path / "run")
    marker = first.with_name(f"{first.name}.synced")  # as `wandb sync` of a run at work leaves it
    marker.touch()
    os.utime(marker, ns=(first.stat().st_mtime_ns,) * 2)
    run(5, 7, "done", "tracking=offline")
    (last,) = offline_files(tmp_path / "run")
    assert steps_in(last) == list(range(8))


# --- online -----------------------------------------------------------------------------------------------------------


def test_killed_and_started_again_online_sends_every_step_once(run, tmp_path):
    with Server() as server:
        assert run(None, 4, "ends", "tracking=online", **online(server.url)).returncode == 0
        name = id_of(tmp_path / "run")
        assert server.steps(name) == [0, 1, 2, 3, 4]
        with run(2, 6, "waits", "tracking=online", start=True, **online(server.url)) as running:
            until(running, "step 6")
            kill(running)  # 3 and 4 are done again; 5 and 6 may or may not be sent
        assert server.steps(name) in ([0, 1, 2, 3, 4], list(range(6)), list(range(7)))
        done = run(6, 8, "done", "tracking=online", **online(server.url))
        assert done.returncode == 0 and done.stderr == ""
        assert server.steps(name) == list(range(9))
        assert server.values(name, "reward/mean") == [step / 8 for step in range(9)]
        assert server.endings[name] == [1, 0]
        assert (server.about[name]["groupName"], server.about[name]["jobType"]) == ("study-a", "train")
        assert "study-a" in server.about[name]["tags"]


def test_a_run_that_is_told_to_stop_is_not_a_finished_one(run, tmp_path):
    with Server() as server:
        done = run(None, 4, "stopped", "tracking=online", **online(server.url))
        assert done.returncode == 75
        assert server.endings[id_of(tmp_path / "run")] == ["preempted", 1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "silent", "no key"])
def test_without_w_and_b_the_run_goes_on_and_says_so_once(run, tmp_path, kind):
    with silent_server() as silent:
        url = silent if kind == "silent" else closed_port()
        variables = {"WANDB_BASE_URL": url} if kind == "no key" else online(url)
        done = run(None, 4, "done", "tracking=online", "tracking.timeout=16", **variables)
    assert done.returncode == 0 and on_record(tmp_path) == [0, 1, 2, 3, 4]
    (line,) = done.stderr.splitlines()
    assert line.startswith("pspo: W&B: ") and line.endswith("and `make wandb-sync` uploads it later")
    assert ("no API key is set up here" in line) == (kind == "no key")
    (waited,) = seconds(done.stdout, "started")
    assert waited < 60  # the time-out, and what starting and ending its service takes on a busy machine
    assert max(seconds(done.stdout, "step")) < 8  # none waits for W&B; each waits for the disk
    assert not list((tmp_path / "run").glob("wandb/*run-*/*.wandb"))


@pytest.mark.parametrize(("told", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_told_to_stop_while_w_and_b_does_not_answer(run, told, status):
    """A signal during the wait ends the program at once, not when it is over."""
    settings = ("tracking=online", "tracking.timeout=250")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with run(None, 4, "done", *settings, start=True, **online(url), PYTHONFAULTHANDLER="1") as running:
            server.settimeout(PATIENCE_S)
            asked, _ = server.accept()  # W&B has asked, and waits for the answer
            running.send_signal(told)
            try:
                assert running.wait(timeout=100) == status
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGABRT)  # says where every thread is
                pytest.fail(running.communicate(timeout=PATIENCE_S)[1])
            asked.close()


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["network", "service", "answer"])
def test_w_and_b_lost_in_the_middle_costs_nothing_but_one_line(run, sync, tmp_path, lost):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/pause").touch()
    with Server() as server:
        first = server
        with run(
            None, 12, "done", "tracking=online", "tracking.timeout=16", start=True, **online(server.url)
        ) as running:
            until(running, "step 2")
            (core,) = [c for c in psutil.Process(running.pid).children() if "wandb-core" in c.name()]
            if lost == "service":
                assert os.getsid(core.pid) != os.getsid(running.pid)  # Ctrl-C in a terminal does not reach it
                core.send_signal(signal.SIGUSR1)  # SLURM's warning does nothing to it
                time.sleep(0.5)
                assert not gone(core)
                core.terminate()  # the end of a job does
                eventually(lambda: gone(core))
            elif lost == "answer":
                core.suspend()
            else:
                server.__exit__(None)
            (tmp_path / "run/pause").unlink()
            said, heard = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0 and on_record(tmp_path) == list(range(13))
    (line,) = heard.splitlines()
    assert line.startswith("pspo: W&B: ") and "make wandb-sync" in line
    assert ("its service did not answer within 26 s" in line) == (lost == "answer")
    assert max(seconds(said, "step")) < 8
    eventually(lambda: gone(core))
    with Server() as server:
        server.history, server.about = first.history, first.about  # the same one is back
        done = sync(**online(server.url))
        assert done.returncode == 0, done.stderr
        assert server.steps(id_of(tmp_path / "run")) == list(range(13))


def test_a_service_that_does_not_hear_that_it_is_to_end_is_killed(root, environment):
    code = (
        "import psutil; from wandb.sdk import wandb_setup; from pspo.tracking import wandb_view\n"
        "wandb_setup.singleton().ensure_service()\n"
        "(service,) = psutil.Process().children()\n"
        "service.suspend(); wandb_view.GRACE = 1.0; wandb_view._teardown()\n"
        "assert not service.is_running()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_two_runs_in_one_process_are_two_w_and_b_runs(root, environment, tmp_path):
    """As in a study's worker. W&B's service ends with each."""
    code = (
        "import sys; sys.path.insert(0, 'tests/programs'); from logs_steps import main; from pathlib import Path\n"
        f"for name in 'ab': main(Path({str(tmp_path)!r}) / name, None, 3, 'done', 'tracking=offline')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    names = {id_of(tmp_path / name) for name in "ab"}
    assert len(names) == 2
    for name in "ab":
        (written,) = offline_files(tmp_path / name)
        assert steps_in(written) == [0, 1, 2, 3]
        assert {about["run_id"] for about in records(written, "run")} == {id_of(tmp_path / name)}


# --- uploading later --------------------------------------------------------------------------------------------------


def test_wandb_sync_uploads_what_the_server_lacks_and_can_be_repeated(run, sync, tmp_path):
    run(None, 4, "ends", "tracking=offline")
    with Server() as server:
        name = id_of(tmp_path / "run")
        assert "steps 0 to 4 uploaded, of a run that is not complete" in sync(**online(server.url)).stdout
        assert "nothing new" in sync(tmp_path, **online(server.url)).stdout  # found in a directory of runs
        run(2, 7, "done", "tracking=offline")
        (left,) = offline_files(tmp_path / "run")
        assert steps_in(left) == [5, 6, 7]  # for those who use `wandb sync`
        assert "steps 5 to 7 uploaded\n" in sync(**online(server.url)).stdout
        assert left.with_name(f"{left.name}.synced").exists()
        assert server.steps(name) == list(range(8)) and server.endings[name] == [1, 0]
        assert server.values(name, "reward/mean") == [step / 8 for step in range(8)]
    assert sync(**online(closed_port())).stdout == "1 runs, 1 of them uploaded before\n"


def test_wandb_sync_takes_the_steps_that_are_whole_of_a_run_at_work(run, sync, tmp_path):
    with Server() as server:
        with run(None, 3, "waits", "tracking=offline", start=True) as running:
            until(running, "step 3")
            with open(tmp_path / "run/metrics.jsonl", "a") as file:
                file.write('{"step": 4, "rew')
            done = sync(**online(server.url))
            kill(running)
        assert "steps 0 to 3 uploaded" in done.stdout and server.steps(id_of(tmp_path / "run")) == [0, 1, 2, 3]


def ended(run_dir, *settings):
    """What a run without W&B leaves."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_whole(run_dir / "config.yaml", to_yaml(compose("train", TrainConfig, settings)))
    record = Record(run_dir / "metrics.jsonl", None)
    for step in range(3):
        record.append({"step": step, "reward/mean": step / 8})
    record.close()
    (run_dir / "DONE").touch()


@pytest.mark.parametrize("kind", ["closed", "silent", "no key"])
def test_wandb_sync_without_w_and_b_says_so_in_one_line(sync, tmp_path, kind):
    ended(tmp_path / "run", "tracking=offline")
    begun = time.monotonic()
    with silent_server() as silent:
        url = silent if kind == "silent" else closed_port()
        done = sync(**({"WANDB_BASE_URL": url} if kind == "no key" else online(url)))
    assert done.returncode == 1 and time.monotonic() - begun < 60
    (line,) = done.stderr.splitlines()
    assert line.startswith("pspo: W&B: ") and ("no API key" in line) == (kind == "no key")


def test_wandb_sync_takes_of_a_directory_the_runs_that_ask_for_w_and_b(tmp_path):
    for name, tracking in (("a", "none"), ("b", "offline"), ("c", "online")):
        ended(tmp_path / name, f"tracking={tracking}")
    failed = []
    assert [run.dir.name for run in runs_of(tmp_path, failed)] == ["b", "c"]
    assert [run.dir.name for run in runs_of(tmp_path / "a", failed)] == ["a"]  # named, it is taken
    assert not failed
    with pytest.raises(PspoError, match="nowhere is no directory of a run, or of runs"):
        runs_of(tmp_path / "nowhere", failed)


def test_wandb_sync_names_what_it_cannot_read_and_uploads_the_rest(sync, tmp_path):
    runs = {name: tmp_path / "runs" / name for name in "abcde"}
    for run_dir in runs.values():
        ended(run_dir, "tracking=offline")
    (runs["a"] / "config.yaml").unlink()
    (runs["b"] / "config.yaml").write_text("learning_rate: 1\n")
    (runs["c"] / "wandb.json").write_text("{")
    lines = (runs["d"] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (runs["d"] / "metrics.jsonl").write_bytes("".join(lines[:1]).encode() + b"\xff\0\n" + lines[2].encode())
    with Server() as server:
        done = sync(tmp_path / "runs", **online(server.url))
        assert server.steps(id_of(runs["e"])) == [0, 1, 2] and len(server.history) == 1
    assert done.returncode == 1 and f"{runs['e']}: steps 0 to 2 uploaded\n" in done.stdout
    reasons = ("No such file", "not one of this version", "wandb.json is damaged", "line 2 is no object of a step")
    said = done.stderr.splitlines()
    for line, name, reason in zip(said, "abcd", reasons, strict=True):
        assert line.startswith(f"{runs[name]}: not uploaded: ") and reason in line


def test_a_damaged_id_is_told_and_not_replaced(tmp_path):
    sent = '{"id": "a", "project": "p", "last": "3", "whole": false}'
    for text in ('{"id": ', "{}", "[]", '{"id": 3}', '{"id": "a", "project": "p"}', sent):
        (tmp_path / "wandb.json").write_text(text)
        with pytest.raises(PspoError, match="is damaged; put it back, or remove it"):
            run_id(tmp_path)
        assert (tmp_path / "wandb.json").read_text() == text


def test_the_id_is_drawn_once(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    names = [run_id(tmp_path / name) for name in "abab"]
    assert names[:2] == names[2:] and all(one != other for one, other in pairwise(names))


def test_a_lost_id_is_the_one_that_it_had(tmp_path):
    assert run_id(tmp_path, "before") == run_id(tmp_path) == "before"
    assert run_id(tmp_path, "another") == "before"


def test_only_a_run_that_is_done_is_whole_and_none_that_starts(tmp_path):
    cfg = compose("train", TrainConfig, ["tracking=online"])
    remember(tmp_path, cfg, Sent(3, whole=True))
    assert remembered(tmp_path, cfg) == Sent(3)
    (tmp_path / "DONE").touch()
    assert remembered(tmp_path, cfg) == Sent(3, whole=True)
    assert clear(tmp_path, cfg) == 3 and remembered(tmp_path, cfg) == Sent(3)


# --- files of W&B that cannot be used ---------------------------------------------------------------------------------


def test_a_damaged_id_costs_a_run_nothing_but_one_line(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/wandb.json").write_text("{")
    done = run(None, 3, "done", "tracking=offline")
    assert done.returncode == 0 and on_record(tmp_path) == [0, 1, 2, 3]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"pspo: W&B: {tmp_path}/run/wandb.json is damaged; ") and "the run does without it" in line
    assert (tmp_path / "run/wandb.json").read_text() == "{"


def test_a_file_of_w_and_b_that_cannot_be_read_costs_a_run_nothing_but_one_line(run, tmp_path):
    file = tmp_path / "run/wandb/offline-run-1/run-1.wandb"
    file.mkdir(parents=True)
    os.utime(file, (1, 1))
    file.with_name("run-1.wandb.synced").touch()
    done = run(None, 3, "done", "tracking=offline")
    assert done.returncode == 0 and on_record(tmp_path) == [0, 1, 2, 3]
    (line,) = done.stderr.splitlines()
    assert line.startswith("pspo: W&B: CalledProcessError: ")


def test_an_id_that_is_lost_meanwhile_costs_a_run_nothing_but_one_line(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/pause").touch()
    with (
        Server() as server,
        run(None, 4, "done", "tracking=online", start=True, **online(server.url)) as running,
    ):
        until(running, "step 2")
        (tmp_path / "run/wandb.json").unlink()
        (tmp_path / "run/wandb.json").mkdir()
        (tmp_path / "run/pause").unlink()
        _, heard = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0 and on_record(tmp_path) == [0, 1, 2, 3, 4]
    (line,) = heard.splitlines()
    assert line.startswith("pspo: W&B: IsADirectoryError: ")


# --- the program ------------------------------------------------------------------------------------------------------

TOLD_TO_STOP_IN_STEP_2 = """
import os, signal, sys
from pspo.config import TrainConfig, compose
from pspo.run import Run
from pspo.train import train

check = Run.check

def told(run, groups, step):
    if step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    check(run, groups, step)

Run.check = told
train(compose("train", TrainConfig, sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("wandb") / "checkpoint")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_run_that_was_told_to_stop_goes_on_to_be_whole(root, policy, environment, sync, tmp_path, mode):
    """With wandb.json lost on the way, whose id the checkpoint has."""
    own = (f"model.path={policy}", f"run_dir={tmp_path / 'run'}", "rollout=hf", "steps=4", f"tracking={mode}")
    command = [sys.executable, "-c", TOLD_TO_STOP_IN_STEP_2, *SETTINGS, *own, "tracking.progress=false"]
    with Server() as server:
        variables = online(server.url)
        kept = {"cwd": root, "env": environment | variables, "capture_output": True, "text": True}
        done = subprocess.run(command, timeout=PATIENCE_S, **kept)
        assert done.returncode == 75 and on_record(tmp_path) == [0, 1, 2], done.stderr
        name = id_of(tmp_path / "run")
        if mode == "online":
            assert server.steps(name) == [0, 1, 2] and server.endings[name] == ["preempted", 1]
            assert "1 runs, 0 of them uploaded before\n" in sync(**variables).stdout
        else:
            (written,) = offline_files(tmp_path / "run")
            assert records(written, "preempting") and [end["exit_code"] for end in records(written, "exit")] == [1]
            assert "steps 0 to 2 uploaded, of a run that is not complete" in sync(**variables).stdout

        (tmp_path / "run/wandb.json").unlink()
        done = subprocess.run(command, timeout=PATIENCE_S, **kept)
        assert done.returncode == 0 and on_record(tmp_path) == [0, 1, 2, 3, 4], done.stderr
        assert id_of(tmp_path / "run") == name
        said = sync(**variables).stdout
        assert ("steps 3 to 4 uploaded\n" if mode == "offline" else "1 runs, 1 of them uploaded before\n") in said
        assert server.steps(name) == [0, 1, 2, 3, 4] and server.endings[name][-1] == 0
        assert server.history.keys() == {name}
    assert sync(**online(closed_port())).stdout == "1 runs, 1 of them uploaded before\n"


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_what_the_last_policy_answered_is_in_the_run_and_is_no_step(run, sync, tmp_path, mode):
    """Of a run that is whole; offline it comes with `make wandb-sync`. Its text can do nothing."""
    record = {
        "id": "wp-1", "level": "2", "question": "how many?", "gold": "5", "correct": False, "status": "ok", "tokens": 3,
        "completions": [{"text": "<script>alert(1)</script>"}],
    }  # fmt: skip
    (tmp_path / "run/eval").mkdir(parents=True)
    (tmp_path / "run/eval/wordproblems.jsonl").write_text((json.dumps(record) + "\n") * 60)
    with Server() as server:
        assert run(None, 3, "done", f"tracking={mode}", **online(server.url)).returncode == 0
        if mode == "offline":
            assert not server.files
            assert sync(**online(server.url)).returncode == 0
        name = id_of(tmp_path / "run")
        assert server.steps(name) == [0, 1, 2, 3] and server.endings[name] == [0]
        [page] = [text.decode() for file, text in server.files.items() if file.startswith("media/html/samples")]
        summary = json.loads(server.files["wandb-summary.json"])
    assert page.count("how many?") == 50 and "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
    assert summary["samples"]["_type"] == "html-file"


def test_of_a_run_that_goes_on_there_are_no_answers_yet(run, tmp_path):
    with Server() as server:
        assert run(None, 3, "ends", "tracking=online", **online(server.url)).returncode == 0
        assert not [file for file in server.files if "samples" in file]
