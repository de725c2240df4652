"""Whole runs on a GPU: the policy of tests/programs/known.py learns to write the right answer."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from known import SETTINGS, make_policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM for CUDA")
VLLM = ["rollout=vllm", "rollout.vllm.gpu_memory_utilization=0.1", "rollout.max_gap=0.05"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("known") / "checkpoint")


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(["rollout=hf", "model.dtype=float32"], id="hf"),
        pytest.param(["rollout=hf", "model.dtype=bfloat16", "rollout.max_gap=0.05"], id="hf-bfloat16"),
        pytest.param([*VLLM, "model.dtype=bfloat16"], id="vllm", marks=[pytest.mark.vllm, needs_vllm]),
        pytest.param(
            [*VLLM, "model.dtype=bfloat16", "rollout.vllm.sleep=true"],
            id="vllm-that-sleeps",
            marks=[pytest.mark.vllm, needs_vllm],
        ),
    ],
)
def test_a_short_run_raises_the_accuracy(checkpoint, tmp_path, root, engine):
    given = [f"model.path={checkpoint}", f"run_dir={tmp_path}/run", "device=cuda", "steps=12", "learner.lr=2e-4"]
    command = [sys.executable, "-m", "pspo.train", *SETTINGS, *given, *engine]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    accuracy = [line["accuracy/train"] for line in lines[1:]]
    assert len(accuracy) == 12
    assert accuracy[0] < 0.5 and sum(accuracy[-4:]) / 4 > 0.8
