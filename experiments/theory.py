"""python experiments/theory.py: the paper's five formal results on random distributions, and its Figure 1.

Prints one line a result with the largest violation that was found; exits with 1 if any is above rounding. The
statements are those of arXiv 2509.21282 as derived in docs/method.md. Distributions are over V tokens, in float64.
Imports torch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from pspo import surrogates

ROUNDING = 1e-10
"""Above any rounding of float64 here, below any effect: values are of order 1 and sums run over a few hundred terms."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000, help="random pairs of distributions (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/theory"), help="folder of the figure")
    options = parser.parse_args()
    worst = violations(options.trials, options.seed)
    for name, value in worst.items():
        verdict = "holds" if value <= ROUNDING else "BROKEN"
        print(f"{verdict}  {name}: largest violation {value:.1e} in {options.trials} trials")
    print(figure_1(options.out))
    return int(any(value > ROUNDING for value in worst.values()))


def violations(trials: int, seed: int) -> dict[str, float]:
    """Result -> its largest violation: for an equation the difference, for a bound how far it is exceeded, or 0."""
    generator = torch.Generator().manual_seed(seed)
    worst: dict[str, float] = {}
    for trial in range(trials):
        tokens = int(torch.randint(2, 300, (), generator=generator))
        # From nearly uniform to nearly certain, as a policy's distributions are.
        spread = float(torch.rand((), generator=generator, dtype=torch.float64)) * 8
        logits_2V = torch.randn(2, tokens, generator=generator, dtype=torch.float64) * spread
        alpha = (0.0, 1.0)[trial] if trial < 2 else float(torch.rand((), generator=generator, dtype=torch.float64))
        advantage_V = torch.randn(tokens, generator=generator, dtype=torch.float64)
        for name, value in of_one(logits_2V[0], logits_2V[1], alpha, advantage_V).items():
            worst[name] = max(worst.get(name, 0.0), value)
    return worst


def of_one(logits_V: Tensor, old_logits_V: Tensor, alpha: float, advantage_V: Tensor) -> dict[str, float]:
    """The violations for one policy pi, one behaviour policy pi_old, one alpha and one advantage a token."""
    p, q = logits_V.softmax(-1), old_logits_V.softmax(-1)
    smooth = (1 - alpha) * p + alpha * q
    log_r = logits_V.log_softmax(-1) - old_logits_V.log_softmax(-1)
    # Ratios reach e^60 where pi_old puts hardly anything; those that the surrogate clamps are not the paper's matter.
    kept = log_r.abs() < surrogates.MAX_LOG_RATIO
    r, a = log_r[kept].exp(), advantage_V[kept]
    size = r.clamp(min=1.0)  # rounding is relative: differences of large ratios are measured against them
    r_smooth = (smooth / q)[kept]
    slope = slope_in_r(lambda x, adv: surrogates.pspo(x, adv, alpha), log_r[kept], a)
    unclipped = policy_gradient(lambda x, adv: surrogates.no_clip(x, adv), logits_V, old_logits_V, advantage_V, kept)
    scaled = policy_gradient(lambda x, adv: surrogates.pspo(x, adv, alpha), logits_V, old_logits_V, advantage_V, kept)
    value = surrogates.pspo(log_r[kept], a, alpha)
    return {
        "Lemma 2.1, TV(pi~, pi_old) = (1 - alpha) TV(pi, pi_old)": gap(tv(smooth, q), (1 - alpha) * tv(p, q)),
        "Corollary 2.2, KL(pi~ || pi_old) <= (1 - alpha) KL(pi || pi_old)": excess(
            kl(smooth, q), (1 - alpha) * kl(p, q)
        ),
        "Corollary 2.2, KL(pi_old || pi~) <= (1 - alpha) KL(pi_old || pi)": excess(
            kl(q, smooth), (1 - alpha) * kl(q, p)
        ),
        "Proposition 2.3, |r~ - 1| = (1 - alpha) |r - 1|": gap(
            (r_smooth - 1).abs() / size, (1 - alpha) * (r - 1).abs() / size
        ),
        "Proposition 2.3, the surrogate is r~ A": gap(value / size, r_smooth * a / size),
        "Proposition 2.3, d(r~ A)/dr = (1 - alpha) A": gap(slope, (1 - alpha) * a),
        "Proposition 2.4, pi~(a) <= 1 - alpha (1 - pi_old(a))": excess(smooth, 1 - alpha * (1 - q)),
        "Proposition 2.4, H(pi~) >= (1 - alpha) H(pi) + alpha H(pi_old)": excess(
            (1 - alpha) * entropy(p) + alpha * entropy(q), entropy(smooth)
        ),
        "Proposition 2.5, grad E_old[r~ A] = (1 - alpha) grad E_old[r A]": gap(scaled, (1 - alpha) * unclipped),
    }


def slope_in_r(surrogate: surrogates.Surrogate, log_r: Tensor, advantage: Tensor) -> Tensor:
    """d surrogate / d r by autograd through r itself, for each token."""
    r = log_r.exp().requires_grad_()
    (slope,) = torch.autograd.grad(surrogate(r.log(), advantage).sum(), r)
    return slope


def policy_gradient(
    surrogate: surrogates.Surrogate, logits_V: Tensor, old_logits_V: Tensor, advantage_V: Tensor, kept_V: Tensor
) -> Tensor:
    """Gradient of E_old[surrogate] for the logits of pi: the expectation over all tokens, exactly, without sampling."""
    logits = logits_V.detach().clone().requires_grad_()
    old = old_logits_V.log_softmax(-1)
    values = surrogate(logits.log_softmax(-1) - old, advantage_V)
    (gradient,) = torch.autograd.grad((old.exp() * values)[kept_V].sum(), logits)
    return gradient


def tv(p: Tensor, q: Tensor) -> Tensor:
    return (p - q).abs().sum() / 2


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()


def entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum()


def gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


def excess(smaller: Tensor, larger: Tensor) -> float:
    return max(0.0, float((smaller - larger).max()))


def figure_1(folder: Path) -> Path:
    """The paper's Figure 1: r against the surrogate and its slope for A = +1 and A = -1, epsilon = 0.2, alpha = 0.2."""
    folder.mkdir(parents=True, exist_ok=True)
    methods: dict[str, tuple[surrogates.Surrogate, str, str]] = {
        "no clipping": (surrogates.no_clip, "#000000", ":"),
        r"clip, $\epsilon$ = 0.2": (lambda x, a: surrogates.clip(x, a, 0.2, 0.2), "#E69F00", "-"),
        r"sigmoid, $\tau$ = 1 and 1.05": (surrogates.sigmoid, "#56B4E9", "-."),
        r"PSPO, $\alpha$ = 0.2": (lambda x, a: surrogates.pspo(x, a, 0.2), "#009E73", "--"),
    }
    log_r = torch.linspace(0.02, 2.5, 1241, dtype=torch.float64).log()
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "pspo"}
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for column, sign in enumerate((1.0, -1.0)):
        advantage = torch.full_like(log_r, sign)
        for name, (surrogate, colour, dashes) in methods.items():
            style = {"label": name, "color": colour, "linestyle": dashes}
            axes[0][column].plot(log_r.exp(), surrogate(log_r, advantage), **style)
            axes[1][column].plot(log_r.exp(), slope_in_r(surrogate, log_r, advantage), **style)
        axes[0][column].set(title=f"A = {sign:+.0f}", ylabel="surrogate")
        axes[1][column].set(xlabel=r"ratio r = $\pi / \pi_\mathrm{old}$", ylabel="slope d surrogate / d r")
    axes[0][0].legend(frameon=False, fontsize="small")
    for ending in ("png", "svg"):
        figure.savefig(folder / f"figure_1.{ending}", dpi=160, metadata={"Date": None} if ending == "svg" else None)
    plt.close(figure)
    return folder / "figure_1.svg"


if __name__ == "__main__":
    sys.exit(main())
