"""eval/evaluate.py: where its files go, and which validation problems it asks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
from pspo.config import EvalConfig, TrainConfig, compose, to_yaml
from pspo.errors import ConfigError


def eval_config(checkpoint, *overrides) -> EvalConfig:
    return compose("eval", EvalConfig, [f"checkpoint={checkpoint}", *overrides])


def place(cfg: EvalConfig, temperature: float = 0.0) -> Path:
    checkpoint, run_dir = evaluate.resolve(cfg.checkpoint)
    return evaluate.out_path(cfg, temperature, checkpoint, run_dir)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    for step in (5, 20):
        (tmp_path / "run" / "checkpoints" / f"step-{step}").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(compose("train", TrainConfig, ["seed=3"])))
    return tmp_path / "run"


def test_names_for_a_run(run_dir) -> None:
    def name(checkpoint, temperature=0.0, *overrides) -> str:
        return place(eval_config(checkpoint, *overrides), temperature).relative_to(run_dir).as_posix()

    assert name(run_dir) == "eval/wordproblems.jsonl"  # the run's own, whatever seed it had
    assert name(run_dir / "checkpoints" / "step-5") == "eval/wordproblems.step-5.jsonl"
    assert name(run_dir, 0.8, "samples=4", "temperature=0.8") == "eval/wordproblems.T0.8x4.jsonl"
    assert name(run_dir, 0.0, "limit=7", "split=validation") == "eval/wordproblems.validation.first-7.jsonl"
    others = [
        "rollout.max_new_tokens=32",
        "prompt.train_shots=2",
        "rollout=hf",
        "data.seed=1",
        "rollout.dtype=bfloat16",
    ]
    names = {name(run_dir, 0.0, other) for other in others}
    assert len(names) == len(others) and "eval/wordproblems.jsonl" not in names


def test_a_run_stands_for_its_last_checkpoint_and_for_nothing_else_there(run_dir) -> None:
    """What no run names so would be taken unverified."""
    checkpoints = run_dir / "checkpoints"
    (checkpoints / "step-0021").mkdir()
    (checkpoints / "step-22").touch()
    assert evaluate.resolve(str(run_dir)) == (str(checkpoints / "step-20"), run_dir)


def test_names_without_a_run() -> None:
    """Every protocol has a name of its own: none replaces another's records."""
    usual = place(eval_config("Qwen/Qwen2.5-0.5B", "benchmark=math500"))
    assert usual == Path("evals/Qwen-Qwen2-5-0-5B/eval/math500.jsonl")
    assert place(eval_config("Qwen/Qwen2.5-0.5B", "benchmark=math500", "data.path=/somewhere")) == usual
    others = ["prompt=problem_solution", "rollout.max_new_tokens=2048", "revision=abc", "rollout=hf"]
    places = {place(eval_config("Qwen/Qwen2.5-0.5B", "benchmark=math500", other)) for other in others}
    assert len(places | {usual}) == len(others) + 1
    drawn = [
        place(eval_config("a/b", "temperature=0.8", *other), 0.8) for other in ([], ["seed=3"], ["rollout.top_p=0.9"])
    ]
    assert len(set(drawn)) == 3


def test_validation_problems_are_the_run_s_own(tmp_path, run_dir) -> None:
    """GSM8K is split by the run's seed: of another seed's validation problems nearly all were trained on."""
    rows = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(40)]
    for part in ("train", "test"):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["data=gsm8k", f"data.path={tmp_path}", "data.rows=null", "data.validation=10", "model=qwen2_5_0_5b"]
    trained = compose("train", TrainConfig, [*settings, "seed=3", "eval.validation_problems=10"])
    cfg = eval_config(run_dir, *settings, "split=validation")
    mine = {problem.id for problem in evaluate.problems_of(cfg, trained)}
    assert mine == {problem.id for problem in evaluate.load_problems(trained.data, "validation", 3)}
    assert not mine & {problem.id for problem in evaluate.load_problems(trained.data, "train", 3)}
    with pytest.raises(ConfigError, match=r"split=validation: .*data\.split_seed"):
        evaluate.problems_of(cfg, None)
    fixed = eval_config(run_dir, *settings, "split=validation", "data.split_seed=0")
    assert len(evaluate.problems_of(fixed, None)) == 10


@pytest.mark.parametrize("out", ["/", "/dev/null", ".."])
def test_where_nothing_can_be_written_it_is_told_before_anything_is_loaded(tmp_path, out) -> None:
    with pytest.raises(ConfigError, match=r"out=.*must be a file, or the name of one to be made"):
        evaluate.run(compose("eval", EvalConfig, [f"checkpoint={tmp_path}", "benchmark=wordproblems", f"out={out}"]))


@pytest.mark.slow
@pytest.mark.vllm
def test_an_engine_of_two_processes_answers_as_one(root, tmp_path, random_policy) -> None:
    """Of a process alone vLLM starts the parts of a tensor-parallel engine itself."""
    pytest.importorskip("vllm")
    checkpoint, lines = random_policy(), []
    for parts in (1, 2):
        out = tmp_path / f"{parts}.jsonl"
        settings = [f"checkpoint={checkpoint}", "benchmark=wordproblems", "limit=5", "eval.max_new_tokens=16"]
        settings += [f"rollout.vllm.tensor_parallel={parts}", f"out={out}"]
        command = [sys.executable, "eval/evaluate.py", *settings]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr[-3000:]
        lines.append(out.read_text().splitlines())
    assert lines[0] == lines[1] and len(lines[0]) == 5
