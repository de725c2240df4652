"""Where a run is written: metrics.jsonl, which is the record, and views of it (W&B, the progress bar).

Imports: standard library, rich; wandb only where it is asked for.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pspo.config import TrainConfig, to_yaml
from pspo.errors import PspoError
from pspo.metrics import REGISTRY


class Tracker:
    """Logs one object a step. A context manager; raises ValueError for a metric that is not in the registry."""

    def __init__(self, run_dir: Path, cfg: TrainConfig) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        aside = run_dir / ".config.yaml"
        aside.write_text(to_yaml(cfg))
        aside.replace(run_dir / "config.yaml")
        self._file: IO[str] = open(run_dir / "metrics.jsonl", "w")  # noqa: SIM115  closed in __exit__
        self._wandb: Any = _start_wandb(run_dir, cfg) if cfg.tracking.wandb != "none" else None
        self._progress = _Progress(cfg.steps, run_dir.name) if cfg.tracking.progress else None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
        except OSError:
            if kind is None:  # else it is what ended the run, once more
                raise
        if self._progress is not None:
            self._progress.stop()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(kind is not None))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a step's metrics; a number that is not finite is written as null, as JSON has no other word for it."""
        unknown = sorted(metrics.keys() - REGISTRY.keys())
        if unknown:
            raise ValueError(f"not in the registry of pspo.metrics: {', '.join(unknown)}")
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        try:
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
        except OSError as error:
            raise PspoError(f"{self._file.name} cannot be written: {error.strerror}") from error
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)
        if self._progress is not None:
            self._progress.show(step, metrics)


def _start_wandb(run_dir: Path, cfg: TrainConfig) -> Any:
    import wandb
    import yaml

    return wandb.init(
        project=cfg.tracking.project,
        name=run_dir.name,
        group=cfg.tracking.group,
        tags=[cfg.surrogate.name, f"seed={cfg.seed}", cfg.regime or "custom", *cfg.tracking.tags],
        config=yaml.safe_load(to_yaml(cfg)),
        dir=str(run_dir),
        mode=cfg.tracking.wandb if cfg.tracking.wandb != "none" else "disabled",
        settings=wandb.Settings(silent=True, console="off"),
    )


class _Progress:
    """A bar with step, reward, accuracy, tokens/s and time left; one plain line a step where there is no terminal."""

    def __init__(self, steps: int, title: str) -> None:
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
            self.task = self.bar.add_task(title, total=steps, shown="")
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
