"""Muon against its definition: an orthogonal update of a fixed size."""

import pytest
import torch

from pspo.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 9), (2, 9, 4)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonal(matrices) @ vt.mT
    values = found.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(found, torch.diag_embed(values), atol=1e-6)
    large = s > 0.05 * s.norm(dim=-1, keepdim=True)  # five iterations do not lift the smallest ones all the way
    assert values[large].min() > 0.6 and values.max() < 1.3


def test_the_first_step_by_hand() -> None:
    """A gradient of twice the identity: whatever its size, the update is the identity made orthogonal."""
    matrix = torch.nn.Parameter(torch.ones(4, 4))
    matrix.grad = 2 * torch.eye(4)
    Muon([matrix], lr=0.1, weight_decay=0.5).step()
    direction = orthogonal(torch.eye(4)[None])[0]
    # weight decay 1 - 0.1 * 0.5, and 0.1 * 0.2 * sqrt(4) = 0.04 times the orthogonal matrix
    assert torch.allclose(matrix, 0.95 * torch.ones(4, 4) - 0.04 * direction, atol=1e-6)
    assert direction.diagonal().min() > 0.6


def test_matrices_of_one_shape_do_not_mix() -> None:
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(4, 6, generator=generator) for _ in range(3)]
    grads = [torch.randn(4, 6, generator=generator) for _ in range(3)]
    together = [torch.nn.Parameter(value.clone()) for value in values]
    for matrix, grad in zip(together, grads, strict=True):
        matrix.grad = grad
    Muon(together, lr=0.1).step()
    for value, grad, found in zip(values, grads, together, strict=True):
        alone = torch.nn.Parameter(value.clone())
        alone.grad = grad
        Muon([alone], lr=0.1).step()
        assert torch.allclose(alone, found, atol=1e-6)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.ones(3))], lr=0.1)
