"""The warm start: what is trained on, and a short run from command line and library."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pspo.sft
from pspo.config import SftConfig, compose, load_yaml, warm_start_dir
from pspo.data.tokenizer import build_tokenizer
from pspo.data.wordproblems import train_example
from pspo.errors import ConfigError
from pspo.models import build, read_weights
from pspo.sft import Demonstration, backward, demonstrations, is_terse, micro_batches, rate, table, warm_start
from pspo.stopping import Stopped

SHORT = [
    "model.arch.hidden_size=32", "model.arch.layers=1", "model.arch.mlp_size=32", "sft.steps=4", "sft.batch=40",
    "sft.warmup_steps=2", "data.validation=5", "eval.max_new_tokens=4", "sft.threads=2",
]  # fmt: skip


@pytest.fixture
def cfg() -> SftConfig:
    return compose("sft", SftConfig, SHORT)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(compose("sft", SftConfig).data)


def test_two_short_runs_give_the_same_bits_and_a_complete_checkpoint(cfg, tmp_path, capsys) -> None:
    torch.manual_seed(1)
    first = warm_start(replace(cfg, out=str(tmp_path / "a")))
    torch.manual_seed(2)
    second = warm_start(replace(cfg, models=str(tmp_path / "models")))
    assert second == warm_start_dir(replace(cfg, models=str(tmp_path / "models")))
    a, b = dict(read_weights(first)), dict(read_weights(second))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []

    record = json.loads((first / "sft.json").read_text())
    assert len(record["loss"]) == 4 and record["loss"][-1] < record["loss"][0]
    assert record["loss"] == json.loads((second / "sft.json").read_text())["loss"]
    assert record["reached"]["greedy"]["all"]["count"] == 5 and record["reached"]["sampled"]["all"]["count"] == 20
    assert load_yaml(first / "config.yaml", SftConfig) == replace(cfg, out=str(tmp_path / "a"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(first), AutoTokenizer.from_pretrained(first)
    assert model.config.vocab_size == len(tokenizer)

    capsys.readouterr()
    written = (first / "DONE").stat().st_mtime_ns
    assert warm_start(replace(cfg, out=str(tmp_path / "a"))) == first
    assert "is there" in capsys.readouterr().out and (first / "DONE").stat().st_mtime_ns == written


def test_interrupted_it_ends_with_the_same_bits(cfg, tmp_path, monkeypatch) -> None:
    """By signals in the middle of two steps, one of them the last."""
    whole, left, real = warm_start(replace(cfg, out=str(tmp_path / "a"))), [3, 1], pspo.sft.demonstrations

    def signalled(step, *rest):
        if left and step == left[-1]:
            left.pop()
            os.kill(os.getpid(), signal.SIGTERM)
        return real(step, *rest)

    monkeypatch.setattr(pspo.sft, "demonstrations", signalled)
    for saved in ("step-2", "step-4"):
        with pytest.raises(Stopped):
            warm_start(replace(cfg, out=str(tmp_path / "b")))
        assert (tmp_path / ".b.making/checkpoints" / saved).exists() and not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        warm_start(replace(cfg, out=str(tmp_path / "b"), sft=replace(cfg.sft, seed=9)))
    # No weight depends on what it is evaluated with.
    again = warm_start(replace(cfg, out=str(tmp_path / "b"), eval=replace(cfg.eval, chunk=3)))
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    records = [json.loads((made / "sft.json").read_text()) for made in (whole, again)]
    assert records[0]["loss"] == records[1]["loss"] and [r["resumed_at"] for r in records] == [None, 4]
    assert not (tmp_path / ".b.making").exists()


def test_what_a_kill_at_the_very_end_leaves_is_cleared_away(cfg, tmp_path) -> None:
    made = warm_start(replace(cfg, out=str(tmp_path / "a")))
    for left in (".a.making", "..a.making.old-77"):
        (tmp_path / left / "checkpoints").mkdir(parents=True)
    assert warm_start(replace(cfg, out=str(tmp_path / "a"))) == made
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_unfinished_directory_is_made_again(cfg, tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "a" / "config.yaml").write_text("")
    made = warm_start(replace(cfg, out=str(tmp_path / "a")))
    assert (made / "DONE").exists() and dict(read_weights(made))


def test_a_directory_with_other_things_in_it_is_left_alone(cfg, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no warm start"):
        warm_start(replace(cfg, out=str(tmp_path)))
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_wrong_setting_is_told_on_one_line_before_torch_is_loaded(tmp_path) -> None:
    src = Path(__file__).parents[1] / "src"
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    run = subprocess.run(
        [sys.executable, "-m", "pspo.sft", "sft.steps=0"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{src}"},
    )  # fmt: skip
    assert run.returncode == 2 and run.stderr.startswith("pspo: wrong setting: sft.steps=0")
    assert len(run.stderr.splitlines()) == 1


def test_a_batch_is_fresh_ends_with_eos_and_is_terse_late(cfg, tokenizer) -> None:
    cfg = replace(cfg, sft=replace(cfg.sft, steps=10, terse_after=0.7, terse={2: 1.0, 3: 1.0, 4: 0.0}))
    early, late = demonstrations(6, tokenizer, cfg), demonstrations(7, tokenizer, cfg)
    assert all(item.completion_ids[-1] == tokenizer.eos_token_id for item in early + late)
    assert not {item.prompt_ids for item in early} & {item.prompt_ids for item in late}

    def equations(item: Demonstration) -> int:
        return tokenizer.decode(item.completion_ids).count("=")

    assert {equations(item) for item in early} == {2, 3, 4}
    assert {equations(item) for item in late} == {1, 4}


def test_the_share_of_terse_demonstrations_is_the_one_asked_for(cfg) -> None:
    example = train_example(cfg.data, 0)
    level = len(example.operations)
    drawn = [is_terse(example, index, cfg.sft.steps - 1, cfg.sft) for index in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(cfg.sft.terse[level], abs=0.03)


def test_the_rate_rises_stays_and_falls(cfg) -> None:
    sft = replace(cfg.sft, steps=100, warmup_steps=10, decay_share=0.4)
    assert [rate(step, sft) for step in (0, 4, 9, 60)] == [0.1, 0.5, 1.0, 1.0]
    assert rate(80, sft) == pytest.approx(0.5) and rate(99, sft) == pytest.approx(1 / 40)
    assert rate(0, replace(sft, warmup_steps=0)) == 1.0 and rate(99, replace(sft, decay_share=0.0)) == 1.0


def test_micro_batches_target_the_completion_alone() -> None:
    batch = [Demonstration((5, 6, 7), (8, 1)), Demonstration((5,), (9, 9, 1))]
    [(input_ids, targets)] = micro_batches(batch, torch.device("cpu"))
    assert input_ids.tolist() == [[5, 9, 9, 1, 0], [5, 6, 7, 8, 1]]
    assert targets.tolist() == [[9, 9, 1, -1, -1], [-1, -1, 8, 1, -1]]


def test_the_gradient_is_that_of_the_loss_over_unpadded_sequences(cfg, tokenizer) -> None:
    batch = demonstrations(0, tokenizer, cfg)  # 40 sequences: two micro-batches
    model = build(cfg.model.arch, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, seed=0)
    loss = backward(model, batch)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    log_probs = []
    for item in batch:
        logits = model(torch.tensor([item.prompt_ids + item.completion_ids])).logits[0]
        predicted = logits[len(item.prompt_ids) - 1 : -1].log_softmax(-1)
        log_probs.append(predicted.gather(1, torch.tensor(item.completion_ids)[:, None]))
    expected = -torch.cat(log_probs).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-6)


def test_the_table_counts_by_level_and_style() -> None:
    cells = table(
        iter(
            [
                ("2", "1+1=2. 2+3=5.\n#### 5", True),
                ("2", "1+1=3. 3+3=6.\n#### 6", False),
                ("2", "1+1+3=5.\n#### 5", True),
                ("3", "1+1+3-1=4.\n#### 4", False),
            ]
        )
    )
    assert cells["all"] == {"count": 4, "share": 1.0, "accuracy": 0.5, "false_arithmetic": 0.25}
    assert cells["2 steps"] == {"count": 2, "share": 2 / 3, "accuracy": 0.5, "false_arithmetic": 0.5}
    assert cells["steps"]["share"] == 0.5 and cells["3"]["accuracy"] == 0.0
