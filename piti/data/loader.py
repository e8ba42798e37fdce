"""Training and validation batches out of shards.

The stream is endless: epoch after epoch of the training split, each sample once an epoch, in an order that follows
from (seed, epoch) alone (see SampleOrder). Global step b takes positions [b * B, (b + 1) * B), B being the batch over
all ranks; rank r takes the r-th contiguous part of them (`part_of`). To resume, on any number of ranks and threads, a
position suffices.

A damaged sample keeps its position, and its batch is smaller by one: all ranks see what they would have seen, before and
after a resume, and a batch says at which places of the rank's part its samples stand. Where every sample of a rank's
part is damaged, the next readable sample of the stream stands in, since a training step needs at least one.
`statistics` counts both.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from piti.config import DataConfig
from piti.data.examples import Degraded, EpochSeed, Example, ExampleReader, Spent
from piti.data.shards import DamagedSample
from piti.errors import DataError, repair_advice
from piti.seeds import stable_hash

logger = logging.getLogger("piti")

Batch = dict[str, Any]
_AHEAD_BATCHES = 2
_LISTED_SKIPS = 100
_TRIED_STAND_INS = 1000
_WINDOW_SHARDS = 8  # shards that are mixed at a time: enough to shuffle, few enough for a local cache


def part_of(batch_size: int, rank: int, world_size: int) -> range:
    """Positions of a step that rank `rank` takes: contiguous, and as many as any other's or one less or more."""
    return range(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)


class SampleOrder:
    """Which sample the endless stream holds at each position; `shard` (n,) is the number of each sample's shard."""

    def __init__(self, shard: NDArray[np.int32], seed: int) -> None:
        self._samples_of = [np.flatnonzero(shard == number) for number in range(int(shard.max(initial=-1)) + 1)]
        self._seed = seed
        self.num_samples = len(shard)
        self._epoch_order = lru_cache(maxsize=2)(self._shuffle)

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, sample) at a position of the stream, all counted from 0."""
        epoch, place = divmod(position, self.num_samples)
        return epoch, int(self._epoch_order(epoch)[place])

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        """A permutation of the samples: shards in random order, then samples at random within windows of shards."""
        rng = np.random.default_rng(stable_hash("order", self._seed, epoch))
        shards = rng.permutation(len(self._samples_of))
        windows = []
        for first in range(0, len(shards), _WINDOW_SHARDS):
            window = np.concatenate([self._samples_of[number] for number in shards[first : first + _WINDOW_SHARDS]])
            windows.append(rng.permutation(window))
        return np.concatenate(windows)


@dataclass(frozen=True)
class Damage:
    """A sample that could not be read."""

    key: str
    reason: str


class TrainingLoader:
    """Iterates forever over a rank's batches of the training split.

    A batch is a dict: `image` (N, 3, S, S), `condition` (N, C, S, S), `keys` list of str, `places` list of N rising
    positions within this rank's part (gaps: damaged samples), and, where `degraded` is given (companions' URI, or a
    recipe that is applied as pictures are read), `low_res` (N, 3, s, s) with s = S // `scale`. All hold uint8, so that a
    quarter of the bytes goes to the device, where `piti.data.conditions.unit_range` makes them [-1, 1]. `batch_size`
    counts pictures of a step over all ranks; N is this rank's part of it unless samples were damaged. `start_sample` is
    a position in the stream of all ranks together, and `left_out` are positions, in whole steps, that no step takes.
    `num_workers` threads read ahead; with 0, a batch is read when it is asked for.

    Raises DataError where a set of shards is missing, was made for another config, or its companions do not match.
    """

    def __init__(
        self,
        shards: str,
        data: DataConfig,
        *,
        degraded: Degraded,
        scale: int,
        batch_size: int,
        rank: int,
        world_size: int,
        num_workers: int,
        seed: int,
        start_sample: int = 0,
        left_out: range = range(0),
    ) -> None:
        if not 0 <= rank < world_size <= batch_size or start_sample < 0 or num_workers < 0:
            raise ValueError(
                f"{rank=}, {world_size=}, {batch_size=}, {start_sample=}, {num_workers=} do not fit together"
            )
        self._uri = shards
        self._examples = ExampleReader(shards, "train", data, degraded, scale)
        self._order = SampleOrder(self._examples.shard, seed)
        self._seed = seed
        self._batch_size, self._part = batch_size, part_of(batch_size, rank, world_size)
        self._num_workers = num_workers
        self._start_sample, self._left_out = start_sample, left_out
        self._num_read = self._num_skipped = self._num_substituted = 0
        self._skipped: deque[dict[str, str]] = deque(maxlen=_LISTED_SKIPS)

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, over all ranks."""
        return len(self._examples)

    @property
    def spent(self) -> Spent:
        """What its threads spent their time on."""
        return self._examples.spent

    @property
    def statistics(self) -> dict[str, Any]:
        """Counts of this rank so far: samples read, samples skipped as damaged (the last hundred with key and reason),
        and samples that stood in where a whole part was damaged.
        """
        return {
            "samples_read": self._num_read, "samples_skipped": self._num_skipped,
            "samples_substituted": self._num_substituted, "skipped": list(self._skipped),
        }  # fmt: skip

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `start_sample` on; a second iterator begins there again."""
        parts = self._parts()
        if self._num_workers == 0:
            for part in parts:
                yield self._batch(part, [self._load(position) for position in part])
        with ThreadPoolExecutor(self._num_workers, thread_name_prefix="piti-loader") as pool:
            ahead: deque[tuple[range, list[Future[Example | Damage]]]] = deque()
            try:
                for part in parts:
                    ahead.append((part, [pool.submit(self._load, position) for position in part]))
                    if len(ahead) > _AHEAD_BATCHES:
                        first, futures = ahead.popleft()
                        yield self._batch(first, [future.result() for future in futures])
            finally:
                pool.shutdown(cancel_futures=True)

    def _parts(self) -> Iterator[range]:
        """This rank's positions of each global step."""
        first = self._start_sample
        while True:
            if first in self._left_out:
                first = self._left_out.stop
            yield range(first + self._part.start, first + self._part.stop)
            first += self._batch_size

    def _load(self, position: int) -> Example | Damage:
        epoch, number = self._order.at(position)
        try:
            return self._examples.example(number, EpochSeed(self._seed, epoch))
        except DamagedSample as error:
            return Damage(self._examples.keys[number], str(error))

    def _batch(self, part: range, loaded: Sequence[Example | Damage]) -> Batch:
        found = {place: entry for place, entry in enumerate(loaded) if isinstance(entry, Example)}
        for entry in loaded:
            if isinstance(entry, Damage):
                self._num_skipped += 1
                self._skipped.append({"key": entry.key, "reason": entry.reason})
                logger.warning("skipped damaged sample %s: %s", entry.key, entry.reason)
        if not found:
            found = {0: self._stand_in(part.stop)}
            self._num_substituted += 1
        self._num_read += len(found)
        return {**collate(list(found.values())), "places": list(found)}

    def _stand_in(self, first: int) -> Example:
        last = ""
        for position in range(first, first + _TRIED_STAND_INS):
            entry = self._load(position)
            if isinstance(entry, Example):
                return entry
            last = f"{entry.key}: {entry.reason}"
        raise DataError(f"{_TRIED_STAND_INS} samples in a row are damaged, the last, {last}", repair_advice(self._uri))


def validation_batches(
    examples: ExampleReader, *, batch_size: int, limit: int | None, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """A rank's batches of the validation split, once: fixed order, not flipped, central crop, degraded variant 0.

    Batches are as in TrainingLoader, the last may be smaller. The first `limit` samples are used (None: all); global
    step b takes [b * B, (b + 1) * B) of them, rank r the r-th part, which may be empty at the end (no batch then).
    Damaged samples are left out with a warning. Raises AwayError where the set is out of reach for minutes.
    """
    count = len(examples) if limit is None else min(limit, len(examples))
    for first in range(rank * batch_size, count, batch_size * world_size):
        batch: list[Example] = []
        for number in range(first, min(first + batch_size, count)):
            try:
                batch.append(examples.example(number, None))
            except DamagedSample as error:
                logger.warning("left out damaged sample %s: %s", examples.keys[number], error)
        if batch:
            yield collate(batch)


def collate(examples: Sequence[Example]) -> Batch:
    """Examples stacked to a batch; see TrainingLoader."""
    batch: Batch = {
        "image": torch.stack([example.image for example in examples]),
        "condition": torch.stack([example.condition for example in examples]),
        "keys": [example.key for example in examples],
    }
    low_res = [example.low_res for example in examples if example.low_res is not None]
    if low_res:
        batch["low_res"] = torch.stack(low_res)
    return batch
