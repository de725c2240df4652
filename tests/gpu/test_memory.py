"""Peak memory of an update on a GPU, by torch's count, beside the plan's formula; in bfloat16."""

import pytest
import torch
from update_memory import measured_over_planned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
WHOLE = "learner.token_budget=16384"  # one pack


@pytest.mark.parametrize(
    "shape, overrides",
    [
        pytest.param((1536, 8, 151_936, 8), (), id="weights-and-head"),
        pytest.param((1536, 8, 151_936, 8), ("learner.offload_optimizer=true",), id="moments-offloaded"),
        pytest.param((896, 12, 512, 32), (WHOLE,), id="activations"),
        pytest.param((896, 12, 512, 32), (WHOLE, "learner.gradient_checkpointing=true"), id="layers-computed-twice"),
    ],
)
def test_an_update_takes_what_the_plan_says(root, shape, overrides):
    taken = measured_over_planned(root, *shape, "device=cuda", "model.dtype=bfloat16", *overrides)
    assert taken == pytest.approx(1.0, abs=0.15)
