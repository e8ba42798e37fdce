"""Why a training run failed: a worker's error in words, the cause among several errors, and whether to try again."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from piti.errors import PitiError, first_line

if TYPE_CHECKING:
    from piti.training.stages import TrainingStage
    from piti.training.workers import Workers

_LISTED_KEYS = 4
_LONGEST_LOSS = 600
_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # Python's; torch's and Ray's
# Words in other errors of a device or a machine that is out of memory: CUDA's, NCCL's, the CPU allocator's, cuBLAS', cuDNN's.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "status_alloc_failed")
NODE_MEMORY_REMEDY = "lower cluster.num_workers or cluster.loader_workers, or use nodes with more memory"
_UNTOLD = ("class_name:", "actor_id:", "name:", "namespace:")  # of what Ray tells of a lost worker
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
        cls, error: Exception, stage: TrainingStage, workers: Workers, step: int | None, keys: Sequence[str]
    ) -> WorkerError:
        """The description of `error`, raised by this worker in step number `step` with the pictures `keys`; step None:
        while it loaded weights."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
        more = f" and {len(keys) - _LISTED_KEYS} more" if len(keys) > _LISTED_KEYS else ""
        pictures = f", pictures {', '.join(keys[:_LISTED_KEYS])}{more}" if keys else ""
        when = "before its first step" if step is None else f"step {step}"
        line = f"{first_line(error)} ({place}; worker {workers.rank} on {socket.gethostname()}, {when}{pictures})"
        text, is_memory = str(error).lower(), is_out_of_memory(error)
        remedy = _memory_remedy(stage, workers, step is not None) if is_memory else None
        is_others_fault = (
            isinstance(error, RuntimeError) and not is_memory and any(words in text for words in _OTHERS_FAULT)
        )
        return cls(line, f"{type(error).__name__} at {place}", remedy, is_others_fault)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or a machine had too little memory, whichever library says so."""
    text = str(error).lower()
    return type(error).__name__ in _OUT_OF_MEMORY or any(words in text for words in _MEMORY_WORDS)


def _memory_remedy(stage: TrainingStage, workers: Workers, has_begun: bool) -> str:
    """The settings that can still lower the memory of a worker, or else other machines."""
    cluster, settings = stage.config.cluster, stage.settings
    more = f"use {'GPUs' if cluster.use_gpu else 'nodes'} with more memory"
    is_divided = cluster.strategy == "fsdp"
    if not has_begun:
        divide = "raise cluster.num_workers" if is_divided else "cluster.strategy fsdp"
        return f"end what else uses that memory, divide weights over more workers ({divide}), or {more}"
    helps = []
    share = -(-settings.batch_size // workers.world_size)  # the others pad theirs
    if (size := min(settings.microbatch_size or share, share)) > 1:
        helps.append(f"lower training.{stage.name}.microbatch_size (now {size})")
    if not stage.model_config.activation_checkpointing:
        network = "upsampler" if stage.is_upsampler else "base"
        helps.append(f"set models.{network}.activation_checkpointing to true")
    if workers.world_size > 1 and not is_divided:
        helps.append("divide weights over the workers (cluster.strategy fsdp)")
    return ", or ".join(helps or [more])


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
    failures = {rank: getattr(error, "health_check_failure", error) for rank, error in failures.items()}
    rank, error = min(failures.items(), key=lambda failure: (_distance(failure[1]), failure[0]))
    if isinstance(error, PitiError):
        return Cause(str(error), error)
    if isinstance(error, WorkerError):
        return Cause(error.line, None, None if error.is_others_fault else error.signature, error.remedy)
    if _is_rays(error):
        remedy = NODE_MEMORY_REMEDY if is_out_of_memory(error) else None
        return Cause(f"worker {rank} was lost: {lost_line(error)}", remedy=remedy)
    return Cause(f"{first_line(error)} (worker {rank}, before its first step)", None, first_line(error))


def lost_line(error: BaseException) -> str:
    """One line of Ray's error about a worker that died: its process, node and exit, or the memory monitor's reason."""
    told = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in told if line and not line.startswith(_UNTOLD))
    return f"{type(error).__name__}: {' '.join(text.split())}"[:_LONGEST_LOSS]


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
