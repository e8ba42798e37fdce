"""HED sketches: the published network's probabilities, its weights whole or not at all, the choice on record."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from piti import storage
from piti.config import DataConfig, SketchConfig, WeightsRef
from piti.config.presets import load_config
from piti.data.decoding import decode_condition
from piti.data.hed import Hed, hed_edges, load_hed
from piti.data.shards import ShardSet
from piti.errors import CheckpointError, ConfigError
from piti.weights import weights_problems

GOLDEN = Path(__file__).parent / "golden" / "hed-probability.npy"
STAGES = (("One", (64, 64), 0), ("Two", (128, 128), 1), ("Thr", (256,) * 3, 1), ("Fou", (512,) * 3, 1),
          ("Fiv", (512,) * 3, 1))  # fmt: skip


def published_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of network-bsds500.pytorch."""
    channels = 3
    for name, widths, first in STAGES:
        for place, width in enumerate(widths):
            yield f"moduleVgg{name}.{first + 2 * place}.weight", (width, channels, 3, 3)
            yield f"moduleVgg{name}.{first + 2 * place}.bias", (width,)
            channels = width
        yield f"moduleScore{name}.weight", (1, channels, 1, 1)
        yield f"moduleScore{name}.bias", (1,)
    yield "moduleCombine.0.weight", (1, 5, 1, 1)
    yield "moduleCombine.0.bias", (1,)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("named_arrays", path)
    assert spec is not None
    assert spec.loader is not None
    arrays = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(arrays)
    found = {key: torch.from_numpy(arrays.weight_array(key, shape)) for key, shape in published_shapes()}
    found["moduleCombine.0.weight"] *= 0.3
    return {key: value.float() for key, value in found.items()}


@pytest.fixture(scope="module")
def ref(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> WeightsRef:
    path = tmp_path_factory.mktemp("hed") / "network-bsds500.pytorch"
    torch.save(weights, path)
    return WeightsRef(path=str(path), sha256=storage.sha256_file(str(path)))


def test_probabilities_are_those_of_the_published_network(ref: WeightsRef, photograph: np.ndarray) -> None:
    """Within float32 rounding: the bound is ten thousand times smaller than the range of the golden values."""
    expected = np.load(GOLDEN)
    crop = photograph[60:113, 180:239]
    bgr = torch.from_numpy(np.ascontiguousarray(crop[..., ::-1].transpose(2, 0, 1))).float()[None]
    found = load_hed(ref)(bgr)[0, 0].numpy()
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(found, expected, atol=3e-5)
    edges = hed_edges(crop, SketchConfig(detector="hed", weights=ref))
    clear = np.abs(expected - 0.6) > 1e-4
    np.testing.assert_array_equal(edges[clear], np.where(expected > 0.6, 255, 0)[clear])
    assert 0 < (edges > 0).mean() < 1


def test_a_saved_networks_names_are_understood_too(weights: dict[str, Tensor], ref: WeightsRef, tmp_path: Path) -> None:
    path = tmp_path / "saved.pth"
    torch.save({key.replace("module", "net"): value for key, value in weights.items()}, path)
    first, second = load_hed(ref).state_dict(), load_hed(WeightsRef(path=str(path))).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_other_weights_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    def refused(content: object, message: str, sha256: str | None = None) -> None:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pth"
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            load_hed(WeightsRef(path=str(path), sha256=sha256))

    few = {key: value for key, value in weights.items() if "Fiv" not in key}
    refused(few, r"missing: scores\.4\.bias")
    refused({**weights, "classifier.weight": torch.zeros(1)}, "unexpected: classifier.weight")
    refused({**weights, "moduleScoreOne.weight": torch.zeros(1, 63, 1, 1)}, r"another shape: scores\.0\.weight")
    refused([torch.zeros(1)], "no mapping of tensors")
    refused(weights, "pins 0000", sha256="0" * 64)
    with pytest.raises(CheckpointError, match="there is no file"):
        load_hed(WeightsRef(path=str(tmp_path / "none.pth")))


def test_large_pictures_are_looked_at_in_a_bounded_size(
    monkeypatch: pytest.MonkeyPatch, photograph: np.ndarray
) -> None:
    seen = []

    class Counting(Hed):
        def forward(self, pictures: Tensor) -> Tensor:
            seen.append(tuple(pictures.shape))
            return pictures[:, :1] / 255

    network = Counting()
    monkeypatch.setattr("piti.data.hed._network", lambda ref, device: network)
    large = np.repeat(np.repeat(photograph, 4, axis=0)[:600], 4, axis=1)
    edges = hed_edges(np.ascontiguousarray(large), SketchConfig(detector="hed", weights=WeightsRef(path="x")))
    assert seen == [(1, 3, 300, 1024)]
    assert edges.shape == (600, 2048)
    assert set(np.unique(edges)) == {0, 255}


def test_each_sample_says_how_its_sketch_was_made(
    ref: WeightsRef,
    picture_folder: Path,
    make_data: Callable[..., DataConfig],
    shard_now: Callable[..., ShardSet],
    tmp_path: Path,
) -> None:
    sketch = {"detector": "hed", "weights": ref.model_dump(), "threshold": 0.5}
    data = make_data(picture_folder, sketch=sketch, image_size=32, max_samples=3, source={"validation_share": 0.05})
    shards = shard_now(data, tmp_path)
    _, members = next(shards.samples("train-000000.tar"))
    record = json.loads(members["json"])["sketch"]
    assert record == {"name": "hed", "threshold": 0.5, "weights_sha256": ref.sha256, "longest_side_pixels": 1024}
    assert set(np.unique(decode_condition(members).values)) <= {0, 255}
    canny = shard_now(make_data(picture_folder, image_size=32), tmp_path / "canny")
    assert canny.stats["train-000000.tar"].plan != shards.stats["train-000000.tar"].plan


def test_config_and_preflight_look_at_the_detector(ref: WeightsRef, tmp_path: Path) -> None:
    for overrides, message in (
        ({"data.sketch.detector": "hed"}, "detector hed needs weights"),
        ({"data.sketch.weights.path": "x"}, "have no effect with detector canny"),
        ({"data.sketch.threshold": 0.5}, "have no effect with detector canny"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config("demo-sketch", overrides)
    there = {"data.sketch.detector": "hed", "data.sketch.weights": ref.model_dump()}
    assert weights_problems(load_config("demo-sketch", there)) == []
    gone = {"data.sketch.detector": "hed", "data.sketch.weights.path": str(tmp_path / "none.pth")}
    assert "data.sketch.weights: there is no file" in str(weights_problems(load_config("demo-sketch", gone))[0])
