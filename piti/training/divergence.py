"""A run whose numbers are lost: recognised where it first shows, taken back once to what was good.

It shows in too many steps in a row that had to be left out, in a validation, or in the weights that a checkpoint would
hold. None of these is published. The run's next start goes on from the last good checkpoint, without the pictures from
there to where it was lost: `<run>/diverged.json` says how many steps of them. The second time, the run ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from piti import storage
from piti.checkpoints import newest_step
from piti.errors import DivergedError, PitiError
from piti.training.state import TrainingState

MAX_SKIPPED_IN_A_ROW = 20
_FILE = "diverged.json"


def left_out_steps(run: str, step: int) -> int:
    """How many steps' pictures a run that is at `step` has left out, because it was lost in them."""
    try:
        told = storage.read_json(storage.join(run, _FILE))
    except FileNotFoundError:
        return 0
    return int(told["steps"]) if step >= told["from_step"] else 0


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number in any of them is infinite or not a number."""
    numbers = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return bool(torch.nn.utils.get_total_norm(numbers, norm_type=math.inf).isfinite())


class Divergence:
    """Looks at a run's numbers. They are equal on all workers, who all call this and all raise the same.

    Each method raises DivergedError the first time that numbers are lost, PitiError the second.
    """

    def __init__(self, run: str, state: TrainingState) -> None:
        self._run = run
        self._state = state

    def check_steps(self) -> None:
        """Whether the last steps could be used."""
        if (num_skipped := int(self._state.progress.skipped_in_a_row)) >= MAX_SKIPPED_IN_A_ROW:
            raise self._lost(f"the last {num_skipped} steps gave numbers that are not finite")

    def check_validation(self, values: Mapping[str, float]) -> None:
        """Whether a validation, before anybody hears of it, is of use."""
        if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
            raise self._lost(f"the validation's {' and '.join(wrong)} came out as no finite number")

    def check_weights(self) -> None:
        """Whether a checkpoint of the present state would be good."""
        state = self._state
        moments = [value for about in state.optimizer.state.values() for value in about.values()]
        if not are_finite([*state.model.parameters(), *state.ema.model.parameters(), *moments]):
            raise self._lost("weights or their averages are no finite numbers")

    def is_doubtful(self) -> bool:
        """Whether the last step could not be used: a checkpoint now might keep what is being lost."""
        return bool(self._state.progress.skipped_in_a_row)

    def _lost(self, what: str) -> PitiError:
        workers, stage = self._state.workers, self._state.stage.name
        step = self._state.progress.step
        good: int | None = workers.agree(self._go_back(step) if workers.is_first else None)
        if good is not None:
            return DivergedError(
                f"{stage} diverged at step {step}: {what}",
                f"it goes back to step {good} once and leaves out the pictures of the {step - good} steps since then",
            )
        remedy = f"lower training.{stage}'s learning_rate, set gradient_clip, or use precision fp32"
        return PitiError(f"{stage} diverged at step {step}: {what}", remedy)

    def _go_back(self, step: int) -> int | None:
        """Remember what to leave out, and give the step to go back to; None where that was tried, or is no help."""
        good = max(0, newest_step(self._run))
        if good >= step:
            return None
        told = {"from_step": good, "steps": step - good}
        if storage.exists(storage.join(self._run, _FILE)):
            return None
        storage.write_json(storage.join(self._run, _FILE), told)
        return good
