from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import theory
from chaospolicy import SETTINGS, make_policy
from realpolicies import Moved, training_steps


def test_every_result_holds_up_to_rounding() -> None:
    found = theory.on_random(trials=100, seed=1)
    assert len(found) == 9
    assert all(one.holds and one.violation <= theory.ROUNDING and one.cases == 100 for one in found)


def test_a_surrogate_with_another_slope_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = theory.surrogates.pspo
    monkeypatch.setattr(theory.surrogates, "pspo", lambda x, a, alpha: right(x, a, 0.99 * alpha))
    found = theory.on_random(trials=5, seed=0)
    broken = {one.statement.partition(",")[0] for one in found if not one.holds}
    assert broken == {"Proposition 2.3", "Proposition 2.5"}


def test_a_surrogate_that_is_not_finite_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theory.surrogates, "pspo", lambda x, a, alpha: a * x * float("nan"))
    broken = {one.statement for one in theory.on_random(20, 0) if not one.holds}
    assert any("surrogate" in name for name in broken) and any("Proposition 2.5" in name for name in broken)


def test_distances_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert float(theory.tv(p, q)) == 0.25
    assert float(theory.kl(p, q)) == pytest.approx(0.143841, abs=1e-6)  # .5 ln(2/3) + .5 ln 2
    assert float(theory.entropy(p)) == pytest.approx(0.693147, abs=1e-6)


def test_slope_in_r_by_hand() -> None:
    log_r = torch.tensor([0.5, 1.1, 1.5], dtype=torch.float64).log()
    slope = theory.slope_in_r(theory.surrogates.clip, log_r, torch.ones(3, dtype=torch.float64))
    assert slope.tolist() == pytest.approx([1.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a run that starts from a policy whose answers differ within the groups."""
    settings = [*SETTINGS, "learner.lr=1e-3", "learner.warmup_updates=0"]
    return [*settings, f"model.path={make_policy(tmp_path_factory.mktemp('theory') / 'policy', settings)}"]


@pytest.fixture(scope="module")
def moved(policy: list[str]) -> list[Moved]:
    return list(training_steps(policy, 2))


def test_a_real_steps_policies_are_those_that_sampled_and_learned(moved: list[Moved]) -> None:
    """Both are distributions over the whole vocabulary, they differ, and each step begins at another policy."""
    first, second = moved
    for step in moved:
        states, vocabulary = step.old.shape
        assert step.new.shape == step.old.shape and step.tokens.shape == step.advantage.shape == (states,)
        assert vocabulary > 300
        torch.testing.assert_close(step.old.exp().sum(-1), torch.ones(states, dtype=torch.float64))
        assert (step.new - step.old).abs().max() > 0.1
        assert step.advantage.unique().numel() > 1
    # What was rewarded has become more probable, in the mean.
    log_r = (first.new - first.old).gather(1, first.tokens[:, None])[:, 0]
    assert float((log_r * first.advantage).mean()) > 0
    assert not torch.equal(first.old[:1], second.old[:1])


def test_every_result_holds_for_the_policies_of_training_steps(moved: list[Moved]) -> None:
    found = theory.on_real(moved, seed=0)
    assert len(found) == 9 and all(one.holds for one in found)
    assert found[0].cases == sum(len(step.tokens) for step in moved) * len(theory.ALPHAS)


def test_what_the_others_have_instead(moved: list[Moved]) -> None:
    of = {one.method.partition(",")[0]: one for one in theory.counterparts(moved[-1])}
    assert of["pspo"].slope == pytest.approx(0.8) and of["pspo"].factor == pytest.approx(0.8)
    assert max(of["pspo"].mass, of["pspo"].unlike, of["no_clip"].unlike) < 1e-12 and of["pspo"].without == 0
    assert of["clip"].slope == 0 and of["clip"].without > 0 and of["clip"].unlike > 0.01 and of["clip"].mass > 0.01
    assert 0 < of["sigmoid"].slope < 1 and of["sigmoid"].unlike > 0.001


def test_it_writes_what_it_found(policy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["theory.py", "--trials", "20", "--steps", "1", f"--out={tmp_path}", *policy])
    assert theory.main() == 0
    record = json.loads((tmp_path / "theory.json").read_text())
    assert len(record["statements"]) == 18 and len(record["counterparts"]) == 4
    assert {one["on"] for one in record["statements"]} == {"random distributions", "policies of training steps"}
    assert "| holds |" in (tmp_path / "theory.md").read_text()
    assert {path.name for path in tmp_path.glob("*.svg")} == {"figure_1.svg", "ratios.svg"}


def test_without_a_warm_start_it_says_so_and_checks_the_rest(tmp_path: Path, monkeypatch, capsys) -> None:
    command = ["theory.py", "--trials", "5", f"--out={tmp_path / 'out'}", f"models={tmp_path}"]
    monkeypatch.setattr(sys, "argv", command)
    assert theory.main() == 0
    assert "there is no warm start here" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "theory.json").read_text())["statements"]) == 9


def test_figure_1_is_drawn(tmp_path: Path) -> None:
    path = theory.figure_1(tmp_path)
    text = path.read_text()
    assert "PSPO" in text and "clip" in text and path.with_suffix(".png").stat().st_size > 10_000
