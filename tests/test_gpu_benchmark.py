"""benchmarks/gpu.py at toy sizes on a CPU: the parts that a GPU runs, end to end, into its JSON."""

import json
import subprocess
import sys

import pytest
import torch

PROGRAM = "benchmarks/gpu.py"


def bench(root, *options):
    command = [sys.executable, PROGRAM, *options]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_part_is_measured_and_what_is_not_says_why(root, tmp_path):
    """With plain transformers; without layers that are compiled, which needs a compiler: --set has the last word."""
    chosen = ["--device", "cpu", "--small", "--engine", "hf", "--set", "model.compile=false"]
    told = bench(root, *chosen, "--out", str(tmp_path))
    found = json.loads((tmp_path / "gpu-cpu.json").read_text())
    parts, derived = found["parts"], found["derived"]
    missing = {name: part["left_out"] for name, part in parts.items() if "left_out" in part}
    assert set(missing) <= {"trl"} and all("not installed" in why for why in missing.values())
    assert all(f"left out: {name}: {why}" in told for name, why in missing.items())
    usual = parts["learner"]
    assert len(usual["packs"]) == 1 and usual["tokens"] > usual["packs"][0]["tokens"]  # a prompt once
    assert usual["peak_mib"] == pytest.approx(usual["planned_mib"], rel=0.35)
    assert parts["learner, layers computed twice"]["peak_mib"] < usual["peak_mib"]
    for name, part in parts.items():
        if name.startswith("learner"):  # the same update, however it is computed
            for mine, its in zip(usual["updates"], part["updates"], strict=True):
                assert its["loss"] == pytest.approx(mine["loss"], abs=1e-5)
                assert its["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-4)
            assert all(rate > 0 for rate in derived["learner"][name]["utilisation"]["products"])
    assert set(parts["loop"]["planned"]) == {"rollout", "learn", "sync", "step"}
    assert parts["loop"]["gap"] < 1e-4


def test_what_fails_is_left_out_with_its_reason_and_the_rest_goes_on(root, tmp_path):
    given = ["--device", "cpu", "--small", "--engine", "hf", "--out", str(tmp_path)]
    told = bench(root, *given, "--only", "products", "learner, moments offloaded", "--set", "learner.lr=-1")
    parts = json.loads((tmp_path / "gpu-cpu.json").read_text())["parts"]
    assert parts["products"]["best_tflops"] > 0
    assert "learner.lr" in parts["learner, moments offloaded"]["left_out"]
    assert "left out: learner, moments offloaded: failed with status 1" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends(root):
    assert bench(root).startswith("skipped: needs an NVIDIA GPU")
