"""What is claimed, and by which test each claim is decided: the schema of claims.yaml. Never torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pspo.config import load_yaml
from pspo.config.schema import FORBID
from pspo.errors import ConfigError
from pspo.metrics import REGISTRY
from studies import STUDIES, Study

CLAIMS = Path(__file__).resolve().parent / "claims.yaml"

Points = Annotated[float, Field(gt=0, le=100)]


@dataclass(frozen=True)
class Theorem:
    """Every statement under this name holds up to rounding (experiments/theory.py)."""

    __pydantic_config__ = FORBID
    kind: Literal["theorem"]
    result: str


@dataclass(frozen=True)
class Greater:
    """`arm` is more accurate than `than`: Student's t over the differences per seed.

    `at_best`: each in the regime where its own accuracy on the validation part is highest, in place of all in each.
    """

    __pydantic_config__ = FORBID
    kind: Literal["greater"]
    arm: str
    than: str
    margin: Points
    at_best: bool = False


@dataclass(frozen=True)
class Equal:
    """`arm` is as accurate as `than`: the interval of their difference lies within the margin on both sides.

    `at_best` as in Greater.
    """

    __pydantic_config__ = FORBID
    kind: Literal["equal"]
    arm: str
    than: str
    margin: Points
    at_best: bool = False


@dataclass(frozen=True)
class AllEqual:
    """Each of `arms` is as accurate as `than`, in the sense of Equal."""

    __pydantic_config__ = FORBID
    kind: Literal["all_equal"]
    arms: tuple[str, ...]
    than: str
    margin: Points


@dataclass(frozen=True)
class NoneGreater:
    """No other arm is more accurate than `than` by the margin."""

    __pydantic_config__ = FORBID
    kind: Literal["none_greater"]
    than: str
    margin: Points


@dataclass(frozen=True)
class NoGain:
    """No arm is more accurate than the policy it starts from by the margin."""

    __pydantic_config__ = FORBID
    kind: Literal["no_gain"]
    margin: Points


@dataclass(frozen=True)
class Identical:
    """`arm` and `than` give the same completions on every problem, seed by seed."""

    __pydantic_config__ = FORBID
    kind: Literal["identical"]
    arm: str
    than: str


@dataclass(frozen=True)
class Metric:
    """A metric of every step of every run of `arm` is at most a value."""

    __pydantic_config__ = FORBID
    kind: Literal["metric"]
    arm: str
    metric: str
    at_most: float


@dataclass(frozen=True)
class LargerLead:
    """The lead of `arm` over `than` is larger on `model` than on `than_model`: Welch's t over seeds."""

    __pydantic_config__ = FORBID
    kind: Literal["larger_lead"]
    arm: str
    than: str
    model: str
    than_model: str
    margin: Points


@dataclass(frozen=True)
class AsPublished:
    """Each published figure is met: the interval of ours minus it lies within the margin on both sides.

    The figure is taken as the number that it is: how its seeds spread is unknown. Where the source does not say what
    the model was trained on, a figure that is not met decides nothing.
    """

    __pydantic_config__ = FORBID
    kind: Literal["published"]
    margin: Points


Test = Annotated[
    Theorem | Greater | Equal | AllEqual | NoneGreater | NoGain | Identical | Metric | LargerLead | AsPublished,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class Claim:
    __pydantic_config__ = FORBID
    id: str
    by: Literal["paper", "ours"]
    statement: str
    source: str
    study: str
    test: Test
    scale: Literal["cpu", "paper"] | None = None
    """None: at either."""
    regimes: tuple[str, ...] | None = None
    note: str = ""
    """What a reader has to know of how the test came about: written, or changed, after which runs."""

    @property
    def formal(self) -> bool:
        """Does it follow from the formulas alone? Then a check finds slips of the program, nothing about training."""
        return isinstance(self.test, Theorem | Metric)


@dataclass(frozen=True)
class Claims:
    """`pilot`: what had been run when the claims were written down."""

    __pydantic_config__ = FORBID
    decided: object
    pilot: str
    claims: tuple[Claim, ...]

    def __post_init__(self) -> None:
        seen: set[tuple[str, str | None]] = set()
        for claim in self.claims:
            test = claim.test
            if seen & {(claim.id, claim.scale), (claim.id, None)} or (claim.scale is None and claim.id in dict(seen)):
                raise ConfigError(claim.id, claim.scale, "each claim may stand only once at a scale")
            seen.add((claim.id, claim.scale))
            if (claim.study == "theory") != isinstance(test, Theorem):
                raise ConfigError(f"{claim.id}: study", claim.study, "theory decides theorems, and nothing else")
            if claim.study != "theory" and not (STUDIES / f"{claim.study}.yaml").is_file():
                raise ConfigError(f"{claim.id}: study", claim.study, "must be a file of experiments/studies/")
            if claim.regimes == () or getattr(test, "arms", None) == ():
                raise ConfigError(claim.id, "[]", "regimes, and arms, must name one or more, or be left out")
            arms = getattr(test, "arms", (getattr(test, "arm", None),))
            if getattr(test, "than", "") in arms:
                raise ConfigError(f"{claim.id}: than", getattr(test, "than", ""), "must be another arm")
            if isinstance(test, Metric) and test.metric not in REGISTRY:
                raise ConfigError(f"{claim.id}: metric", test.metric, "must be one of docs/metrics.md")


@cache
def load_claims() -> Claims:
    """Raises ConfigError with one line that names the file and what is wrong in it."""
    try:
        return load_yaml(CLAIMS, Claims)
    except ConfigError as error:
        raise ConfigError(f"{CLAIMS.name}: {error.setting}", error.value, error.allowed) from error


def check_names(claim: Claim, study: Study, scale: str) -> None:
    """Raises ConfigError where a claim names what its study does not have."""
    models = study.scales[scale].models if scale in study.scales else {}
    for kinds, some in ((("arm", "than", "arms"), study.arms), (("model", "than_model"), models)):
        for kind in kinds:
            named = getattr(claim.test, kind, None) or ()
            for name in (named,) if isinstance(named, str) else named:
                if name in some:
                    continue
                raise ConfigError(f"claims.yaml: {claim.id}: {kind}", name, f"must be one of {', '.join(some)}")
    known = study.scales[scale].regimes if scale in study.scales else {}
    for regime in claim.regimes or ():
        if regime not in known:
            raise ConfigError(f"claims.yaml: {claim.id}: regimes", regime, f"must be one of {', '.join(known)}")


def compares(claim: Claim) -> bool:
    """Is it decided by an interval, which the number of comparisons widens?"""
    return not isinstance(claim.test, Theorem | Identical | Metric)
