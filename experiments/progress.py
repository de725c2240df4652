"""What is seen of a study while it runs: a live table on a terminal, plain lines elsewhere. Reads metrics.jsonl."""

from __future__ import annotations

import json
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from driver import Outcome, Task, tail


class Progress:
    """A `driver.View`. Use as a context manager around `run_tasks`."""

    def __init__(self, total: int, done: int, at_once: int, console: Console | None = None) -> None:
        self.total, self.done, self.at_once = total, done, at_once
        self.console = console or Console(stderr=True)
        self.running: dict[str, tuple[Task, float]] = {}
        self.durations: list[float] = []
        self.left = total - done
        # Drawn from `tick` alone: no thread of rich's beside the one that starts processes.
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.drawn = 0.0

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.update("", refresh=True)
            self.live.stop()

    def started(self, task: Task) -> None:
        self.running[task.name] = (task, time.monotonic())
        if not self.live:
            self.say(f"start {task.name}")

    def ended(self, outcome: Outcome) -> None:
        del self.running[outcome.task.name]
        self.done += 1
        self.durations.append(outcome.seconds)
        took = f"in {clock(outcome.seconds)}"
        if outcome.error:
            self.say(f"FAILED {outcome.task.name} {took}: {outcome.error} ({outcome.task.log})")
        else:
            self.say(f"done {outcome.task.name} {took}{reached(outcome.task)}; {self.time_left()}")

    def tick(self) -> None:
        if self.live and time.monotonic() - self.drawn > 0.5:
            self.drawn = time.monotonic()
            self.live.update(self.picture(), refresh=True)

    def say(self, text: str) -> None:
        self.console.print(f"[{self.done}/{self.total}] {text}", markup=False, highlight=False, soft_wrap=True)

    def picture(self) -> Group:
        table = Table("running", "step", "accuracy", "for", box=None, pad_edge=False)
        for task, since in self.running.values():
            seen = last_metrics(task)
            step = f"{seen.get('step', 0):.0f}/{task.steps}" if task.steps else ""
            table.add_row(task.name, step, percent(accuracy_of(seen)), clock(time.monotonic() - since))
        bar = ProgressBar(total=max(self.total, 1), completed=self.done, width=40)
        return Group(table, bar, Text(f"{self.done} of {self.total}; {self.time_left()}"))

    def time_left(self) -> str:
        """From the mean duration so far; says so when there is none yet."""
        remaining = self.total - self.done
        if not remaining:
            return "all done"
        if not self.durations:
            return "time left unknown yet"
        return f"about {clock(remaining * sum(self.durations) / len(self.durations) / self.at_once)} left"


def last_metrics(task: Task) -> dict[str, float]:
    """The newest whole record of a run, with the newest validation accuracy; {} while there is none."""
    found: dict[str, float] = {}
    for line in reversed(tail(task.metrics, 32_768) if task.metrics else []):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line being written, or the first, which may be cut
            continue
        if isinstance(record, dict):
            found = {**{name: value for name, value in record.items() if value is not None}, **found}
    return found


def accuracy_of(metrics: dict[str, float]) -> float | None:
    return metrics.get("eval/validation_accuracy", metrics.get("accuracy/train"))


def reached(task: Task) -> str:
    accuracy = accuracy_of(last_metrics(task))
    return "" if accuracy is None else f", validation accuracy {percent(accuracy)}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def clock(seconds: float) -> str:
    """
    >>> clock(42), clock(75), clock(3 * 3600 + 120)
    ('42 s', '1 min 15 s', '3 h 2 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
