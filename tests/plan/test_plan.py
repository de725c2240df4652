"""The plan's parameters and memory beside those of real policies, and what it says of a run that does not fit. Beside
what benchmarks have measured: tests/experiments/test_planned.py."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from update_memory import measured_over_planned

from pspo.config import PlanConfig, TrainConfig, compose, load_yaml, to_yaml
from pspo.config.compose import CONF, checked
from pspo.config.machine import Machine
from pspo.config.schema import MANY
from pspo.errors import ConfigError, PspoError
from pspo.plan.__main__ import head, memory_lines, scaling_lines, speed_lines
from pspo.plan.forecast import ASLEEP, GIB, Forecast, forecast, lengths_of, remedies
from pspo.plan.memory import (
    CUDA_CONTEXT,
    SPARE,
    TILE,
    WHOLE,
    Lengths,
    adapter_parameters,
    fullest_pack,
    packs_of,
)
from pspo.plan.shapes import FIELDS, Shape, read_shape, shape_of

WITHIN = pytest.approx(1.0, abs=0.2)
"""What a plan may be off by."""


def machine(name: str) -> Machine:
    return load_yaml(CONF / "gpu" / f"{name}.yaml", Machine)


def plan_of(*overrides: str, gpu: str = "h100", ranks: int = 1) -> Forecast:
    cfg = compose("train", TrainConfig, ["scale=paper", *overrides])
    return forecast(cfg, shape_of(cfg.model), machine(gpu), ranks, lengths_of(cfg))


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model(tied: bool, tmp_path: Path) -> None:
    from pspo.config.schema import Architecture
    from pspo.models import build

    model = build(Architecture(96, 3, 6, 2, 160, 64, 1e4, tied), 211, eos_id=1, pad_id=0, seed=0)
    model.save_pretrained(tmp_path)
    shape = read_shape(tmp_path / "config.json")
    assert shape == Shape(96, 3, 6, 2, 160, 211, tied)
    assert shape.total == sum(p.numel() for p in model.parameters())
    assert shape.layer == sum(p.numel() for p in model.model.layers[0].parameters())


def test_parameters_of_the_papers_models() -> None:
    """As their model cards count them: 0.49 and 1.54 billion, 0.36 and 1.31 without the embedding."""
    for name, total, without in (("qwen2_5_0_5b", 0.49, 0.36), ("qwen2_5_1_5b", 1.54, 1.31)):
        shape = shape_of(compose("train", TrainConfig, ["scale=paper", f"model={name}"]).model)
        assert round(shape.total / 1e9, 2) == total
        assert round((shape.total - shape.embedding) / 1e9, 2) == without


def test_a_policy_that_nobody_knows_is_one_line(tmp_path: Path) -> None:
    model = compose("train", TrainConfig, ["scale=paper"]).model
    with pytest.raises(PspoError, match="someone/something: its sizes are not known here"):
        shape_of(replace(model, path="someone/something"))
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(PspoError, match=r"config\.json: layers|num_hidden_layers is None, not a size"):
        shape_of(replace(model, path=str(tmp_path)))


@pytest.mark.parametrize("targets", ["[all-linear]", "[q_proj,v_proj]", "[down_proj,k_proj,o_proj]"])
def test_parameters_of_adapters(targets: str) -> None:
    from pspo.adapters import add_lora
    from pspo.models import build

    cfg = compose("train", TrainConfig, ["lora=all_linear", f"model.lora.targets={targets}"])
    assert cfg.model.arch is not None and cfg.model.lora is not None
    model = build(cfg.model.arch, 211, eos_id=1, pad_id=0, seed=0)
    add_lora(model, cfg.model.lora, seed=0)
    shape = Shape(128, 4, 4, 2, 256, 211, True)
    assert adapter_parameters(shape, cfg.model.lora) == sum(p.numel() for p in model.parameters() if p.requires_grad)


GOOD = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 99}


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("7", "not an object"),
        ("[" * 200_000, "no sizes can be read"),
        (json.dumps(GOOD | {"num_hidden_layers": -2}), "num_hidden_layers is -2, not a size"),
        (json.dumps(GOOD | {"num_attention_heads": 0}), "num_attention_heads is 0, not a size"),
        (json.dumps(GOOD | {"hidden_size": "64"}), "hidden_size is '64', not a size"),
        (json.dumps(GOOD | {"vocab_size": True}), "vocab_size is True, not a size"),
        (json.dumps(GOOD | {"num_key_value_heads": None}), "num_key_value_heads is None, not a size"),
        (json.dumps(GOOD | {"num_key_value_heads": 3}), "4 heads do not divide among 3"),
        (json.dumps(GOOD | {"intermediate_size": float("nan")}), "intermediate_size is nan, not a size"),
        (json.dumps(GOOD | {"intermediate_size": 10**200}), "not a size"),
        (json.dumps(GOOD | {"model_type": "qwen3_moe"}), "model_type 'qwen3_moe' is not counted here"),
    ],
)
def test_a_config_that_is_no_policys_is_one_line(tmp_path: Path, written: str, says: str) -> None:
    (tmp_path / "config.json").write_text(written)
    with pytest.raises(PspoError, match=re.escape(says)):
        read_shape(tmp_path / "config.json")


def test_heads_of_their_own_width(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GOOD | {"num_key_value_heads": 2, "head_dim": 32}))
    shape = read_shape(tmp_path / "config.json")
    assert (shape.query_size, shape.kv_size) == (128, 64)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs")
@pytest.mark.parametrize(
    ("width", "layers", "vocabulary", "groups", "overrides"),
    [
        (512, 6, 8_192, 2, ()),  # weights
        (256, 6, 512, 8, ("learner.token_budget=16384",)),  # activations
        (256, 6, 512, 8, ("learner.token_budget=1024",)),  # the same in several packs
        (256, 12, 512, 8, ("learner.token_budget=16384", "learner.gradient_checkpointing=true")),
        (256, 2, 120_000, 2, ()),  # the head
    ],
)
def test_memory_is_what_an_update_takes(
    root: Path, width: int, layers: int, vocabulary: int, groups: int, overrides: tuple[str, ...]
) -> None:
    assert 1 / measured_over_planned(root, width, layers, vocabulary, groups, *overrides) == WITHIN


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("prompts", [1, 4, 16])
@pytest.mark.parametrize("budget", [700, 4000])
def test_packs_are_those_that_the_learner_lays(ranks: int, prompts: int, budget: int) -> None:
    """Where all sequences are equally long; a group is split, with its prompt again, where ranks need more pieces."""
    from pspo.batching import Batch, balanced
    from pspo.types import Sample

    cfg = compose(
        "train", TrainConfig, ["learner.minibatches=1", "rollout.max_prompt_tokens=40", f"rollout.prompts={prompts}"]
    )
    cfg = replace(cfg, learner=replace(cfg.learner, token_budget=budget))
    completion, draws = tuple(range(64)), (-1.0,) * 64
    samples = [Sample((k // 8, *range(39)), completion, draws, 1.0) for k in range(8 * prompts)]
    batch = Batch.of(samples)
    laid = balanced(batch, range(len(samples)), budget, ranks)
    tokens = [sum(40 + 63 * len(group) for group in pack) for packs in laid for pack, ghost in packs if not ghost]
    count, pack = packs_of(cfg, Lengths(40, 64), ranks)
    assert count == max(map(len, laid))
    assert 0.8 < pack.tokens * count * ranks / sum(tokens) < 1.7
    _, fullest = fullest_pack(cfg, Lengths(40, 64), ranks)
    assert max(tokens) <= fullest.tokens


def test_tiles_are_those_of_the_head() -> None:
    from pspo.logprobs import TILE_ELEMENTS, WHOLE_ELEMENTS

    assert (TILE["cpu"], TILE["cuda"]) == (TILE_ELEMENTS["cpu"], TILE_ELEMENTS["gpu"])
    assert (WHOLE["cpu"], WHOLE["cuda"]) == (WHOLE_ELEMENTS["cpu"], WHOLE_ELEMENTS["gpu"])


@pytest.mark.parametrize(
    ("overrides", "memory", "share"),
    [
        ([], 79.6, 0.11),
        (["rollout.vllm.gpu_memory_utilization=0.2"], 79.6, 0.2),
        (["rollout.vllm.gpu_memory_utilization=0.4"], 79.6, 0.4),  # too much, and said
        (["rollout.vllm.gpu_memory_utilization=0.05"], 79.6, 0.05),  # too little
        ([], 60.0, "it fits with learner.token_budget=4096"),
        ([], 52.0, "it fits with learner.token_budget=2048"),
        ([], 24.0, "with rollout.vllm.sleep=true learner.gradient_checkpointing=true learner.offload_optimizer=true"),
        ([], 2.0, "with a smaller policy alone"),
    ],
)
def test_a_run_begins_with_its_plan(tmp_path: Path, overrides: list[str], memory: float, share: float | str) -> None:
    """The engine's share where it is left open; one line where the run does not fit."""
    from pspo.ranks import Ranks
    from pspo.startup import planned

    cfg = compose("train", TrainConfig, ["scale=paper", *overrides])
    shape = shape_of(cfg.model)
    config = {theirs: getattr(shape, ours) for ours, theirs in FIELDS.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if isinstance(share, float):
        rollout = planned(cfg, str(tmp_path), Ranks(), memory)
        assert rollout.vllm is not None and rollout.vllm.gpu_memory_utilization == share
    else:
        with pytest.raises(ConfigError, match=share):
            planned(cfg, str(tmp_path), Ranks(), memory)


# --- what it says ----------------------------------------------------------------------------------------------------


def test_every_device_can_be_planned_for() -> None:
    for path in sorted((CONF / "gpu").glob("*.yaml")):
        assert machine(path.stem).name == path.stem


def test_more_devices_need_less_each_and_take_no_longer_until_prompts_run_out() -> None:
    plans = [plan_of("data=math", "prompt=boxed", "sampling=boxed", ranks=ranks) for ranks in (1, 2, 4, 8)]
    needed, seconds = [plan.needed for plan in plans], [plan.step.total for plan in plans]
    assert needed == sorted(needed, reverse=True) and seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("learner.optimizer=sgd", "moments"),
        ("lora=all_linear", "gradients"),
        ("learner.gradient_checkpointing=true", "activations"),
        ("learner.token_budget=4096", "activations"),
        ("learner.offload_optimizer=true", "moments"),
    ],
)
def test_what_spares_memory(setting: str, part: str) -> None:
    more, less = (
        plan_of("data=math", "prompt=boxed", "sampling=boxed"),
        plan_of("data=math", "prompt=boxed", "sampling=boxed", setting),
    )
    assert getattr(less.learner, part) < 0.6 * getattr(more.learner, part) and less.needed < more.needed


def test_an_engine_that_sleeps_and_the_learner_take_turns() -> None:
    """By hand: the learner's peak, or what it holds between updates beside the engine."""
    beside, turns = plan_of(), plan_of("rollout.vllm.sleep=true")
    engine = int(turns.engine_share * turns.machine.memory_gib * GIB)
    assert beside.needed - turns.needed == engine - ASLEEP
    held = turns.learner.weights + turns.learner.moments
    most = plan_of("rollout.vllm.sleep=true", "rollout.vllm.gpu_memory_utilization=0.6")
    assert most.needed == held + int(SPARE * held) + int(0.6 * most.machine.memory_gib * GIB) + CUDA_CONTEXT
    assert turns.step == beside.step  # what waking takes has not been measured


def test_engines_of_several_devices() -> None:
    """Half the weights and half the keys of two heads on each, as many prompts as one device would have."""
    one, two = plan_of(ranks=2), plan_of("rollout.vllm.tensor_parallel=2", ranks=2)
    assert two.engine.weights == one.engine.weights // 2
    assert plan_of("rollout.vllm.tensor_parallel=4", ranks=4).engine.cache * 2 == plan_of().engine.cache
    assert two.learner == one.learner
    alone = plan_of().step.rollout  # all prompts on one device
    assert alone / 2 < two.step.rollout < alone
    with pytest.raises(ConfigError, match="tensor_parallel=2: must divide the number of devices, which is 3"):
        plan_of("rollout.vllm.tensor_parallel=2", ranks=3)
    with pytest.raises(ConfigError, match="tensor_parallel=8: must deal out the policy's 12 heads"):
        plan_of("rollout.vllm.tensor_parallel=8", ranks=8)


def test_the_table_of_scaling_has_the_devices_that_were_asked_for() -> None:
    lines = scaling_lines(plan_of("rollout.vllm.tensor_parallel=6", ranks=18))
    assert [int(line.split()[0]) for line in lines[1:-2]] == [6, 12, 18, 24, 48, 96, 192, 384, 768]


def test_ranks_that_share_an_engine_evaluate_what_one_would() -> None:
    """With four each has a part of all problems' answers; alone, with its own engine, all of a quarter of them."""
    shared, own = plan_of("rollout.vllm.tensor_parallel=4", ranks=4), plan_of(ranks=4)
    assert own.evaluation_s(1000) < shared.evaluation_s(1000) < plan_of().evaluation_s(1000)


def test_sampling_ahead_hides_the_shorter_of_two_at_best() -> None:
    at_once = plan_of("rollout.ahead=true", "learner.correction=token").step
    assert at_once.total == pytest.approx(max(at_once.rollout, at_once.learn + at_once.optimizer) + at_once.sync)
    assert plan_of().step.total == pytest.approx(at_once.total + at_once.ahead)


def test_offloaded_moments_travel_twice() -> None:
    plan, away = plan_of(), plan_of("learner.offload_optimizer=true")
    gigabytes = 2 * 2 * 8 * plan.shape.total / 1e9  # two updates a step, there and back, two moments
    assert away.step.optimizer - plan.step.optimizer == pytest.approx(gigabytes / plan.machine.host_gbs)
    assert away.checkpoint_bytes == plan.checkpoint_bytes  # wherever they are
    assert (plan.host_bytes, away.host_bytes) == (0, 8 * plan.shape.total)
    assert plan.learner.held - away.learner.held == away.host_bytes


@pytest.mark.parametrize("gpu, ranks", [("rtx4090", 1), ("l40s", 1), ("rtx4090", 3)])
def test_a_run_that_does_not_fit_is_told_what_makes_it_fit(gpu: str, ranks: int) -> None:
    settings = ["data=math", "prompt=boxed", "sampling=boxed"]
    plan = plan_of(*settings, gpu=gpu, ranks=ranks)
    assert not plan.fits
    found = list(remedies(plan))
    assert len(found) > 1 and all(other.fits for _, other in found)
    for text, other in found:
        again = [change for change in text.split() if not change.startswith("gpus=")]
        typed = plan_of(*settings, *again, gpu=gpu, ranks=other.ranks)
        assert typed.fits and typed.needed == other.needed
        for without in again:  # each of them is needed
            fewer = [change for change in again if change != without]
            assert not plan_of(*settings, *fewer, gpu=gpu, ranks=other.ranks).fits


COUNTED = {
    "": "steps gpus prompt_tokens completion_tokens",
    "model.lora.": "rank",
    "rollout.": "prompts group_size max_prompt_tokens max_new_tokens temperature",
    "rollout.vllm.": "gpu_memory_utilization max_sequences tensor_parallel",
    "learner.": "passes minibatches token_budget kl_coef",
    "eval.": "every validation_problems test_problems max_new_tokens chunk",
    "saving.": "keep",
    "gpu.": "memory_gib utilisation bf16_tflops bandwidth_gbs layer_host_ms start_s per_node",
}
"""Numbers that a plan is made from."""


@pytest.mark.parametrize("setting", [group + name for group, names in COUNTED.items() for name in names.split()])
def test_no_number_breaks_a_plan(setting: str) -> None:
    """It is planned with, or it is a wrong setting and told as one."""
    written = OmegaConf.create(to_yaml(compose("plan", PlanConfig, ["lora=all_linear"])))
    for number in (0, -1, 1, 1e-308, 1e308, math.nan, math.inf, MANY, 10**400):
        OmegaConf.update(written, setting, number)
        try:
            cfg = checked(written, PlanConfig)
            plan = forecast(cfg, shape_of(cfg.model), cfg.gpu, cfg.gpus, lengths_of(cfg, completion=64))
        except ConfigError as error:
            assert "\n" not in str(error)
        else:
            text = "\n".join([*head(plan), *memory_lines(plan), *speed_lines(plan), *scaling_lines(plan)])
            assert not re.search(r"\b(nan|inf)\b", text)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["scale=paper", "gpus=8", "gpu=h100"], 0, ["8 x h100", "fits;", "device-hours", "    1024", "completions/s"]),
        (["scale=paper", "gpu=rtx4090"], 1, ["DOES NOT FIT", "gradient_checkpointing=true"]),
        (["scale=paper", "gpu=abacus"], 2, ["gpu", "must be one of", "h100"]),
        (["model.path=/does/not/exist"], 1, ["/does/not/exist: its sizes are not known here"]),
        (["completion_tokens=129"], 2, ["completion_tokens=129: must be at most 128"]),
        (["rollout=hf", "gpus=4"], 0, ["fits;"]),
        (["gpus=1" + "0" * 400], 2, ["gpus=1000", "less than or equal to 65536"]),
        (["steps=1" + "0" * 400], 2, ["steps=1000", "less than or equal to 1000000000000"]),
        (["steps=1" + "0" * 5000], 2, ["wrong setting: command line=steps=1000", "Exceeds the limit"]),
        (["scale=paper", "gpus=0"], 2, ["gpus", "greater than or equal to 1"]),
        (["scale=cpu"], 2, ["gpu=h100: is a cuda device, and the run has device=cpu (scale=cpu)"]),
        (["scale=cpu", "gpu=cpu", "gpus=2"], 2, ["gpus=2: must be 1 for a CPU"]),
        (["models=/nowhere", "scale=cpu", "gpu=cpu"], 0, ["tiny (0.6 million parameters)", "1 x cpu"]),
    ],
)
def test_the_program(root: Path, words: list[str], status: int, says: list[str]) -> None:
    command = [sys.executable, "-m", "pspo.plan", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    assert all(text in done.stdout + done.stderr for text in says), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
