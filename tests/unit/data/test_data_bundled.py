"""The bundled photographs: real, deterministic, and split without a shared pixel of any scene."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from piti.config import DataConfig
from piti.data.conditions import label_colors
from piti.data.palette import NUM_CLASSES, PALETTE
from piti.data.sources import bundled, open_source
from piti.data.sources.bundled import BundledItem, _photograph, region


@pytest.fixture(scope="module")
def data() -> DataConfig:
    source = {"kind": "bundled", "train_crops": 60, "validation_crops": 24}
    return DataConfig.model_validate({"source": source, "modality": "sketch", "image_size": 64})


def boxes(data: DataConfig, split: str) -> list[tuple[str, list[int]]]:
    found = []
    for item in open_source(data).items(split):  # type: ignore[arg-type]
        provenance = item.load().provenance
        found.append((provenance["photograph"], provenance["box"]))
    return found


def test_train_and_validation_share_no_pixel(data: DataConfig) -> None:
    train, validation = boxes(data, "train"), boxes(data, "validation")
    assert len({name for name, _ in train}) == 9
    assert len({name for name, _ in validation}) == 8
    for name in {name for name, _ in validation}:
        rightmost_trained = max(box[2] for other, box in train if other == name)
        assert rightmost_trained <= min(box[0] for other, box in validation if other == name)


def test_right_view_of_the_stereo_pair_shows_nothing_of_the_validation_scene() -> None:
    import skimage

    disparity = np.load(Path(skimage.__file__).parent / "data" / "motorcycle_disp.npz")["arr_0"]
    height, width = disparity.shape
    validation = region("motorcycle_left.png", "validation", height, width)
    columns = np.arange(width)[None] - disparity  # of each left pixel in the right view
    held_out = columns[:, validation.left :]
    assert held_out[np.isfinite(held_out)].min() >= region("motorcycle_right.png", "train", height, width).right


def test_a_crop_follows_from_its_number_alone(data: DataConfig) -> None:
    more = data.model_copy(update={"source": data.source.model_copy(update={"train_crops": 80})})
    first, second = list(open_source(data).items("train")), list(open_source(more).items("train"))
    assert [item.key for item in first] == [item.key for item in second[:60]]
    np.testing.assert_array_equal(first[31].load().image, second[31].load().image)
    assert len({item.key for item in second}) == 80
    assert all(set(item.key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") for item in second)


def test_crops_are_squares_of_the_photograph_in_many_sizes() -> None:
    items = [BundledItem("train", index, "x") for index in range(90)]
    sides = set()
    for item in items:
        loaded = item.load()
        assert loaded.image.shape[0] == loaded.image.shape[1] >= 64
        left, top, right, bottom = loaded.provenance["box"]
        np.testing.assert_array_equal(loaded.image, _photograph(item.photograph).image[top:bottom, left:right])
        sides.add(loaded.image.shape[0])
    assert len(sides) > 60


def test_problems_and_fingerprint(data: DataConfig) -> None:
    source = open_source(data)
    assert source.problems() == []
    assert source.fingerprint() == open_source(data).fingerprint()
    wrong = DataConfig.model_validate({"source": {"kind": "bundled"}, "modality": "geometry"})
    assert "no conditions for modality geometry" in str(open_source(wrong).problems()[0])


def test_configs_and_plans_import_nothing_heavy() -> None:
    code = (
        "import sys, piti.plan; print([m for m in ('torch', 'cv2', 'PIL', 'pyarrow', 'skimage') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_label_maps_are_the_crops_own_colours(data: DataConfig) -> None:
    """Painted in the middles of its quarters, a label map is within half a quarter of its photograph, and nearer than most."""
    labelled = data.model_copy(update={"modality": "mask", "num_classes": NUM_CLASSES})
    assert open_source(labelled).problems() == []
    loaded = [item.load() for item in list(open_source(labelled).items("validation"))[:16]]
    colors = label_colors(NUM_CLASSES).astype(np.float64) + 32

    def small(picture: NDArray[Any]) -> NDArray[Any]:
        height, width = (side // 8 * 8 for side in picture.shape[:2])
        return picture[:height, :width].reshape(8, height // 8, 8, width // 8, 3).mean(axis=(1, 3))

    painted = [small(colors[item.condition.values]) for item in loaded if item.condition is not None]
    truths = [small(item.image.astype(np.float64)) for item in loaded]
    errors = np.array([[np.abs(mine - truth).mean() for truth in truths] for mine in painted])
    assert errors.diagonal().max() < 32
    assert (errors < errors.diagonal()[:, None]).sum(axis=1).max() <= 2  # crops of one photograph are alike


def test_label_maps_have_64_classes(data: DataConfig) -> None:
    fewer = data.model_copy(update={"modality": "mask", "num_classes": 10})
    (problem,) = open_source(fewer).problems()
    assert "64" in str(problem)
    assert (NUM_CLASSES, PALETTE["version"]) == (bundled._PALETTE_CLASSES, bundled._PALETTE_VERSION)
