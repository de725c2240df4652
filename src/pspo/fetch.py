"""python -m pspo.fetch to=/shared/hub: policies and problems from the hub, into a directory that compute nodes read.

On a machine that has the internet. The directory is a HF_HOME, so that names, revisions, and with them the runs, stay
what they are. What is there already is not fetched again. Then, where there is no internet:

    export HF_HOME=/shared/hub HF_HUB_OFFLINE=1
    make doctor reproduce SCALE=paper
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pspo.config import EvalConfig, FetchConfig, compose, load_yaml, program
from pspo.config.compose import CONF
from pspo.config.schema import Benchmark, Model
from pspo.errors import ConfigError, PspoError


@program("fetch", FetchConfig, cells_are="never")  # the hub's client reads HF_HOME once in a process
def main(cfg: FetchConfig) -> None:
    home = Path(cfg.to).expanduser().resolve()
    os.environ["HF_HOME"] = str(home)  # before the hub's client is imported, which reads it once
    failed = []
    for what, fetch in (*policies(cfg), *problems(cfg)):
        try:
            print(f"{what}: {fetch()}", flush=True)
        except PspoError as error:
            failed.append(what)
            print(f"pspo: {error}", file=sys.stderr, flush=True)
    if failed:
        raise PspoError(f"not fetched: {', '.join(failed)}; the same command goes on with what is missing")
    print(f"now, where there is no internet: export HF_HOME={home} HF_HUB_OFFLINE=1")


def policies(cfg: FetchConfig) -> Iterator[tuple[str, Callable[[], str]]]:
    """What conf/model/ has on the hub."""
    for name in named("model", cfg.models):
        model = load_yaml(CONF / "model" / f"{name}.yaml", Model)
        if model.path is not None:

            def fetch(path: str = model.path, revision: str | None = model.revision) -> str:
                from pspo.models import local_checkpoint

                return local_checkpoint(path, revision)

            yield f"model={name}", fetch


def problems(cfg: FetchConfig) -> Iterator[tuple[str, Callable[[], str]]]:
    """What conf/data/ has on the hub: its rows, read through once."""
    for name in named("data", cfg.problems):
        data = compose("eval", EvalConfig, ["checkpoint=none", f"benchmark={name}"]).data
        if isinstance(data, Benchmark) and data.path is None:

            def fetch(data: Benchmark = data) -> str:
                from pspo.data.sources import open_source

                counts = {part: sum(1 for _ in open_source(data, part).rows) for part in data.splits}
                return ", ".join(f"{count} rows of the {part} part" for part, count in counts.items())

            yield f"data={name}", fetch


def named(group: str, chosen: tuple[str, ...] | None) -> list[str]:
    """The files of a group that are asked for; raises ConfigError for one that is not there."""
    there = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    setting = {"model": "models", "data": "problems"}[group]
    for name in chosen or ():
        if name not in there:
            raise ConfigError(setting, name, f"must be of {', '.join(there)} (conf/{group}/)")
    return there if chosen is None else list(chosen)


if __name__ == "__main__":
    main()
