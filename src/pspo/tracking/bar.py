"""What a run shows of itself while it goes on."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """A bar with step, reward, accuracy, tokens/s and time left; one plain line a step where there is no terminal.

    `done` steps were made by earlier starts.
    """

    def __init__(self, steps: int, title: str, done: int) -> None:
        self.steps, self.accuracy = steps, math.nan
        self.bar: Progress | None = None
        if sys.stderr.isatty() and not os.environ.get("CI"):
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task(title, total=steps, completed=done, shown="")
            self.bar.start()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        self.accuracy = metrics.get("eval/validation_accuracy", self.accuracy)
        shown = f"validation {self.accuracy:.3f}"
        if step > 0:
            shown = (
                f"reward {metrics['reward/mean']:.3f}  {shown}  {metrics['speed/rollout_tokens_per_s']:,.0f} tokens/s"
                f"  {metrics['time/step_s']:.2f} s"
            )
        if self.bar is not None:
            self.bar.update(self.task, completed=step, shown=shown)
        else:
            print(f"step {step}/{self.steps}  {shown}", file=sys.stderr)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
