"""Whole runs on a policy with something to learn: it knows eight problems by heart, each with a wrong answer beside."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from known import SETTINGS, make_policy, without_times
from safetensors.torch import load_file

from pspo.advantages import has_signal
from pspo.config import TrainConfig, compose
from pspo.data import eos_ids, load_problems, load_tokenizer, make_prompter
from pspo.data.order import distinct, problems_of_step, spare_problems
from pspo.data.tokenizer import build_tokenizer
from pspo.errors import ConfigError, MismatchError, NonFiniteError, PspoError
from pspo.grading import STATUSES, Grader
from pspo.models import build, load_policy, save_policy
from pspo.ranks import Ranks
from pspo.rollout import Decoding, make_sampler, sample
from pspo.rollout.hf import HfSampler
from pspo.run import Run
from pspo.rundir import Place
from pspo.sampling import as_json, groups_from
from pspo.seeds import derive
from pspo.sft import Demonstration, backward
from pspo.train import train
from pspo.types import Group


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("train") / "checkpoint")


def run(checkpoint, run_dir, *overrides, rollout="hf") -> tuple[list[dict], dict]:
    """Trains in this process; the metrics by step and the last weights."""
    cfg = compose(
        "train",
        TrainConfig,
        [*SETTINGS, f"rollout={rollout}", f"model.path={checkpoint}", f"run_dir={run_dir}", *overrides],
    )
    train(cfg)
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return lines, load_file(Path(run_dir) / "checkpoints" / f"step-{cfg.steps}" / "model.safetensors")


@pytest.mark.parametrize("surrogate", ["no_clip", "clip", "sigmoid", "pspo"])
def test_every_method_learns_what_is_rewarded(checkpoint, tmp_path, surrogate):
    lines, _ = run(checkpoint, tmp_path / "run", f"surrogate={surrogate}", "steps=12", "learner.lr=2e-4")
    rewards = [line["reward/mean"] for line in lines[1:]]
    assert rewards[0] < 0.5 and sum(rewards[-4:]) / 4 > 0.8
    assert max(line["gap/abs_dev_mean"] for line in lines[1:] if "gap/abs_dev_mean" in line) < 1e-4


@pytest.mark.parametrize("old", ["sampler", "learner"])
def test_the_same_seed_gives_the_same_bits(checkpoint, tmp_path, old):
    settings = [f"learner.old_log_probs={old}", "learner.passes=2"]
    first, weights = run(checkpoint, tmp_path / "a", *settings)
    again, same = run(checkpoint, tmp_path / "b", *settings)
    assert without_times(first) == without_times(again)
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)
    other, _ = run(checkpoint, tmp_path / "c", *settings, "seed=1")
    assert without_times(other) != without_times(first)


def test_methods_of_one_seed_start_from_the_same_samples(checkpoint, tmp_path):
    lines = [run(checkpoint, tmp_path / name, f"surrogate={name}")[0][1] for name in ("no_clip", "clip", "pspo")]
    for name in ("reward/mean", "length/mean", "reward/no_signal_share"):
        assert len({line[name] for line in lines}) == 1


def test_methods_of_one_seed_get_the_same_random_rewards(checkpoint, tmp_path):
    """And accuracy is measured beside them, whatever is rewarded."""
    lines = [run(checkpoint, tmp_path / name, f"surrogate={name}", "reward=random")[0] for name in ("clip", "pspo")]
    for name in ("reward/mean", "reward/no_signal_share", "accuracy/train"):
        assert lines[0][1][name] == lines[1][1][name]
    assert lines[0][1]["reward/mean"] != lines[0][1]["accuracy/train"]


SUPERVISED = ["train_on=solutions", "surrogate=no_clip", "learner.passes=1", "rollout.max_new_tokens=32"]


@pytest.fixture
def solved(checkpoint):
    """The mean loss of a policy on its data set's solutions, which leaves a gradient; and the policy."""
    cfg = compose("train", TrainConfig, [*SETTINGS, *SUPERVISED])
    tokenizer = load_tokenizer(checkpoint)
    prompter = make_prompter(cfg.prompt, cfg.data, tokenizer)

    def loss(path, problems):
        model = load_policy(path, dtype="float32")
        batch = [Demonstration(prompter.encode(p.question), prompter.encode_solution(p.solution)) for p in problems]
        return backward(model, batch), model

    loss.problems = load_problems(cfg.data, "train", cfg.seed)
    return loss


def test_supervised_fine_tuning_is_the_cross_entropy_of_the_solutions(checkpoint, solved, tmp_path):
    """One step of SGD, against torch's own cross-entropy over the completion tokens of the same problems."""
    sgd = ["steps=1", "learner.minibatches=1", "learner.optimizer=sgd", "learner.lr=0.5", "learner.max_grad_norm=null"]
    # The temperature of samples, which there are none of, is none of the loss's.
    others = ["eval.at_end=false", "rollout.temperature=0.8"]
    lines, weights = run(checkpoint, tmp_path / "run", *SUPERVISED, *sgd, *others)
    assert lines[1]["length/truncated_share"] == 0 and lines[1]["length/mean"] > 5
    assert "reward/mean" not in lines[1] and lines[1]["optim/groups"] == 4
    assert lines[1]["ratio/abs_dev_mean"] == 0 and lines[1]["policy/entropy"] > 0
    problems = problems_of_step(solved.problems, 0, 1, 4)
    assert all(problem.solution.endswith(f"#### {problem.gold}") for problem in problems)
    _, model = solved(checkpoint, problems)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach() - 0.5 * parameter.grad, rtol=1e-4, atol=1e-6)


def test_solutions_are_learned(checkpoint, solved, tmp_path):
    run(checkpoint, tmp_path / "run", *SUPERVISED, "steps=60", "learner.lr=3e-3", "eval.at_end=false")
    before, _ = solved(checkpoint, solved.problems)
    after, _ = solved(tmp_path / "run/checkpoints/step-60", solved.problems)
    assert after < before / 4


@pytest.mark.parametrize(
    "setting",
    ["surrogate=pspo", "learner.passes=2", "learner.kl_coef=0.1", "learner.correction=token", "rollout.refill=1"],
)
def test_what_would_make_it_something_else_than_supervised_is_refused(setting):
    asked = ["train_on=solutions", "surrogate=no_clip", "learner.old_log_probs=learner", setting]
    with pytest.raises(ConfigError, match=rf"{setting.partition('=')[0]}=.*must be .* with train_on=solutions"):
        compose("train", TrainConfig, asked)


def test_a_group_is_graded_as_soon_as_it_is_finished(checkpoint, tmp_path, monkeypatch):
    """The real sampler and grader, with a note of each group that comes out of one and goes into the other."""
    events = []

    class Noted(Grader):
        def submit(self, items):
            events.append("to the grader")
            return super().submit(items)

    def noted(*settings):
        sampler = make_sampler(*settings)
        stream = sampler.stream

        def noting(*asked):
            for group in stream(*asked):
                events.append("sampled")
                yield group

        sampler.stream = noting
        return sampler

    monkeypatch.setattr("pspo.run.Grader", Noted)
    monkeypatch.setattr("pspo.run.make_sampler", noted)  # two steps of four groups
    lines, _ = run(checkpoint, tmp_path / "run", "eval.every=0", "eval.at_end=false")
    assert events == ["sampled", "to the grader"] * (len(events) // 2) and len(events) == 2 * 2 * 4
    for line in lines[1:]:
        shares = [line[f"grade/{status}_share"] for status in STATUSES]
        assert sum(shares) == pytest.approx(1) and line["accuracy/train"] <= line["accuracy/train_lenient"]


def test_a_complete_run_is_not_run_again_and_a_cut_off_one_is(checkpoint, tmp_path, capsys):
    run_dir = tmp_path / "run"
    first, _ = run(checkpoint, run_dir)
    assert (run_dir / "DONE").exists()
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    run(checkpoint, run_dir)
    assert "is complete" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
    (run_dir / "DONE").unlink()
    again, _ = run(checkpoint, run_dir)
    assert without_times(again) == without_times(first)
    with pytest.raises(ConfigError, match="another directory"):
        run(checkpoint, run_dir, "seed=5")


DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not beside the repository (../shared/data)")
def test_a_run_on_gsm8k(tmp_path):
    """A model made here, with room for GSM8K's prompts: it learns nothing, and everything around it is real."""
    cfg = compose("train", TrainConfig, [*SETTINGS, "model.arch.max_positions=2048"])
    tokenizer = build_tokenizer(cfg.data)
    (eos,) = eos_ids(tokenizer)
    checkpoint = save_policy(
        build(cfg.model.arch, len(tokenizer), eos, tokenizer.pad_token_id, seed=0), tokenizer, tmp_path / "checkpoint"
    )
    settings = [
        *(setting for setting in SETTINGS if not setting.startswith(("data.", "steps"))), "data=gsm8k", "steps=1",
        f"data.path={DATA / 'gsm8k'}", "prompt=question_answer", "prompt.train_shots=0", "rollout=hf",
        f"model.path={checkpoint}", "rollout.max_prompt_tokens=700", "learner.token_budget=2048", "eval.every=1",
        "model.arch.max_positions=2048",
    ]  # fmt: skip
    train(compose("train", TrainConfig, [*settings, f"run_dir={tmp_path / 'run'}", "eval.validation_problems=4"]))
    found = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (found["train"]["rows"], found["test"]["kept"], found["train"]["overlap"]) == (7473, 1319, [])
    records = [json.loads(line) for line in (tmp_path / "run" / "eval" / "gsm8k.jsonl").read_text().splitlines()]
    assert [record["gold"] for record in records] == ["18", "3", "70000", "540"]
    scores = json.loads((tmp_path / "run" / "summary.json").read_text())["test"]["last"]
    assert scores["problems"] == 4 and sum(scores["status"].values()) == 4
    written = json.loads((tmp_path / "run" / "eval" / "gsm8k.summary.json").read_text())["prompt"]
    assert written["hash"] == records[0]["prompt_hash"] and records[0]["question"] in written["example"]

    with pytest.raises(ConfigError, match=r"rollout\.max_prompt_tokens=150: problem gsm8k-test-0000\d has a prompt of"):
        train(
            compose("train", TrainConfig, [*settings, f"run_dir={tmp_path / 'short'}", "rollout.max_prompt_tokens=150"])
        )
    assert not (tmp_path / "short" / "metrics.jsonl").exists()  # told before the first step


def test_last_and_best_are_kept_and_reported(checkpoint, tmp_path):
    run(checkpoint, tmp_path / "run", "steps=4", "eval.every=1", "eval.validation_problems=8", "learner.lr=3e-3")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    trained = {int(step): accuracy for step, accuracy in summary["validation"].items() if int(step) > 0}
    assert sorted(trained) == [1, 2, 3, 4]
    assert summary["best_step"] == min(step for step in trained if trained[step] == max(trained.values()))
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {f"step-{summary['best_step']}", "step-4"}
    for name in ("wordproblems.jsonl", "wordproblems.best.jsonl"):
        records = [json.loads(line) for line in (tmp_path / "run" / "eval" / name).read_text().splitlines()]
        assert len(records) == 4
        assert {"id", "prompt_hash", "gold", "completions", "correct", "status", "tokens"} <= records[0].keys()


def test_a_sampler_that_disagrees_stops_the_run_before_an_update(checkpoint, tmp_path):
    """A bf16 sampler beside an fp32 learner, with the bound that suits fp32."""
    with pytest.raises(MismatchError, match=r"mean \|r - 1\|"):
        run(checkpoint, tmp_path / "run", "rollout.dtype=bfloat16", "rollout.max_gap=1e-5")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_non_finite_update_leaves_what_is_needed_to_look_into_it(checkpoint, tmp_path):
    """A rate of 1e30 throws the weights away in the first update; the second must not happen."""
    with pytest.raises(NonFiniteError, match="step 1: ") as caught:
        run(checkpoint, tmp_path / "run", "learner.lr=1e30")
    evidence = tmp_path / "run" / "nonfinite" / "step-1"
    assert str(evidence) in str(caught.value)
    assert (evidence / "model.safetensors").exists()
    (first, *_) = json.loads((evidence / "minibatch.json").read_text())
    assert {"prompt_ids", "completion_ids", "advantage", "old_log_probs"} <= first.keys()
    assert not (tmp_path / "run" / "DONE").exists()


def test_an_update_that_destroys_the_weights_leaves_no_checkpoint(checkpoint, tmp_path):
    """The last one of the run: no later loss would tell of it."""
    settings = ["learner.lr=1e39", "steps=1", "learner.passes=1", "learner.minibatches=1", "eval.at_end=false"]
    with pytest.raises(NonFiniteError, match="tensors of the policy are not finite"):
        run(checkpoint, tmp_path / "run", *settings)
    assert not (tmp_path / "run/DONE").exists() and not (tmp_path / "run/checkpoints").exists()


def test_a_run_whose_directory_goes_away_does_not_end_as_complete(checkpoint, tmp_path, monkeypatch):
    sync = Run.sync

    def removing(self):
        sync(self)
        shutil.rmtree(self.dir)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Run, "sync", removing)
        with pytest.raises(PspoError, match=r"was removed"):
            run(checkpoint, tmp_path / "run", "steps=1")
    assert not (tmp_path / "run").exists()  # nothing stands in the way of the same command
    run(checkpoint, tmp_path / "run", "steps=1")


@pytest.mark.parametrize("when", ["sync", "finish"])
def test_nothing_is_written_into_another_runs_directory(checkpoint, tmp_path, monkeypatch, when):
    here, real = tmp_path / "run", getattr(Run, when)

    def renamed(self):
        shutil.move(here, tmp_path / "moved")
        here.mkdir()
        shutil.copy(tmp_path / "moved/config.yaml", here)
        real(self)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Run, when, renamed)
        with pytest.raises(PspoError, match="was removed or re"):
            run(checkpoint, here, "steps=1")
    assert [path.name for path in here.iterdir()] == ["config.yaml"]
    shutil.rmtree(here)
    shutil.move(tmp_path / "moved", here)
    run(checkpoint, here, "steps=1")
    assert (here / "DONE").exists()


@pytest.mark.parametrize("part", ["make_sampler", "make_learner", "data_reports", "evaluate"])
def test_nothing_is_written_into_another_runs_directory_after_a_long_part(checkpoint, tmp_path, monkeypatch, part):
    """Another, complete run gets the directory's name during the start-up, or during the last evaluation."""
    here, other = tmp_path / "run", tmp_path / "other"
    run(checkpoint, other, "steps=1", "seed=5")
    before = {path.name: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    module = "pspo.evalfile" if part == "evaluate" else "pspo.run"
    real = getattr(importlib.import_module(module), part)

    def renamed(*arguments, **options):
        if not (tmp_path / "moved").exists():
            shutil.move(here, tmp_path / "moved")
            shutil.copytree(other, here)
        return real(*arguments, **options)

    monkeypatch.setattr(f"{module}.{part}", renamed)
    with pytest.raises(PspoError, match="was removed or renamed while the run was writing to it"):
        run(checkpoint, here, "steps=1")
    assert {path.name: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_a_run_does_not_go_on_with_another_runs_checkpoints(checkpoint, tmp_path, monkeypatch):
    """Of the same shapes: nothing but what the run remembers of its settings tells them apart."""
    run(checkpoint, tmp_path / "a", "steps=2")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Run, "finish", lambda self: None)
        run(checkpoint, tmp_path / "b", "steps=2", "surrogate=clip")
    shutil.rmtree(tmp_path / "b/checkpoints")
    shutil.copytree(tmp_path / "a/checkpoints", tmp_path / "b/checkpoints")
    with pytest.raises(PspoError, match="cannot go on: the settings are not those it began with"):
        run(checkpoint, tmp_path / "b", "steps=2", "surrogate=clip")


def test_a_record_that_is_removed_is_told(checkpoint, tmp_path, monkeypatch):
    sync = Run.sync

    def removing(self):
        sync(self)
        (self.dir / "metrics.jsonl").unlink()

    monkeypatch.setattr(Run, "sync", removing)
    with pytest.raises(PspoError, match=r"metrics\.jsonl .*(removed|No such file)"):
        run(checkpoint, tmp_path / "run", "steps=1")
    assert not (tmp_path / "run/DONE").exists()


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM has no build for this machine")
def test_the_program_with_vllm_gives_the_same_bits_twice_and_evaluates(checkpoint, tmp_path, root):
    """Two processes, as a user starts them; then eval/evaluate.py on the first one's run directory."""

    def program(*command):
        done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    settings = [*SETTINGS, f"model.path={checkpoint}", "tracking.progress=false", "rollout.max_new_tokens=16"]
    program("-m", "pspo.train", *settings, f"run_dir={tmp_path / 'a'}", "surrogate=clip")
    program("-m", "pspo.train", "-m", *settings, f"runs={tmp_path}", "surrogate=pspo,clip")  # two engines, one process
    swept = {path.name.split("-")[0]: path for path in tmp_path.glob("*-custom-s0-*")}
    (tmp_path / "b").symlink_to(swept["clip"])
    assert (swept["pspo"] / "DONE").exists()
    a, b = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("a", "b")
    )
    assert without_times(a) == without_times(b) and len(a) == 3
    assert 0 < a[1]["reward/mean"] < 1 and a[2]["optim/updates"] == 4
    weights, same = (load_file(tmp_path / name / "checkpoints/step-2/model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(weights[key], same[key]) for key in weights)

    written = (tmp_path / "a/eval/wordproblems.jsonl").read_text()
    limits = [*(f"data.{split}=8" for split in ("train", "validation", "test")), "limit=4", "rollout.max_new_tokens=16"]
    out = program("eval/evaluate.py", f"checkpoint={tmp_path / 'a'}", *limits, f"out={tmp_path / 'again.jsonl'}")
    assert "accuracy" in out and (tmp_path / "again.jsonl").read_text() == written


def test_the_program_says_what_is_missing(tmp_path, root):
    command = [sys.executable, "-m", "pspo.train", f"models={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("pspo: model=tiny has no warm start at ")


def test_config_of_a_run_is_what_was_asked_for(checkpoint, tmp_path):
    from pspo.config import load_yaml

    run(checkpoint, tmp_path / "run", "steps=1")
    asked = compose("train", TrainConfig, [*SETTINGS, "rollout=hf", f"model.path={checkpoint}", "steps=1"])
    assert replace(load_yaml(tmp_path / "run" / "config.yaml", TrainConfig), run_dir=None) == asked


# --- the inner loop's options ----------------------------------------------------------------------------------------


def test_adapters_learn_and_what_is_saved_is_the_whole_policy(checkpoint, tmp_path):
    lines, weights = run(checkpoint, tmp_path / "run", "lora=all_linear", "steps=12", "learner.lr=1e-3")
    assert sum(line["reward/mean"] for line in lines[-4:]) / 4 > 0.8
    assert (
        max(line["gap/abs_dev_mean"] for line in lines[1:] if "gap/abs_dev_mean" in line) < 1e-4
    )  # merged ones sample
    assert weights.keys() == load_file(Path(checkpoint) / "model.safetensors").keys()


@pytest.mark.parametrize("lora", ["none", "all_linear"])
def test_a_kl_term_starts_at_zero_and_holds_the_policy_back(checkpoint, tmp_path, lora):
    settings = ["steps=6", f"lora={lora}", "learner.lr=1e-3"]
    free, _ = run(checkpoint, tmp_path / "free", *settings, "learner.kl_coef=1e-9")
    held, _ = run(checkpoint, tmp_path / "held", *settings, "learner.kl_coef=3.0")
    first, last = free[1]["kl/reference"], free[-1]["kl/reference"]
    assert all(line["optim/groups"] == 4 for line in free[1:])  # one without signal has a KL all the same
    assert first < 0.5 * last  # the mean over the first step's updates, of which the first is at zero
    assert held[-1]["kl/reference"] < 0.5 * last


def test_groups_without_signal_are_refilled(checkpoint, tmp_path):
    settings = ["rollout.group_size=2", "learner.minibatches=1", "steps=3"]
    plain, _ = run(checkpoint, tmp_path / "plain", *settings)
    filled, _ = run(checkpoint, tmp_path / "filled", *settings, "rollout.refill=3")
    assert all(line["rollout/refilled_groups"] == 0 for line in plain[1:])
    assert plain[1]["reward/no_signal_share"] > 0 and filled[1]["rollout/refilled_groups"] > 0
    assert filled[1]["reward/no_signal_share"] < plain[1]["reward/no_signal_share"]
    assert filled[1]["optim/groups"] > plain[1]["optim/groups"]


def test_what_is_refilled_is_learned_with_its_own_rewards(checkpoint, tmp_path):
    """Three problems are left for the groups without signal; grading what comes out once more gives the rewards."""
    settings = [*SETTINGS, "rollout=hf", f"model.path={checkpoint}", "rollout.prompts=5", "rollout.group_size=2"]
    cfg = compose("train", TrainConfig, [*settings, "learner.minibatches=1", "rollout.refill=2", f"run_dir={tmp_path}"])
    with Place(tmp_path) as place, Run(cfg, Ranks(), place) as run, Grader() as grader:
        problems = run.problems(1)
        drawn = run.sample(problems, 1)
        rewards = run.reward(drawn, 1)
        groups, filled = run.refill(drawn, rewards, 1)
        assert [group.problem for group in drawn] == problems and len({group.problem.id for group in groups}) == 5
        replaced = [k for k in range(5) if groups[k] is not drawn[k]]
        assert replaced and all(not has_signal(rewards)[k] for k in replaced)
        assert {groups[k].problem.id for k in replaced}.isdisjoint(problem.id for problem in problems)
        for group, row in zip(groups, filled.tolist(), strict=True):
            items = [(completion.text, group.problem.gold, run.prompter.style) for completion in group.completions]
            assert row == [
                g.correct and c.finished for g, c in zip(grader.grade(items), group.completions, strict=True)
            ]


def test_a_problem_that_comes_twice_in_a_step_is_not_sampled_with_the_same_seed(checkpoint, tmp_path):
    settings = [*SETTINGS, "rollout=hf", f"model.path={checkpoint}", "rollout.prompts=16", f"run_dir={tmp_path}"]
    with Place(tmp_path) as place, Run(compose("train", TrainConfig, settings), Ranks(), place) as run:
        groups = run.sample(run.problems(1), 1)
    by_problem = {}
    for group in groups:
        drawn = tuple(completion.token_ids for completion in group.completions)
        by_problem.setdefault(group.problem.id, set()).add(drawn)
    assert len(by_problem) == 8 and sum(len(drawn) for drawn in by_problem.values()) > 12  # some agree by chance


def test_refilling_takes_each_problem_once_a_step():
    problems = load_problems(compose("train", TrainConfig, ["data.train=40"]).data, "train", 0)
    drawn = [problem.id for problem in spare_problems(problems, problems[:10], seed=3)]
    assert sorted(drawn) == sorted(problem.id for problem in problems[10:])
    assert drawn != [problem.id for problem in spare_problems(problems, problems[:10], seed=4)]


def test_the_sampler_can_be_corrected_for(checkpoint, tmp_path):
    settings = ["learner.old_log_probs=learner", "learner.correction=token"]
    lines, _ = run(checkpoint, tmp_path / "run", *settings)
    assert lines[1]["correction/mean"] == pytest.approx(1, abs=1e-4)  # an fp32 sampler is the learner's own policy
    assert lines[1]["correction/capped_share"] == 0
    assert lines[1]["gap/effective_share"] == pytest.approx(1, abs=1e-6)


# --- sampling ahead, and an engine that sleeps -----------------------------------------------------------------------


def test_what_is_sampled_ahead_is_of_the_policy_one_step_older(checkpoint, tmp_path, monkeypatch):
    """The groups of step s are those that the policy saved after step s - 2 gives, log-probs and all."""
    saved = {step: tmp_path / f"step-{step}" for step in (1, 2, 3, 4)}
    save = Run.save

    def kept_apart(a_run, step):
        told = save(a_run, step)
        shutil.copytree(a_run.dir / "checkpoints" / f"step-{step}", saved[step])  # the end of the run prunes them
        return told

    monkeypatch.setattr(Run, "save", kept_apart)
    settings = ["rollout.ahead=true", "steps=4", "learner.lr=1e-3", "eval.at_end=false"]
    lines, _ = run(checkpoint, tmp_path / "run", *settings)
    cfg = compose("train", TrainConfig, [*SETTINGS, *settings, "rollout=hf"])
    tokenizer = load_tokenizer(checkpoint)
    prompter = make_prompter(cfg.prompt, cfg.data, tokenizer)
    decoding = Decoding(cfg.rollout.max_new_tokens, cfg.rollout.temperature, 1.0, cfg.rollout.group_size)
    for step in (2, 3, 4):
        problems = problems_of_step(load_problems(cfg.data, "train", cfg.seed), cfg.seed, step, cfg.rollout.prompts)
        kept = json.loads((saved[step - 1] / "manifest.json").read_text())["memory"]["ahead"]
        sampler = make_sampler(str(saved.get(step - 2, checkpoint)), cfg.rollout, tokenizer, "cpu", 96, prompter.ends)
        prompts = [prompter.encode(problem.question) for problem in problems]
        seeds = [derive(cfg.seed, "rollout", step, *name) for name in distinct(problems)]
        groups = [
            Group(problem, prompt, tuple(completions))
            for problem, prompt, completions in zip(
                problems, prompts, sample(sampler, prompts, seeds, decoding), strict=True
            )
        ]
        assert groups_from(kept, problems) == groups
    assert json.loads((saved[4] / "manifest.json").read_text())["memory"]["ahead"] == {}
    # Ratios of the first steps to the sampler: its own policy, the same, then one that is an update older.
    gaps = {line["step"]: line["gap/abs_dev_mean"] for line in lines if "gap/abs_dev_mean" in line}
    assert gaps[1] < 1e-5 < 1e-3 < max(gaps[step] for step in gaps if step > 1)


def test_it_samples_while_the_learner_learns(checkpoint, tmp_path, monkeypatch):
    """Its first completion waits for the learner's first update: in turns, neither would come."""
    updated, stream, update = threading.Event(), HfSampler.stream, Run.update
    waited = []

    def after_the_update(sampler, prompts, seeds, decoding):
        if threading.current_thread() is not threading.main_thread():
            waited.append(updated.wait(60))
        yield from stream(sampler, prompts, seeds, decoding)

    def told(*args):
        update(*args)
        updated.set()

    monkeypatch.setattr(HfSampler, "stream", after_the_update)
    monkeypatch.setattr(Run, "update", told)
    run(checkpoint, tmp_path / "run", "rollout.ahead=true", "eval.at_end=false")
    assert waited == [True]


def test_weights_that_do_not_reach_the_sampler_are_found_ahead_too(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(HfSampler, "load", lambda sampler, weights: None)
    with pytest.raises(MismatchError, match="on the batch of step 3"):
        run(checkpoint, tmp_path / "run", "rollout.ahead=true", "steps=4", "learner.lr=3e-3")


@pytest.mark.slow
@pytest.mark.vllm
def test_it_samples_with_as_many_threads_as_the_run_has(checkpoint, tmp_path, root):
    """vLLM's attention on a CPU dies where the thread that samples has others than the engine was made with."""
    pytest.importorskip("vllm")
    command = program(checkpoint, tmp_path / "run", 1, "rollout=vllm", "rollout.ahead=true", "threads=1")
    several = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # one for each core
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=several, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_is_sampled_ahead_fails_and_ends_with_the_run(checkpoint, tmp_path, monkeypatch):
    stream, drawn = HfSampler.stream, []

    def slow(sampler, prompts, seeds, decoding):
        for index, completions in stream(sampler, prompts, seeds, decoding):
            ahead = threading.current_thread() is not threading.main_thread()
            if ahead and (tmp_path / "fails").exists():
                raise RuntimeError("the engine is out of order")
            drawn.append(ahead)
            yield index, completions
            time.sleep(0.3 if ahead else 0)

    monkeypatch.setattr(HfSampler, "stream", slow)
    (tmp_path / "fails").touch()
    with pytest.raises(RuntimeError, match="out of order"):
        run(checkpoint, tmp_path / "a", "rollout.ahead=true")
    (tmp_path / "fails").unlink()
    drawn.clear()
    monkeypatch.setattr(Run, "update", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(checkpoint, tmp_path / "b", "rollout.ahead=true")
    assert not any(thread.name.startswith("sampling ahead") for thread in threading.enumerate())
    assert sum(drawn) < 4  # it did not sample to its end first


@pytest.mark.parametrize(
    "settings, setting",
    [
        (["learner.old_log_probs=learner"], "rollout.ahead"),
        (["rollout=vllm", "rollout.vllm.sleep=true"], "rollout.ahead"),
        (["rollout=vllm", "rollout.vllm.tensor_parallel=2"], "rollout.ahead"),
    ],
)
def test_ahead_without_what_it_needs_is_refused(settings, setting):
    with pytest.raises(ConfigError, match=f"{setting}=True: needs"):
        compose("train", TrainConfig, ["rollout.ahead=true", *settings])


@pytest.mark.vllm
def test_a_run_whose_engine_sleeps_has_the_bits_of_one_whose_engine_does_not(checkpoint, tmp_path, monkeypatch):
    """vLLM's own sleep: on a CPU it goes through the same states, and keeps its memory."""
    pytest.importorskip("vllm")
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from pspo.rollout.vllm import VllmSampler

    said = []

    def heard(kind, name, said_of=lambda args, kwargs: ""):
        real = getattr(kind, name)

        def call(self, *args, **kwargs):
            said.append(f"{name}{said_of(args, kwargs)}")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, call)

    awake, weights = run(checkpoint, tmp_path / "awake", rollout="vllm")
    heard(EngineCore, "sleep", lambda args, kwargs: f" {args[0]}")
    heard(EngineCore, "wake_up", lambda args, kwargs: f" {' '.join(args[0])}")
    heard(EngineCore, "reset_prefix_cache")
    rpc = UniProcExecutor.collective_rpc
    monkeypatch.setattr(
        UniProcExecutor,
        "collective_rpc",
        lambda self, method, *args, **kwargs: (
            said.append(method) if method == "reload_weights" else None,
            rpc(self, method, *args, **kwargs),
        )[1],
    )
    sleep = VllmSampler.sleep

    def forget_weights(sampler):  # which a GPU's memory does by itself
        sleep(sampler)
        sampler.engine.apply_model(lambda model: [p.data.fill_(math.nan) for p in model.parameters()] and None)

    monkeypatch.setattr(VllmSampler, "sleep", forget_weights)
    lines, same = run(checkpoint, tmp_path / "asleep", "rollout.vllm.sleep=true", rollout="vllm")
    assert without_times(awake) == without_times(lines)
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    slept = ["sleep 2", "reset_prefix_cache"]  # vLLM's own
    woken = ["wake_up weights", "reload_weights", "reset_prefix_cache", "wake_up kv_cache"]
    first = said.index("sleep 2")
    assert said[first : first + 6] == slept + woken
    assert said.count("sleep 2") == 2 and said.count("wake_up kv_cache") == 2


# --- several ranks ---------------------------------------------------------------------------------------------------

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def program(checkpoint, run_dir, ranks, *overrides):
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"] if ranks > 1 else []
    command = [sys.executable, "-m", *launch, "pspo.train"]
    return [*command, *SETTINGS, f"model.path={checkpoint}", f"run_dir={run_dir}", *overrides]


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine, ranks, shared",
    [
        ("hf", 2, []),
        pytest.param("vllm", 2, [], marks=pytest.mark.vllm),
        # Two engines of two ranks, which sleep:
        pytest.param("vllm", 4, ["rollout.vllm.tensor_parallel=2", "rollout.vllm.sleep=true"], marks=pytest.mark.vllm),
    ],
)
def test_a_run_on_several_ranks_is_that_of_one(checkpoint, tmp_path, root, engine, ranks, shared):
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM has no build for this machine")
    several, metrics, weights, evals = ranks, [], [], []
    for ranks in (1, several):
        run_dir = tmp_path / str(ranks)
        settings = [f"rollout={engine}", "eval.every=1", "eval.validation_problems=8", "eval.test_problems=7"]
        settings += shared if ranks > 1 else []
        command = program(checkpoint, run_dir, ranks, *settings, "rollout.refill=1")
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=ENV, timeout=250)
        assert done.returncode == 0, done.stderr[-4000:]
        assert (run_dir / "DONE").exists()
        metrics.append([json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()])
        weights.append(load_file(run_dir / "checkpoints/step-2/model.safetensors"))
        evals.append((run_dir / "eval/wordproblems.jsonl").read_text())
        assert json.loads((run_dir / "summary.json").read_text())["ranks"] == ranks
    for one, two in zip(*metrics, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            if not name.startswith(("time/", "speed/", "gap/log_prob_max")):
                assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-5), name
    one, two = weights
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    assert evals[0] == evals[1]


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_leaves_its_checkpoints_whole(checkpoint, tmp_path, root):
    from transformers import AutoModelForCausalLM

    settings = ["steps=5000", "eval.every=1", "eval.validation_problems=8", "rollout=hf", "rank_timeout=60"]
    command = program(checkpoint, tmp_path / "run", 2, *settings)
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, env=ENV) as launcher:
        deadline = time.monotonic() + 150
        while not list((tmp_path / "run/checkpoints").glob("step-*")):
            assert launcher.poll() is None and time.monotonic() < deadline, launcher.stderr.read()[-3000:]
            time.sleep(0.2)
        ranks = [p for p in psutil.Process(launcher.pid).children() if "RANK" in p.environ()]
        assert len(ranks) == 2
        next(p for p in ranks if p.environ()["RANK"] == "1").kill()
        _, said = launcher.communicate(timeout=100)
    assert launcher.returncode != 0
    assert "rank      : 1" in said or "rank 1" in said
    assert not any(p.is_running() for p in ranks)
    assert not (tmp_path / "run/DONE").exists()
    for saved in (tmp_path / "run/checkpoints").glob("step-*"):
        AutoModelForCausalLM.from_pretrained(saved)


def test_what_only_the_first_rank_finds_wrong_ends_all_with_one_message(checkpoint, tmp_path, root):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/letter.txt").write_text("not a run")
    command = program(checkpoint, tmp_path / "run", 2, "rollout=hf", "rank_timeout=60")
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode != 0 and "pspo/train.py" not in done.stderr  # one line, no traceback of ours
    assert "is not empty and holds no run; name another directory" in done.stderr


@pytest.mark.parametrize("damage", ["token", "nan", "group", "seconds-alone"])
def test_what_was_sampled_ahead_is_looked_at_before_it_is_learned_from(checkpoint, tmp_path, damage):
    """As a checkpoint keeps it: damage that its sums do not know is told; what nothing hangs on may be missing."""
    cfg = compose("train", TrainConfig, [*SETTINGS, "rollout=hf", f"model.path={checkpoint}", f"run_dir={tmp_path}"])
    with Place(tmp_path) as place, Run(cfg, Ranks(), place) as a_run:
        problems = a_run.problems(1)
        saved = json.loads(json.dumps(as_json(a_run.sampling.draw(problems, 1))))
        again = a_run.sampling.again(saved, problems)
        assert [group.prompt_ids for group in again.groups] and len(again.grading) == len(problems)
        if damage == "token":
            saved["groups"][0]["completions"][0][0].pop()
        elif damage == "nan":
            saved["groups"][0]["completions"][0][1][0] = math.nan
        elif damage == "group":
            saved["groups"].pop()
        else:
            del saved["seconds"]
            assert a_run.sampling.again(saved, problems).groups == again.groups
            return
        with pytest.raises(PspoError, match=r"sampled ahead is damaged|not finite|NaN"):
            a_run.sampling.again(saved, problems)
