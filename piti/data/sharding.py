"""From a source's items to one published shard: which items belong together, and what is stored of each."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from piti.config import DataConfig
from piti.data.conditions import encode_condition
from piti.data.geometry import Modality, shrink_condition, shrink_photograph
from piti.data.shard_sizes import num_shards
from piti.data.shards import ShardStats, ShardWriter
from piti.data.sketch import detect_sketch, sketch_record
from piti.data.sources import SPLITS, FilteredItem, Item, LoadedItem, RawCondition, RejectedItem, Source, Split
from piti.data.sources.trees import shared_listings
from piti.data.spilled_items import SpilledItems
from piti.data.tars import shard_name
from piti.errors import DataError, PitiError
from piti.provenance import FORMAT_VERSIONS

_JPEG_QUALITY = 95
_READ_TOGETHER_BYTES, _GROUPS_AHEAD = 2**21, 2  # of local files
_DISK_BLOCK_BYTES = 4096
_REMOTE_READERS = 8  # a server answers several requests in the time of one
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 6]
_Outcome = tuple[Item, LoadedItem | RejectedItem]  # an item, and what it loads as or why it cannot


@dataclass(frozen=True)
class ShardPlan:
    """The items of one shard, each pickled. `plan` changes with anything that could change its bytes."""

    name: str
    split: Split
    plan: str
    packed: list[bytes]

    @property
    def num_items(self) -> int:
        return len(self.packed)

    @property
    def items(self) -> list[Item]:
        """Unpacked anew each time."""
        return [pickle.loads(item) for item in self.packed]


class ShardPlans:
    """The plans of all shards, each made when its turn comes, as often as asked: the items wait on disk.

    `digests` maps names to `ShardPlan.plan`, in order. `num_items`: how many there are in each split; `num_not_drawn`
    more were found, and left out by `data.max_samples`.
    """

    def __init__(self, spilled: Mapping[Split, SpilledItems], data: DataConfig) -> None:
        self._spilled = spilled
        self.num_items: dict[Split, int] = {split: len(items) for split, items in spilled.items()}
        self._num_shards = {split: num_shards(len(items), items.mean_bytes, data) for split, items in spilled.items()}
        self.num_not_drawn = sum(items.num_not_drawn for items in spilled.values())
        settings, self.digests = _settings(data), {}
        for split, number, name in self._every_shard():
            lines = spilled[split].lines(number, self._num_shards[split])
            if lines:
                self.digests[name] = hashlib.sha256(b"".join([settings, *lines])).hexdigest()

    def __len__(self) -> int:
        return len(self.digests)

    def __iter__(self) -> Iterator[ShardPlan]:
        return self.only(self.digests)

    def only(self, names: Collection[str]) -> Iterator[ShardPlan]:
        """The plans of the named shards."""
        for split, number, name in self._every_shard():
            if name in names and name in self.digests:
                packed = self._spilled[split].packed(number, self._num_shards[split])
                yield ShardPlan(name, split, self.digests[name], packed)

    def _every_shard(self) -> Iterator[tuple[Split, int, str]]:
        for split in self._spilled:
            for number in range(self._num_shards[split]):
                yield split, number, shard_name(split, number)


def plan_shards(source: Source, data: DataConfig, seed: int) -> ShardPlans:
    """Divide everything a source found among shards; how many see `shard_sizes.num_shards`.

    An item's shard follows from a hash of its key and the number of shards, so that neighbours in the dataset are
    spread out, and one item more changes one shard as long as the number of shards stays. `data.max_samples` keeps
    that many training items, drawn by `seed`; validation stays whole. Raises DataError where a split is empty.
    """
    spilled: dict[Split, SpilledItems] = {}
    with shared_listings():
        for split in SPLITS:
            spilled[split] = SpilledItems(source.items(split), data.max_samples if split == "train" else None, seed)
            if not len(spilled[split]):
                raise DataError(f"data.source has no items for the {split} split", "look at the paths in data.source")
    return ShardPlans(spilled, data)


def _settings(data: DataConfig) -> bytes:
    """What of the config could change a shard's bytes."""
    settings = {
        "version": FORMAT_VERSIONS["shard"], "modality": data.modality, "num_classes": data.num_classes,
        "image_size": data.image_size, "geometry": data.geometry, "jpeg_quality": _JPEG_QUALITY,
        "detector": sketch_record(data.sketch), "require_classes": data.require_classes,
        "conditions_follow_exif": data.conditions_follow_exif, "check": data.check,
    }  # fmt: skip
    return json.dumps(settings, sort_keys=True).encode()


def write_shard(plan: ShardPlan, data: DataConfig, uri: str) -> ShardStats:
    """Load a shard's items, store them at `uri` and publish the shard. Same plan, same bytes.

    Raises DataError where a disk is full, or an item cannot be read for a reason that is not its own.
    """
    cv2.setNumThreads(1)  # a shard is one core's work; others run beside it
    with ShardWriter(uri, plan.name, plan.plan) as writer:
        for item, loaded in _read_ahead(plan.items):
            try:
                if isinstance(loaded, RejectedItem):
                    raise loaded
                members = sample_members(item, loaded, data)
            except FilteredItem as reason:
                writer.leave_out(item.key, str(reason), source=item.origin)
                continue
            except RejectedItem as reason:
                writer.reject(item.key, str(reason), source=item.origin)
                continue
            height, width = loaded.shape[:2]
            writer.add(item.key, members, source=item.origin, width=width, height=height)
        return writer.publish()


def _read_ahead(items: Sequence[Item]) -> Iterator[_Outcome]:
    """Items in order, the next ones being read meanwhile: a core does not wait for the disk, nor for a server."""
    return _from_server(items) if any(item.is_remote for item in items) else _from_disk(items)


def _from_server(items: Iterable[Item]) -> Iterator[_Outcome]:
    with _readers(_REMOTE_READERS) as pool:
        ahead: deque[Future[_Outcome]] = deque()
        for item in items:
            ahead.append(pool.submit(_loaded, item))
            if len(ahead) == 1:
                wait(ahead)  # the first of all lists an archive for those that follow
            if len(ahead) > _REMOTE_READERS:
                yield ahead.popleft().result()
        for last in ahead:
            yield last.result()


def _from_disk(items: Iterable[Item]) -> Iterator[_Outcome]:
    """The disk is told what comes next, a group at a time: a thread that is woken for each file costs more than reading
    it does.
    """
    with _readers(1) as pool:
        ahead: deque[tuple[list[Item], Future[None]]] = deque()
        for group in _groups(items):
            ahead.append((group, pool.submit(_read_soon, group)))
            if len(ahead) > _GROUPS_AHEAD:
                yield from _loaded_group(*ahead.popleft())
        for last in ahead:
            yield from _loaded_group(*last)


@contextmanager
def _readers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are gone afterwards, and what they have not begun yet is never done."""
    pool = ThreadPoolExecutor(count, "piti-reader")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in order, as many together as fill `_READ_TOGETHER_BYTES` of a disk's blocks."""
    group: list[Item] = []
    waiting_bytes = 0
    for item in items:
        group.append(item)
        waiting_bytes += max(item.size_bytes, _DISK_BLOCK_BYTES)
        if waiting_bytes >= _READ_TOGETHER_BYTES:
            yield group
            group, waiting_bytes = [], 0
    if group:
        yield group


def _read_soon(group: Iterable[Item]) -> None:
    for item in group:
        with suppress(OSError, PitiError):  # an archive's listing: `load` will meet the same, and knows what to do
            item.read_soon()


def _loaded_group(group: Iterable[Item], is_told: Future[None]) -> Iterator[_Outcome]:
    is_told.result()
    return map(_loaded, group)


def _loaded(item: Item) -> _Outcome:
    """An item with what it loads as, or why it is rejected."""
    try:
        return item, item.load()
    except RejectedItem as reason:
        return item, reason


def sample_members(item: Item, loaded: LoadedItem, data: DataConfig) -> dict[str, bytes]:
    """The files of one sample: suffix to content, picture first, JSON last. Raises RejectedItem, FilteredItem.

    A picture whose size does not change keeps its own bytes where any decoder reads them alike; otherwise it is
    stored as PNG, or as JPEG of quality 95 if its file was lossy to begin with.
    """
    _check_classes(loaded, data)
    whole = data.geometry == "random" or loaded.shape[:2] == (data.image_size, data.image_size)
    original = loaded.original if whole else None
    has_condition = loaded.condition is not None or loaded.stored_condition is not None
    by_headers = loaded.stored_condition is not None and loaded.condition is None
    image: NDArray[np.uint8] | None = None
    if original is not None and has_condition:  # nothing here reads the picture's pixels
        members = {original[1]: original[0]}
        if data.check == "headers" and loaded.seems_whole:
            by_headers = True
        else:
            loaded.check()
    else:
        image = loaded.image
        if data.geometry != "random" and not whole:
            image = shrink_photograph(image, data.geometry, data.image_size)
        members = _picture_member(image, loaded, original)
    members |= _condition_members(loaded, image, data)
    about: dict[str, Any] = {
        "key": item.key, "source": item.origin, "width": loaded.shape[1], "height": loaded.shape[0],
        "geometry": data.geometry, "modality": data.modality, "bytes_kept": original is not None,
        "check": "headers" if by_headers else "pixels", **loaded.provenance,
    }  # fmt: skip
    if data.modality == "sketch":
        about["sketch"] = {"name": "given"} if has_condition else sketch_record(data.sketch)
    if data.modality == "mask":
        about["num_classes"] = data.num_classes
    members["json"] = json.dumps(about, sort_keys=True).encode()
    return members


def _check_classes(loaded: LoadedItem, data: DataConfig) -> None:
    """Raise FilteredItem where a mask shows none of `data.require_classes`."""
    if data.require_classes is None or loaded.condition is None:
        return
    if not np.isin(loaded.condition.values, data.require_classes).any():
        raise FilteredItem("shows none of data.require_classes")


def _condition(loaded: LoadedItem, image: NDArray[np.uint8] | None, data: DataConfig) -> RawCondition:
    """The condition at the size of the stored picture, `image`, in which a missing sketch is detected."""
    if loaded.condition is not None:
        return shrink_condition(loaded.condition, data.modality, data.geometry, data.image_size, loaded.shape)
    if data.modality != "sketch" or image is None:
        raise RejectedItem(f"no condition for modality {data.modality}")
    return RawCondition(detect_sketch(image, data.sketch))


def _picture_member(
    image: NDArray[np.uint8], loaded: LoadedItem, original: tuple[bytes, str] | None
) -> dict[str, bytes]:
    if original is not None:
        return {original[1]: original[0]}
    if loaded.lossy:
        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        return {"jpg": _encode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)}
    return {"png": encode_png(image)}


def _condition_members(loaded: LoadedItem, image: NDArray[np.uint8] | None, data: DataConfig) -> dict[str, bytes]:
    """The files of the condition; `image` is the stored picture, None where it is not decoded."""
    if loaded.stored_condition is not None:
        return {"cond.png": loaded.stored_condition}
    stored = encode_condition(_condition(loaded, image, data), data.modality)
    members = {"cond.png": encode_condition_png(stored.values, data.modality)}
    if stored.normals is not None:
        members["normal.png"] = encode_png(stored.normals)
    return members


def encode_condition_png(values: NDArray[Any], modality: Modality) -> bytes:
    """PNG of a stored condition (H, W).

    Labels and edges lie in runs and go on in the next row: written as runs of what differs from the row above they
    become smaller than by looking for any repetition, in less than half the time, and are read the fastest. Sketches
    take one bit a pixel; decoders widen it.
    """
    if modality == "geometry":
        return encode_png(values)
    runs = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    return _encode(".png", values, [*runs, cv2.IMWRITE_PNG_BILEVEL, int(modality == "sketch")])


def encode_png(values: NDArray[Any]) -> bytes:
    """PNG of uint8 or uint16 (H, W), or (H, W, 3) in RGB order."""
    ordered = values if values.ndim == 2 else cv2.cvtColor(values, cv2.COLOR_RGB2BGR)
    return _encode(".png", ordered, _PNG_OPTIONS)


def _encode(suffix: str, values: NDArray[Any], options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, np.ascontiguousarray(values), options)
    if not done:
        raise ValueError(f"OpenCV cannot encode {values.dtype} {values.shape} as {suffix}")
    return bytes(data.tobytes())
