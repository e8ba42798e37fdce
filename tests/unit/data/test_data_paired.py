"""Paired folders: every file found is accounted for, whatever is wrong with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from piti.config import DataConfig
from piti.data.items import RejectedItem
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.errors import DataError

MakeData = Callable[..., DataConfig]


def write_png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def nuisance_tree(tmp_path: Path, photograph: np.ndarray) -> tuple[Path, Path, dict[str, str]]:
    """Images and label maps with every nuisance; the third part says which pictures are to be rejected, and why."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    picture, mask = np.ascontiguousarray(photograph[:80, :96]), np.full((80, 96), 3, np.uint8)
    good = ["a.jpg", "b.png", "deep/er/a.jpg", "ünï cödé.png", "dots.in.name.jpg", "with space.png", "A.jpg"]
    for name in good:
        write_png(images / name, picture)
        write_png(labels / Path(name).with_suffix(".png"), mask)
    reasons = {
        "empty.jpg": "empty", "cut.jpg": "damaged", "alone.jpg": "no condition", "other_size.jpg": "condition is 96x40",
        "range.jpg": "label 9 is outside", "text.png": "not a picture", "linked.jpg": "cannot be read",
        "bad_label.jpg": "damaged", "itself.jpg": "cannot be read",
    }  # fmt: skip
    for name in reasons:
        write_png(images / name, picture)
        write_png(labels / Path(name).with_suffix(".png"), mask)
    (images / "empty.jpg").write_bytes(b"")
    whole = (images / "cut.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (labels / "alone.png").unlink()
    write_png(labels / "other_size.png", mask[:40])
    write_png(labels / "range.png", np.full_like(mask, 9))
    (images / "text.png").write_text("not a picture at all")
    (images / "linked.jpg").unlink()
    (images / "linked.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (images / "itself.jpg").unlink()
    (images / "itself.jpg").symlink_to(images / "itself.jpg")
    (labels / "bad_label.png").write_bytes((labels / "a.png").read_bytes()[:60])
    write_png(labels / "orphan.png", mask)
    reasons["orphan.png"] = "condition without a picture"
    (images / "loop").symlink_to(images)
    (images / "Thumbs.db").write_bytes(b"x")
    (images / ".hidden.jpg").write_bytes(b"x")
    write_png(labels / "255.png", np.full_like(mask, 255))
    write_png(images / "255.jpg", picture)
    return images, labels, reasons


def test_accepted_and_rejected_make_up_what_was_found(
    nuisance_tree: tuple[Path, Path, dict[str, str]],
    tmp_path: Path,
    make_data: MakeData,
    shard_now: Callable[..., ShardSet],
) -> None:
    images, labels, reasons = nuisance_tree
    data = make_data(images, modality="mask", num_classes=5, source={"conditions": str(labels)})
    shards = shard_now(data, tmp_path / "out")
    sources = shards.manifest["source"].to_pylist()
    assert len(sources) == len(set(sources)) == 8 + len(reasons)
    rejected = dict(shards.rejected())
    assert rejected.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in rejected[name]
    keys = shards.keys("train") + shards.keys("validation")
    assert len(keys) == len(set(keys)) == 8
    assert not any("." in key or "/" in key or " " in key for key in keys)


def test_a_picture_keeps_its_split_when_others_come(picture_folder: Path, tmp_path: Path, make_data: MakeData) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(picture_folder, folder)
    source = open_source(make_data(folder))
    before = {split: {item.key for item in source.items(split)} for split in ("train", "validation")}
    assert before["train"].isdisjoint(before["validation"])
    assert len(before["train"] | before["validation"]) == 41
    first = source.fingerprint()
    shutil.copy(next(folder.rglob("*.png")), folder / "one more.png")
    assert source.fingerprint() != first
    for split in ("train", "validation"):
        assert before[split] <= {item.key for item in source.items(split)}


def test_fingerprint_sees_a_change_in_place(tmp_path: Path, photograph: np.ndarray, make_data: MakeData) -> None:
    write_png(tmp_path / "a.png", photograph[:64, :64])
    source = open_source(make_data(tmp_path))
    first = source.fingerprint()
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert source.fingerprint() != first


def test_problems_are_found_before_anything_runs(tmp_path: Path, make_data: MakeData) -> None:
    (tmp_path / "empty").mkdir()
    data = make_data(tmp_path / "missing", modality="mask", num_classes=3)
    found = " | ".join(str(problem) for problem in open_source(data).problems())
    assert "there is no folder" in found
    assert "no conditions" in found
    assert "holds no pictures" in str(open_source(make_data(tmp_path / "empty")).problems()[0])
    with pytest.raises(DataError, match="no folder"):
        list(open_source(data).items("train"))


def test_half_given_validation_folders_are_a_config_error(make_data: MakeData) -> None:
    with pytest.raises(ValueError, match="both conditions and validation_conditions"):
        make_data("x", source={"conditions": "y", "validation_images": "z"})
    with pytest.raises(ValueError, match="without validation_images"):
        make_data("x", source={"validation_conditions": "y"})


def test_geometry_pairs_depth_and_normals(tmp_path: Path, photograph: np.ndarray, make_data: MakeData) -> None:
    depth = np.full((80, 96), 1500, np.uint16)
    depth[:10] = 0
    for number in range(4):
        write_png(tmp_path / "images" / f"{number}.png", np.ascontiguousarray(photograph[:80, :96]))
        (tmp_path / "depth").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "depth" / f"{number}.png"), depth if number else depth * 0)
        write_png(tmp_path / "normals" / f"{number}.png", np.full((80, 96, 3), (128, 128, 255), np.uint8))
    source = {"conditions": str(tmp_path / "depth"), "normals": str(tmp_path / "normals")}
    data = make_data(tmp_path / "images", modality="geometry", source=source)
    items = {item.origin: item for split in ("train", "validation") for item in open_source(data).items(split)}
    raw = items["1.png"].load().condition
    assert raw is not None
    assert raw.normals is not None
    assert raw.values[0, 0] == 0
    assert raw.values[20, 20] == pytest.approx(1.5)
    np.testing.assert_allclose(raw.normals[0, 0], [0, 0, 1], atol=0.01)
    with pytest.raises(RejectedItem, match="unknown at every pixel"):
        items["0.png"].load()
