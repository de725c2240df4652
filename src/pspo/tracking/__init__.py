"""Where a run is written: metrics.jsonl, which is the record, and views of it (W&B, the progress bar).

Imports: standard library, rich; wandb only where it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pspo.config import TrainConfig, to_yaml
from pspo.files import write_whole
from pspo.metrics import REGISTRY
from pspo.tracking.bar import Bar
from pspo.tracking.record import Record
from pspo.tracking.wandb_view import Mirror


class Tracker:
    """Logs one object a step. A context manager; raises ValueError for a metric that is not in the registry.

    `after` is None for a run that begins, and k for one that goes on after step k; `ids` is then what `ids()` said
    before. Raises PspoError where steps 0 to k are not all on record, or the record cannot be written; W&B never ends a
    run (pspo.tracking.wandb_view).
    """

    def __init__(
        self, run_dir: Path, cfg: TrainConfig, after: int | None = None, ids: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        write_whole(run_dir / "config.yaml", to_yaml(cfg))
        self._ids = dict(ids)
        self._record = Record(run_dir / "metrics.jsonl", after)
        self._mirror: Mirror | None = None
        if cfg.tracking.wandb != "none":
            self._mirror = Mirror(run_dir, cfg, cfg.tracking.wandb)
            if name := self._mirror.begin(self._record.read(), self._ids.get("wandb")):
                self._ids["wandb"] = name
        # After W&B, whose words on the way are collected from where the bar would write.
        self._bar = Bar(cfg.steps, run_dir.name, after or 0) if cfg.tracking.progress else None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._record.close()
        if self._mirror is not None:
            self._mirror.finish(kind)

    def ids(self) -> dict[str, str]:
        """What other systems call this run: {"wandb": id}, or nothing where it never was in one."""
        return dict(self._ids)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a step's metrics, which are on the disk when this returns: a checkpoint of the step may follow.

        A number that is not finite is written as null, as JSON has no other word for it.
        """
        unknown = sorted(metrics.keys() - REGISTRY.keys())
        if unknown:
            raise ValueError(f"not in the registry of pspo.metrics: {', '.join(unknown)}")
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in metrics.items()}}
        self._record.append(line)
        if self._mirror is not None:
            self._mirror.log(line)
        if self._bar is not None:
            self._bar.show(step, metrics)
