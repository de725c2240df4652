"""Packed equals one by one, in values and gradients; no completion sees another."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_policy

from pspo.attention import NAME, Padded, Segment, Varlen, choose_kernel, packed_attention, use_packed_attention
from pspo.batching import Batch, packs
from pspo.errors import ConfigError
from pspo.learner import Policy
from pspo.types import Sample

VOCAB = 31


def samples_from(lengths, seed=0):
    """lengths: for each prompt (its tokens, the tokens of each completion)."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n):
        return tuple(torch.randint(VOCAB, (n,), generator=generator).tolist())

    prompts = [(ids(p), completions) for p, completions in lengths]
    return [Sample(prompt, ids(n), (0.0,) * n, 1.0) for prompt, completions in prompts for n in completions]


def one_by_one(model, samples):
    """Hidden states [K, D] that predict each completion token, from each sequence alone."""
    states = []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        states.append(model.base_model(input_ids=ids).last_hidden_state[0, len(sample.prompt_ids) - 1 : -1])
    return torch.cat(states)


def packed(model, samples, budget):
    batch = Batch.of(samples)
    states = [None] * len(batch.tokens)
    for pack in packs(batch, range(len(batch)), budget, "padded"):
        hidden = model.base_model(
            input_ids=pack.ids[None], position_ids=pack.positions[None], use_cache=False, layout=pack.layout
        ).last_hidden_state[0]
        for row, flat in zip(pack.at.tolist(), pack.flat.tolist(), strict=True):
            states[flat] = hidden[row]
    return torch.stack(states)


def gradients(model, states):
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states)
    model.zero_grad()
    (states * weights).sum().backward()
    return [p.grad for p in model.base_model.parameters()]


lengths = st.lists(
    st.tuples(st.integers(1, 7), st.lists(st.integers(1, 9), min_size=1, max_size=6)), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def models():
    plain = small_policy(vocab=VOCAB, heads=4)
    mine = deepcopy(plain)
    use_packed_attention(mine)
    return plain, mine


@settings(max_examples=25, deadline=None)
@given(lengths=lengths, budget=st.sampled_from([1, 12, 40, 10_000]))
def test_packed_equals_one_by_one_in_values_and_gradients(models, lengths, budget):
    plain, mine = models
    samples = samples_from(lengths)
    theirs, ours = one_by_one(plain, samples), packed(mine, samples, budget)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for a, b in zip(gradients(mine, ours), gradients(plain, theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_packed_equals_a_padded_batch_under_a_mask(models):
    """The batch as other trainers lay it out: one row a sequence, padded on the right."""
    plain, mine = models
    samples = samples_from([(3, [4, 6, 2]), (5, [3, 9])])
    rows = [[*s.prompt_ids, *s.completion_ids] for s in samples]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    hidden = plain.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    theirs = torch.cat([h[len(s.prompt_ids) - 1 : len(s) - 1] for h, s in zip(hidden, samples, strict=True)])
    ours = packed(mine, samples, 1000)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for a, b in zip(gradients(mine, ours), gradients(plain, theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_kernels_get_one_dtype_under_autocast(models):
    """The rotary embedding leaves queries and keys in fp32 there, and values are bf16."""
    model = deepcopy(models[1]).float()
    batch, seen = Batch.of(samples_from([(3, [4, 6])])), []

    class Spy:
        def __init__(self, layout):
            self.layout = layout

        def attend(self, query, key, value, scaling):
            seen.extend(x.dtype for x in (query, key, value))
            return self.layout.attend(query, key, value, scaling)

    (pack,) = packs(batch, range(len(batch)), 1000, "padded")
    log_probs, _ = Policy(model, 1.0, autocast=True)(replace(pack, layout=Spy(pack.layout)))
    assert set(seen) == {torch.bfloat16} and log_probs.dtype == torch.float32


def test_no_completion_sees_another(models):
    _, mine = models
    samples = samples_from([(3, [4, 6, 2]), (5, [3])])
    changed = [replace(s, completion_ids=tuple((t + 1) % VOCAB for t in s.completion_ids)) for s in samples[1:]]
    before, after = packed(mine, samples, 1000), packed(mine, [samples[0], *changed], 1000)
    assert torch.equal(before[:4], after[:4])
    assert not torch.equal(before[5:10], after[5:10])


def test_layouts_by_hand():
    segments = [Segment(*(torch.tensor(x).numpy() for x in pair)) for pair in (([0, 1], [0, 1]), ([2], [0, 1, 2]))]
    device = torch.device("cpu")
    varlen = Varlen.of(segments, device)
    assert varlen.keys.tolist() == [0, 1, 0, 1, 2]
    assert (varlen.query_bounds.tolist(), varlen.key_bounds.tolist()) == ([0, 2, 3], [0, 2, 5])
    assert (varlen.most_queries, varlen.most_keys) == (2, 3)
    prompt, completion = Padded.of(segments, device).blocks
    assert prompt.queries.tolist() == [[0, 1]] and prompt.mask.tolist() == [[[[True, False], [True, True]]]]
    assert completion.keys.tolist() == [[0, 1, 2]] and completion.mask.tolist() == [[[[True, True, True]]]]


def test_segments_of_very_different_lengths_are_padded_apart():
    rows = torch.arange(400).numpy()
    segments = [Segment(rows[:100], rows[:100])] * 5 + [Segment(rows[:7], rows[:7])] * 6
    assert [len(block.queries) for block in Padded.of(segments, torch.device("cpu")).blocks] == [5, 6]


def test_what_a_pack_cannot_have_is_refused(models):
    states = torch.zeros(1, 2, 3, 4)
    layout = Padded.of([Segment(*(torch.arange(3).numpy(),) * 2)], torch.device("cpu"))
    for bad in (
        {"layout": None},
        {"attention_mask": states},
        {"dropout": 0.1},
        {"sliding_window": 2},
        {"softcap": 30.0},
    ):
        arguments = {"attention_mask": None, "layout": layout} | bad
        with pytest.raises(ValueError, match="packed attention"):
            packed_attention(torch.nn.Module(), states, states, states, **arguments)
    assert models[1].config._attn_implementation == NAME


def test_the_kernel_is_what_the_machine_has():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_kernel("auto", cpu, torch.bfloat16) == "padded"
    assert choose_kernel("auto", cuda, torch.float32) == "padded"
    assert choose_kernel("auto", cuda, torch.bfloat16) == "varlen"
    assert choose_kernel("padded", cuda, torch.bfloat16) == "padded"
    with pytest.raises(ConfigError, match="needs device=cuda"):
        choose_kernel("varlen", cpu, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_kernels_agree_on_a_gpu():
    generator = torch.Generator().manual_seed(0)
    batch = Batch.of(samples_from([(30, [50, 3, 1, 80]), (7, [20] * 5)]), "cuda")
    length = sum(len(p.ids) for p in packs(batch, range(len(batch)), 10_000, "padded"))
    q, k, v = (torch.randn(1, h, length, 64, generator=generator).cuda().bfloat16() for h in (4, 2, 2))
    outs = []
    for kernel in ("padded", "varlen"):
        (pack,) = packs(batch, range(len(batch)), 10_000, kernel)
        x = [t.clone().requires_grad_() for t in (q, k, v)]
        out, _ = packed_attention(torch.nn.Module(), *x, None, layout=pack.layout)
        out.float().square().sum().backward()
        outs.append([out, *(t.grad for t in x)])
    for a, b in zip(*outs, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
