"""Evaluation as a file: resumed to the same bits, nothing twice, nothing of another policy taken over."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pspo.config import EvalConfig, TrainConfig, compose
from pspo.data import load_problems, load_tokenizer, make_prompter
from pspo.errors import ConfigError, PspoError
from pspo.evalfile import EvalFile, evaluate_to_file, identity_of, weights_digest
from pspo.evaluation import Protocol, evaluate
from pspo.grading import Grader
from pspo.rollout import Decoding, make_sampler

ROOT = Path(__file__).resolve().parents[1]
PROBLEMS = 12


@pytest.fixture(scope="module")
def cfg():
    return compose("eval", EvalConfig, ["checkpoint=x", "rollout=hf"])


@pytest.fixture(scope="module")
def checkpoint(random_policy):
    return random_policy()


@pytest.fixture(scope="module")
def parts(cfg, checkpoint):
    """What every evaluation here is made of."""
    tokenizer = load_tokenizer(str(checkpoint))
    prompter = make_prompter(cfg.prompt, cfg.data, tokenizer)
    problems = load_problems(cfg.data, "test", 0)[:PROBLEMS]
    protocol = Protocol(Decoding(16, temperature=0.8, n=2), cfg.rollout.max_prompt_tokens)
    sampler = make_sampler(str(checkpoint), cfg.rollout, tokenizer, "cpu", 160)
    with Grader(workers=1) as grader:
        yield sampler, prompter, grader, problems, protocol


def file_of(path, checkpoint, cfg, parts, protocol=None):
    _, prompter, _, problems, usual = parts
    made_of = identity_of(weights_digest(checkpoint), cfg.rollout, "cpu", prompter, problems, protocol or usual, 5)
    return EvalFile(path, made_of, {"benchmark": "test"})


class Counting:
    """A real sampler that counts what is asked of it, and stops the program's work after `limit` calls."""

    def __init__(self, sampler, limit=99):
        self.sampler, self.limit, self.calls = sampler, limit, 0

    def stream(self, *asked):
        self.calls += 1
        if self.calls > self.limit:
            raise KeyboardInterrupt
        yield from self.sampler.stream(*asked)

    def forget(self):
        self.sampler.forget()


def test_records_are_those_of_the_policy(parts):
    sampler, prompter, grader, problems, protocol = parts
    records = evaluate(*parts)
    assert [record["id"] for record in records] == [problem.id for problem in problems]
    assert all(len(record["completions"]) == 2 and record["prompt_hash"] == prompter.hash for record in records)
    assert records[0]["question"] == problems[0].question and records[0]["level"] == problems[0].level
    again = evaluate(sampler, prompter, grader, problems[3:4], protocol)  # seeds are of the problem, not of its place
    assert [c["text"] for c in again[0]["completions"]] == [c["text"] for c in records[3]["completions"]]


def test_an_interrupted_evaluation_ends_with_the_same_file(tmp_path, checkpoint, cfg, parts):
    sampler, *rest = parts
    whole = file_of(tmp_path / "whole.jsonl", checkpoint, cfg, parts)
    evaluate_to_file(whole, lambda: sampler, *rest, chunk=5)
    cut = file_of(tmp_path / "cut.jsonl", checkpoint, cfg, parts)
    with pytest.raises(KeyboardInterrupt):
        evaluate_to_file(cut, lambda: Counting(sampler, limit=2), *rest, chunk=5)
    assert not cut.path.exists() and cut.complete() is None and len(list(cut.parts.glob("0*.jsonl"))) == 2
    resumed = Counting(sampler)
    records = evaluate_to_file(cut, lambda: resumed, *rest, chunk=5)
    assert resumed.calls == 1  # of three chunks two were there
    assert cut.path.read_bytes() == whole.path.read_bytes() and len(records) == PROBLEMS
    assert not cut.parts.exists()
    scores = [json.loads(file.summary_path.read_text())["scores"] for file in (whole, cut)]
    assert scores[0] == scores[1] and scores[0]["problems"] == PROBLEMS

    untouched = Counting(sampler)
    assert evaluate_to_file(cut, lambda: untouched, *rest, chunk=5) == records and untouched.calls == 0


def test_what_another_evaluation_left_is_not_taken_over(tmp_path, checkpoint, cfg, parts):
    sampler, prompter, grader, problems, protocol = parts
    path = tmp_path / "eval.jsonl"
    first = file_of(path, checkpoint, cfg, parts)
    with pytest.raises(KeyboardInterrupt):
        evaluate_to_file(first, lambda: Counting(sampler, limit=2), *parts[1:], chunk=5)
    other = replace(protocol, seed=1)
    second, counting = file_of(path, checkpoint, cfg, parts, other), Counting(sampler)
    records = evaluate_to_file(second, lambda: counting, prompter, grader, problems, other, chunk=5)
    assert counting.calls == 3 and records == evaluate_as_chunks(parts, other)
    assert first.complete() is None and second.complete() == records

    path.write_text(path.read_text().replace('"correct": false', '"correct": true', 1))
    assert second.complete() is None and second.others() == []  # someone has changed it: it counts for nothing


def evaluate_as_chunks(parts, protocol):
    sampler, prompter, grader, problems, _ = parts
    records = []
    for start in range(0, PROBLEMS, 5):
        records += evaluate(sampler, prompter, grader, problems[start : start + 5], protocol)
    return json.loads(json.dumps(records))


def test_a_complete_evaluation_of_something_else_is_not_replaced_unasked(tmp_path, checkpoint, cfg, parts):
    sampler, prompter, grader, problems, protocol = parts
    path, other = tmp_path / "eval.jsonl", replace(protocol, seed=1)
    first = file_of(path, checkpoint, cfg, parts)
    evaluate_to_file(first, lambda: sampler, *parts[1:], chunk=5)
    before, second = path.read_bytes(), file_of(path, checkpoint, cfg, parts, other)
    with pytest.raises(PspoError, match=r"eval\.jsonl holds an evaluation that differs in seed: .*overwrite=true"):
        evaluate_to_file(second, lambda: sampler, prompter, grader, problems, other, chunk=5)
    assert path.read_bytes() == before and first.complete() is not None
    records = evaluate_to_file(second, lambda: sampler, prompter, grader, problems, other, chunk=5, overwrite=True)
    assert second.complete() == records and path.read_bytes() != before


def test_only_graded_again_where_only_the_grader_has_changed(tmp_path, checkpoint, cfg, parts):
    sampler, *rest = parts
    file = file_of(tmp_path / "eval.jsonl", checkpoint, cfg, parts)
    records = evaluate_to_file(file, lambda: sampler, *rest, chunk=5)
    grading = file.identity["grading"] | {"grader": "another"}
    changed = [
        record | {"correct": True, "completions": [c | {"correct": True} for c in record["completions"]]}
        for record in records
    ]
    replace(file, identity=file.identity | {"grading": grading}).write(changed, greedy=False, style="gsm8k")
    assert file.complete() is None
    untouched = Counting(sampler)
    assert evaluate_to_file(file, lambda: untouched, *rest, chunk=5) == records and untouched.calls == 0
    assert file.complete() == records


def test_a_damaged_chunk_is_sampled_again(tmp_path, checkpoint, cfg, parts):
    sampler, *rest = parts
    whole = evaluate_to_file(file_of(tmp_path / "a.jsonl", checkpoint, cfg, parts), lambda: sampler, *rest, chunk=5)
    file = file_of(tmp_path / "b.jsonl", checkpoint, cfg, parts)
    with pytest.raises(KeyboardInterrupt):
        evaluate_to_file(file, lambda: Counting(sampler, limit=2), *rest, chunk=5)
    first, second = sorted(file.parts.glob("0*.jsonl"))
    first.write_text(first.read_text()[:-50])
    second.write_text("")
    counting = Counting(sampler)
    assert evaluate_to_file(file, lambda: counting, *rest, chunk=5) == whole and counting.calls == 3


def test_the_identity_knows_what_decides_a_record(tmp_path, checkpoint, cfg, parts):
    _, prompter, _, problems, protocol = parts
    usual = {
        "weights": weights_digest(checkpoint), "rollout": cfg.rollout, "device": "cpu", "prompter": prompter,
        "problems": problems, "protocol": protocol, "chunk": 5,
    }  # fmt: skip

    def made_of(**changes):
        return json.dumps(identity_of(**{**usual, **changes}))

    assert made_of() == made_of()
    other = tmp_path / "checkpoint"
    other.mkdir()
    for file in checkpoint.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert weights_digest(other) == usual["weights"]
    damaged = bytearray((other / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (other / "model.safetensors").write_bytes(damaged)
    decoding = protocol.decoding

    def with_prompt(**changes):
        return make_prompter(replace(cfg.prompt, **changes), cfg.data, prompter.tokenizer)

    changed = [
        made_of(weights=weights_digest(other)),
        made_of(prompter=with_prompt(train_shots=1)),
        made_of(prompter=with_prompt(stop=("Q",))),
        made_of(prompter=with_prompt(style="math")),
        made_of(problems=problems[1:]),
        made_of(problems=[replace(problems[0], gold="0"), *problems[1:]]),
        made_of(protocol=replace(protocol, decoding=replace(decoding, temperature=0.9))),
        made_of(protocol=replace(protocol, decoding=replace(decoding, top_p=0.9))),
        made_of(protocol=replace(protocol, seed=5)),
        made_of(rollout=replace(cfg.rollout, dtype="bfloat16")),
        made_of(rollout=replace(cfg.rollout, engine="vllm", vllm=compose("train", TrainConfig).rollout.vllm)),
        made_of(chunk=6),
    ]
    assert len({made_of(), *changed}) == len(changed) + 1
    greedy = replace(protocol, decoding=replace(decoding, temperature=0.0, n=1))
    assert made_of(protocol=greedy) == made_of(protocol=replace(greedy, seed=5, max_prompt_tokens=99))  # no part in it


def test_one_process_at_a_time(tmp_path, checkpoint, cfg, parts, monkeypatch):
    monkeypatch.setattr("pspo.evalfile.PATIENCE_S", 1)
    file = file_of(tmp_path / "eval.jsonl", checkpoint, cfg, parts)
    with file.held(), pytest.raises(PspoError, match=r"another process is at work in .*eval\.jsonl"):
        evaluate_to_file(file, lambda: parts[0], *parts[1:], chunk=5)


def test_a_prompt_that_is_too_long_is_told(parts):
    sampler, prompter, grader, problems, protocol = parts
    with pytest.raises(ConfigError, match=rf"rollout\.max_prompt_tokens=8.*{problems[0].id}"):
        evaluate(sampler, prompter, grader, problems, replace(protocol, max_prompt_tokens=8))


COMMAND = ["limit=24", "rollout=hf", "eval.chunk=2", "rollout.max_new_tokens=12", "temperature=[0,0.7]", "samples=3"]


def test_the_program_killed_at_any_moment_continues_to_the_same_files(tmp_path, checkpoint):
    def start(out):
        """The same checkpoint under another directory, where its evaluations go by default."""
        if not out.exists():
            out.mkdir()
            for file in checkpoint.iterdir():
                os.link(file, out / file.name)
        command = [sys.executable, str(ROOT / "eval" / "evaluate.py"), f"checkpoint={out}", *COMMAND]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(process):
        told, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        return told, errors

    told, _ = finish(start(tmp_path / "whole"))
    assert "T=0:" in told and "T=0.7:" in told and "pass@3" in told and "majority" in told
    names = sorted(path.name for path in (tmp_path / "whole" / "eval").iterdir())
    # Another engine and token limit than usual: eight digits stand for them.
    last, first = (name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl"))
    assert re.fullmatch(r"wordproblems\.first-24\.[0-9a-f]{8}", first)
    assert last == first.replace("wordproblems", "wordproblems.T0.7x3")
    assert set(names) == {name + end for name in (first, last) for end in (".jsonl", ".summary.json")}

    process, folder = start(tmp_path / "killed"), tmp_path / "killed" / "eval"
    deadline = time.monotonic() + 120
    while len(list(folder.glob(".*.parts/0*.jsonl"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / f"{first}.jsonl").exists()
    _, errors = finish(start(tmp_path / "killed"))
    assert f"{first}.jsonl: 24 of 24 problems" in errors
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        if name.endswith(".summary.json"):
            a, b = (json.loads((tmp_path / which / "eval" / name).read_text()) for which in ("whole", "killed"))
            assert a["scores"] == b["scores"] and a["identity"] == b["identity"]
            assert a["prompt"]["name"] == "plain" and a["scores"]["problems"] == 24
        else:
            assert (folder / name).read_bytes() == (tmp_path / "whole" / "eval" / name).read_bytes()
    again, errors = finish(start(tmp_path / "killed"))
    assert again.replace(str(tmp_path / "killed"), str(tmp_path / "whole")) == told
    assert "of 24 problems" not in errors  # nothing is sampled again
