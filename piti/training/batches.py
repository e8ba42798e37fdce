"""A run's batches: each worker's share of every step, on its device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from piti.data.examples import Degraded
from piti.data.loader import TrainingLoader
from piti.job import JobContext
from piti.training.divergence import left_out_steps
from piti.training.stages import Examples
from piti.training.state import TrainingState


@dataclass(frozen=True)
class Batch:
    """`keys` of the pictures, and what is learned from them."""

    keys: list[str]
    examples: Examples


class Batches:
    """From the step that `state` is at, without end. `keys` are those of the newest batch."""

    def __init__(self, context: JobContext, state: TrainingState) -> None:
        config, inputs, stage, workers = context.config, context.spec.inputs, state.stage, state.workers
        self._state, step = state, state.progress.step
        self._loader = TrainingLoader(
            inputs["shards"],
            config.data,
            degraded=degraded_input(context) if stage.is_upsampler else None,
            scale=config.scale,
            batch_size=stage.settings.batch_size,
            rank=workers.rank,
            world_size=workers.world_size,
            num_workers=config.cluster.loader_workers,
            seed=config.seed,
            start_sample=(step + left_out_steps(context.spec.output, step)) * stage.settings.batch_size,
        )
        self.keys: list[str] = []

    def __iter__(self) -> Iterator[Batch]:
        for loaded in self._loader:
            self.keys = loaded["keys"]
            yield Batch(self.keys, self._state.stage.examples(loaded, self._state.workers.device))

    @property
    def statistics(self) -> dict[str, Any]:
        """See `TrainingLoader.statistics`."""
        return self._loader.statistics


def degraded_input(context: JobContext) -> Degraded:
    """Companions that the degrade job stored, or the recipe by which pictures are degraded as they are read."""
    return context.spec.inputs.get("degraded", context.config.degradation)
