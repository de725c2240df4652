"""python experiments/theory.py: the paper's formal results checked numerically, and its Figure 1.

On random pairs of distributions, and on real ones: the policy before and after training steps of the small world, over
the whole vocabulary, at the tokens that were sampled (realpolicies.py; where its warm start has been made). For each
statement the largest violation that was found; beside them what clip and the sigmoid have in its place. Writes
theory.json, theory.md and figures; status 1 if any violation is above rounding. The statements are those of arXiv
2509.21282 as derived in docs/method.md. All in float64. Imports torch.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from figures import plt, save
from pspo import surrogates
from pspo.files import write_whole

if TYPE_CHECKING:
    from realpolicies import Moved

ROUNDING = 1e-10
"""Above any rounding of float64 here, below any effect: values are of order 1 and sums run over a few hundred terms."""
ALPHAS = (0.0, 0.1, 0.2, 0.5, 1.0)
"""For real policies; for random ones alpha is random too."""
STATES = 256
"""Distributions that are checked at once: bounds the memory at so many times the vocabulary."""

METHODS: dict[str, surrogates.Surrogate] = {
    "no_clip": surrogates.no_clip,
    "clip, epsilon = 0.2": lambda x, a: surrogates.clip(x, a, 0.2, 0.2),
    "sigmoid, tau = 1 and 1.05": surrogates.sigmoid,
    "pspo, alpha = 0.2": lambda x, a: surrogates.pspo(x, a, 0.2),
}


@dataclass(frozen=True)
class Statement:
    """`violation`: for an equation the largest difference, for a bound how far it is exceeded at most, or 0."""

    statement: str
    on: str
    violation: float
    cases: int

    @property
    def holds(self) -> bool:
        return self.violation <= ROUNDING


@dataclass(frozen=True)
class Counterpart:
    """What a method has in the place of PSPO's results, on one training step of a real policy.

    mass          largest |1 - sum over tokens of pi_old f(r)|, f the surrogate for A = 1: how far what stands in the
                  ratio's place is from being any policy's ratio. Lemma 2.1, Corollary 2.2 and Proposition 2.4
                  speak of a policy, so they have a counterpart only where this is 0
    slope         least slope / A of the sampled tokens with an advantage (Proposition 2.3)
    without       share of these tokens with a slope below a tenth of A
    factor        c of the best fit of its expected gradient by c times no_clip's (Proposition 2.5)
    unlike        norm of what that leaves, relative to its own: 0 where the gradient is the unclipped one, scaled
    """

    method: str
    mass: float
    slope: float
    without: float
    factor: float
    unlike: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000, help="random pairs of distributions (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3, help="training steps of a real policy; 0: none (default 3)")
    parser.add_argument("--out", type=Path, default=Path("results/theory"), help="folder of what is written")
    parser.add_argument("overrides", nargs="*", help="settings of python -m pspo.train for these steps")
    options = parser.parse_intermixed_args()
    if options.trials < 1:
        parser.error("--trials must be 1 or more: without any nothing is checked")
    found = on_random(options.trials, options.seed)
    moved = real_steps(options.overrides, options.steps)
    if moved:
        found += on_real(moved, options.seed)
    with_signal = [step for step in moved if step.advantage.any()]
    others = counterparts(with_signal[-1]) if with_signal else []
    options.out.mkdir(parents=True, exist_ok=True)
    figures = [figure_1(options.out), *([figure_ratios(moved, options.out)] if moved else [])]
    record = {
        "statements": [{**asdict(one), "holds": one.holds} for one in found],
        "counterparts": [asdict(one) for one in others],
        "figures": [path.name for path in figures],
    }
    write_whole(options.out / "theory.json", json.dumps(record, indent=1) + "\n")
    text = "\n".join(markdown(found, others))
    write_whole(options.out / "theory.md", text + "\n")
    print(text)
    print(*figures, sep="\n")
    return int(not all(one.holds for one in found))


def real_steps(overrides: Sequence[str], steps: int) -> list[Moved]:
    """[] where none are asked for, or there is no policy to take them with, which is said."""
    if not steps:
        return []
    from realpolicies import training_steps, warm_start

    named = any(text.startswith("model.path=") for text in overrides)
    if not named and not (warm_start(overrides) / "DONE").exists():
        say = "random distributions only: there is no warm start here (python -m pspo.sft makes it)"
        print(f"theory: {say}", file=sys.stderr)
        return []
    return list(training_steps(overrides, steps))


def on_random(trials: int, seed: int) -> list[Statement]:
    """From nearly uniform to nearly certain distributions over 2 to 300 tokens, as a policy's are."""
    generator = torch.Generator().manual_seed(seed)
    worst: dict[str, float] = {}
    for trial in range(trials):
        tokens = int(torch.randint(2, 300, (), generator=generator))
        spread = float(torch.rand((), generator=generator, dtype=torch.float64)) * 8
        logits_2V = torch.randn(2, 1, tokens, generator=generator, dtype=torch.float64) * spread
        alpha = (0.0, 1.0)[trial] if trial < 2 else float(torch.rand((), generator=generator, dtype=torch.float64))
        advantage_V = torch.randn(1, tokens, generator=generator, dtype=torch.float64)
        _keep_worst(worst, violations(logits_2V[0], logits_2V[1], alpha, advantage_V))
    return [Statement(name, "random distributions", value, trials) for name, value in worst.items()]


def on_real(moved: Sequence[Moved], seed: int) -> list[Statement]:
    """At every sampled token of the steps, for each of ALPHAS. A token that was not sampled has no advantage: those of
    the others are random, as Proposition 2.5 holds for any."""
    generator = torch.Generator().manual_seed(seed)
    worst: dict[str, float] = {}
    cases = 0
    for step in moved:
        for new, old, tokens, advantage in chunks(step):
            advantage_MV = torch.randn(new.shape, generator=generator, dtype=torch.float64)
            advantage_MV.scatter_(1, tokens[:, None], advantage[:, None])
            for alpha in ALPHAS:
                _keep_worst(worst, violations(new, old, alpha, advantage_MV))
                cases += len(new)
    return [Statement(name, "policies of training steps", value, cases) for name, value in worst.items()]


def _keep_worst(worst: dict[str, float], found: dict[str, float]) -> None:
    for name, value in found.items():
        worst[name] = max(worst.get(name, 0.0), value if math.isfinite(value) else math.inf)


def chunks(step: Moved) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    parts = (step.new, step.old, step.tokens, step.advantage)
    return zip(*(part.split(STATES) for part in parts), strict=True)


def violations(logits_MV: Tensor, old_logits_MV: Tensor, alpha: float, advantage_MV: Tensor) -> dict[str, float]:
    """The largest violations for M pairs of policies pi and pi_old, one alpha and one advantage a token."""
    p, q = logits_MV.softmax(-1), old_logits_MV.softmax(-1)
    smooth = (1 - alpha) * p + alpha * q
    log_r = logits_MV.log_softmax(-1) - old_logits_MV.log_softmax(-1)
    # Ratios reach e^60 where pi_old puts hardly anything; those that the surrogate clamps are not the paper's matter.
    kept = log_r.abs() < surrogates.MAX_LOG_RATIO
    r, a = log_r[kept].exp(), advantage_MV[kept]
    size = r.clamp(min=1.0)  # rounding is relative: differences of large ratios are measured against them
    r_smooth = (smooth / q)[kept]

    def smoothed(x: Tensor, adv: Tensor) -> Tensor:
        return surrogates.pspo(x, adv, alpha)

    slope = slope_in_r(smoothed, log_r[kept], a)
    unclipped = policy_gradient(surrogates.no_clip, logits_MV, old_logits_MV, advantage_MV, kept)
    scaled = policy_gradient(smoothed, logits_MV, old_logits_MV, advantage_MV, kept)
    value = smoothed(log_r[kept], a)
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


def counterparts(step: Moved) -> list[Counterpart]:
    """Of each method, at the sampled tokens of one training step."""
    log_r_M = (step.new - step.old).gather(1, step.tokens[:, None])[:, 0]
    signal = step.advantage != 0
    found = []
    for name, surrogate in METHODS.items():
        slope = surrogates.relative_slope(surrogate, log_r_M[signal], step.advantage[signal])
        mass, dot, plain = 0.0, 0.0, 0.0
        for new, old, *_ in chunks(step):
            implied = surrogate(new - old, torch.ones((), dtype=torch.float64))
            mass = max(mass, float((1 - (old.exp() * implied).sum(-1)).abs().max()))
        for g, g0 in gradients(surrogate, step):
            dot, plain = dot + float((g * g0).sum()), plain + float(g0.square().sum())
        factor = dot / plain
        left = sum(float((g - factor * g0).square().sum()) for g, g0 in gradients(surrogate, step))
        whole = sum(float(g.square().sum()) for g, _ in gradients(surrogate, step))
        low, small = float(slope.min().abs()), float((slope < 0.1).double().mean())
        found.append(Counterpart(name, mass, low, small, factor, (left / whole) ** 0.5))
    return found


def gradients(surrogate: surrogates.Surrogate, step: Moved) -> Iterator[tuple[Tensor, Tensor]]:
    """Of a method and of no_clip, at the sampled tokens; tokens that were not sampled have no advantage."""
    for new, old, tokens, advantage in chunks(step):
        advantage_MV = torch.zeros_like(new).scatter_(1, tokens[:, None], advantage[:, None])
        everything = torch.ones_like(new, dtype=torch.bool)
        yield (
            policy_gradient(surrogate, new, old, advantage_MV, everything),
            policy_gradient(surrogates.no_clip, new, old, advantage_MV, everything),
        )


def slope_in_r(surrogate: surrogates.Surrogate, log_r: Tensor, advantage: Tensor) -> Tensor:
    """d surrogate / d r by autograd through r itself, for each token."""
    r = log_r.exp().requires_grad_()
    (slope,) = torch.autograd.grad(surrogate(r.log(), advantage).sum(), r)
    return slope


def policy_gradient(
    surrogate: surrogates.Surrogate, logits_MV: Tensor, old_logits_MV: Tensor, advantage_MV: Tensor, kept_MV: Tensor
) -> Tensor:
    """Gradient of E_old[surrogate] for the logits of pi: the expectation over all tokens, exactly, without sampling."""
    logits = logits_MV.detach().clone().requires_grad_()
    old = old_logits_MV.log_softmax(-1)
    values = surrogate(logits.log_softmax(-1) - old, advantage_MV)
    (gradient,) = torch.autograd.grad((old.exp() * values)[kept_MV].sum(), logits)
    return gradient


def tv(p: Tensor, q: Tensor) -> Tensor:
    return (p - q).abs().sum(-1) / 2


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


def excess(smaller: Tensor, larger: Tensor) -> float:
    found = float((smaller - larger).max())
    return found if math.isnan(found) else max(0.0, found)


def markdown(found: Sequence[Statement], others: Sequence[Counterpart]) -> list[str]:
    lines = ["| statement | on | cases | largest violation | |", "| --- | --- | --- | --- | --- |"]
    for one in found:
        name = one.statement.replace("|", "\\|")
        verdict = "holds" if one.holds else "BROKEN"
        lines.append(f"| {name} | {one.on} | {one.cases} | {one.violation:.1e} | {verdict} |")
    if others:
        lines += ["", "| method | mass off 1 | least slope / A | slope < 0.1 A, % | gradient / no_clip's | unlike it |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
    for other in others:
        lines.append(
            f"| {other.method} | {other.mass:.2g} | {other.slope:.3f} | {100 * other.without:.2f} | "
            f"{other.factor:.3f} | {other.unlike:.2g} |"
        )
    return lines


def figure_1(folder: Path) -> Path:
    """The paper's Figure 1: r against the surrogate and its slope for A = +1 and A = -1, epsilon = 0.2, alpha = 0.2."""
    methods: dict[str, tuple[surrogates.Surrogate, str, str]] = {
        "no clipping": (METHODS["no_clip"], "#000000", ":"),
        r"clip, $\epsilon$ = 0.2": (METHODS["clip, epsilon = 0.2"], "#E69F00", "-"),
        r"sigmoid, $\tau$ = 1 and 1.05": (METHODS["sigmoid, tau = 1 and 1.05"], "#56B4E9", "-."),
        r"PSPO, $\alpha$ = 0.2": (METHODS["pspo, alpha = 0.2"], "#009E73", "--"),
    }
    log_r = torch.linspace(0.02, 2.5, 1241, dtype=torch.float64).log()
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
    return save(figure, folder / "figure_1")


def figure_ratios(moved: Sequence[Moved], folder: Path) -> Path:
    """Where real ratios lie on Figure 1: of the sampled tokens, by the sign of their advantage, after each step."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for panel, sign in zip(axes, (1, -1), strict=True):
        for step in moved:
            log_r = (step.new - step.old).gather(1, step.tokens[:, None])[:, 0]
            r = log_r[step.advantage.sign() == sign].exp().clamp(0.02, 2.5)
            panel.hist(r.numpy(), bins=100, range=(0.02, 2.5), histtype="step", log=True, label=f"step {step.step}")
        for bound in (0.8, 1.2):
            panel.axvline(bound, color="#666666", linestyle=":", linewidth=1)
        panel.set(title=f"A {'>' if sign > 0 else '<'} 0", xlabel=r"ratio r of the sampled token (cut at 2.5)")
    axes[0].set_ylabel("tokens")
    axes[0].legend(frameon=False, fontsize="small")
    return save(figure, folder / "ratios")


if __name__ == "__main__":
    sys.exit(main())
