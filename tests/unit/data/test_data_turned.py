"""Photographs that EXIF turns: their conditions end up where the picture is, or the item says that nobody knows."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from piti.config import DataConfig
from piti.data.conditions import encode_normals
from piti.data.decoding import decode_condition, decode_image
from piti.data.shards import ShardSet
from piti.data.sources import open_source

MakeData = Callable[..., DataConfig]
Shard = Callable[..., ShardSet]


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The rows and columns of a file that is `upright` once EXIF is applied: by the EXIF standard, with numpy alone."""
    swapped = upright.swapaxes(0, 1)
    return np.ascontiguousarray({
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: swapped, 6: swapped[::-1],
        7: swapped[::-1, ::-1], 8: swapped[:, ::-1],
    }[orientation])  # fmt: skip


def write(folder: Path, name: str, values: np.ndarray, orientation: int | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {}
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    Image.fromarray(values).save(folder / name, **options)


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture whose red channel says which label each pixel has: 16 levels a label."""
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 4], labels[height // 2 :, : width // 3], labels[height // 3 : height // 2, width // 2 :] = (
        1,
        2,
        3,
    )
    picture = np.full((height, width, 3), 90, np.uint8)
    picture[..., 0] = 16 * labels
    return picture, labels


def shard(
    tmp_path: Path, make_data: MakeData, shard_now: Shard, follows: bool | None, **settings: Any
) -> tuple[ShardSet, dict[str, dict[str, bytes]]]:
    """The set, and the members of its samples by the picture's stem."""
    modality = settings.pop("modality", "mask")
    source = {"conditions": str(tmp_path / "conditions"), "validation_images": str(tmp_path / "images"),
              "validation_conditions": str(tmp_path / "conditions")}  # fmt: skip
    if (tmp_path / "normals").exists():
        source |= {"normals": str(tmp_path / "normals"), "validation_normals": str(tmp_path / "normals")}
    data = make_data(
        tmp_path / "images", modality=modality, num_classes=4 if modality == "mask" else None, geometry="random",
        source=source, conditions_follow_exif=follows, **settings,
    )  # fmt: skip
    shards = shard_now(data, tmp_path / f"out-{follows}")
    every = [
        members for name in shards.stats if name in shards.shard_names("train") for _, members in shards.samples(name)
    ]
    return shards, {json.loads(members["json"])["source"].split(".")[0]: members for members in every}


@pytest.mark.parametrize("follows", [None, False, True])
@pytest.mark.parametrize("lies_like_file", [False, True])
@pytest.mark.parametrize("sides", [(64, 96), (64, 64)], ids=["oblong", "square"])
def test_labels_end_up_where_the_picture_is(
    tmp_path: Path, make_data: MakeData, shard_now: Shard, sides: tuple[int, int], lies_like_file: bool,
    follows: bool | None,
) -> None:  # fmt: skip
    picture, labels = scene(*sides)
    for orientation in range(1, 9):
        write(tmp_path / "images", f"{orientation}.png", stored(picture, orientation), orientation)
        write(tmp_path / "conditions", f"{orientation}.png", stored(labels, orientation) if lies_like_file else labels)
    shards, found = shard(tmp_path, make_data, shard_now, follows)
    rejected = {source.split(".")[0]: reason for source, reason in shards.rejected()}
    for orientation in range(1, 9):
        told_by_size = orientation >= 5 and sides[0] != sides[1]
        if orientation > 1 and not told_by_size and follows is None:
            assert "set data.conditions_follow_exif" in rejected[str(orientation)]
            continue
        image = decode_image(found[str(orientation)])
        np.testing.assert_array_equal(image, picture)
        values = decode_condition(found[str(orientation)]).values
        if orientation == 1:
            continue
        if told_by_size or follows == lies_like_file:
            np.testing.assert_array_equal(values, image[..., 0] // 16)
        else:
            assert not np.array_equal(values, image[..., 0] // 16), "the config said otherwise"


def test_a_condition_of_half_the_size_is_told_apart_too(tmp_path: Path, make_data: MakeData, shard_now: Shard) -> None:
    picture, labels = scene(64, 96)
    small = labels[::2, ::2]
    for name, condition in (("turned", stored(small, 6)), ("upright", small)):
        write(tmp_path / "images", f"{name}.png", stored(picture, 6), 6)
        write(tmp_path / "conditions", f"{name}.png", condition)
    _, found = shard(tmp_path, make_data, shard_now, None)
    for members in found.values():
        np.testing.assert_array_equal(decode_condition(members).values[::2, ::2], small)


def test_nearly_square_pictures_of_another_size_are_not_guessed(
    tmp_path: Path, make_data: MakeData, shard_now: Shard
) -> None:
    picture, labels = scene(100, 101)
    for name, condition in (("exact", stored(labels, 6)), ("half", labels[::2, ::2])):
        write(tmp_path / "images", f"{name}.png", stored(picture, 6), 6)
        write(tmp_path / "conditions", f"{name}.png", condition)
    shards, found = shard(tmp_path, make_data, shard_now, None)
    np.testing.assert_array_equal(decode_condition(found["exact"]).values, labels)
    assert {source for source, _ in shards.rejected()} == {"half.png"}


def test_given_sketches_turn_with_their_photograph(
    tmp_path: Path, photograph: np.ndarray, make_data: MakeData, shard_now: Shard
) -> None:
    picture = np.ascontiguousarray(photograph[:80, :120])
    edges = cv2.Canny(picture, 100, 200)
    for orientation in (5, 6, 7, 8):
        write(tmp_path / "images", f"{orientation}.jpg", stored(picture, orientation), orientation)
        write(tmp_path / "conditions", f"{orientation}.png", stored(edges, orientation))
    _, found = shard(tmp_path, make_data, shard_now, None, modality="sketch")
    for members in found.values():
        np.testing.assert_array_equal(decode_condition(members).values, edges)


def ball(side: int, y_sign: int, z_sign: int) -> np.ndarray:
    """Unit normals (side, side, 3) of a ball seen from the front, x to the right, y up (1) or down (-1)."""
    down, right = np.mgrid[-0.9 : 0.9 : side * 1j, -0.6 : 0.6 : side * 1j]
    depth = np.sqrt(np.maximum(1 - down**2 - right**2, 0))
    return np.stack([right, -y_sign * down, z_sign * depth], axis=2).astype(np.float32)


@pytest.mark.parametrize("y_sign", [1, -1], ids=["y-up", "y-down"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_normals_turn_their_vectors_with_the_picture(
    tmp_path: Path, photograph: np.ndarray, make_data: MakeData, shard_now: Shard, orientation: int, y_sign: int
) -> None:
    """A ball, oblong and off centre, computed upright, and computed as the camera that stored the file would see it.

    Cameras' axes are right-handed: where y is up, surfaces that are seen have z > 0.
    """
    upright = ball(60, y_sign, y_sign)[:, 5:45]
    # In the stored frame a vector has the components that displacements have: rows and columns as `stored` moves them.
    right, down = upright[..., 0], -y_sign * upright[..., 1]
    moved_right, moved_down = {
        2: (-right, down), 3: (-right, -down), 4: (right, -down), 5: (down, right), 6: (down, -right),
        7: (-down, -right), 8: (-down, right),
    }[orientation]  # fmt: skip
    as_seen = np.stack([moved_right, -y_sign * moved_down, upright[..., 2]], axis=2)
    write(tmp_path / "images", "ball.png", stored(np.ascontiguousarray(photograph[:60, :40]), orientation), orientation)
    for folder, values in (
        ("conditions", stored(np.linspace(1, 9, 2400, dtype=np.float32).reshape(60, 40), orientation)),
        ("normals", stored(as_seen, orientation)),
    ):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "ball.npy", values)
    _, found = shard(tmp_path, make_data, shard_now, True, modality="geometry")
    condition = decode_condition(found["ball"])
    assert condition.normals is not None
    np.testing.assert_array_equal(condition.normals, encode_normals(upright))
    assert (np.diff(condition.values.astype(int).ravel()) >= 0).all(), "depth grows in reading order, as upright"


def test_pictures_without_exif_do_not_change(tmp_path: Path, make_data: MakeData, shard_now: Shard) -> None:
    picture, labels = scene(64, 96)
    write(tmp_path / "images", "a.png", picture)
    write(tmp_path / "conditions", "a.png", labels)
    tars = set()
    for follows in (None, False, True):
        shards, _ = shard(tmp_path, make_data, shard_now, follows)
        tars.add(hashlib.sha256(Path(shards.shard_uri("train-000000.tar")).read_bytes()).hexdigest())
    assert len(tars) == 1


def test_pillow_agrees_what_upright_is() -> None:
    picture, _ = scene(64, 96)
    for orientation in range(1, 9):
        stream, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored(picture, orientation)).save(stream, "PNG", exif=exif)
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(Image.open(stream))), picture)


def test_the_option_changes_the_plan(tmp_path: Path, make_data: MakeData) -> None:
    from piti.data.sharding import plan_shards

    picture, _ = scene(64, 96)
    for number in range(4):
        write(tmp_path, f"{number}.png", picture)
    plans = [
        next(iter(plan_shards(open_source(data), data, seed=0))).plan
        for data in (make_data(tmp_path, conditions_follow_exif=follows) for follows in (None, True, False))
    ]
    assert len(set(plans)) == 3
