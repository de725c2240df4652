"""Logs steps as a run does: logs_steps.py RUN_DIR AFTER|none LAST HOW [SETTING ...]

HOW   done     writes DONE after the last step, as a run does
      ends     ends after the last step without it
      waits    waits after the last step, to be killed
      stopped  is told to stop before the first step, and ends as a run does that was
Prints a line when it has started, and one a step, which then is on record. After step 2 it waits while there is a file
RUN_DIR/pause.
"""

import os
import signal
import sys
import time
from pathlib import Path

from pspo.config import TrainConfig, compose
from pspo.stopping import Stopped, stoppable
from pspo.tracking import Tracker


def main(run_dir: Path, after: int | None, last: int, how: str, *settings: str) -> None:
    cfg = compose("train", TrainConfig, ["tracking.progress=false", "tracking.group=study-a", *settings])
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    if cfg.tracking.wandb != "none":
        import wandb  # noqa: F401  not to be timed
    run_dir.mkdir(exist_ok=True)  # as it is claimed
    started = time.perf_counter()
    with Tracker(run_dir, cfg, after) as tracker:
        print(f"started {time.perf_counter() - started:.2f}", tracker.ids(), flush=True)
        assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
        if how == "stopped":
            raise Stopped(signal.SIGTERM)
        for step in range(0 if after is None else after + 1, last + 1):
            begun = time.perf_counter()
            tracker.log(step, {"reward/mean": step / 8, "ratio/max": float("nan")})
            print(f"step {step} {time.perf_counter() - begun:.4f}", flush=True)
            while step == 2 and (run_dir / "pause").exists():
                time.sleep(0.05)
        if how == "done":
            (run_dir / "DONE").touch()
        if how == "waits":
            time.sleep(600)
    print("ended", flush=True)
    assert "WANDB_SERVICE" not in os.environ, "W&B's service outlives the run"


if __name__ == "__main__":
    directory, before, final, manner, *rest = sys.argv[1:]
    with stoppable():
        main(Path(directory), None if before == "none" else int(before), int(final), manner, *rest)
