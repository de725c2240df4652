"""What a run remembers between two steps beside its tensors; a checkpoint's manifest holds it as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Memory:
    """made_with   with what (commit, packages, machine, ranks) the run was made, from which step on
    made_from   digests of its settings, of the policy it started from, and of data sets that are read from files
    validated   accuracy on the validation part by step: the best so far among them
    checks_left, moved   of sampler against learner: on the first batch, and on the first with new weights
    seconds   by phase, all attempts together
    tracker   ids of the run with trackers
    ahead   what was sampled ahead for the next step (`pspo.sampling.as_json`); {}: nothing
    """

    made_with: list[dict[str, Any]]
    made_from: dict[str, str] = field(default_factory=dict)
    validated: dict[int, float] = field(default_factory=dict)
    checks_left: int = 2
    moved: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    tracker: dict[str, str] = field(default_factory=dict)
    ahead: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def add_seconds(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def goes_on_with(self, now: Mapping[str, Any], step: int) -> str:
        """Notes what the steps after `step` are made with, where it is something else than before; says what."""
        before = self.made_with[-1]
        others = [name for name in now if name != "from_step" and now[name] != before.get(name)]
        if others:
            self.made_with.append({**now, "from_step": step + 1})
        return ", ".join(f"{name} ({now[name]}; before: {before.get(name)})" for name in others)

    @staticmethod
    def read(saved: Mapping[str, Any]) -> Memory:
        """From JSON, whose keys are text."""
        memory = Memory(**saved)
        memory.validated = {int(step): accuracy for step, accuracy in memory.validated.items()}
        return memory
