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
    import wandb

    cfg = compose("train", TrainConfig, ["tracking=offline", "tracking.progress=false", "tracking.group=study-a"])
    with Tracker(tmp_path, cfg) as tracker:
        tracker.log(1, {"reward/mean": 0.25})
    wandb.teardown()  # as at the end of a program: waits for the process that writes the file
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    held = payload(written.read_bytes())
    assert b"reward/mean" in held and b"0.25" in held and b"study-a" in held


def payload(data):
    """What the records of a .wandb file hold, put together: it is a LevelDB log, cut into blocks of 32 KiB, after a
    file header of 7 bytes, by pieces with 7 bytes of checksum, length and type."""
    block, head, place, pieces = 32768, 7, 7, []
    while place + head <= len(data):
        if block - place % block < head:  # too little for another piece: padding
            place += block - place % block
            continue
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        pieces.append(data[place + head : place + head + length])
        place += head + length
    return b"".join(pieces)
