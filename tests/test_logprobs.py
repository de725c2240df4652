import pytest
import torch

from pspo.logprobs import token_log_probs

M, D, V = 7, 5, 11


def inputs(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return normal(M, D), normal(V, D), torch.randint(V, (M,), generator=generator), normal(V)


def plain(hidden, weight, targets, temperature, bias):
    """The definition, in fp64, with all logits at once."""
    logits = hidden.double() @ weight.double().T
    logits = (logits if bias is None else logits + bias.double()) / temperature
    log_p = logits.log_softmax(dim=1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(dim=1)


@pytest.mark.parametrize("chunk", [1, 3, 7, None])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize(
    "dtype, value_bound, grad_bound",
    [
        (torch.float64, 1e-13, 1e-13),
        (torch.float32, 2e-6, 5e-6),
        (torch.bfloat16, 0.1, 0.1),
    ],
)
def test_equals_the_plain_log_softmax(chunk, temperature, dtype, value_bound, grad_bound):
    hidden, weight, targets, bias = inputs(dtype)
    reference = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    mine = token_log_probs(hidden, weight, targets, temperature, bias, chunk)
    theirs = plain(reference[0], reference[1], targets, temperature, reference[2])
    for a, b in zip(mine, theirs, strict=True):
        assert (a.double() - b).abs().max() < value_bound
    for outputs in (mine, theirs):  # a mix of both outputs, so that both gradients are there
        (outputs[0].sum() + 0.3 * outputs[1].sum()).backward()
    for a, b in zip((hidden, weight, bias), reference, strict=True):
        assert a.grad.dtype == dtype
        assert (a.grad.double() - b.grad).abs().max() < grad_bound


@pytest.mark.parametrize("chunk", [2, None])
def test_gradcheck(chunk):
    hidden, weight, targets, bias = inputs(torch.float64, seed=1)
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_log_probs(h, w, targets, 0.8, b, chunk), (hidden, weight, bias)
    )


def test_a_tile_of_logits_is_all_that_ever_exists():
    """Peak memory with 64 tokens a tile stays far below one full set of fp32 logits."""
    hidden = torch.randn(2048, 8, requires_grad=True)
    weight = torch.randn(4096, 8, requires_grad=True)
    full = 2048 * 4096
    largest = 0

    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for item in out if isinstance(out, tuple | list) else (out,):
                if isinstance(item, torch.Tensor):
                    largest = max(largest, item.untyped_storage().nbytes() // item.element_size())
            return out

    with Largest():
        log_probs, entropy = token_log_probs(hidden, weight, torch.zeros(2048, dtype=torch.long), chunk=64)
        (log_probs.sum() + entropy.sum()).backward()
    assert 64 * 4096 <= largest < full / 16


def test_no_tokens_at_all():
    log_probs, entropy = token_log_probs(torch.zeros(0, D), torch.zeros(V, D), torch.zeros(0, dtype=torch.long))
    assert log_probs.shape == entropy.shape == (0,)


def test_wrong_shapes_and_temperature():
    with pytest.raises(ValueError, match=r"\[7, 5\], \[11, 4\]"):
        token_log_probs(torch.zeros(M, D), torch.zeros(V, D - 1), torch.zeros(M, dtype=torch.long))
    with pytest.raises(ValueError, match="temperature"):
        token_log_probs(torch.zeros(M, D), torch.zeros(V, D), torch.zeros(M, dtype=torch.long), temperature=0.0)
