"""Errors meant for the person who reads them: what was wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST_LINE = 400


class PitiError(Exception):
    """A problem the user can fix. `str()` gives one line (or one line a problem) without a traceback.

    Raising it from a Ray job makes the job fail at once, with the same text in the Prefect task's
    state: it is never retried, because trying again would fail the same way.
    """

    retryable = False

    def __init__(self, problem: str, remedy: str | None = None) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem if remedy is None else f"{problem} - {remedy}")


class ConfigError(PitiError):
    """The configuration is wrong: unknown preset, unknown key, wrong type, contradictory values."""


class DataError(PitiError):
    """A dataset, a shard or a sample is missing or damaged."""


class AwayError(DataError):
    """Storage that was there does not answer: a mount is gone, a server is down. Another attempt may find it."""

    retryable = True


class DiskFullError(DataError):
    """There is no space left, or a quota is used up, where something was to be written."""


class CheckpointError(PitiError):
    """A checkpoint or a weights file is missing, damaged or of another kind than needed."""


class StackError(PitiError):
    """A server this command needs is not running, or cannot be started."""


class StoppedError(PitiError):
    """The job was asked to end early. Another attempt resumes it."""

    retryable = True


class AbandonedError(StoppedError):
    """The job ended because no run follows it any more."""


class PreemptedError(StoppedError):
    """The workers ended because a machine of this job is about to be taken away. The job starts other workers."""


class DivergedError(PitiError):
    """A training run diverged. Its next attempt starts from the last good checkpoint."""

    retryable = True


class PreflightError(PitiError):
    """Everything that preflight found wrong, all at once."""

    def __init__(self, problems: Sequence[PitiError]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        heading = f"preflight found {count} problem{'s' if count != 1 else ''}"
        super().__init__("; ".join([heading, *(str(problem) for problem in self.problems)]))


def repair_advice(uri: str) -> str:
    """The remedy for any damage to a set of shards, companions included."""
    return (
        f"run `piti shards verify {uri} --repair`, then piti/prepare; where that finds nothing, --decode instead tells "
        "what was damaged before it was stored or does not fit the config"
    )


def first_line(error: BaseException) -> str:
    """An error in one line: a PitiError's message; for any other error its class and the first line of its message."""
    lines = str(error).strip().splitlines()
    if isinstance(error, PitiError):
        return lines[0]
    kind = type(error).__name__
    return f"{kind}: {lines[0][:_LONGEST_LINE]}" if lines else kind
