"""eval/evaluate.py on the real benchmarks, with a model made here: what it answers is noise, all around it is real."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
from pspo.config import EvalConfig, compose
from pspo.errors import PspoError

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the benchmark files are not beside the repository (../shared/data)"
)
FEW_SHOT = "prompt=question_answer"
CHATML = "{%- for m in messages -%}<|im_start|>{{ m.role }}{{ m.content }}<|im_end|>{%- endfor -%}<|im_start|>assistant"


@pytest.fixture(scope="module")
def checkpoint(random_policy):
    return random_policy("model.arch.max_positions=8192")


def settings(checkpoint, benchmark, out, *overrides):
    return [
        f"checkpoint={checkpoint}", f"benchmark={benchmark}", f"data.path={DATA / benchmark}", f"out={out}", "limit=3",
        "device=cpu", "model.dtype=float32", "rollout.max_prompt_tokens=8000", "rollout.max_new_tokens=8", *overrides,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("benchmark", "first", "gold", "overrides"),
    [
        ("gsm8k", "gsm8k-test-00000", "18", [FEW_SHOT]),
        ("svamp", "svamp-test-00000", "1", [FEW_SHOT, "prompt.train_shots=0"]),
        ("asdiv", "asdiv-test-00000", "9", [FEW_SHOT, "prompt.train_shots=0"]),
        ("math", "math-test-00000", "2", ["prompt=problem_solution"]),
        ("math500", "math500-test-00000", None, [f"prompt.chat_template='{CHATML}'"]),
    ],
)
def test_every_benchmark(checkpoint, tmp_path, capsys, benchmark, first, gold, overrides):
    out = tmp_path / "out.jsonl"
    cfg = compose("eval", EvalConfig, settings(checkpoint, benchmark, out, "rollout=hf", *overrides))
    evaluate.run(cfg)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 3 and records[0]["id"] == first and records[0]["question"]
    assert gold is None or records[0]["gold"] == gold
    summary = json.loads(out.with_suffix(".summary.json").read_text())
    report, prompt, scores = summary["data"], summary["prompt"], summary["scores"]
    assert report["rows"] == cfg.data.rows["test"] and report["kept"] > 0
    assert records[0]["question"] in prompt["example"] and prompt["hash"] == records[0]["prompt_hash"]
    assert prompt["example"].count(cfg.prompt.template.partition("{")[0] or "<|im_start|>user") == (
        1 + cfg.prompt.train_shots
    )
    assert (scores["problems"], scores["tokens"]["max"]) == (3, 8)
    assert bool(scores["by_level"]) == (benchmark in ("math", "math500"))
    assert bool(scores["by_subject"]) == (benchmark != "gsm8k")
    assert f"{benchmark} test" in capsys.readouterr().out


def test_a_chat_prompt_for_a_tokenizer_without_template_is_told_before_sampling(checkpoint, tmp_path):
    cfg = compose("eval", EvalConfig, settings(checkpoint, "gsm8k", tmp_path / "out.jsonl", "rollout=hf"))
    with pytest.raises(PspoError, match="prompt=hashes needs a chat template"):
        evaluate.run(cfg)


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM has no build for this machine")
def test_both_engines_write_the_same_answers(checkpoint, tmp_path):
    """Few-shot GSM8K with stop strings, at T=0."""
    answers = {}
    for engine in ("hf", "vllm"):
        out = tmp_path / f"{engine}.jsonl"
        asked = settings(checkpoint, "gsm8k", out, FEW_SHOT, "prompt.train_shots=2", f"rollout={engine}", "limit=6")
        command = [sys.executable, "eval/evaluate.py", *asked]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in out.read_text().splitlines()]
        answers[engine] = [(record["id"], record["completions"]) for record in records]
    assert answers["hf"] == answers["vllm"] and len(answers["hf"]) == 6
