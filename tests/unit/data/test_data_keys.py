"""Keys are unique in a source: over both splits, whatever folders and files are called."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from piti.config import DataConfig
from piti.data.items import SPLITS
from piti.data.sources import open_source
from piti.data.sources.names import safe_key
from tests.unit.data.encoding import encoded, write_tar

_NAMES = ("0", "1", "conditions/0", "labels/0")


def fill(folder: Path, suffix: str, names: tuple[str, ...] = _NAMES) -> Path:
    for name in names:
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix.endswith(".npy"):
            np.save(path, np.ones((32, 32), np.float32))
        else:
            Image.fromarray(np.zeros((32, 32), np.uint8)).save(path)
    return folder


def paired(root: Path, apart: bool) -> dict[str, Any]:
    """A picture without a condition and a condition without a picture, named alike; both splits in the same folders."""
    numbers = tuple(str(number) for number in range(1, 9))
    source = {"kind": "paired", "images": str(fill(root / "a", ".png", (*numbers, "conditions/0"))),
              "conditions": str(fill(root / "b", ".png", (*numbers, "0")))}  # fmt: skip
    if apart:
        return {**source, "validation_images": source["images"], "validation_conditions": source["conditions"]}
    return {**source, "validation_share": 0.5}


def splits(kind: str, root: Path) -> dict[str, Any]:
    images, labels = {
        "ade20k": (["images/training", "images/validation"], ["annotations/training", "annotations/validation"]),
        "coco-stuff": (["train2017", "val2017"], ["stuffthingmaps/train2017", "stuffthingmaps/val2017"]),
    }[kind]
    for folder in images:
        fill(root / folder, ".png", ("0", "1", "labels/7"))
    for folder in labels:
        fill(root / folder, ".png", ("0", "7"))
    return {"kind": kind, "root": str(root)}


def diode(root: Path) -> dict[str, Any]:
    for split in ("train", "val"):
        for suffix in (".png", "_depth.npy", "_depth_mask.npy"):
            fill(root / split / "indoors" / "scan", suffix, ("0", "1"))
        fill(root / split / "indoors" / "scan", "_depth.npy", ("9",))
    return {"kind": "diode", "root": str(root), "normals": False}


def table(root: Path) -> dict[str, Any]:
    fill(root, ".png")
    with open(root / "list.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", "condition", "split"))
        writer.writerows((f"{name}.png", "0.png", split) for name in ("0", "0", "1") for split in ("train", "val"))
    return {"kind": "list", "path": str(root / "list.csv")}


def tars(root: Path) -> dict[str, Any]:
    """The same tar is given for both splits."""
    black = encoded(Image.fromarray(np.zeros((32, 32), np.uint8)))
    write_tar(root / "0.tar", [(name, black) for name in ("a.png", "a.seg.png", "b/a.png", "b/a.seg.png", "c.seg.png")])
    return {"kind": "webdataset", "train": str(root), "validation": str(root / "0.tar"), "condition": "seg.png"}


_SOURCES = {
    "bundled": lambda root: {"kind": "bundled", "train_crops": 9, "validation_crops": 9},
    "paired": lambda root: paired(root, apart=False),
    "paired, validation apart": lambda root: paired(root, apart=True),
    "ade20k": lambda root: splits("ade20k", root),
    "coco-stuff": lambda root: splits("coco-stuff", root),
    "diode": diode,
    "list": table,
    "webdataset": tars,
}


@pytest.mark.parametrize("kind", _SOURCES)
def test_keys_are_unique_in_the_source(kind: str, tmp_path: Path) -> None:
    modality = {"bundled": "sketch", "diode": "geometry"}.get(kind, "mask")
    settings = {"modality": modality, "num_classes": 182 if modality == "mask" else None}
    source = open_source(DataConfig.model_validate({"source": _SOURCES[kind](tmp_path / "data"), **settings}))
    items = [item for split in SPLITS for item in source.items(split)]
    assert all(len(list(source.items(split))) > 1 for split in SPLITS)
    assert len({item.key for item in items}) == len(items)
    assert all(len(item.key) <= 80 for item in items)


def test_keys_of_one_folder_are_what_they_were() -> None:
    """So that shards of sources without folders for splits keep their samples' names."""
    assert safe_key("deep/er/a b.jpg") == "deep-er-a-b-734207665e2d"
    assert safe_key("a.jpg", "train") != safe_key("a.jpg", "validation") != safe_key("a.jpg")
    assert safe_key("b.jpg", "a") != safe_key("a/b.jpg")
    assert safe_key("b/a.jpg").startswith("b-a-")


def test_keys_are_safe_short_and_distinct() -> None:
    paths = [
        "a.jpg",
        "a.png",
        "b/a.jpg",
        "b-a.jpg",
        "ä.jpg",
        "a .jpg",
        "日本.jpg",
        "x" * 300 + ".jpg",
        "..jpg",
        "A.jpg",
    ]
    keys = [safe_key(path) for path in paths]
    assert len(set(keys)) == len(paths)
    assert all(key.isascii() and key.replace("-", "").replace("_", "").isalnum() and len(key) <= 80 for key in keys)
