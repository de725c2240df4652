"""What tests/gpu/test_engine.py asks of vLLM on a GPU, of the engines on a CPU."""

import pytest
from engines import drawn_awake_and_after_sleep, engine_of, gap, settings

from pspo.config import TrainConfig, compose


def test_the_gap_in_bf16_is_below_what_is_allowed_and_that_of_another_temperature_above(random_policy):
    cfg, checkpoint = settings("hf", "cpu", "bfloat16"), str(random_policy())
    engine = engine_of(cfg, checkpoint)
    allowed = compose("train", TrainConfig, ["scale=paper"]).rollout.max_gap
    assert gap(cfg, checkpoint, engine, cfg.rollout.temperature) < allowed < gap(cfg, checkpoint, engine, 1.0)


@pytest.mark.slow
@pytest.mark.vllm
def test_what_is_drawn_after_a_sleep_is_what_is_drawn_without_one(random_policy):
    """On a CPU vLLM goes through the same states, and keeps its memory."""
    pytest.importorskip("vllm", reason="vLLM has no build for this machine")
    cfg, checkpoint = settings("vllm", "cpu", "float32"), str(random_policy())
    engine = engine_of(cfg, checkpoint)
    (own, own_after, _), (other, other_after, _) = drawn_awake_and_after_sleep(cfg, checkpoint, engine, lambda: 0)
    assert own == own_after and other == other_after and own != other
    engine.close()
