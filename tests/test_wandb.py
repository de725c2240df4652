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
from pathlib import Path

import psutil
import pytest
from wandb.util import get_core_path

from pspo.config import TrainConfig, compose, to_yaml
from pspo.errors import PspoError
from pspo.files import write_whole
from pspo.tracking.record import Record, lines_of
from pspo.tracking.sync import runs_of
from pspo.tracking.wandb_files import run_id

sys.path.insert(0, str(Path(__file__).parent / "programs"))
from wandb_server import Server

KEY = "0" * 40


@pytest.fixture
def environment(tmp_path):
    """Of a user who never logged in."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return kept | {"HOME": str(home), "WANDB_ERROR_REPORTING": "false", "NETRC": str(home / "netrc")}


@pytest.fixture
def run(root, tmp_path, environment):
    """A function that runs tests/programs/logs_steps.py in the run directory tmp_path/run, or starts it."""

    def go(after, last, how, *settings, start=False, **variables):
        program = [sys.executable, "tests/programs/logs_steps.py", str(tmp_path / "run"), str(after).lower(), str(last)]
        kept = {"cwd": root, "text": True, "env": environment | variables, "stdin": subprocess.DEVNULL}
        if start:
            return subprocess.Popen([*program, how, *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kept)
        return subprocess.run([*program, how, *settings], capture_output=True, timeout=100, **kept)

    return go


@pytest.fixture
def sync(root, tmp_path, environment):
    def go(*arguments, **variables):
        command = [sys.executable, "-m", "pspo.tracking.sync", *map(str, arguments or [tmp_path / "run"])]
        return subprocess.run(
            command, cwd=root, env=environment | variables, capture_output=True, text=True, timeout=100
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
    read = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    return [record[kind] for record in map(json.loads, read.splitlines()) if record["type"] == kind]


def steps_in(path):
    return [record["step"]["num"] for record in records(path, "history")]


def offline_files(run_dir):
    return sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))


def until(running, words):
    """Reads what the program prints up to a line that begins with the words."""
    lines = []
    for line in running.stdout:
        lines.append(line)
        if line.startswith(words):
            return lines
    raise AssertionError(f"ended without {words!r}: {lines} {running.stderr.read()}")


def kill(running):
    running.kill()
    running.wait()


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
        time.sleep(2.5)  # W&B flushes each second
        kill(running)
    (first,) = offline_files(tmp_path / "run")
    assert steps_in(first) == [0, 1, 2, 3, 4, 5]
    name = id_of(tmp_path / "run")
    first.write_bytes(first.read_bytes()[:-40])  # and the machine went down on top
    assert steps_in(first)[-1] < 5

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
        done = subprocess.run(command, env=environment | online(server.url), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    with Server() as server:
        with run(None, 5, "waits", "tracking=offline", start=True) as running:
            until(running, "step 5")
            time.sleep(2.5)
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
        assert server.exit_codes[name] == [0, 0]
        assert (server.about[name]["groupName"], server.about[name]["jobType"]) == ("study-a", "train")
        assert "study-a" in server.about[name]["tags"]


def test_a_run_that_is_told_to_stop_is_not_a_finished_one(run, tmp_path):
    with Server() as server:
        done = run(None, 4, "stopped", "tracking=online", **online(server.url))
        assert done.returncode == 75
        assert server.exit_codes[id_of(tmp_path / "run")] == [1]


@pytest.mark.parametrize("kind", ["closed", "silent", "no key"])
def test_without_w_and_b_the_run_goes_on_and_says_so_once(run, tmp_path, kind):
    with silent_server() as silent:
        url = silent if kind == "silent" else closed_port()
        variables = {"WANDB_BASE_URL": url} if kind == "no key" else online(url)
        done = run(None, 4, "done", "tracking=online", "tracking.timeout=3", **variables)
    assert done.returncode == 0 and on_record(tmp_path) == [0, 1, 2, 3, 4]
    (line,) = done.stderr.splitlines()
    assert line.startswith("pspo: W&B: ") and line.endswith("and `make wandb-sync` uploads it later")
    assert ("no API key is set up here" in line) == (kind == "no key")
    (waited,) = seconds(done.stdout, "started")
    assert waited < 3 + 12  # the time-out, and what importing wandb takes on a busy machine
    assert max(seconds(done.stdout, "step")) < 1
    assert not list((tmp_path / "run").glob("wandb/*run-*/*.wandb"))


def test_told_to_stop_while_w_and_b_does_not_answer(root, run):
    """A signal during the wait ends the program, at the latest when the wait is over."""
    settings = ("tracking=online", "tracking.timeout=8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with run(None, 4, "done", *settings, start=True, **online(url)) as running:
            server.settimeout(120)
            asked, _ = server.accept()  # W&B has asked, and waits for the answer
            time.sleep(2.0)
            told = time.monotonic()
            running.send_signal(signal.SIGINT)
            assert running.wait(timeout=100) != 0
            assert time.monotonic() - told < 8 + 15
            asked.close()


@pytest.mark.parametrize("lost", ["network", "service"])
def test_w_and_b_lost_in_the_middle_costs_nothing_but_one_line(run, sync, tmp_path, lost):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/pause").touch()
    with Server() as server:
        first = server
        with run(
            None, 12, "done", "tracking=online", "tracking.timeout=3", start=True, **online(server.url)
        ) as running:
            until(running, "step 2")
            if lost == "service":
                (core,) = [c for c in psutil.Process(running.pid).children() if "wandb-core" in c.name()]
                assert os.getsid(core.pid) != os.getsid(running.pid)  # Ctrl-C in a terminal does not reach it
                core.send_signal(signal.SIGUSR1)  # SLURM's warning does nothing to it
                time.sleep(0.5)
                assert core.is_running() and core.status() != psutil.STATUS_ZOMBIE
                core.terminate()  # the end of a job does
            else:
                server.__exit__(None)
            said, heard = running.communicate(timeout=60)
    assert running.returncode == 0 and on_record(tmp_path) == list(range(13))
    (line,) = heard.splitlines()
    assert line.startswith("pspo: W&B: ") and "make wandb-sync" in line
    assert max(seconds(said, "step")) < 1
    with Server() as server:
        server.history, server.about = first.history, first.about  # the same one is back
        done = sync(**online(server.url))
        assert done.returncode == 0, done.stderr
        assert server.steps(id_of(tmp_path / "run")) == list(range(13))


def test_two_runs_in_one_process_are_two_w_and_b_runs(root, environment, tmp_path):
    """As in a study's worker. W&B's service ends with each."""
    code = (
        "import sys; sys.path.insert(0, 'tests/programs'); from logs_steps import main; from pathlib import Path\n"
        f"for name in 'ab': main(Path({str(tmp_path)!r}) / name, None, 3, 'done', 'tracking=offline')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=100)
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
        assert server.steps(name) == list(range(8)) and server.exit_codes[name] == [1, 0]
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
    write_whole(run_dir / "config.yaml", to_yaml(compose("train", TrainConfig, settings)))
    record = Record(run_dir / "metrics.jsonl", None)
    for step in range(3):
        record.append({"step": step, "reward/mean": step / 8})
    record.close()
    (run_dir / "DONE").touch()


@pytest.mark.parametrize("kind", ["closed", "no key"])
def test_wandb_sync_without_w_and_b_says_so_in_one_line(sync, tmp_path, kind):
    ended(tmp_path / "run", "tracking=offline")
    variables = {"WANDB_BASE_URL": closed_port()} | ({} if kind == "no key" else {"WANDB_API_KEY": KEY})
    done = sync(**variables)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("pspo: W&B: ") and ("no API key" in line) == (kind == "no key")


def test_wandb_sync_takes_of_a_directory_the_runs_that_ask_for_w_and_b(tmp_path):
    for name, tracking in (("a", "none"), ("b", "offline"), ("c", "online")):
        ended(tmp_path / name, f"tracking={tracking}")
    assert [path.name for path, _ in runs_of(tmp_path)] == ["b", "c"]
    assert [path.name for path, _ in runs_of(tmp_path / "a")] == ["a"]  # named, it is taken
    with pytest.raises(PspoError, match="nowhere is no directory of a run, or of runs"):
        runs_of(tmp_path / "nowhere")


def test_a_damaged_id_is_told_and_not_replaced(tmp_path):
    for text in ('{"id": ', "{}", "[]", '{"id": 3}', '{"id": "a", "project": "p"}'):
        (tmp_path / "wandb.json").write_text(text)
        with pytest.raises(PspoError, match="is damaged; put it back, or remove it"):
            run_id(tmp_path)
        assert (tmp_path / "wandb.json").read_text() == text


def test_the_id_is_drawn_once(tmp_path):
    names = [run_id(tmp_path / name) for name in "abab"]
    assert names[:2] == names[2:] and all(one != other for one, other in pairwise(names))
