"""What `piti shards ls|show|stats` tell: counts, sizes, labels, reasons of rejection, and a contact sheet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from eval.grid import PictureGrid, grid_png
from piti import storage
from piti.data.conditions import condition_picture, paint_condition
from piti.data.decoding import (
    DamagedPictureError,
    decode_condition,
    decode_image,
    decode_variant,
    num_variants,
)
from piti.data.manifest import MANIFEST
from piti.data.shards import DamagedSample, ShardReader, ShardSet
from piti.errors import DataError, repair_advice

_SETS_FOLDERS = ("shards", "degraded")
_PAIRS_A_ROW = 3


@dataclass(frozen=True)
class SetSummary:
    """A set in a line. `samples` by split; None where the set is not finished."""

    uri: str
    samples: dict[str, int] | None
    num_shards: int
    num_bytes: int


def find_sets(root: str) -> list[str]:
    """URIs of the sets, finished or not, below a run's root, a folder of sets, or at a set itself."""
    if storage.exists(storage.join(root, MANIFEST)):
        return [root.rstrip("/")]
    places = [storage.join(root, folder) for folder in _SETS_FOLDERS]
    found = [storage.join(place, name) for place in places for name in storage.list_names(place)]
    if not found:
        found = [storage.join(root, name) for name in storage.list_names(root)]
        found = [uri for uri in found if {"stats", MANIFEST} & set(storage.list_names(uri))]
    return found


def summarise(uri: str) -> SetSummary:
    """A set's line in a listing. Raises DataError where its manifest is damaged."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        return SetSummary(uri, None, sum(name.endswith(".tar") for name in storage.list_names(uri)), 0)
    shards = ShardSet(uri)
    whole = [stats for stats in shards.stats.values() if stats.num_samples]
    samples = {split: shards.num_samples(split) for split in shards.splits}
    return SetSummary(uri, samples, len(whole), sum(stats.tar_bytes for stats in whole))


def count_status(shards: ShardSet) -> dict[str, int]:
    """How many of the items found were accepted, rejected and filtered."""
    counted = pc.value_counts(shards.manifest["status"]).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}


def count_reasons(shards: ShardSet) -> list[tuple[str, str, int]]:
    """(status, reason, how often) of items that became no sample or an odd one, the most frequent first."""
    rows = shards.manifest.select(["status", "reason"]).to_pylist()
    counted = Counter((row["status"], row["reason"]) for row in rows if row["reason"] is not None)
    return [(status, reason, count) for (status, reason), count in counted.most_common()]


def size_quantiles(shards: ShardSet) -> dict[str, list[int]]:
    """Smallest, median and largest width, height (pixels, as found) and stored size (bytes) of the samples."""
    accepted = shards.manifest.filter(pc.equal(shards.manifest["status"], "accepted"))
    if not accepted.num_rows:
        return {}
    return {
        name: [int(value) for value in np.quantile(accepted[name].to_numpy(), (0.0, 0.5, 1.0))]
        for name in ("width", "height", "size")
    }


@dataclass(frozen=True)
class LabelCount:
    """A label of masks: in how many of the pictures looked at it appears, and its share of their pixels (0..1)."""

    label: int
    num_pictures: int
    pixel_share: float


def count_labels(shards: ShardSet, limit: int) -> tuple[list[LabelCount], int]:
    """Labels by their share of pixels, largest first, and how many masks were looked at (`limit` of each split)."""
    pixels: Counter[int] = Counter()
    pictures: Counter[int] = Counter()
    looked_at = 0
    for members in _spread_samples(shards, limit):
        try:
            values = decode_condition(members).values
        except DamagedPictureError:
            continue
        labels, counts = np.unique(values, return_counts=True)
        looked_at += 1
        pixels.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
        pictures.update(labels.tolist())
    total = sum(pixels.values())
    return [LabelCount(label, pictures[label], count / total) for label, count in pixels.most_common()], looked_at


def sample_about(shards: ShardSet, key: str) -> dict[str, Any]:
    """One sample: its row of the manifest, its files with their sizes in bytes, and its JSON. Raises DataError."""
    rows = shards.manifest.filter(pc.equal(shards.manifest["key"], key)).to_pylist()
    if not rows:
        raise DataError(f"{shards.uri} has no item {key}", "keys are listed in its manifest.parquet")
    row = {name: value for name, value in rows[0].items() if value is not None}
    if row["status"] != "accepted":
        return {"manifest": row}
    reader = ShardReader(shards.uri, row["split"])
    try:
        members = reader.read(reader.index.keys.index(key))
    except DamagedSample as error:
        raise DataError(f"sample {key} of {shards.uri} is damaged ({error})", repair_advice(shards.uri)) from error
    files = {suffix: len(content) for suffix, content in members.items()}
    return {"manifest": row, "files": files, "json": json.loads(members["json"])}


def contact_sheet(shards: ShardSet, num_samples: int) -> bytes:
    """PNG of samples spread over the set: pictures beside their conditions, or, for companions, their variants.

    Raises DataError where there is nothing to show.
    """
    of_each_split = -(-num_samples // max(1, len(shards.splits)))
    shown = [_pictures(members, shards) for members in _spread_samples(shards, of_each_split)]
    rows = [pictures for pictures in shown if pictures][:num_samples]
    if not rows:
        raise DataError(f"{shards.uri} has no samples to show", "see `piti shards stats` for the reasons")
    if shards.holds_companions:
        columns = [f"variant {number}" for number in range(len(rows[0]))]
    else:
        columns = ["picture", str(shards.about["modality"])] * min(_PAIRS_A_ROW, len(rows))
        cells = [cell for pair in rows for cell in pair]
        cells += [np.full((8, 8, 3), 255, np.uint8)] * (-len(cells) % len(columns))
        rows = [cells[first : first + len(columns)] for first in range(0, len(cells), len(columns))]
    return grid_png(PictureGrid(columns, rows, [""] * len(rows)))


def _pictures(members: dict[str, bytes], shards: ShardSet) -> list[NDArray[np.uint8]]:
    """A sample's picture and condition, or a companion's variants; nothing where one is damaged."""
    try:
        if shards.holds_companions:
            return [decode_variant(members, number).image for number in range(num_variants(members))]
        image, stored = decode_image(members), decode_condition(members)
    except DamagedPictureError:
        return []
    modality = shards.about["modality"]
    return [image, condition_picture(paint_condition(stored, modality, shards.about["num_classes"]), modality)]


def _spread_samples(shards: ShardSet, limit: int) -> Iterator[dict[str, bytes]]:
    """Members of up to `limit` samples of each split, at even distances. Damaged ones are left out."""
    for split in shards.splits:
        reader = ShardReader(shards.uri, split)
        for number in np.unique(np.linspace(0, len(reader) - 1, min(limit, len(reader))).round().astype(int)).tolist():
            try:
                yield reader.read(number)
            except DamagedSample:
                continue
