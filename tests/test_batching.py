import torch

from pspo.batching import micro_batches, minibatches
from pspo.types import Completion, Group, Problem, Sample, samples_of


def test_the_miniature_of_the_docstring():
    (micro,) = micro_batches([Sample((7, 8), (5, 1), (-0.1, -0.2), 0.7)], token_budget=64)
    assert micro.input_ids.tolist() == [[7, 8, 5, 1, 0, 0, 0, 0]]
    assert (micro.rows.tolist(), micro.cols.tolist()) == ([0, 0], [1, 2])
    assert (micro.targets.tolist(), micro.index.tolist(), micro.offsets.tolist()) == ([5, 1], [0, 0], [0, 1])


def test_every_token_once_within_the_budget_longest_first(make_samples):
    samples = make_samples(40, vocab=50)
    found = {}
    widths = []
    for micro in micro_batches(samples, token_budget=96):
        assert micro.input_ids.numel() <= 96
        widths.append(micro.input_ids.shape[1])
        for row, col, target, i, k in zip(
            micro.rows, micro.cols, micro.targets, micro.index.tolist(), micro.offsets.tolist(), strict=True
        ):
            assert (i, k) not in found
            found[i, k] = int(target)
            assert micro.input_ids[row, col + 1] == target  # the position before it predicts it
    assert found == {(i, k): token for i, s in enumerate(samples) for k, token in enumerate(s.completion_ids)}
    assert widths == sorted(widths, reverse=True)


def test_a_sample_longer_than_the_budget_is_alone():
    samples = [Sample(tuple(range(20)), (1,), (0.0,), 1.0), Sample((1, 2), (3,), (0.0,), 1.0)]
    assert [m.input_ids.shape[0] for m in micro_batches(samples, token_budget=8)] == [1, 1]


def test_minibatches_are_a_partition_and_depend_on_the_seed_alone():
    parts = minibatches(10, 4, seed=3)
    assert sorted(i for part in parts for i in part) == list(range(10))
    assert sorted(map(len, parts)) == [2, 2, 3, 3]
    assert minibatches(10, 4, seed=3) == parts != minibatches(10, 4, seed=4)
    state = torch.get_rng_state()
    minibatches(10, 4, seed=3)
    assert torch.equal(state, torch.get_rng_state())


def test_fewer_samples_than_parts():
    assert sorted(map(tuple, minibatches(2, 4, seed=0))) == [(0,), (1,)]
    assert minibatches(0, 4, seed=0) == []


def test_samples_of_groups():
    completions = (Completion((5, 1), (-0.1, -0.2), "a", True), Completion((5, 6), (-0.1, -3.0), "ab", False))
    first, second = samples_of([Group(Problem("1", "?", "a"), (7, 8), completions)], [[0.7, -0.7]])
    assert first == Sample((7, 8), (5, 1), (-0.1, -0.2), 0.7)
    assert second == Sample((7, 8), (5, 6), (-0.1, -3.0), -0.7)
