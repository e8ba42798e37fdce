"""Measures whether generated pictures follow their conditions, with a network of the user's or the sketch detector."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from eval.pictures import NetworkIdentity, PictureArray, WeightsError
from eval.programs import Program
from eval.scene import depth_order_error, edge_agreement, normal_error_degrees
from eval.segmentation import label_overlaps
from piti import storage
from piti.config import SketchConfig
from piti.data.conditions import StoredCondition
from piti.data.sketch import detect_sketch, sketch_record
from piti.errors import CheckpointError, ConfigError

_NO_LABEL = -1
_CODES = 65534  # see `StoredCondition`
_PROBE_SIDE_PIXELS = 64


class Aligner(Protocol):
    """Compares pictures with conditions. `about` is JSON-able and says all that its values depend on."""

    about: dict[str, Any]
    network: NetworkIdentity | None
    slug: str

    def rows(self, pictures: Iterable[PictureArray], conditions: Iterable[StoredCondition]) -> NDArray[Any]:
        """A row for each picture uint8 (H,W,3) and the condition at the same position."""


class MaskAligner:
    """Rows (4, 2, num_classes) of `eval.segmentation.label_overlaps`.

    `table` (C,) is the data's label of each of the network's classes, -1 for none; None: they are the same.
    Raises WeightsError for a network that gives no scores (N,C,h,w) nor labels (N,h,w).
    """

    def __init__(self, network: Program, table: NDArray[np.int64] | None, num_classes: int) -> None:
        self._program, self._table, self._num_classes = network, table, num_classes
        self.network: NetworkIdentity | None = network.identity
        self.slug = network.identity.slug
        self.about = {
            "labels": None if table is None else table.tolist(), "num_classes": num_classes, "version": 1,
        }  # fmt: skip
        self._labels(_probe(), (_PROBE_SIDE_PIXELS, _PROBE_SIDE_PIXELS))

    def rows(self, pictures: Iterable[PictureArray], conditions: Iterable[StoredCondition]) -> NDArray[Any]:
        found = [
            label_overlaps(self._labels(_tensor(picture), condition.values.shape), condition.values, self._num_classes)
            for picture, condition in zip(pictures, conditions, strict=True)
        ]
        return np.stack(found).astype(np.int32)

    def _labels(self, picture: Tensor, shape: tuple[int, ...]) -> NDArray[np.int64]:
        output = _output(self._program, picture)
        if output.ndim == 4:
            output = _resized(output.float(), shape).argmax(dim=1)
        elif output.ndim == 3 and not output.is_floating_point():
            output = F.interpolate(output[:, None].double(), shape, mode="nearest-exact")[:, 0].long()
        else:
            raise WeightsError(
                f"{self._program.identity.name} gives {tuple(output.shape)}, neither scores nor labels of pixels"
            )
        labels = output[0].cpu().numpy()
        if self._table is None:
            return np.asarray(labels, dtype=np.int64)
        known = (labels >= 0) & (labels < len(self._table))
        return np.where(known, self._table[np.where(known, labels, 0)], _NO_LABEL)


class SketchAligner:
    """Rows (1,): F1 of the edges that the conditions' detector finds in the picture."""

    def __init__(self, sketch: SketchConfig) -> None:
        self._sketch = sketch
        record = sketch_record(sketch)
        self.network: NetworkIdentity | None = None
        self.slug: str = sketch.detector
        if sketch.detector == "hed":
            self.network = NetworkIdentity("HED", "hed", record["weights_sha256"], False, "none up to 1024 pixels")
        self.about: dict[str, Any] = {"detector": record, "version": 1}

    def rows(self, pictures: Iterable[PictureArray], conditions: Iterable[StoredCondition]) -> NDArray[Any]:
        pairs = zip(pictures, conditions, strict=True)
        return np.array([[edge_agreement(detect_sketch(a, self._sketch), b.values)] for a, b in pairs])


class GeometryAligner:
    """Rows (2,): error of the depths' order, and mean angle to the normals; NaN where unknown.

    Raises WeightsError for a network that gives no depth (N,1,h,w), nor depth and normals (N,4,h,w).
    """

    def __init__(self, network: Program, farther_is_higher: bool) -> None:
        self._program, self._sign = network, 1 if farther_is_higher else -1
        self.network: NetworkIdentity | None = network.identity
        self.slug = network.identity.slug
        self.about = {"farther_is_higher": farther_is_higher, "version": 1}
        self._planes(_probe(), (_PROBE_SIDE_PIXELS, _PROBE_SIDE_PIXELS))

    def rows(self, pictures: Iterable[PictureArray], conditions: Iterable[StoredCondition]) -> NDArray[Any]:
        return np.array([list(self._row(a, b)) for a, b in zip(pictures, conditions, strict=True)])

    def _row(self, picture: PictureArray, condition: StoredCondition) -> Iterator[float]:
        planes = self._planes(_tensor(picture), condition.values.shape)
        yield depth_order_error(self._sign * planes[0], condition.values, condition.values > 0)
        if len(planes) == 1 or condition.normals is None:
            yield math.nan
        else:
            wanted = (condition.normals.astype(np.float64) - 1) / _CODES * 2 - 1
            yield normal_error_degrees(
                planes[1:].transpose(1, 2, 0), wanted, np.asarray((condition.normals > 0).any(axis=2))
            )

    def _planes(self, picture: Tensor, shape: tuple[int, ...]) -> NDArray[np.float32]:
        output = _output(self._program, picture)
        if output.ndim != 4 or output.shape[1] not in (1, 4):
            raise WeightsError(
                f"{self._program.identity.name} gives {tuple(output.shape)}, not depth (and normals) of pixels"
            )
        return np.asarray(_resized(output.float(), shape)[0].cpu().numpy())


def read_label_table(uri: str) -> NDArray[np.int64]:
    """A CSV file with columns network,label -> the data's label of each of the network's classes, -1 where not listed.

    Raises ConfigError for another file.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(storage.read_text(uri))))
        pairs = {int(row["network"]): int(row["label"]) for row in rows}
        if not pairs or min(pairs) < 0 or len(pairs) != len(rows):
            raise ValueError("it lists no class, a negative one, or one twice")
    except (KeyError, TypeError, ValueError) as error:  # errors must not quote a file that is no such table
        raise ConfigError(
            f"evaluation.alignment.labels: {uri} is no table of labels",
            "give a CSV file with the columns network,label, whole numbers from 0, each class of the network once",
        ) from error
    table = np.full(max(pairs) + 1, _NO_LABEL, dtype=np.int64)
    table[list(pairs)] = list(pairs.values())
    return table


def _output(program: Program, picture: Tensor) -> Tensor:
    """What a network gives for a picture. Raises CheckpointError for numbers that are not finite."""
    output = program(picture)
    if output.is_floating_point() and not bool(output.isfinite().all()):
        raise CheckpointError(
            f"evaluation.alignment.network: {program.identity.name} gives numbers that are not finite",
            "check evaluation.alignment.input_levels, or take another file",
        )
    return output


def _probe() -> Tensor:
    return torch.zeros(1, 3, _PROBE_SIDE_PIXELS, _PROBE_SIDE_PIXELS, dtype=torch.uint8)


def _tensor(picture: PictureArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]


def _resized(planes: Tensor, shape: tuple[int, ...]) -> Tensor:
    if planes.shape[2:] == shape:
        return planes
    return F.interpolate(planes, shape, mode="bilinear", align_corners=False)
