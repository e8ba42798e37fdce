"""Divergence: recognised where it first shows, and answered once by going back to a good checkpoint.

A run has diverged if too many steps in a row were skipped, or a validation or the weights of a checkpoint are not
finite. None of these is published. The run's next start goes on from the last good checkpoint, without the pictures
from there to where it was lost: `<run>/diverged.json` says how many steps of them. The second time, the run ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from piti import storage
from piti.checkpoints import Checkpoint, newest_whole_checkpoint
from piti.errors import DivergedError, PitiError
from piti.training.sharding import mine
from piti.training.state import TrainingState

MAX_SKIPPED_IN_A_ROW = 20
_FILE = "diverged.json"


def left_out_batches(run: str) -> range:
    """Places in the stream of batches that a run leaves out because it has diverged there: its steps pass over them."""
    try:
        told = storage.read_json(storage.join(run, _FILE))
    except FileNotFoundError:
        return range(0)
    return range(told["from_step"], told["from_step"] + told["steps"])


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers in them are finite; of divided ones, in this worker's parts."""
    parts = [mine(tensor) for tensor in tensors]
    numbers = [part for part in parts if part.is_floating_point() and part.numel()]
    return bool(torch.nn.utils.get_total_norm(numbers, norm_type=math.inf).isfinite())


class Divergence:
    """Checks a run's numbers. All workers must call each method with equal numbers, and all raise the same error.

    Each method raises DivergedError at the first divergence, PitiError at the second.
    """

    def __init__(self, run: str, state: TrainingState, wait_for_checkpoints: Callable[[], object]) -> None:
        self._run = run
        self._state = state
        self._wait_for_checkpoints = wait_for_checkpoints  # of those that are being written; all workers call it

    def check_steps(self) -> None:
        """Check the last steps: raise if too many in a row were skipped."""
        if (num_skipped := int(self._state.progress.skipped_in_a_row)) >= MAX_SKIPPED_IN_A_ROW:
            raise self._lost(f"the last {num_skipped} steps gave numbers that are not finite")

    def check_validation(self, values: Mapping[str, float]) -> None:
        """Check a validation before it is published."""
        if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
            raise self._lost(f"the validation's {' and '.join(wrong)} came out as no finite number")

    def check_weights(self) -> None:
        """Check the weights before a checkpoint is written."""
        state = self._state
        moments = [value for about in state.optimizer.state.values() for value in about.values()]
        finite = are_finite([*state.model.parameters(), *state.ema.averages.values(), *moments])
        if not all(state.workers.tell_all(finite)):
            raise self._lost("weights or their averages are no finite numbers")

    def is_doubtful(self) -> bool:
        """Whether the last step was skipped: a checkpoint now might hold a diverging state."""
        return bool(self._state.progress.skipped_in_a_row)

    def _lost(self, what: str) -> PitiError:
        workers, stage = self._state.workers, self._state.stage.name
        step = self._state.progress.step
        self._wait_for_checkpoints()  # the next start will find them
        good: int | None = workers.agree(self._go_back(step) if workers.is_first else None)
        if good is not None:
            return DivergedError(
                f"{stage} diverged at step {step}: {what}",
                f"it goes back to step {good} once and leaves out the pictures of the {step - good} steps since then",
            )
        remedy = f"lower training.{stage}'s learning_rate, set gradient_clip, or use precision fp32"
        return PitiError(f"{stage} diverged at step {step}: {what}", remedy)

    def _go_back(self, step: int) -> int | None:
        """Store which steps to leave out, and return the step to go back to; None if that was tried already or cannot
        help."""
        newest = newest_whole_checkpoint(self._run)
        good = 0 if newest is None else Checkpoint.at(newest).step
        if good >= step:
            return None
        told = {"from_step": good, "steps": step - good}
        if storage.exists(storage.join(self._run, _FILE)):
            return None
        storage.write_json(storage.join(self._run, _FILE), told)
        return good
