"""vLLM on a GPU beside a learner: the gap in bfloat16, sleep, and new weights."""

import pytest
import torch
from engines import SHARE, drawn_awake_and_after_sleep, engine_of, gap, settings

from pspo.config import TrainConfig, compose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture(scope="module")
def cfg():
    return settings("vllm", "cuda", "bfloat16")


@pytest.fixture(scope="module")
def checkpoint(random_policy):
    return str(random_policy())


@pytest.fixture(scope="module")
def engine(cfg, checkpoint):
    pytest.importorskip("vllm", reason="needs vLLM for CUDA")
    made = engine_of(cfg, checkpoint)
    yield made
    made.close()


def test_the_gap_is_below_what_is_allowed_and_that_of_another_temperature_above(cfg, checkpoint, engine):
    allowed = compose("train", TrainConfig, ["scale=paper"]).rollout.max_gap
    assert gap(cfg, checkpoint, engine, cfg.rollout.temperature) < allowed < gap(cfg, checkpoint, engine, 1.0)


def test_a_sleep_changes_nothing_that_is_drawn_and_gives_the_memory_back(cfg, checkpoint, engine):
    """Weights, keys and values are nearly all that an engine of a small policy has of its share."""
    (own, own_after, first), (other, other_after, second) = drawn_awake_and_after_sleep(
        cfg, checkpoint, engine, lambda: torch.cuda.mem_get_info()[0]
    )
    assert own == own_after and other == other_after and own != other
    share = SHARE * torch.cuda.mem_get_info()[1]
    assert 0.8 * share < min(first, second) and max(first, second) <= share
