"""Policies and problems from a hub on loopback, by the hub's own clients; then without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import Hub, serving

from pspo.config import TrainConfig, compose

CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
---
"""


def run(root: Path, module: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=root, env=os.environ | env, capture_output=True, text=True, timeout=300)


@pytest.fixture
def filled(tmp_path: Path, random_policy: Callable[..., Path]) -> Path:
    """A hub with a small policy under the name of Qwen2.5-0.5B, and a few problems under GSM8K's."""
    shutil.copytree(random_policy(), tmp_path / "hub/models/Qwen/Qwen2.5-0.5B")
    (tmp_path / "hub/models/Qwen/Qwen2.5-0.5B/model.bin").write_bytes(b"not to be fetched")
    data = tmp_path / "hub/datasets/openai/gsm8k"
    (data / "main").mkdir(parents=True)
    (data / "README.md").write_text(CARD)
    for part, count in (("train", 7), ("test", 3)):
        rows = [{"question": f"How many is {k} and 1?", "answer": f"{k}+1={k + 1}\n#### {k + 1}"} for k in range(count)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data / f"main/{part}-00000-of-00001.parquet")
    return tmp_path / "hub"


def test_what_was_fetched_is_found_without_the_hub(root: Path, tmp_path: Path, filled: Path) -> None:
    home = tmp_path / "shared dir"
    asked = [f"to='{home}'", "models=[qwen2_5_0_5b]", "problems=[gsm8k]"]
    with serving(filled) as (address, hub):
        first = run(root, "pspo.fetch", *asked, HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1")
        assert first.returncode == 0, first.stdout + first.stderr
        assert "data=gsm8k: 7 rows of the train part, 3 rows of the test part" in first.stdout
        assert first.stdout.splitlines()[-1].endswith(f"export HF_HOME={home} HF_HUB_OFFLINE=1")
        taken = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
        assert taken and not any("model.bin" in line for line in taken)
        revision = compose("train", TrainConfig, ["scale=paper", "model=qwen2_5_0_5b"]).model.revision
        assert any(f"/resolve/{revision}/" in line for line in taken)
        _again(root, asked, address, hub)
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    there = run(root, "pspo.doctor", "scale=paper", "model=qwen2_5_0_5b", **offline)
    lines = {line[5:19].strip(): line for line in there.stdout.splitlines()}
    assert lines["policy"].startswith("ok") and lines["problems"].startswith("ok"), there.stdout
    code = (
        "from pspo.config import TrainConfig, compose; from pspo.data.sources import open_source;"
        "from pspo.models import load_policy;"
        "cfg = compose('train', TrainConfig, ['scale=paper', 'model=qwen2_5_0_5b']);"
        "print(len(list(open_source(cfg.data, 'train').rows)),"
        " load_policy(cfg.model.path, cfg.model.revision).config.hidden_size)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, env=os.environ | offline, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["7", "128"], done.stderr


def _again(root: Path, asked: list[str], address: str, hub: Hub) -> None:
    """No weights a second time."""
    hub.asked.clear()
    again = run(root, "pspo.fetch", *asked, HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1")
    assert again.returncode == 0, again.stderr
    assert not [line for line in hub.asked if line.startswith("GET") and line.endswith((".safetensors", ".parquet"))]


def test_what_the_hub_lacks_is_named_and_the_rest_fetched(root: Path, tmp_path: Path, filled: Path) -> None:
    asked = [f"to={tmp_path}/home", "models=[qwen2_5_1_5b,qwen2_5_0_5b]", "problems=[]"]
    with serving(filled) as (address, _):
        done = run(root, "pspo.fetch", *asked, HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "model=qwen2_5_0_5b: " in done.stdout
    assert "not fetched: model=qwen2_5_1_5b; the same command goes on with what is missing" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "to=???: has no value"),
        (["to=x", "models=[abacus]"], "models=abacus: must be of qwen2_5_0_5b"),
        (["to=x", "problems=[abacus]"], "problems=abacus: must be of asdiv"),
    ],
)
def test_a_wrong_setting_is_one_line(root: Path, words: list[str], says: str) -> None:
    done = run(root, "pspo.fetch", *words)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
