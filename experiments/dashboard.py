"""python experiments/dashboard.py study=main: the study's workspace in W&B, panels by method (`make dashboard`).

Written as results/<study>/wandb_workspace.json in any case. With a W&B account logged in (`wandb login`, or
WANDB_API_KEY) it is saved there as well, in the account's default entity or WANDB_ENTITY, and its address is the last
line; each call makes a new view. The runs have to be there: tracking=online, or offline and `make wandb-sync`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import CURVES
from pspo.config import StudyConfig, program
from pspo.errors import PspoError
from pspo.files import write_whole
from pspo.metrics import RATIO_EDGES
from settings import varying
from studies import Cell, Study, cells_of, load_study

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws


@program("study", StudyConfig)
def main(cfg: StudyConfig) -> None:
    study = load_study(cfg.study)
    cells = cells_of(study, cfg)
    entity = entity_here()
    workspace = workspace_of(study, cfg.study, cells, entity or "")
    view = workspace._to_model()
    definition = {"entity": view.entity, "project": view.project, "name": view.display_name}
    path = Path(cfg.results) / cfg.study / "wandb_workspace.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = view.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    write_whole(path, json.dumps({**definition, "spec": spec}, indent=1) + "\n")
    print(path)
    if entity is None:
        print("dashboard: not logged in to W&B, so it is a file alone; log in and say it again", file=sys.stderr)
        return
    try:
        workspace.save()
    except Exception as error:  # of sockets, of its server: whatever it is, one line
        raise PspoError(f"W&B did not take the workspace ({type(error).__name__}: {error}); {path} has it") from error
    print(workspace.url)


def entity_here() -> str | None:
    """Whose workspaces are made; None where nobody is logged in. Raises PspoError where the server does not answer."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    try:
        if not wandb.login(prompt=False):
            return None
        return os.environ.get("WANDB_ENTITY") or str(wandb.Api(timeout=20).default_entity)
    except Exception as error:
        remedy = "log out (WANDB_API_KEY, ~/.netrc) to have the file alone"
        raise PspoError(f"W&B does not answer ({type(error).__name__}: {error}); {remedy}") from error


def workspace_of(study: Study, name: str, cells: Sequence[Cell], entity: str) -> ws.Workspace:
    """Runs of the study, by their names, since another study may have made some of them; grouped by the settings that
    tell its methods and regimes apart. Sections of accuracy, alpha, trust region, speed, samples."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    def lines(title: str, *metrics: str, log: bool = False) -> wr.LinePlot:
        """Mean over the seeds of a method, and from the least to the greatest."""
        return wr.LinePlot(
            title=title,
            y=list(metrics),
            log_y=log,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=50,
        )

    known = {curve.metric: curve for curve in CURVES}

    def curve(metric: str) -> wr.LinePlot:
        return lines(known[metric].label.replace(" (%)", ""), metric, log=known[metric].log)

    best = wr.SummaryMetric("eval/validation_accuracy")
    settings = ("surrogate.alpha", "surrogate.epsilon_high", "surrogate.tau_pos", "learner.lr", "learner.passes")
    sections: dict[str, list[Any]] = {
        "Accuracy": [
            curve("eval/validation_accuracy"),
            curve("reward/mean"),
            lines("accuracy as sampled, strict and lenient", "accuracy/train", "accuracy/train_lenient"),
        ],
        "By alpha and the other settings": [
            *(wr.ScatterPlot(title=setting, x=wr.Config(setting), y=best) for setting in settings),
            wr.ParallelCoordinatesPlot(
                columns=[wr.ParallelCoordinatesPlotColumn(wr.Config(setting)) for setting in settings]
                + [wr.ParallelCoordinatesPlotColumn(best)]
            ),
        ],
        "Ratios and trust region": [
            curve("ratio/abs_dev_mean"),
            lines("largest ratio", "ratio/max", log=True),
            lines("share of tokens with a ratio below", *(f"ratio/below_{edge:g}_share" for edge in RATIO_EDGES)),
            curve("slope/zero_share"),
            curve("slope/small_share"),
            curve("kl/k3"),
            curve("policy/entropy"),
            curve("optim/grad_norm"),
        ],
        "Time and speed": [
            wr.LinePlot(
                title="seconds of a step by phase",
                y=[f"time/{phase}_s" for phase in ("rollout", "learn", "sync", "grade", "save", "other")],
                plot_type="stacked-area",
            ),
            lines("tokens a second, sampled", "speed/rollout_tokens_per_s"),
            lines("tokens a second, learned", "speed/learn_tokens_per_s"),
        ],
        "Sampler against learner": [lines("mean |r - 1| before learning", "gap/abs_dev_mean", log=True)],
        "Samples": [wr.MediaBrowser(title="test problems as the last policy answered them", media_keys=["samples"])],
    }
    return ws.Workspace(
        entity=entity,
        project=cells[0].cfg.tracking.project,
        name=f"pspo {name}: {study.title}"[:128],
        sections=[ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections.items()],
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("Name").isin([cell.run_dir.name for cell in cells])],
            groupby=[expr.Config(setting) for setting in varying(cells)],
        ),
    )


if __name__ == "__main__":
    main()
