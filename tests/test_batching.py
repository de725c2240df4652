import random
from itertools import chain

import numpy as np
import pytest
import torch

from pspo.batching import Batch, balanced, lay_out, minibatches, packs
from pspo.types import Completion, Group, Problem, Sample, samples_of


def groups_of(sizes, seed=0, vocab=50, longest=12):
    """Samples of groups, one prompt a group, of so many completions each."""
    rng = random.Random(seed)

    def ids(least):
        return tuple(rng.randrange(vocab) for _ in range(rng.randint(least, longest)))

    prompts = [(k, *ids(1)) for k in range(len(sizes))]
    return [
        Sample(prompt, (completion := ids(1)), tuple(-rng.random() for _ in completion), rng.choice([-1.0, 0.5]))
        for prompt, size in zip(prompts, sizes, strict=True)
        for _ in range(size)
    ]


def everything(batch):
    return list(range(len(batch)))


def test_the_miniature_of_the_docstring():
    batch = Batch.of([Sample((7, 8), (5, 1), (-0.1, -0.2), 0.7)])
    (pack,) = packs(batch, [0], token_budget=64, kernel="padded")
    assert (pack.ids.tolist(), pack.positions.tolist()) == ([7, 8, 5], [0, 1, 2])
    assert (pack.at.tolist(), pack.targets.tolist(), pack.flat.tolist()) == ([1, 2], [5, 1], [0, 1])


def test_a_shared_prompt_is_there_once():
    samples = [Sample((7, 8), (5, 6, 1), (0.0,) * 3, 1.0), Sample((7, 8), (4,), (0.0,), -1.0)]
    (pack,) = packs(Batch.of(samples), [0, 1], token_budget=64, kernel="padded")
    assert pack.ids.tolist() == [7, 8, 5, 6]  # the last token of a completion predicts nothing
    assert pack.at.tolist() == [1, 2, 3, 1]  # both completions begin where the prompt ends
    assert (pack.sample.tolist(), pack.lengths.tolist()) == ([0, 0, 0, 1], [3, 1])


@pytest.mark.parametrize("budget", [8, 30, 96, 10_000])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_token_once_over_all_ranks_within_the_budget(budget, ranks):
    batch = Batch.of(groups_of([4, 1, 6, 3, 8]))
    found = []
    for rank in range(ranks):
        for pack in packs(batch, everything(batch), budget, "padded", rank, ranks):
            if pack.ghost:
                continue
            single = len(pack.lengths) == 1
            assert len(pack.ids) <= budget or single
            tokens = zip(pack.sample, pack.flat, pack.targets, pack.at, strict=True)
            for sample, flat, target, at in tokens:
                found.append(int(flat))
                assert batch.starts[sample] <= flat < batch.starts[sample + 1]
                offset = int(flat - batch.starts[sample])
                prompt = batch.prompts[batch.prompt[sample]]
                assert int(target) == batch.tokens[flat]
                assert int(pack.positions[at]) == len(prompt) + offset - 1  # the position before it predicts it
                before = batch.tokens[flat - 1] if offset else prompt[-1]
                assert int(pack.ids[at]) == before
    assert sorted(found) == list(range(len(batch.tokens)))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_ranks_have_the_same_number_of_packs_and_none_is_empty(count, ranks):
    batch = Batch.of(groups_of([count], longest=9))
    shares = balanced(batch, everything(batch), token_budget=64, ranks=ranks)
    assert len({len(share) for share in shares}) == 1 and shares[0]
    real = [i for share in shares for pieces, ghost in share if not ghost for i in chain.from_iterable(pieces)]
    assert sorted(real) == everything(batch)
    assert all(pieces for share in shares for pieces, _ in share)
    assert sum(ghost for share in shares for _, ghost in share) == max(0, ranks - count)


def test_ranks_have_nearly_the_same_to_do():
    batch = Batch.of(groups_of([8] * 12, longest=60))
    for ranks in (2, 4):
        tokens = [
            sum(len(pack.ids) for pack in packs(batch, everything(batch), 700, "padded", rank, ranks))
            for rank in range(ranks)
        ]
        assert max(tokens) < 1.2 * min(tokens)


@pytest.mark.parametrize("groups, ranks", [(3, 2), (5, 4), (9, 8), (12, 8)])
def test_ranks_have_nearly_the_same_to_do_where_groups_do_not_divide(groups, ranks):
    batch = Batch.of(groups_of([8] * groups, longest=40))
    shares = balanced(batch, everything(batch), 100_000, ranks)
    tokens = [len(lay_out(batch, pieces, "padded").ids) for ((pieces, _),) in shares]
    assert max(tokens) < 1.25 * sum(tokens) / ranks


def test_packs_come_largest_first_and_nearly_full():
    batch = Batch.of(groups_of([4] * 20))
    sizes = [len(pack.ids) for pack in packs(batch, everything(batch), 200, "padded")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= -(-sum(sizes) // 200) + 1


def test_the_batch_laid_flat():
    samples = groups_of([2, 3])
    batch = Batch.of(samples)
    assert len(batch.prompts) == 2 and batch.prompt.tolist() == [0, 0, 1, 1, 1]
    for i, sample in enumerate(samples):
        mine = slice(batch.starts[i], batch.starts[i + 1])
        assert tuple(batch.tokens[mine].tolist()) == sample.completion_ids
        assert tuple(batch.sampler[mine].tolist()) == sample.sampler_log_probs
    assert batch.old.isnan().all() and batch.before.isnan().all()
    assert batch.sequence_tokens([1, 3]) == len(samples[1]) + len(samples[3])
    (row,) = batch.rows([1])
    assert row["completion_ids"] == list(samples[1].completion_ids)
    assert row["old_log_probs"] == [None] * len(samples[1].completion_ids)  # JSON has no NaN


def test_nothing_to_learn_from():
    batch = Batch.of([])
    assert len(batch) == 0 and minibatches(batch, 4, seed=0) == []
    assert list(packs(batch, [], 64, "padded")) == []


@pytest.mark.parametrize("prompt, completion", [((), (1,)), ((1,), ())])
def test_a_sample_without_prompt_or_completion_is_refused(prompt, completion):
    with pytest.raises(ValueError, match="at least one"):
        Batch.of([Sample(prompt, completion, tuple(0.0 for _ in completion), 1.0)])


def test_minibatches_of_groups_keep_them_whole():
    batch = Batch.of(groups_of([3] * 10))
    parts = minibatches(batch, 4, seed=3)
    assert sorted(i for part in parts for i in part) == everything(batch)
    assert sorted(len(part) for part in parts) == [6, 6, 9, 9]
    for part in parts:
        assert all((batch.prompt[part] == k).sum() in (0, 3) for k in range(10))


def test_minibatches_of_samples_are_a_partition():
    batch = Batch.of(groups_of([5, 5]))
    parts = minibatches(batch, 4, seed=3, of="samples")
    assert sorted(i for part in parts for i in part) == list(range(10))
    assert sorted(map(len, parts)) == [2, 2, 3, 3]


@pytest.mark.parametrize("of", ["groups", "samples"])
def test_minibatches_depend_on_the_seed_alone(of):
    batch = Batch.of(groups_of([2] * 10))
    state, drawn = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert minibatches(batch, 4, 3, of) == minibatches(batch, 4, 3, of) != minibatches(batch, 4, 4, of)
    assert torch.equal(state, torch.get_rng_state()) and (drawn == np.random.get_state()[1]).all()


def test_fewer_groups_than_parts():
    batch = Batch.of(groups_of([2, 2]))
    assert sorted(minibatches(batch, 4, seed=0)) == [[0, 1], [2, 3]]


def test_samples_of_groups():
    completions = (Completion((5, 1), (-0.1, -0.2), "a", True), Completion((5, 6), (-0.1, -3.0), "ab", False))
    first, second = samples_of([Group(Problem("1", "?", "a"), (7, 8), completions)], [[0.7, -0.7]])
    assert first == Sample((7, 8), (5, 1), (-0.1, -0.2), 0.7)
    assert second == Sample((7, 8), (5, 6), (-0.1, -3.0), -0.7)
