"""Updates of a sharded policy, under torchrun with gloo, equal those of one process. Whole runs: test_train.py."""

import os
import subprocess
import sys

import pytest
import torch

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def updates(root, out, ranks, *settings):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launch]
    done = subprocess.run(
        [*command, str(root / "tests/programs/updates.py"), str(out), *settings],
        capture_output=True,
        text=True,
        env=ENV,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out, weights_only=True)


def largest_difference(a, b):
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


@pytest.mark.parametrize(
    "ranks, settings, bound",
    [
        (2, [], 1e-13),
        (2, ["kl_coef=0.2", "ratio_level=sequence", "token_budget=40", "gradient_checkpointing=true"], 1e-13),
        (3, ["groups=1", "minibatch_of=samples"], 1e-13),  # two samples a minibatch: one rank has a ghost
        (2, ["lora=1", "kl_coef=0.2", "dtype=fp32"], 1e-6),
    ],
    ids=["plain", "every-option", "fewer-samples-than-ranks", "lora"],
)
def test_ranks_equal_one_process_after_several_updates(root, tmp_path, ranks, settings, bound):
    one, many = (updates(root, tmp_path / f"{n}.pt", n, *settings) for n in (1, ranks))
    assert one["weights"].keys() == many["weights"].keys()
    assert largest_difference(one["weights"], many["weights"]) < bound
    assert (one["norms"] > 0).all()
    for name in ("norms", "old", "stats"):
        torch.testing.assert_close(one[name], many[name], rtol=100 * bound, atol=100 * bound)
    assert torch.equal(one["before"].isnan(), many["before"].isnan())
    assert (many["ghosts"] > 0) == ("groups=1" in settings) and one["ghosts"] == 0


def test_sharded_in_bfloat16_stays_near_one_process_in_bfloat16(root, tmp_path):
    """Weights are gathered in bf16 and stay fp32 where they are kept; one process computes under autocast instead."""
    one, many = (updates(root, tmp_path / f"{n}.pt", n, "dtype=fp32", "compute=bfloat16") for n in (1, 2))
    exact = updates(root, tmp_path / "exact.pt", 1, "dtype=fp32")
    weights = many["weights"].values()
    assert all(weight.dtype == torch.float32 for weight in weights)
    assert not any(torch.equal(weight, weight.bfloat16().float()) for weight in weights if weight.ndim == 2)
    for found in (one, many):
        assert 1e-6 < (found["old"] - exact["old"]).abs().mean() < 0.05
        torch.testing.assert_close(found["norms"][:1], exact["norms"][:1], rtol=0.05, atol=0)


def test_adapters_on_a_bfloat16_policy(root, tmp_path):
    """Frozen weights are gathered in bf16; adapters and the sum of their gradients are fp32, as in one process."""
    one, many = (updates(root, tmp_path / f"{n}.pt", n, "lora=1", "dtype=bf16", "compute=bfloat16") for n in (1, 2))
    assert all(weight.dtype == torch.bfloat16 for weight in many["weights"].values())
    assert largest_difference(one["weights"], many["weights"]) < 0.05
    torch.testing.assert_close(one["norms"][:1], many["norms"][:1], rtol=0.02, atol=0)


@pytest.mark.parametrize("settings", [["groups=1"], ["lora=1", "dtype=fp32"]], ids=["all-weights", "lora"])
def test_moments_in_the_hosts_memory_change_no_bit_of_a_sharded_update(root, tmp_path, settings):
    """Of three ranks some have no row of a small parameter; pieces are smaller than most shards."""
    kept = ["weight_decay=0.1", *settings]
    here = updates(root, tmp_path / "device.pt", 3, *kept)
    there = updates(root, tmp_path / "host.pt", 3, *kept, "offload_optimizer=true", "piece=64")
    assert here["weights"].keys() == there["weights"].keys()
    assert all(torch.equal(here["weights"][name], there["weights"][name]) for name in here["weights"])
    assert torch.equal(here["norms"], there["norms"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [["gradient_checkpointing=true"], ["lora=1", "kl_coef=0.2"]], ids=["layers", "lora"]
)
def test_ranks_with_compiled_layers_equal_one_process_without(root, tmp_path, settings):
    """As captured, without a compiler: shards are gathered and freed outside of what is compiled."""
    settings = ["token_budget=60", "dtype=fp32", *settings]
    one = updates(root, tmp_path / "one.pt", 1, *settings)
    two = updates(root, tmp_path / "two.pt", 2, *settings, "compiler=eager")
    assert one["graphs"] == 0 < two["graphs"]
    assert one["weights"].keys() == two["weights"].keys()
    assert largest_difference(one["weights"], two["weights"]) < 1e-5
    torch.testing.assert_close(one["norms"], two["norms"], rtol=1e-4, atol=0)
