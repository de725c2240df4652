"""Verdicts as a file of a study's results, which the reports of the others read. Never torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from claims import Claim, load_claims
from verdicts import Finding, Verdict, overall

FINDINGS = TypeAdapter(tuple[Finding, ...])


def name_of(scale: str) -> str:
    """Of the file in a study's results: each scale has its own, so that a table of one leaves the other's verdicts."""
    return f"verdicts.{scale}.json"


def to_json(verdicts: Sequence[Verdict], scale: str, made: Mapping[str, str]) -> str:
    """`made`: from which runs, of which commit, when."""
    record = {"scale": scale, "made": dict(made), "verdicts": [asdict(verdict) for verdict in verdicts]}
    return json.dumps(record, indent=1, default=str) + "\n"


def _as_json(claim: Claim) -> str:
    return json.dumps(asdict(claim), sort_keys=True, default=str)


@dataclass(frozen=True)
class Elsewhere:
    """The verdicts of another study as its tables had them when they were last made here.

    made   as in to_json; {} where it has none
    """

    study: str
    verdicts: tuple[Verdict, ...]
    made: Mapping[str, str]


def of_other_studies(results: Path, name: str, scale: str) -> list[Elsewhere]:
    """Of each study that claims at this scale hang on, in the order of claims.yaml; "not run" without tables, and where
    the claim was another when they were made."""
    known = load_claims()
    found = []
    for study in dict.fromkeys(claim.study for claim in known.claims):
        claims = [claim for claim in known.claims if claim.study == study and claim.scale in (None, scale)]
        if study in (name, "theory") or not claims:
            continue
        written, made = _written(results / study / name_of(scale), scale)
        lines = [written.get(_as_json(claim), ()) or (Finding("", "not run"),) for claim in claims]
        verdicts = [
            Verdict(claim, overall(of), of, str(known.decided)) for claim, of in zip(claims, lines, strict=True)
        ]
        found.append(Elsewhere(study, tuple(verdicts), made))
    return found


def _written(path: Path, scale: str) -> tuple[dict[str, tuple[Finding, ...]], Mapping[str, str]]:
    """The findings of a study's verdicts by the claim as it was then, and from what it was made; nothing where it is of
    another scale or version."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["scale"] != scale:
            return {}, {}
        found = {
            json.dumps(one["claim"], sort_keys=True): FINDINGS.validate_python(one["findings"])
            for one in record["verdicts"]
        }
        return found, {name: str(record["made"][name]) for name in ("date", "command", "commit", "machine")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # of pydantic too, which are ValueErrors
        return {}, {}
