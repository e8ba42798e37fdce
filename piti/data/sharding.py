"""From a source's items to one published shard: which items belong together, and what is stored of each."""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from piti import storage
from piti.config import DataConfig
from piti.data.conditions import StoredCondition, encode_condition
from piti.data.geometry import Modality, shrink_condition, shrink_photograph
from piti.data.shards import ShardStats, ShardWriter
from piti.data.sketch import detect_sketch, sketch_record
from piti.data.sources import SPLITS, FilteredItem, Item, LoadedItem, RawCondition, RejectedItem, Source, Split
from piti.data.sources.keys import stable_hash
from piti.data.tars import shard_name
from piti.errors import DataError

_FORMAT_VERSION = 3
_JPEG_QUALITY = 95
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 6]


@dataclass(frozen=True)
class ShardPlan:
    """The items of one shard, packed: a source has many. `plan` changes with anything that could change its bytes."""

    name: str
    split: Split
    num_items: int
    packed: bytes
    plan: str

    @classmethod
    def of(cls, name: str, split: Split, items: list[Item], data: DataConfig) -> ShardPlan:
        packed = zlib.compress(pickle.dumps(items, pickle.HIGHEST_PROTOCOL), 1)
        return cls(name, split, len(items), packed, _plan(items, data))

    @property
    def items(self) -> list[Item]:
        """Unpacked anew each time."""
        items: list[Item] = pickle.loads(zlib.decompress(self.packed))
        return items


@storage.disk_space("the plan of shards", tempfile.gettempdir)
def plan_shards(source: Source, data: DataConfig, seed: int) -> list[ShardPlan]:
    """Divide everything a source found among shards of about `data.samples_per_shard` items.

    An item's shard follows from a hash of its key and the number of shards, so that neighbours in the dataset are
    spread out, and one item more changes one shard as long as the number of shards stays. `data.max_samples` keeps
    that many training items, drawn by `seed`; validation stays whole. Raises DataError where a split is empty.
    """
    plans: list[ShardPlan] = []
    for split in SPLITS:
        with tempfile.TemporaryFile() as spill:
            few = data.max_samples if split == "train" else None
            found = _spill_items(source.items(split), spill, None if few is None else seed)
            if not found.offset.size:
                raise DataError(f"data.source has no items for the {split} split", "look at the paths in data.source")
            chosen = np.arange(found.offset.size)
            if few is not None:
                chosen = np.argsort(found.subset_hash, kind="stable")[:few]
            plans += _divide(spill, found, chosen, split, data)
    return plans


@dataclass(frozen=True)
class _Spilled:
    """Items in a file: where each lies, and the hashes of its key that decide on its shard and its place there.

    `subset_hash` decides whether it belongs to a few-shot subset; empty where there is none.
    """

    offset: NDArray[np.uint64]
    shard_hash: NDArray[np.uint64]
    order_hash: NDArray[np.uint64]
    subset_hash: NDArray[np.uint64]


def _spill_items(items: Iterable[Item], spill: IO[bytes], subset_seed: int | None) -> _Spilled:
    columns = offset, shard_hash, order_hash, subset_hash = array("Q"), array("Q"), array("Q"), array("Q")
    for item in items:
        offset.append(spill.tell())
        shard_hash.append(stable_hash("shard", item.key))
        order_hash.append(stable_hash("order", item.key))
        if subset_seed is not None:
            subset_hash.append(stable_hash("subset", subset_seed, item.key))
        pickle.dump(item, spill, pickle.HIGHEST_PROTOCOL)
    return _Spilled(*(np.frombuffer(column, dtype=np.uint64) for column in columns))


def _spilled(spill: IO[bytes], found: _Spilled, number: int) -> Item:
    spill.seek(int(found.offset[number]))
    item: Item = pickle.load(spill)
    return item


def _divide(
    spill: IO[bytes], found: _Spilled, chosen: NDArray[np.intp], split: Split, data: DataConfig
) -> list[ShardPlan]:
    count = -(-chosen.size // data.samples_per_shard)
    shard = np.array([(int(value) * count) >> 64 for value in found.shard_hash[chosen]], dtype=np.int64)
    order = np.lexsort((found.order_hash[chosen], shard))
    bounds = np.searchsorted(shard[order], np.arange(count + 1))
    plans = []
    for number in range(count):
        bucket = chosen[order[bounds[number] : bounds[number + 1]]]
        if bucket.size:
            items = [_spilled(spill, found, int(entry)) for entry in bucket]
            plans.append(ShardPlan.of(shard_name(split, number), split, items, data))
    return plans


def _plan(items: list[Item], data: DataConfig) -> str:
    settings = {
        "version": _FORMAT_VERSION, "modality": data.modality, "num_classes": data.num_classes,
        "image_size": data.image_size, "geometry": data.geometry, "jpeg_quality": _JPEG_QUALITY,
        "detector": sketch_record(data.sketch), "require_classes": data.require_classes,
        "conditions_follow_exif": data.conditions_follow_exif,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for item in items:
        digest.update(f"{item.key}|{item.identity}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def write_shard(plan: ShardPlan, data: DataConfig, uri: str) -> ShardStats:
    """Load a shard's items, store them at `uri` and publish the shard. Same plan, same bytes.

    Raises DataError where a disk is full, or an item cannot be read for a reason that is not its own.
    """
    cv2.setNumThreads(1)  # a shard is one core's work; others run beside it
    with ShardWriter(uri, plan.name, plan.plan) as writer:
        for item in plan.items:
            try:
                loaded = item.load()
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


def sample_members(item: Item, loaded: LoadedItem, data: DataConfig) -> dict[str, bytes]:
    """The files of one sample: suffix to content, picture first, JSON last. Raises RejectedItem, FilteredItem.

    A picture whose size does not change keeps its own bytes where any decoder reads them alike; otherwise it is
    stored as PNG, or as JPEG of quality 95 if its file was lossy to begin with.
    """
    _check_classes(loaded, data)
    whole = data.geometry == "random" or loaded.shape[:2] == (data.image_size, data.image_size)
    original = loaded.original if whole else None
    if original is not None and loaded.condition is not None:
        loaded.check()  # nothing else here reads its pixels
        members = {original[1]: original[0]}
        raw = shrink_condition(loaded.condition, data.modality, data.geometry, data.image_size, loaded.shape)
    else:
        image = loaded.image
        if data.geometry != "random" and not whole:
            image = shrink_photograph(image, data.geometry, data.image_size)
        raw = _condition(loaded, image, data)
        members = _picture_member(image, loaded, original)
    members |= _condition_members(encode_condition(raw, data.modality), data.modality)
    about: dict[str, Any] = {
        "key": item.key, "source": item.origin, "width": loaded.shape[1], "height": loaded.shape[0],
        "geometry": data.geometry, "modality": data.modality, "bytes_kept": original is not None, **loaded.provenance,
    }  # fmt: skip
    if data.modality == "sketch":
        about["sketch"] = sketch_record(data.sketch) if loaded.condition is None else {"name": "given"}
    members["json"] = json.dumps(about, sort_keys=True).encode()
    return members


def _check_classes(loaded: LoadedItem, data: DataConfig) -> None:
    """Raise FilteredItem where a mask shows none of `data.require_classes`."""
    if data.require_classes is None or loaded.condition is None:
        return
    if not np.isin(loaded.condition.values, data.require_classes).any():
        raise FilteredItem("shows none of data.require_classes")


def _condition(loaded: LoadedItem, image: NDArray[np.uint8], data: DataConfig) -> RawCondition:
    """The condition at the size of `image`, the stored picture, in which a missing sketch is detected."""
    if loaded.condition is not None:
        return shrink_condition(loaded.condition, data.modality, data.geometry, data.image_size, image.shape)
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


def _condition_members(stored: StoredCondition, modality: Modality) -> dict[str, bytes]:
    members = {"cond.png": encode_condition_png(stored.values, modality)}
    if stored.normals is not None:
        members["normal.png"] = encode_png(stored.normals)
    return members


def encode_condition_png(values: NDArray[Any], modality: Modality) -> bytes:
    """PNG of a stored condition (H, W).

    Sketches take one bit a pixel, read in half the time, and decoders widen it; as runs they become as small as by
    looking for any repetition, in a quarter of the time.
    """
    if modality != "sketch":
        return encode_png(values)
    return _encode(".png", values, [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE])


def encode_png(values: NDArray[Any]) -> bytes:
    """PNG of uint8 or uint16 (H, W), or (H, W, 3) in RGB order."""
    ordered = values if values.ndim == 2 else cv2.cvtColor(values, cv2.COLOR_RGB2BGR)
    return _encode(".png", ordered, _PNG_OPTIONS)


def _encode(suffix: str, values: NDArray[Any], options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, np.ascontiguousarray(values), options)
    if not done:
        raise ValueError(f"OpenCV cannot encode {values.dtype} {values.shape} as {suffix}")
    return bytes(data.tobytes())
