"""W&B's view of a run: one W&B run however often it was started, and no step in it twice.

W&B drops or renumbers a step that it has already, so none is sent twice. Online the server says how far it has come,
and what it lacks is sent from metrics.jsonl first. Offline, where nobody can be asked, a start replaces what earlier
starts left for `wandb sync` by one directory that begins where the server is known to be. What W&B does never ends or
stalls a run: where it fails, one line says so, and metrics.jsonl has what `python -m pspo.tracking.sync` uploads later.

Imports: wandb, inside the functions, and only where a run asks for it.
"""

from __future__ import annotations

import html
import io
import json
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pspo.config import TrainConfig, to_yaml
from pspo.errors import PspoError
from pspo.stopping import Stopped
from pspo.tracking.wandb_files import Sent, clear, remember, run_id

Mode = Literal["online", "offline"]

SAMPLES = 50
"""Problems in a run's table `samples`."""
GRACE = 10.0
"""Seconds that W&B's service may take for what it need not ask its server: to start, to end."""


class Lost(Exception):
    """W&B is not to be had; the message says why, in one line."""


class Mirror:
    """W&B beside a run that goes on without it where it has to: nothing of it raises."""

    def __init__(self, run_dir: Path, cfg: TrainConfig, mode: Mode) -> None:
        self._dir, self._cfg, self._mode = run_dir, cfg, mode
        self._run: WandbRun | None = None

    def begin(self, lines: Iterable[Mapping[str, Any]], before: str | None = None) -> str | None:
        """Connects, and sends what W&B lacks of `lines`, which are on record; the run's id, None where it has none.

        `before` is its id at an earlier start.
        """
        name: str | None = None

        def start() -> None:
            nonlocal name
            name = run_id(self._dir, before)  # written before W&B hears of it
            sent = clear(self._dir, self._cfg)
            timeout = self._cfg.tracking.timeout
            try:
                self._run = WandbRun(self._dir, self._cfg, self._mode, self._dir, (timeout, timeout), sent + 1)
            except Lost:
                clear(self._dir, self._cfg)  # no step is in what it has begun
                raise
            for line in lines:
                self._run.log(line)

        self._or_without(start)
        return name

    def log(self, line: Mapping[str, Any]) -> None:
        if (run := self._run) is not None:
            self._or_without(lambda: run.log(line))

    def finish(self, kind: type[BaseException] | None) -> None:
        """`kind` is what ended the run, if something did."""
        if (run := self._run) is not None:
            preempted = kind is not None and issubclass(kind, Stopped)
            whole = kind is None and (self._dir / "DONE").exists()
            self._or_without(lambda: run.finish(int(not whole), preempted))

    def _or_without(self, work: Callable[[], None]) -> None:
        try:
            with _failures():
                work()
        except Lost as error:
            self._run = None
            later = "the run does without it; metrics.jsonl has every step, and `make wandb-sync` uploads it later"
            print(f"pspo: W&B: {error}; {later}", file=sys.stderr, flush=True)


class WandbRun:
    """A W&B run of this process. Raises Lost; after that, and after `finish`, nothing of W&B is left in the process.

    where     gets W&B's own files
    timeouts  seconds to wait for its server, at the start and at the end
    first     the first step to send where the server cannot be asked (offline)
    """

    def __init__(
        self, run_dir: Path, cfg: TrainConfig, mode: Mode, where: Path, timeouts: tuple[float, float], first: int = 0
    ) -> None:
        import wandb

        self._dir, self._cfg, self._mode, self._timeouts = run_dir, cfg, mode, timeouts
        set_up(log_in=mode == "online")
        with _failures(), _quiet(), _at_most(timeouts[0]):
            # `resume` offline would let `wandb sync` renumber the steps.
            resume = "allow" if mode == "online" else None
            settings = _settings(*timeouts)
            self._run = wandb.init(**_about(run_dir, cfg), resume=resume, mode=mode, dir=str(where), settings=settings)
        self.first = first if mode == "offline" else int(self._run.starting_step)
        self.last = self.first - 1

    def log(self, line: Mapping[str, Any]) -> None:
        """Sends a line of metrics.jsonl, unless W&B has its step."""
        step = line["step"]
        if step >= self.first:
            values = {name: math.nan if value is None else value for name, value in line.items() if name != "step"}
            with _failures():
                self._run.log(values, step=step, commit=True)  # else it would wait for the next step
            self.last = step

    def finish(self, exit_code: int, preempted: bool = False) -> None:
        """Waits until everything is sent. With 0 the run is whole; `preempted` is shown as such until it goes on."""
        with _failures():
            with _quiet() as heard, _at_most(self._timeouts[1]):
                if exit_code == 0 and (table := samples_of(self._dir, self._cfg)):
                    import wandb

                    # Not logged: it would be a step of its own. No wandb.Table, which needs an artifact on the server.
                    self._run.summary["samples"] = wandb.Html(table)
                if preempted:
                    self._run.mark_preempting()
                self._run.finish(exit_code=exit_code)
            if troubles := [line for line in heard.getvalue().splitlines() if "WARNING" in line or "ERROR" in line]:
                raise Lost(troubles[-1].removeprefix("wandb: "))
            if self._mode == "online":
                remember(self._dir, self._cfg, Sent(self.last, whole=exit_code == 0))
        _teardown()


def samples_of(run_dir: Path, cfg: TrainConfig) -> str:
    """A table in HTML of the first SAMPLES problems of the test part as the last policy answered them; "" where it was
    not graded."""
    path = run_dir / "eval" / f"{cfg.data.name}.jsonl"
    if not path.exists():
        return ""
    with open(path, encoding="utf-8") as file:
        records = [json.loads(line) for line in islice(file, SAMPLES)]
    names = ("id", "level", "question", "gold", "correct", "status", "tokens")
    rows = [[*(str(one.get(name, "")) for name in names), one["completions"][0]["text"]] for one in records]
    head = "".join(f"<th>{name}</th>" for name in (*names, "completion"))
    body = "".join(f"<tr>{''.join(f'<td><pre>{html.escape(text)}</pre></td>' for text in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def set_up(log_in: bool, verify: bool = False) -> None:
    """Readies W&B in this process. Raises Lost without a key, and with `verify` also where the server does not take it
    or does not answer: in 10 s or WANDB_HTTP_TIMEOUT, and at the second try."""
    import wandb

    tries = {"x_graphql_retry_max": 1, "x_graphql_retry_wait_min_seconds": 1.0, "x_graphql_retry_wait_max_seconds": 1.0}
    with _failures(), _quiet():
        # Once for what it prints (warnings stay on: `_quiet` collects them), once for what it asks the server.
        wandb.setup(wandb.Settings(show_info=False))
        wandb.setup(wandb.Settings(silent=True, **(tries if verify else {})))
        if log_in and not wandb.login(prompt=False, verify=verify):
            raise Lost("no API key is set up here (`wandb login`, or WANDB_API_KEY)")


def ask_server() -> None:
    """Raises Lost where no run can be uploaded now."""
    set_up(log_in=True, verify=True)
    _teardown()  # with it go the settings for this question


@contextmanager
def _failures() -> Iterator[None]:
    """Turns whatever W&B raises into Lost, in one line, and clears it away."""
    try:
        yield
    except Exception as error:  # of sockets, files, its service, its own: none is worth a run
        _end_service()
        if isinstance(error, Lost):
            raise
        kind = [] if isinstance(error, PspoError) else [type(error).__name__]
        raise Lost(": ".join([*kind, *str(error).strip().splitlines()[-1:]])) from error
    except BaseException:  # a signal: W&B's service would hold the program's end up until its own time-out
        _end_service()
        raise


@contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Collects what W&B says on standard error, so that it is said once, by us; other words go on their way."""
    with redirect_stderr(io.StringIO()) as heard:
        try:
            yield heard
        finally:
            others = [line for line in heard.getvalue().splitlines(keepends=True) if not line.startswith("wandb: ")]
    sys.stderr.write("".join(others))


def _end_service() -> None:
    """At once, whatever it waits for; metrics.jsonl has what it has not sent."""
    _kill_service()
    _teardown()


def _teardown() -> None:
    """Ends W&B's service process, so that the .wandb file is whole and nothing of it runs at exit."""
    if (wandb := sys.modules.get("wandb")) is None:
        return
    try:
        # It does not hear that it is to end where it was answering something that had timed out.
        with redirect_stderr(io.StringIO()), _at_most(0.0):
            wandb.teardown()
    except Stopped:
        raise
    except (Exception, SystemExit):  # the service was gone already, or ended with a status of its own
        pass


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Kills W&B's service where a block takes longer, and GRACE on top. wandb's own time-outs (0.31) are those of some
    of its waits; others last until the service answers or is gone."""
    killer = threading.Timer(seconds + GRACE, _kill_service)
    killer.start()
    try:
        yield
    except Exception as error:
        if killer.finished.is_set():
            raise Lost(f"its service did not answer within {seconds + GRACE:g} s") from error
        raise
    finally:
        killer.cancel()


def _kill_service() -> None:
    import psutil  # type: ignore[import-untyped]

    for child in psutil.Process().children():
        with suppress(psutil.Error):  # gone meanwhile
            if child.name() == "wandb-core":
                child.kill()


def _about(run_dir: Path, cfg: TrainConfig) -> dict[str, Any]:
    """What W&B is told of a run."""
    import yaml

    study = cfg.tracking.group
    tags = [study, cfg.surrogate.name, cfg.regime or "custom", f"seed={cfg.seed}", *cfg.tracking.tags]
    return {
        "id": run_id(run_dir),
        "project": cfg.tracking.project,
        "name": run_dir.resolve().name,
        "group": study,
        "job_type": "train",
        "tags": list(dict.fromkeys(tag[:64] for tag in tags if tag)),  # W&B takes no longer ones
        "config": yaml.safe_load(to_yaml(cfg)),
    }


def _settings(start: float, end: float) -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        allow_val_change=True,
        init_timeout=start,
        finish_timeout=end,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=1.0,  # s; the file of a killed process has what is older
    )
