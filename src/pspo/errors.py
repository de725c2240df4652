"""Errors a user can act on: a program prints one as one line, without a traceback; exit status not 0."""

from __future__ import annotations

from typing import Any


class PspoError(Exception):
    """Something the user can mend; the message says what and how. A program that it ends has exit status `status`."""

    status = 1


class ConfigError(PspoError):
    """A setting that cannot be: names the setting, the value it was given, and what is allowed."""

    status = 2

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        super().__init__(f"{setting}={value}: {allowed}")
        self.setting, self.value, self.allowed = setting, value, allowed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.setting, self.value, self.allowed)  # so that it can come from another process


class BusyError(PspoError):
    """Another process holds what this one needs. The same command may succeed once that has ended."""

    status = 77  # experiments/jobs/verdicts.py: a job that ends with it is tried again


class NonFiniteError(PspoError):
    """A loss or gradient that is not a number; raised before the optimiser moves."""


class MismatchError(PspoError):
    """The sampler and the learner do not agree on the policy's log-probs, so ratios would not start at 1."""
