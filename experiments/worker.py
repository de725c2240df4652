"""Runs one training run after another in one process: torch, transformers and vLLM are imported once, not for each run.

Started by driver.py on a leash. Reads a JSON line a run from standard input, {"overrides": [...], "log": PATH}, answers
each with {"status": N} on standard output, and ends with its input. What a run prints goes to its log. After a run that
failed the process ends too: the next run gets a fresh one.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence

from pspo.config import TrainConfig, compose
from pspo.config.compose import bound_spinning, one_line_errors


def main() -> None:
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    for line in sys.stdin:
        job = json.loads(line)
        with open(job["log"], "w") as log:  # descriptors, not sys.stdout: native code prints as well
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        status = run(job["overrides"])
        sys.stdout.flush()
        sys.stderr.flush()
        print(json.dumps({"status": status}), file=replies, flush=True)
        if status:
            break


def run(overrides: Sequence[str]) -> int:
    """One run, as `python -m pspo.train` makes it; returns its exit status."""
    from pspo.train import train

    try:
        with one_line_errors():
            train(compose("train", TrainConfig, overrides))
    except SystemExit as ended:
        return int(ended.code or 0)
    except Exception:  # whatever it is, it belongs into this run's log, and the driver goes on
        traceback.print_exc()
        return 1
    finally:
        gc.collect()  # the engine's memory, before the next one asks for its own
    return 0


if __name__ == "__main__":
    bound_spinning()
    main()
