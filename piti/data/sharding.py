"""From a source's items to one published shard: which items belong together, and what is stored of each."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from piti.config import DataConfig, Modality
from piti.data.conditions import encode_condition
from piti.data.items import SPLITS, FilteredItem, Item, LoadedItem, RawCondition, RejectedItem, Source, Split
from piti.data.manifest import ShardStats
from piti.data.publishing import ShardWriter, published_shards, write_manifest
from piti.data.resizing import shrink_condition, shrink_photograph
from piti.data.shards import ShardSet
from piti.data.sketch import detect_sketch, sketch_record
from piti.data.sources import open_source
from piti.data.sources.trees import shared_listings
from piti.data.tars import shard_name
from piti.errors import DataError
from piti.provenance import FORMAT_VERSIONS
from piti.seeds import stable_hash

_JPEG_QUALITY = 95
_REMOTE_READERS = 8  # a server answers several requests in the time of one
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 6]
_Outcome = tuple[Item, LoadedItem | RejectedItem]  # an item, and what it loads as or why it cannot


@dataclass(frozen=True)
class ShardPlan:
    """The items of one shard. `plan` changes with anything that could change its bytes."""

    name: str
    split: Split
    plan: str
    items: list[Item]


@dataclass(frozen=True)
class ShardPlans:
    """The plans of all shards, by name and in order.

    `num_items`: how many items each split has. `num_not_drawn` more were found and left out by `data.max_samples`.
    """

    shards: Mapping[str, ShardPlan]
    num_items: Mapping[Split, int]
    num_not_drawn: int

    def __iter__(self) -> Iterator[ShardPlan]:
        return iter(self.shards.values())

    @property
    def digests(self) -> dict[str, str]:
        """Names of the shards to `ShardPlan.plan`, in order."""
        return {name: shard.plan for name, shard in self.shards.items()}


def plan_shards(source: Source, data: DataConfig, seed: int, splits: Sequence[Split] = SPLITS) -> ShardPlans:
    """Divide everything a source found for `splits` among shards.

    An item's shard follows from a hash of its key and the number of shards, so that neighbours in the dataset are
    spread out, and one item more changes one shard as long as the number of shards stays. `data.max_samples` keeps
    that many training items, drawn by `seed`; validation stays whole. Raises DataError where a split is empty.
    """
    shards: dict[str, ShardPlan] = {}
    num_items: dict[Split, int] = {}
    num_not_drawn = 0
    with shared_listings():
        for split in splits:
            found = list(source.items(split))
            if not found:
                raise DataError(f"data.source has no items for the {split} split", "look at the paths in data.source")
            drawn = found if split == "validation" else _drawn(found, data.max_samples, seed)
            num_items[split] = len(drawn)
            num_not_drawn += len(found) - len(drawn)
            shards |= {plan.name: plan for plan in _divided(drawn, split, data)}
    return ShardPlans(shards, num_items, num_not_drawn)


def _drawn(items: list[Item], count: int | None, seed: int) -> list[Item]:
    """`count` of the items, drawn by hashes of `seed` and key; all of them where there are fewer, or for None."""
    if count is None or count >= len(items):
        return items
    return sorted(items, key=lambda item: stable_hash("subset", seed, item.key))[:count]


def _divided(items: list[Item], split: Split, data: DataConfig) -> Iterator[ShardPlan]:
    """The plans of a split's shards. The hash of a key decides its shard, another its place there."""
    count = -(-len(items) // data.samples_per_shard)
    members: list[list[Item]] = [[] for _ in range(count)]
    for item in items:
        members[stable_hash("shard", item.key) * count >> 64].append(item)
    settings = _settings(data)
    for number, unordered in enumerate(members):
        if unordered:
            ordered = sorted(unordered, key=lambda item: stable_hash("order", item.key))
            digest = hashlib.sha256(settings)
            for item in ordered:
                digest.update(f"{item.key}|{item.identity}\n".encode("utf-8", "surrogateescape"))
            yield ShardPlan(shard_name(split, number), split, digest.hexdigest(), ordered)


def _settings(data: DataConfig) -> bytes:
    """The settings that decide a shard's bytes."""
    settings = {
        "version": FORMAT_VERSIONS["shard"], "modality": data.modality, "num_classes": data.num_classes,
        "image_size": data.image_size, "geometry": data.geometry, "jpeg_quality": _JPEG_QUALITY,
        "detector": sketch_record(data.sketch), "require_classes": data.require_classes,
        "sketch_invert": data.sketch.invert,
    }  # fmt: skip
    return json.dumps(settings, sort_keys=True).encode()


def shard_dataset(data: DataConfig, uri: str, seed: int = 0) -> ShardSet:
    """Shard a dataset in this process, one shard after the other: what the job `shard` leaves at `uri`.

    Shards that are there with the same plan stay. Raises DataError as `plan_shards` and `write_shard` do.
    """
    plans = plan_shards(open_source(data), data, seed)
    finished = published_shards(uri, plans.digests)
    for plan in plans:
        if plan.name not in finished:
            write_shard(plan, data, uri)
    finish_set(plans, data, uri)
    return ShardSet(uri)


def finish_set(plans: ShardPlans, data: DataConfig, uri: str) -> dict[str, ShardStats]:
    """Publish the manifest of a set whose shards are all there."""
    about = {name: getattr(data, name) for name in ("modality", "num_classes", "image_size", "geometry")}
    return write_manifest(uri, list(plans.digests), about)


def write_shard(plan: ShardPlan, data: DataConfig, uri: str) -> ShardStats:
    """Load a shard's items, store them at `uri` and publish the shard. Same plan, same bytes.

    Raises DataError where a disk is full, or an item cannot be read for a reason that is not its own.
    """
    cv2.setNumThreads(1)  # a shard is one core's work; others run beside it
    with ShardWriter(uri, plan.name, plan.plan) as writer:
        for item, loaded in _in_order(plan.items):
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
            height, width = loaded.image.shape[:2]
            writer.add(item.key, members, source=item.origin, width=width, height=height, oddity=loaded.oddity)
        return writer.publish()


def _in_order(items: Sequence[Item]) -> Iterator[_Outcome]:
    """Items with what they load as. A server is asked for several at once; a local file is read when its turn comes."""
    if not any(item.is_remote for item in items):
        yield from map(_loaded, items)
        return
    with ThreadPoolExecutor(_REMOTE_READERS, "piti-reader") as pool:
        ahead: deque[Future[_Outcome]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(_loaded, item))
                if len(ahead) == 1:
                    wait(ahead)  # the first item lists an archive, which the others then share
                if len(ahead) > _REMOTE_READERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _loaded(item: Item) -> _Outcome:
    """An item with what it loads as, or why it is rejected."""
    try:
        return item, item.load()
    except RejectedItem as reason:
        return item, reason


def sample_members(item: Item, loaded: LoadedItem, data: DataConfig) -> dict[str, bytes]:
    """The files of one sample: suffix to content. Raises RejectedItem, FilteredItem.

    A picture whose size does not change keeps its own bytes where any decoder reads them alike; otherwise it is
    stored as PNG, or as JPEG of quality 95 if its file was lossy to begin with.
    """
    _check_classes(loaded, data)
    image = loaded.image
    keeps_size = data.geometry == "random" or image.shape[:2] == (data.image_size, data.image_size)
    original = loaded.original if keeps_size else None
    if data.geometry != "random" and not keeps_size:
        image = shrink_photograph(image, data.geometry, data.image_size)
    members = _picture_member(image, loaded, original)
    members |= _condition_members(loaded, image, data)
    about: dict[str, Any] = {
        "key": item.key, "source": item.origin, "width": loaded.image.shape[1], "height": loaded.image.shape[0],
        "geometry": data.geometry, "modality": data.modality, "bytes_kept": original is not None, **loaded.provenance,
    }  # fmt: skip
    if data.modality == "sketch":
        about["sketch"] = {"name": "given"} if loaded.condition is not None else sketch_record(data.sketch)
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


def _condition(loaded: LoadedItem, image: NDArray[np.uint8], data: DataConfig) -> RawCondition:
    """The condition at the size of the stored picture, `image`, in which a missing sketch is detected."""
    if loaded.condition is not None:
        return shrink_condition(loaded.condition, data.modality, data.geometry, data.image_size, loaded.image.shape)
    if data.modality != "sketch":
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


def _condition_members(loaded: LoadedItem, image: NDArray[np.uint8], data: DataConfig) -> dict[str, bytes]:
    """The files of the condition; `image` is the stored picture."""
    stored = encode_condition(_condition(loaded, image, data), data.modality)
    members = {"cond.png": encode_condition_png(stored.values, data.modality)}
    if stored.normals is not None:
        members["normal.png"] = encode_png(stored.normals)
    return members


def encode_condition_png(values: NDArray[Any], modality: Modality) -> bytes:
    """PNG of a stored condition (H, W).

    Labels and edges lie in runs that go on in the next row, so they are stored as runs of what differs from the row
    above: smaller than what the default finds, and faster to write and to read. Sketches take one bit a pixel;
    decoders widen it.
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
