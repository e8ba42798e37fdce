"""Why a training run failed: a worker's error in words, the cause among several errors, and whether to try again."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from piti.config import StageConfig
from piti.errors import PitiError, first_line

_LISTED_KEYS = 4
_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # Python's, torch's
# Words in torch.distributed's errors that follow from another worker's failure.
_OTHERS_FAULT = ("connection closed by peer", "connection reset by peer", "gloo", "nccl", "processgroup", "store->get")


class WorkerError(Exception):
    """A worker's error with its circumstances, in one line. It is pickled from the worker to the driver.

    `signature`: the error's type and place, equal for a repeated error. `is_others_fault`: another worker's failure
    caused the error.
    """

    def __init__(self, line: str, signature: str, remedy: str | None, is_others_fault: bool) -> None:
        super().__init__(line, signature, remedy, is_others_fault)
        self.line = line
        self.signature = signature
        self.remedy = remedy
        self.is_others_fault = is_others_fault

    def __str__(self) -> str:
        return self.line

    @classmethod
    def of(
        cls, error: Exception, stage: str, settings: StageConfig, rank: int, step: int, keys: Sequence[str]
    ) -> WorkerError:
        """The description of `error`, raised by worker `rank` in step number `step` with the pictures `keys`."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
        more = f" and {len(keys) - _LISTED_KEYS} more" if len(keys) > _LISTED_KEYS else ""
        pictures = f", pictures {', '.join(keys[:_LISTED_KEYS])}{more}" if keys else ""
        line = f"{first_line(error)} ({place}; worker {rank} on {socket.gethostname()}, step {step}{pictures})"
        text = str(error).lower()
        is_memory = type(error).__name__ in _OUT_OF_MEMORY or "can't allocate memory" in text
        remedy = _memory_remedy(stage, settings) if is_memory else None
        is_others_fault = isinstance(error, RuntimeError) and any(words in text for words in _OTHERS_FAULT)
        return cls(line, f"{type(error).__name__} at {place}", remedy, is_others_fault)


def _memory_remedy(stage: str, settings: StageConfig) -> str:
    network = "upsampler" if stage == "upsampler" else "base"
    size = settings.microbatch_size or "a worker's whole share of the batch"
    return (
        f"lower training.{stage}.microbatch_size (now {size}), or set models.{network}.activation_checkpointing to true"
    )


@dataclass(frozen=True)
class Cause:
    """Why a run failed. `error`: a problem for the user to fix. `signature` None: a worker was lost without an
    error."""

    line: str
    error: PitiError | None = None
    signature: str | None = None
    remedy: str | None = None


def root_cause(failures: Mapping[int, BaseException]) -> Cause:
    """The cause among the errors of several workers, by rank.

    A PitiError comes before a worker's own error, that before a lost worker, and that before an error which another
    worker's failure caused.
    """
    rank, error = min(failures.items(), key=lambda failure: (_distance(failure[1]), failure[0]))
    if isinstance(error, PitiError):
        return Cause(str(error), error)
    if isinstance(error, WorkerError):
        return Cause(error.line, None, None if error.is_others_fault else error.signature, error.remedy)
    if _is_rays(error):
        return Cause(f"worker {rank} was lost: {first_line(error)}")
    return Cause(f"{first_line(error)} (worker {rank}, before its first step)", None, first_line(error))


def _distance(error: BaseException) -> int:
    """Rank of an error among possible causes; the lowest is the cause."""
    if isinstance(error, PitiError):
        return 0
    if isinstance(error, WorkerError):
        return 3 if error.is_others_fault else 1
    return 2 if _is_rays(error) else 1


def _is_rays(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "ray"


class Retries:
    """Whether to try again: `max_failures` times in a row without progress, but an error that repeats itself only once."""

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.num_failures = 0
        self.repeats = False
        self._step = -1
        self._signature: str | None = None

    def after(self, cause: Cause, step: int) -> bool:
        """Count a failure of a run whose newest checkpoint is of `step`. Returns whether to start the run again."""
        if step > self._step:
            self.num_failures, self._signature = 0, None
        self.num_failures += 1
        self.repeats = cause.signature is not None and cause.signature == self._signature
        self._step, self._signature = step, cause.signature
        return not self.repeats and self.num_failures <= self.max_failures
