"""The study's workspace, as a file and as a W&B server is sent it by the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from wandb_server import Server

from pspo.metrics import REGISTRY

ROOT = Path(__file__).resolve().parents[2]


def dashboard(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = [sys.executable, "experiments/dashboard.py", "study=main", "scale=cpu", f"results={tmp_path / 'results'}"]
    home = {"HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path)}
    return subprocess.run(command, cwd=ROOT, env=kept | home | env, capture_output=True, text=True, timeout=120)


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for section in spec["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]


def without_names(value: Any) -> Any:
    """Panels have names that are drawn anew each time."""
    if isinstance(value, dict):
        return {key: without_names(one) for key, one in value.items() if key != "__id__"}
    return [without_names(one) for one in value] if isinstance(value, list) else value


def test_without_an_account_it_is_a_file(tmp_path: Path) -> None:
    done = dashboard(tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "results/main/wandb_workspace.json"
    assert done.stdout.splitlines() == [str(path)] and "not logged in to W&B" in done.stderr
    written = json.loads(path.read_text())
    drawn = {metric for panel in panels(written["spec"]) for metric in panel["config"].get("metrics") or []}
    assert drawn and drawn <= REGISTRY.keys()  # what runs log under these names
    axes = {panel["config"]["xAxis"] for panel in panels(written["spec"]) if panel["viewType"] == "Scatter Plot"}
    assert "config:surrogate.value.alpha" in axes
    assert panels(written["spec"])[-1]["viewType"] == "Media Browser"
    assert panels(written["spec"])[-1]["config"]["mediaKeys"] == ["samples"]  # pspo.tracking.wandb_view
    [runs] = written["spec"]["section"]["runSets"]
    [only] = runs["filters"]["filters"]
    assert only["key"]["name"] == "displayName" and len(set(only["value"])) == 55  # its runs, whoever made them
    grouped = [one["name"] for one in runs["grouping"]]
    assert {"surrogate.value.name", "learner.value.passes", "train_on.value"} <= set(grouped)


def test_with_an_account_the_server_gets_the_same(tmp_path: Path) -> None:
    with Server() as server:
        done = dashboard(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY="0" * 40)
        assert done.returncode == 0, done.stderr
        [view] = server.views
    written = json.loads((tmp_path / "results/main/wandb_workspace.json").read_text())
    assert (view["entityName"], view["projectName"]) == (written["entity"], written["project"]) == ("someone", "pspo")
    assert view["displayName"] == written["name"]
    assert without_names(json.loads(view["spec"])) == without_names(written["spec"])
    assert "/someone/pspo?nw=" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("entity", [{}, {"WANDB_ENTITY": "someone"}])
def test_a_server_that_does_not_answer_is_one_line(tmp_path: Path, entity: dict[str, str]) -> None:
    with Server() as server:
        url = server.url
    done = dashboard(tmp_path, WANDB_BASE_URL=url, WANDB_API_KEY="0" * 40, WANDB_HTTP_TIMEOUT="2", **entity)
    assert done.returncode == 1
    assert done.stderr.count("pspo: W&B") == 1 and "Traceback" not in done.stderr
