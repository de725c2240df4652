"""The four surrogates on a GPU: values and gradients are the CPU's."""

import pytest
import torch

from pspo.config import TrainConfig, compose
from pspo.surrogates import MAX_LOG_RATIO, from_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
# On both sides of the clipping bounds and of the clamp, not at them, where rounding would choose the side.
LOG_RATIOS = [-MAX_LOG_RATIO - 5, -3.0, -0.25, -0.1, -1e-4, 0.0, 1e-4, 0.1, 0.25, 3.0, MAX_LOG_RATIO + 5]
ADVANTAGES = [-2.0, -0.3, 0.0, 0.3, 2.0]


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("name", ["no_clip", "clip", "sigmoid", "pspo"])
def test_values_and_gradients_are_those_of_the_cpu(name, dtype, rtol):
    surrogate = from_config(compose("train", TrainConfig, [f"surrogate={name}"]).surrogate)
    sides = []
    for device in ("cpu", "cuda"):
        log_ratio = torch.tensor(LOG_RATIOS, dtype=dtype, device=device)[:, None].requires_grad_()
        values = surrogate(log_ratio, torch.tensor(ADVANTAGES, dtype=dtype, device=device))
        slopes = [torch.autograd.grad(column.sum(), log_ratio, retain_graph=True)[0] for column in values.unbind(1)]
        sides.append((values.detach().cpu(), torch.cat(slopes, 1).cpu()))
    for cpu, cuda in zip(*sides, strict=True):
        assert cpu.abs().max() > 1
        torch.testing.assert_close(cuda, cpu, rtol=rtol, atol=0)
