import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pspo import logprobs
from pspo.logprobs import tile_sizes, token_log_probs

M, D, V = 7, 5, 11
# value (absolute); gradient (absolute; and relative, for gradients are rounded to bf16 once: half of eps = 2^-7)
BOUNDS = {
    torch.float64: (1e-13, 1e-13, 0.0),
    torch.float32: (2e-6, 5e-6, 0.0),
    torch.bfloat16: (2e-6, 5e-6, 2.0**-8),
}
TILES = [(None, None), (1, None), (3, None), (7, 1), (1, 1), (2, 4), (3, 10), (7, 11), (100, 100), (None, 3)]


def inputs(dtype, seed=0, shape=(M, D, V)):
    m, d, v = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return normal(m, d), normal(v, d), torch.randint(v, (m,), generator=generator), normal(v)


def plain(hidden, weight, targets, temperature=1.0, bias=None):
    """The definition, in fp64, with all logits at once."""
    logits = hidden.double() @ weight.double().T
    logits = (logits if bias is None else logits + bias.double()) / temperature
    log_p = logits.log_softmax(dim=1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(dim=1)


def both(outputs):
    """A loss that uses both outputs, each token with a weight of its own and sign."""
    log_probs, entropy = outputs
    at = torch.arange(len(log_probs), dtype=log_probs.dtype)
    return (log_probs * (at - 2.5)).sum() + 0.3 * (entropy * (1.5 - at)).sum()


def only_log_probs(outputs):
    return (outputs[0] * torch.linspace(-1, 2, len(outputs[0]), dtype=outputs[0].dtype)).sum()


def only_entropy(outputs):
    return (outputs[1] * torch.linspace(-1, 2, len(outputs[1]), dtype=outputs[1].dtype)).sum()


def assert_equal_to_plain(tensors, targets, temperature, tiles, loss=both, bounds=None):
    """Values and gradients of `tensors` (hidden, weight, bias or None) within the bounds of their dtype."""
    value_bound, absolute, relative = bounds or BOUNDS[tensors[0].dtype]
    reference = [None if x is None else x.detach().double().requires_grad_() for x in tensors]
    mine = token_log_probs(tensors[0], tensors[1], targets, temperature, tensors[2], *tiles)
    theirs = plain(reference[0], reference[1], targets, temperature, reference[2])
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == (torch.float64 if tensors[0].dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(a.double(), b, atol=value_bound, rtol=0)
    loss(mine).backward()
    loss(theirs).backward()
    for a, b in zip(tensors, reference, strict=True):
        if a is not None:
            assert a.grad.dtype == a.dtype
            torch.testing.assert_close(a.grad.double(), b.grad, atol=absolute, rtol=relative)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("temperature, with_bias", [(0.7, True), (1.0, False)])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_equals_the_plain_log_softmax(tiles, temperature, with_bias, dtype):
    hidden, weight, targets, bias = inputs(dtype)
    assert_equal_to_plain((hidden, weight, bias if with_bias else None), targets, temperature, tiles)


@pytest.mark.parametrize("loss", [only_log_probs, only_entropy])
@pytest.mark.parametrize("tiles", TILES)
def test_gradient_of_either_output_alone(loss, tiles):
    hidden, weight, targets, bias = inputs(torch.float64, seed=4)
    assert_equal_to_plain((hidden, weight, bias), targets, 0.7, tiles, loss)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 9), st.integers(1, 6), st.integers(1, 20)),
    chunk=st.none() | st.integers(1, 25),
    vocab_chunk=st.none() | st.integers(1, 25),
    temperature=st.floats(0.3, 3.0),
    with_bias=st.booleans(),
    loss=st.sampled_from([both, only_log_probs, only_entropy]),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_any_tile(shape, chunk, vocab_chunk, temperature, with_bias, loss, seed):
    hidden, weight, targets, bias = inputs(torch.float64, seed, shape)
    bounds = (1e-11, 1e-10, 0.0)
    tensors = (hidden, weight, bias if with_bias else None)
    assert_equal_to_plain(tensors, targets, temperature, (chunk, vocab_chunk), loss, bounds)


@pytest.mark.parametrize("tiles", [(None, None), (2, None), (2, 4), (7, 1)])
def test_gradcheck(tiles):
    hidden, weight, targets, bias = inputs(torch.float64, seed=1)
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_log_probs(h, w, targets, 0.8, b, *tiles), (hidden, weight, bias)
    )


@pytest.mark.parametrize("tiles", [(None, None), (2, 4)])
def test_tied_weights(tiles):
    """The same tensor as embedding and as head: its gradient is the sum of both uses."""
    _, weight, targets, _ = inputs(torch.float64, seed=2)
    tokens = torch.arange(M)
    grads = []
    for head in (
        lambda h, w: token_log_probs(h, w, targets, 0.9, None, *tiles),
        lambda h, w: plain(h, w, targets, 0.9),
    ):
        weight.grad = None
        both(head(torch.tanh(torch.nn.functional.embedding(tokens, weight)), weight)).backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tiles", [(None, None), (2, 4)])
@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradient_of_one_input_alone_has_the_same_bits(tiles, needed):
    tensors = [x.detach() for x in inputs(torch.float32, seed=3)]
    targets = tensors.pop(2)
    grads = []
    for requires in ((True, True, True), needed):
        hidden, weight, bias = (x.clone().requires_grad_(r) for x, r in zip(tensors, requires, strict=True))
        both(token_log_probs(hidden, weight, targets, 1.0, bias, *tiles)).backward()
        grads.append([x.grad for x in (hidden, weight, bias)])
    for full, alone, need in zip(*grads, needed, strict=True):
        assert torch.equal(full, alone) if need else alone is None


@pytest.mark.parametrize("tiles", [(None, None), (2, 4)])
@pytest.mark.parametrize("loss", [both, only_log_probs, only_entropy])
def test_a_second_backward_has_the_same_bits(tiles, loss):
    """The tile kept from the forward is as it was after the first."""
    hidden, weight, targets, bias = inputs(torch.float32)
    value = loss(token_log_probs(hidden, weight, targets, 1.0, bias, *tiles))
    first, second = (torch.autograd.grad(value, (hidden, weight), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("tiles", [(None, None), (2, 4), (7, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits(tiles, dtype):
    """Logits of 1e4 and more, where exp overflows by far: as near the definition as fp32 logits of that size are."""
    hidden, weight, targets, _ = inputs(dtype, seed=5)
    hidden, weight = ((x.detach() * 100).requires_grad_() for x in (hidden, weight))
    scale = (hidden.double() @ weight.double().T).abs().max().item()
    assert scale > 1e4
    assert_equal_to_plain((hidden, weight, None), targets, 1.0, tiles, bounds=(4e-7 * scale, 1.0, 2.0**-7))


@pytest.mark.parametrize("vocab_chunk", [None, 4])
def test_differences_of_huge_logits_are_exact(vocab_chunk):
    """Equal logits of 1e4 are a uniform distribution to the last digits, not to those of 1e4."""
    log_probs, entropy = token_log_probs(
        torch.full((3, 1), 1e4), torch.ones(V, 1), torch.tensor([0, 4, V - 1]), vocab_chunk=vocab_chunk
    )
    torch.testing.assert_close(log_probs, torch.full((3,), -math.log(V)), atol=3e-7, rtol=0)
    torch.testing.assert_close(entropy, torch.full((3,), math.log(V)), atol=3e-7, rtol=0)


@pytest.mark.parametrize("tiles", [(None, None), (2, 4), (7, 1), (3, 6)])
def test_entries_with_a_bias_of_minus_infinity_are_out_of_the_distribution(tiles):
    """Among them a whole first tile. Values and gradients are those of a vocabulary without them."""
    hidden, weight, _, bias = inputs(torch.float64, seed=6)
    kept = torch.tensor([6, 7, 9])
    places = torch.arange(M) % 3
    masked = torch.full((V,), -math.inf, dtype=torch.float64).index_copy(0, kept, bias.detach()[kept]).requires_grad_()
    both(token_log_probs(hidden, weight, kept[places], 0.8, masked, *tiles)).backward()
    grads = hidden.grad, weight.grad[kept], masked.grad[kept]
    rest = torch.ones(V, dtype=torch.bool).index_fill(0, kept, False)
    assert (weight.grad[rest] == 0).all()
    assert (masked.grad[rest] == 0).all()
    reference = [x.detach().clone().requires_grad_() for x in (hidden, weight[kept], bias[kept])]
    both(plain(reference[0], reference[1], places, 0.8, reference[2])).backward()
    for a, b in zip(grads, reference, strict=True):
        torch.testing.assert_close(a, b.grad, atol=1e-12, rtol=0)
    assert token_log_probs(hidden, weight, torch.zeros(M, dtype=torch.long), 0.8, masked, *tiles)[0].max() == -math.inf


@pytest.mark.parametrize("widened", [True, False])
def test_the_gradient_of_a_token_that_is_all_but_certain(monkeypatch, widened):
    """1 - p is 5e-4: it is rounded to bf16 as such, not left over from two numbers near 1."""
    if not widened:
        monkeypatch.setattr(logprobs, "_product_dtype", lambda tensor: tensor.dtype)
    hidden = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[4.0], [-3.625]], dtype=torch.bfloat16)
    token_log_probs(hidden, weight, torch.tensor([0]))[0].sum().backward()
    expected = 7.625 / (1 + math.exp(7.625))
    assert hidden.grad.item() == pytest.approx(expected, rel=2.0**-7)


def test_non_contiguous_tensors():
    hidden, weight, targets, _ = inputs(torch.float64, seed=7)
    grads = []
    for h, w in (
        (hidden.detach().clone(), weight.detach().clone()),
        (hidden.detach().T.contiguous().T, weight.detach().T.contiguous().T),
        (hidden.detach().repeat_interleave(2, 0)[::2], weight.detach().repeat_interleave(2, 1)[:, ::2]),
    ):
        h, w = h.requires_grad_(), w.requires_grad_()
        both(token_log_probs(h, w, targets, chunk=3, vocab_chunk=4)).backward()
        grads.append((h.grad, w.grad))
    for other in grads[1:]:
        for a, b in zip(grads[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-13, rtol=0)


@pytest.mark.parametrize("tiles", [(None, None), (2, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_enclosing_autocast_changes_no_bit(tiles, dtype):
    found = []
    for enabled in (False, True):
        hidden, weight, targets, bias = inputs(dtype, seed=8)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = token_log_probs(hidden, weight, targets, 0.9, bias, *tiles)
            both(outputs).backward()  # inside as well: the backward's products would be cast otherwise
        found.append([*outputs, hidden.grad, weight.grad, bias.grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("tiles", [(None, None), (2, 4)])
def test_without_gradients_the_values_have_the_same_bits(tiles):
    hidden, weight, targets, bias = inputs(torch.float32)
    with_graph = token_log_probs(hidden, weight, targets, 0.9, bias, *tiles)
    with torch.no_grad():
        without = token_log_probs(hidden, weight, targets, 0.9, bias, *tiles)
    for a, b in zip(with_graph, without, strict=True):
        assert torch.equal(a, b)
        assert a.requires_grad and not b.requires_grad


class Storages(TorchDispatchMode):
    """Sizes in bytes of all storages that operations return; how often each was called, and with `elements` in all."""

    def __init__(self, elements=None):
        super().__init__()
        self.sizes, self.elements, self.ran, self.calls = set(), elements, Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        self.calls[name] += 1
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, torch.Tensor):
                self.sizes.add(item.untyped_storage().nbytes())
                self.ran[name] += item.numel() == self.elements
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [both, only_log_probs])
@pytest.mark.parametrize("vocabulary", [4096, 16384])
def test_a_tile_is_the_largest_that_ever_exists(vocabulary, loss, dtype):
    """Forward and backward: whatever the vocabulary, nothing but the weight and its gradient is larger than a tile."""
    hidden, weight, targets, _ = inputs(dtype, shape=(256, 4, vocabulary))
    with Storages() as seen:
        loss(token_log_probs(hidden, weight, targets, chunk=32, vocab_chunk=128)).backward()
    sizes = seen.sizes - {weight.untyped_storage().nbytes()}
    assert max(sizes) == 32 * 128 * 4 < weight.untyped_storage().nbytes()


def test_an_unused_entropy_costs_the_backward_nothing():
    """Passes over a tile of 2 x 4, of which there are 3 x 2: those without an entropy's gradient, and no other."""
    ran = []
    for loss in (only_log_probs, both):
        hidden, weight, targets, _ = inputs(torch.float32, shape=(6, 5, 8))
        value = loss(token_log_probs(hidden, weight, targets, chunk=2, vocab_chunk=4))
        with Storages(elements=8) as seen:
            value.backward()
        ran.append(seen.ran)
    passes = ("sub_", "exp2", "mul", "mul_", "add_", "log2", "exp", "log")
    assert {name: ran[0][name] for name in passes if ran[0][name]} == {"sub_": 6, "exp2": 6, "mul": 6}
    assert ran[1]["mul_"] > 0


@pytest.mark.parametrize("tiles, products", [((7, 11), 3), ((7, 6), 8), ((4, 11), 8)])
def test_one_tile_is_kept_instead_of_computed_again(tiles, products):
    """Three matrix products where one tile holds everything, four a tile elsewhere."""
    hidden, weight, targets, _ = inputs(torch.float32)
    with Storages() as seen:
        only_log_probs(token_log_probs(hidden, weight, targets, 1.0, None, *tiles)).backward()
    assert seen.calls["addmm_"] == products


def test_no_tokens_at_all():
    hidden, weight = torch.zeros(0, D, requires_grad=True), torch.ones(V, D, requires_grad=True)
    log_probs, entropy = token_log_probs(hidden, weight, torch.zeros(0, dtype=torch.long))
    assert log_probs.shape == entropy.shape == (0,)
    (log_probs.sum() + entropy.sum()).backward()
    assert hidden.grad.shape == (0, D)
    assert torch.equal(weight.grad, torch.zeros(V, D))


@pytest.mark.parametrize("loss", [both, only_log_probs, only_entropy])
@pytest.mark.parametrize("tiles", [(None, None), (2, 4)])
def test_the_way_of_other_devices_with_products_of_low_precision(monkeypatch, tiles, loss):
    """A CPU made to multiply bf16 as it is, which is also the way of a GPU without fp32 results: rounded products."""
    monkeypatch.setattr(logprobs, "_product_dtype", lambda tensor: tensor.dtype)
    hidden, weight, targets, bias = inputs(torch.bfloat16, seed=9)
    assert_equal_to_plain((hidden, weight, bias), targets, 0.7, tiles, loss, bounds=(0.05, 0.3, 0.02))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("tiles", [(None, None), (64, 512)])
@pytest.mark.parametrize("loss", [both, only_log_probs, only_entropy])
def test_bf16_logits_are_not_rounded_on_a_gpu(tiles, loss):
    hidden, weight, targets, _ = inputs(torch.bfloat16, shape=(256, 64, 2048))
    reference = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    moved = [x.detach().cuda().requires_grad_() for x in (hidden, weight)]
    mine = [x.cpu() for x in token_log_probs(*moved, targets.cuda(), 0.7, None, *tiles)]
    theirs = plain(*reference, targets, 0.7)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=0)
    loss(mine).backward()
    loss(theirs).backward()
    for a, b in zip(moved, reference, strict=True):
        error = (a.grad.cpu().double() - b.grad).norm() / b.grad.norm()
        assert error < 2.0**-8


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("tokens", [0, 1, 256, 520, 8192, 100_000])
@pytest.mark.parametrize("vocabulary", [2, 369, 151_936])
def test_chosen_tiles(device, tokens, vocabulary):
    chunk, vocab_chunk = tile_sizes(tokens, vocabulary, device)
    kind = "cpu" if device == "cpu" else "gpu"
    assert 1 <= chunk <= max(1, tokens)
    assert 1 <= vocab_chunk <= vocabulary
    if tokens * vocabulary <= logprobs.WHOLE_ELEMENTS[kind]:
        assert (chunk, vocab_chunk) == (max(1, tokens), vocabulary)
    else:
        assert logprobs.TILE_ELEMENTS[kind] / 2.5 < chunk * vocab_chunk <= logprobs.TILE_ELEMENTS[kind]


def test_given_tiles_are_kept():
    assert tile_sizes(100, 1000, "cpu", 7, 11) == (7, 11)
    assert tile_sizes(100, 1000, "cpu", 700, 1100) == (100, 1000)
    assert tile_sizes(10**6, 151_936, "cpu", 64)[0] == 64
    assert tile_sizes(10**6, 151_936, "cpu", None, 64)[1] == 64


def test_wrong_arguments():
    hidden, weight, targets, bias = inputs(torch.float32)
    with pytest.raises(ValueError, match=r"\[7, 5\], \[11, 4\]"):
        token_log_probs(hidden, weight[:, 1:], targets)
    with pytest.raises(ValueError, match="temperature"):
        token_log_probs(hidden, weight, targets, temperature=0.0)
    with pytest.raises(ValueError, match=r"bias \[V\] with V = 11"):
        token_log_probs(hidden, weight, targets, bias=bias[1:])
    with pytest.raises(ValueError, match=r"float32 and weight torch\.bfloat16"):
        token_log_probs(hidden, weight.bfloat16(), targets)
    for sizes in ({"chunk": 0}, {"vocab_chunk": -1}):
        with pytest.raises(ValueError, match="chunk"):
            token_log_probs(hidden, weight, targets, **sizes)
    for wrong in (-100, V):
        with pytest.raises(ValueError, match=r"targets must be in \[0, 11\)"):
            token_log_probs(hidden, weight, targets.index_fill(0, torch.tensor([2]), wrong))
