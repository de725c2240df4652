import json

import pytest

from pspo.config import TrainConfig, compose, load_yaml
from pspo.metrics import REGISTRY, SECTIONS, page
from pspo.tracking import Tracker


def test_the_page_is_made_from_the_registry(root):
    assert (root / "docs/metrics.md").read_text() == page(), "run `make docs`"


def test_names_are_unique_and_explained():
    assert len(REGISTRY) == sum(map(len, SECTIONS.values()))
    assert all(metric.meaning.endswith(".") for metric in REGISTRY.values())


def test_tracker_writes_one_object_a_step(tmp_path):
    cfg = compose("train", TrainConfig, ["tracking.progress=false"])
    with Tracker(tmp_path, cfg) as tracker:
        tracker.log(0, {"eval/validation_accuracy": 0.5})
        tracker.log(1, {"reward/mean": float("nan"), "ratio/max": 2.0})
        with pytest.raises(ValueError, match="reward/maen"):
            tracker.log(2, {"reward/maen": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, "eval/validation_accuracy": 0.5}, {"step": 1, "reward/mean": None, "ratio/max": 2.0}]
    assert load_yaml(tmp_path / "config.yaml", TrainConfig) == cfg


def test_wandb_offline_holds_the_run(tmp_path):
    cfg = compose("train", TrainConfig, ["tracking=offline", "tracking.progress=false", "tracking.group=study-a"])
    with Tracker(tmp_path, cfg) as tracker:
        tracker.log(1, {"reward/mean": 0.25})
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"reward/mean" in written.read_bytes() and b"study-a" in written.read_bytes()
