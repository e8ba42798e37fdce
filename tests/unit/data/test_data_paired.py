"""Paired folders: every file found is accounted for, whatever is wrong with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from piti.config import DataConfig
from piti.data.items import SPLITS, RejectedItem
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.errors import DataError
from tests.value_files import write_values

MakeData = Callable[..., DataConfig]


@pytest.fixture
def nuisance_tree(tmp_path: Path, photograph: np.ndarray) -> tuple[Path, Path, dict[str, str]]:
    """Images and label maps with every nuisance; the third part says which pictures are to be rejected, and why."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    picture, mask = np.ascontiguousarray(photograph[:80, :96]), np.full((80, 96), 3, np.uint8)
    good = ["a.jpg", "b.png", "deep/er/a.jpg", "ünï cödé.png", "dots.in.name.jpg", "with space.png", "A.jpg"]
    for name in good:
        write_values(images / name, picture)
        write_values(labels / Path(name).with_suffix(".png"), mask)
    reasons = {
        "empty.jpg": "empty", "cut.jpg": "damaged", "alone.jpg": "no condition", "other_size.jpg": "condition is 96x40",
        "range.jpg": "label 9 is outside", "text.png": "not a picture", "linked.jpg": "cannot be read",
        "bad_label.jpg": "damaged", "itself.jpg": "cannot be read",
    }  # fmt: skip
    for name in reasons:
        write_values(images / name, picture)
        write_values(labels / Path(name).with_suffix(".png"), mask)
    (images / "empty.jpg").write_bytes(b"")
    whole = (images / "cut.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (labels / "alone.png").unlink()
    write_values(labels / "other_size.png", mask[:40])
    write_values(labels / "range.png", np.full_like(mask, 9))
    (images / "text.png").write_text("not a picture at all")
    (images / "linked.jpg").unlink()
    (images / "linked.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (images / "itself.jpg").unlink()
    (images / "itself.jpg").symlink_to(images / "itself.jpg")
    (labels / "bad_label.png").write_bytes((labels / "a.png").read_bytes()[:60])
    write_values(labels / "orphan.png", mask)
    reasons["orphan.png"] = "condition without a picture"
    (images / "loop").symlink_to(images)
    (images / "Thumbs.db").write_bytes(b"x")
    (images / ".hidden.jpg").write_bytes(b"x")
    write_values(labels / "255.png", np.full_like(mask, 255))
    write_values(images / "255.jpg", picture)
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
    write_values(tmp_path / "a.png", photograph[:64, :64])
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


@pytest.mark.parametrize(("suffix", "depth_unit"), [("png", 0.001), ("npy", 1)])
def test_geometry_pairs_depth_and_normals(
    suffix: str, depth_unit: float, tmp_path: Path, photograph: np.ndarray, make_data: MakeData
) -> None:
    """Pictures hold millimetres and (n + 1) / 2, NumPy files metres and the normals themselves."""
    depth = np.full((80, 96), 1.5 / depth_unit, np.uint16 if suffix == "png" else np.float32)
    depth[:10] = 0
    upwards = (128, 128, 255) if suffix == "png" else (0, 0, 1)
    for number in range(4):
        write_values(tmp_path / "images" / f"{number}.png", np.ascontiguousarray(photograph[:80, :96]))
        write_values(tmp_path / "depth" / f"{number}.{suffix}", depth if number else depth * 0)
        write_values(tmp_path / "normals" / f"{number}.{suffix}", np.full((80, 96, 3), upwards, np.uint8))
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


def test_geometry_of_validation_lies_in_folders_of_its_own(
    tmp_path: Path, photograph: np.ndarray, make_data: MakeData
) -> None:
    """Files of both splits are named alike; each split reads its own."""
    folders: dict[str, str] = {}
    for prefix, metres, facing in (("", 2, (1, 0, 0)), ("validation_", 3, (0, 1, 0))):
        parts = {"images": (photograph[:80, :96], "png"), "conditions": (np.full((80, 96), metres), "npy"),
                 "normals": (np.full((80, 96, 3), facing), "npy")}  # fmt: skip
        for part, (values, suffix) in parts.items():
            folders[f"{prefix}{part}"] = str(tmp_path / f"{prefix}{part}")
            for number in range(2):
                write_values(tmp_path / f"{prefix}{part}" / f"{number}.{suffix}", values)
    source = open_source(make_data(folders["images"], modality="geometry", source=folders))
    assert source.problems() == []
    for split, metres, facing in (("train", 2, (1, 0, 0)), ("validation", 3, (0, 1, 0))):
        items = list(source.items(split))
        assert len(items) == 2
        for item in items:
            condition = item.load().condition
            assert condition is not None
            assert condition.normals is not None
            assert (condition.values == metres).all()
            assert (condition.normals == facing).all()


def test_two_percent_of_aspect_ratio_are_borne(tmp_path: Path, photograph: np.ndarray, make_data: MakeData) -> None:
    """Pictures up to 1.9 % wider or narrower than their label maps are taken, from 2.1 % on none is."""
    widths = {979: False, 981: True, 1019: True, 1021: False}
    for width in widths:
        write_values(tmp_path / "i" / f"{width}.png", np.resize(photograph, (20, width, 3)))
        write_values(tmp_path / "c" / f"{width}.png", np.zeros((20, 1000), np.uint8))
    data = make_data(tmp_path / "i", modality="mask", num_classes=1, source={"conditions": str(tmp_path / "c")})
    items = {int(item.origin[:-4]): item for split in SPLITS for item in open_source(data).items(split)}
    for width, is_borne in widths.items():
        if is_borne:
            assert items[width].load().condition is not None
        else:
            with pytest.raises(RejectedItem, match=f"condition is 1000x20 pixels, the picture {width}x20"):
                items[width].load()
