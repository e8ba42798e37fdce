"""Every nuisance in every dataset's own layout: stored as a person would see it, or rejected with its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from piti.config import DataConfig
from piti.data.decoding import decode_condition, decode_image
from piti.data.items import SPLITS
from piti.data.resizing import resize_photograph
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.data.verify import verify_shards
from tests.unit.data.encoding import encoded
from tests.value_files import write_values

HEIGHT, WIDTH, SIZE = 80, 96, 64
EXACT, LOSSY = 0.0, 4.0  # mean difference in levels that a format leaves; another picture differs by more than 20

Shard = Callable[[DataConfig, Path | str], ShardSet]


@dataclass(frozen=True)
class Nuisance:
    """A picture file: its bytes, and what a person sees in it (None: nothing, for `reason`).

    `keeps`: its bytes can be stored as they are. `turned`: it lies on its side and says so.
    """

    name: str
    content: bytes
    seen: np.ndarray | None = None
    difference: float = EXACT
    keeps: bool = False
    turned: bool = False
    reason: str | None = None


def cut(number: int) -> np.ndarray:
    """A part of a real photograph, another for each number: uint8 (80, 96, 3)."""
    source = (photographs.astronaut, photographs.coffee, photographs.chelsea, photographs.rocket)[number % 4]()
    top = 20 + 11 * number
    return np.ascontiguousarray(source[top : top + HEIGHT, 60 + number : 60 + number + WIDTH])


def jpeg(picture: np.ndarray | Image.Image, **options: Any) -> bytes:
    """Nearly without loss: what is off by more than LOSSY was decoded wrongly."""
    whole = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return encoded(whole, "JPEG", quality=95, subsampling=0, **options)


def wide_png(picture: np.ndarray) -> bytes:
    """16 bits a channel: the 8-bit levels, spread over the whole range."""
    ordered = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    done, data = cv2.imencode(".png", ordered.astype(np.uint16) * 257)
    assert done
    return data.tobytes()


def nuisances() -> list[Nuisance]:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    on_its_side = np.ascontiguousarray(np.rot90(cut(2)))
    grey = np.asarray(Image.fromarray(cut(3)).convert("L"))
    palette = Image.fromarray(cut(4)).quantize(64)
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, :40] = 0
    on_white = cut(5)
    on_white[:, :40] = 255
    whole = jpeg(cut(9))
    as_rgb = [np.repeat(values[..., None], 3, axis=2) for values in (grey, cut(7)[..., 1])]
    return [
        Nuisance("plain.jpg", jpeg(cut(0)), cut(0), LOSSY, keeps=True),
        Nuisance("plain png.png", encoded(Image.fromarray(cut(1))), cut(1), keeps=True),
        Nuisance("turned.jpg", jpeg(on_its_side, exif=exif), cut(2), LOSSY, turned=True),
        Nuisance("grey.jpg", jpeg(grey), as_rgb[0], LOSSY),
        Nuisance("palette.png", encoded(palette), np.asarray(palette.convert("RGB"))),
        Nuisance("alpha.png", encoded(Image.fromarray(np.dstack([cut(5), alpha]))), on_white),
        Nuisance("cmyk.jpg", jpeg(Image.fromarray(cut(6)).convert("CMYK")), cut(6), LOSSY),
        Nuisance("sixteen grey.png", wide_png(cut(7)[..., 1]), as_rgb[1]),
        Nuisance("sixteen.png", wide_png(cut(8)), cut(8)),
        Nuisance("Zürich, 2. Stock v1.0 – 日本.jpg", jpeg(cut(10)), cut(10), LOSSY, keeps=True),
        Nuisance("a/same.jpg", jpeg(cut(11)), cut(11), LOSSY, keeps=True),
        Nuisance("b/same.jpg", jpeg(cut(12)), cut(12), LOSSY, keeps=True),
        Nuisance("empty.jpg", b"", reason="file is empty"),
        Nuisance("cut off.jpg", whole[: len(whole) // 2], reason="damaged"),
        Nuisance("error page.jpg", b"<html>404</html>" * 9, reason="not a picture"),
    ]


def label_map(number: int) -> np.ndarray:
    """Labels of both datasets, different on every side, so that turning or mirroring would show."""
    labels = np.full((HEIGHT, WIDTH), number % 7, np.uint8)
    labels[10:30, 5:20], labels[50:, 60:], labels[:5, 90:] = 150, 20, 255
    return labels


def depth_map(number: int) -> np.ndarray:
    depth = np.linspace(1, 20 + number, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH, 1)
    depth[0, 0], depth[0, 1] = np.nan, np.inf
    return depth


@dataclass
class Dataset:
    """A dataset on disk, and what is expected of its files: by name in the manifest, for pictures and rejections."""

    root: Path
    config: dict[str, Any]
    pictures: dict[str, Nuisance] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    num_found: int = 0

    def add(self, folder: Path, name: str, nuisance: Nuisance, reason: str | None = None) -> None:
        """Write a picture; `reason`: why it is rejected for what lies beside it."""
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(nuisance.content)
        self.num_found += 1
        if reason or nuisance.reason:
            self.reasons[name] = reason or nuisance.reason or ""
        else:
            self.pictures[name] = nuisance


def plain(number: int) -> Nuisance:
    return Nuisance("", jpeg(cut(number)), cut(number), LOSSY, keeps=True)


def labelled_tree(kind: str, root: Path) -> Dataset:
    """ADE20K or COCO-Stuff: photographs and label maps of the same names, in the folders of their distributions."""
    if kind == "ade20k":
        folders = [(root / "images" / split, root / "annotations" / split) for split in ("training", "validation")]
        first, classes = "ADE_{}_{:08d}.jpg", 151
    else:
        folders = [(root / split, root / "stuffthingmaps" / split) for split in ("train2017", "val2017")]
        first, classes = "{}{:012d}.jpg", 182
    dataset = Dataset(root, {"source": {"kind": kind, "root": str(root)}, "modality": "mask", "num_classes": classes})
    (images, maps), (validation, validation_maps) = folders

    def map_of(folder: Path, name: str) -> Path:
        return folder / f"{name.rpartition('.')[0]}.png"

    for number, nuisance in enumerate(nuisances()):
        dataset.add(images, nuisance.name, nuisance)
        dataset.labels[nuisance.name] = label_map(number)
    beside = {
        "no map": (None, "no label map"),
        "map of other shape": (np.zeros((40, WIDTH), np.uint8), "condition is 96x40 pixels, the picture 96x80"),
        "map of half size": (label_map(1)[::2, ::2], None),
        "map out of range": (np.full((HEIGHT, WIDTH), 200, np.uint8), "label 200 is outside"),
        "map in colours": (cut(3), "holds colours"),
    }
    for number, (stem, (labels, reason)) in enumerate(beside.items()):
        dataset.add(images, f"{stem}.jpg", plain(number), reason)
        if labels is not None:
            dataset.labels[f"{stem}.jpg"] = labels
    for number in (1, 2):
        name = first.format("val_" if kind == "ade20k" else "", number)
        dataset.add(validation, name, plain(number))
        write_values(map_of(validation_maps, name), label_map(number))
    for name, labels in dataset.labels.items():
        write_values(map_of(maps, name), labels)
    write_values(maps / "no picture.png", label_map(0))
    dataset.reasons["no picture.png"] = "label map without a picture"
    dataset.num_found += 1
    (images / "loop").symlink_to(images)
    (maps / "loop").symlink_to(maps)
    return dataset


def diode_tree(root: Path) -> Dataset:
    """DIODE: every picture is called .png, whatever it is, with its depth, mask and normals beside it."""
    dataset = Dataset(root, {"source": {"kind": "diode", "root": str(root)}, "modality": "geometry"})

    def add(split: str, stem: str, nuisance: Nuisance, reason: str | None = None, **beside: np.ndarray | None) -> None:
        name = f"indoors/scene_00000/scan_00000/{stem}.png"
        dataset.add(root / split, name, nuisance, reason)
        number = dataset.num_found
        normals = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        normals[..., number % 3] = 1
        valid = np.ones((HEIGHT, WIDTH), np.float32)
        valid[70:] = 0
        for part, usual in (("depth", depth_map(number)), ("depth_mask", valid), ("normal", normals)):
            values = beside.get(part, usual)
            if values is not None:
                write_values(root / split / f"{name.removesuffix('.png')}_{part}.npy", values)
        dataset.labels[name] = normals

    for nuisance in nuisances():
        add("train", nuisance.name.rpartition(".")[0] + ("" if nuisance.reason else " ok"), nuisance)
    add("train", "no depth", plain(0), "no .*no depth_depth.npy", depth=None)
    add("train", "no mask", plain(1), "no .*no mask_depth_mask.npy", depth_mask=None)
    add("train", "no normals", plain(2), "no .*no normals_normal.npy", normal=None)
    add("train", "all unknown", plain(3), "unknown at every pixel", depth=np.full((HEIGHT, WIDTH, 1), np.nan))
    add("train", "other shape", plain(4), "condition is 96x40", depth=np.ones((40, WIDTH, 1)), depth_mask=np.ones((40, WIDTH)))  # fmt: skip
    add("val", "00001_00001_indoors_000_010", plain(5))
    write_values(root / "train" / "indoors" / "scene_00000" / "no picture_depth.npy", depth_map(0))
    dataset.reasons["indoors/scene_00000/no picture_depth.npy"] = "depth without a picture"
    dataset.num_found += 1
    (root / "train" / "indoors" / "loop").symlink_to(root / "train" / "indoors")
    return dataset


def flickr_tree(root: Path) -> Dataset:
    """Landscapes: pictures alone, in folders as they come."""
    dataset = Dataset(root, {"source": {"kind": "paired", "images": str(root), "validation_share": 0.2}})
    dataset.config["modality"] = "sketch"
    for nuisance in nuisances():
        dataset.add(root, f"Landscapes 2/{nuisance.name}", nuisance)
    for number in range(4):
        dataset.add(root, f"{number}/{number}@N00_o.jpg", plain(number))
    (root / "loop").symlink_to(root)
    return dataset


TREES: dict[str, Callable[[Path], Dataset]] = {
    "ade20k": lambda root: labelled_tree("ade20k", root),
    "coco-stuff": lambda root: labelled_tree("coco-stuff", root),
    "diode": diode_tree,
    "flickr": flickr_tree,
}


@pytest.mark.parametrize(
    ("kind", "geometry"),
    [
        *((kind, geometry) for kind in ("ade20k", "diode", "flickr") for geometry in ("squash", "random")),
        ("coco-stuff", "squash"),
    ],
)
def test_every_nuisance_is_stored_as_seen_or_rejected_by_name(
    kind: str, geometry: str, tmp_path: Path, shard_now: Shard
) -> None:
    dataset = TREES[kind](tmp_path / ("ADEChallengeData2016" if kind == "ade20k" else kind))
    settings = {**dataset.config, "image_size": SIZE, "samples_per_shard": 6, "geometry": geometry}
    data = DataConfig.model_validate(settings)
    assert open_source(data).problems() == []
    shards = shard_now(data, tmp_path / "out")
    assert list(verify_shards(shards.uri)) == []
    rejected = dict(shards.rejected())
    accepted = dict(stored_samples(shards))
    unsure = {name for name, nuisance in dataset.pictures.items() if nuisance.turned and kind != "flickr"}

    found = sum(1 for split in SPLITS for _ in open_source(data).items(split))
    assert found == dataset.num_found, "a loop is walked once"
    assert shards.manifest.num_rows == len(accepted) + len(rejected) == found, "nothing is lost, nothing twice"
    assert set(rejected) - unsure == set(dataset.reasons)
    wrong = {name: rejected[name] for name, reason in dataset.reasons.items() if not re.search(reason, rejected[name])}
    assert wrong == {}
    for name in set(dataset.pictures) - unsure:
        check_picture(dataset.pictures[name], accepted[name], geometry)
        check_condition(dataset, name, accepted[name], geometry)


def stored_samples(shards: ShardSet) -> list[tuple[str, dict[str, bytes]]]:
    """(where it came from, members) of each."""
    samples = [
        members for split in shards.splits for name in shards.shard_names(split) for _, members in shards.samples(name)
    ]
    return [(json.loads(members["json"])["source"], members) for members in samples]


def check_picture(nuisance: Nuisance, members: dict[str, bytes], geometry: str) -> None:
    """The stored pixels are what a person sees, shrunk as a whole or as they are; plain files keep their bytes."""
    assert nuisance.seen is not None
    expected = nuisance.seen
    if geometry == "squash":
        expected = resize_photograph(np.ascontiguousarray(expected), SIZE)
    image = decode_image(members)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() <= nuisance.difference, nuisance.name
    about = json.loads(members["json"])
    assert (about["width"], about["height"]) == (WIDTH, HEIGHT)
    kept = geometry == "random" and nuisance.keeps
    assert about["bytes_kept"] == kept, nuisance.name
    assert (nuisance.content in (members.get("jpg"), members.get("png"))) == kept


def check_condition(dataset: Dataset, name: str, members: dict[str, bytes], geometry: str) -> None:
    stored = decode_condition(members)
    height, width = (HEIGHT, WIDTH) if geometry == "random" else (SIZE, SIZE)
    assert stored.values.shape == (height, width)
    modality = dataset.config["modality"]
    if modality == "sketch":
        assert set(np.unique(stored.values)) == {0, 255}, "edges were found"
    elif modality == "mask" and name in dataset.labels:
        labels = np.asarray(Image.fromarray(dataset.labels[name]).resize((width, height), Image.Resampling.NEAREST))
        np.testing.assert_array_equal(stored.values, labels)
    elif modality == "geometry":
        assert stored.normals is not None
        facing = int(dataset.labels[name][0, 0].argmax())
        assert (stored.normals[..., facing] == 65535).all(), "the normals are this picture's own"
        assert (stored.values[-4:] == 0).all(), "masked out"
        assert (stored.values[2 : height // 2] > 0).all()
        if geometry == "random":
            assert (stored.values[0, :2] == 0).all(), "not a number, and infinitely far"
            assert (stored.values[0, 2:] > 0).all()
