from __future__ import annotations

from pathlib import Path

import pytest
import torch

import theory


def test_every_result_holds_up_to_rounding() -> None:
    worst = theory.violations(trials=100, seed=1)
    assert len(worst) == 9
    assert max(worst.values()) <= theory.ROUNDING


def test_a_surrogate_with_another_slope_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = theory.surrogates.pspo
    monkeypatch.setattr(theory.surrogates, "pspo", lambda x, a, alpha: right(x, a, 0.99 * alpha))
    worst = theory.violations(trials=5, seed=0)
    broken = {name.partition(",")[0] for name, value in worst.items() if value > theory.ROUNDING}
    assert broken == {"Proposition 2.3", "Proposition 2.5"}


def test_distances_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert float(theory.tv(p, q)) == 0.25
    assert float(theory.kl(p, q)) == pytest.approx(0.143841, abs=1e-6)  # .5 ln(2/3) + .5 ln 2
    assert float(theory.entropy(p)) == pytest.approx(0.693147, abs=1e-6)


def test_slope_in_r_by_hand() -> None:
    log_r = torch.tensor([0.5, 1.1, 1.5], dtype=torch.float64).log()
    slope = theory.slope_in_r(theory.surrogates.clip, log_r, torch.ones(3, dtype=torch.float64))
    assert slope.tolist() == pytest.approx([1.0, 1.0, 0.0])


def test_figure_1_is_drawn(tmp_path: Path) -> None:
    path = theory.figure_1(tmp_path)
    text = path.read_text()
    assert "PSPO" in text and "clip" in text and path.with_suffix(".png").stat().st_size > 10_000
