"""A run's batches: each worker's share of every step, on its device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from piti.data.examples import Degraded
from piti.data.loader import TrainingLoader
from piti.job import JobContext
from piti.training.divergence import left_out_batches
from piti.training.stages import Examples
from piti.training.state import TrainingState


@dataclass(frozen=True)
class Batch:
    """`keys` of the pictures, and what is learned from them."""

    keys: list[str]
    examples: Examples


class Batches:
    """Endless batches from the step of `state` on, without those where the run has diverged. `keys` are those of the
    newest batch."""

    def __init__(self, context: JobContext, state: TrainingState) -> None:
        config, inputs, stage, workers = context.config, context.spec.inputs, state.stage, state.workers
        batch_size = stage.settings.batch_size
        self._state = state
        self._left_out = left_out_batches(context.spec.output)
        self._loader = TrainingLoader(
            inputs["shards"],
            config.data,
            degraded=degraded_input(context) if stage.is_upsampler else None,
            scale=config.scale,
            batch_size=batch_size,
            rank=workers.rank,
            world_size=workers.world_size,
            num_workers=config.cluster.loader_workers,
            seed=config.seed,
            start_sample=(state.progress.step + self.left_out_steps) * batch_size,
            left_out=range(self._left_out.start * batch_size, self._left_out.stop * batch_size),
        )
        self._num_threads = config.cluster.loader_workers
        self.keys: list[str] = []
        self.waited_seconds = 0.0  # for pictures, so far

    def __iter__(self) -> Iterator[Batch]:
        loaded_batches = iter(self._loader)
        while True:
            began_seconds = time.monotonic()
            loaded = next(loaded_batches)
            self.waited_seconds += time.monotonic() - began_seconds
            self.keys = loaded["keys"]
            yield Batch(self.keys, self._state.stage.examples(loaded, self._state.workers.device))

    @property
    def left_out_steps(self) -> int:
        """The number of batches before the next step's that were left out."""
        return len(self._left_out) if self._state.progress.step >= self._left_out.start else 0

    def why_waiting(self) -> str:
        """The likely cause of waiting for pictures, and its remedy."""
        spent = self._loader.spent
        reading, decoding = spent.reading_seconds, spent.decoding_seconds
        share = f"{100 * max(reading, decoding) / max(reading + decoding, 1e-9):.0f} % of the loader's time"
        if self._num_threads == 0:
            return "nothing is read ahead: raise cluster.loader_workers (0)"
        more = f"raise cluster.loader_workers ({self._num_threads})"
        if reading > decoding:
            return f"{share} is reading from storage: {more}, or bring the shards nearer"
        return f"{share} is decoding: {more} and cluster.cpus_per_worker"

    @property
    def statistics(self) -> dict[str, Any]:
        """See `TrainingLoader.statistics`."""
        return self._loader.statistics


def degraded_input(context: JobContext) -> Degraded:
    """URI of the companions that the degrade job stored, or the config for degrading pictures while they are read."""
    return context.spec.inputs.get("degraded", context.config.degradation)
