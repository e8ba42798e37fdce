"""Small real datasets: photographs from scikit-image's wheel, cut, sharded and degraded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from piti.config import DataConfig, DegradationConfig
from piti.data.publishing import write_manifest
from piti.data.sharding import shard_dataset
from piti.data.shards import ShardSet
from piti.jobs import degrade, shard
from piti.jobs.degrade import companion_plan, degrade_shard


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """The astronaut, uint8 (512, 512, 3) RGB."""
    import skimage

    path = Path(skimage.__file__).parent / "data" / "astronaut.png"
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="session")
def small(photograph: np.ndarray) -> np.ndarray:
    """A part of the photograph, uint8 (60, 90, 3)."""
    return np.ascontiguousarray(photograph[100:160, 200:290])


@pytest.fixture(scope="session")
def crops(photograph: np.ndarray) -> list[np.ndarray]:
    """41 different crops of different sizes."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(41):
        height, width = rng.integers(72, 140, size=2)
        top, left = rng.integers(0, 512 - height), rng.integers(0, 512 - width)
        found.append(np.ascontiguousarray(photograph[top : top + height, left : left + width]))
    return found


def save(path: Path, image: np.ndarray) -> None:
    """Write RGB, grey or 16-bit values as the file's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    assert cv2.imwrite(str(path), ordered)


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, crop in enumerate(crops):
        save(folder / f"{'ab'[number % 2]}" / f"photo {number}.{('png', 'jpg')[number % 2]}", crop)
    return folder


@pytest.fixture(scope="session")
def make_data() -> Callable[..., DataConfig]:
    def make(images: Path | str, **changes: Any) -> DataConfig:
        source = {"kind": "paired", "images": str(images), "validation_share": 0.2, **changes.pop("source", {})}
        settings = {"modality": "sketch", "image_size": 64, "samples_per_shard": 8, **changes}
        return DataConfig.model_validate({"source": source, **settings})

    return make


@pytest.fixture(scope="session")
def shard_now() -> Callable[[DataConfig, Path | str], ShardSet]:
    """Shard in this process, one shard after the other."""
    return lambda data, uri: shard_dataset(data, str(uri))


@pytest.fixture(scope="session")
def degrade_now() -> Callable[[str, DataConfig, Path | str], ShardSet]:
    """Degrade in this process: 3 variants at scale 4."""

    def degrade(source: str, data: DataConfig, uri: Path | str) -> ShardSet:
        shards, settings = ShardSet(source), {"scale": 4}
        names = [name for split in shards.splits for name in shards.shard_names(split)]
        for name in names:
            plan = companion_plan(shards.stats[name], settings)
            degrade_shard(source, name, str(uri), plan, data, DegradationConfig(variants=3), 4, seed=0)
        write_manifest(str(uri), names, settings)
        return ShardSet(str(uri))

    return degrade


@pytest.fixture(scope="session")
def sketch_data(picture_folder: Path, make_data: Callable[..., DataConfig]) -> DataConfig:
    return make_data(picture_folder)


@pytest.fixture(scope="session")
def sketch_set(
    tmp_path_factory: pytest.TempPathFactory, sketch_data: DataConfig, shard_now: Callable[..., ShardSet]
) -> ShardSet:
    """Shards of the 41 pictures at 64x64, sketches detected."""
    return shard_now(sketch_data, tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def sketch_companions(
    tmp_path_factory: pytest.TempPathFactory,
    sketch_data: DataConfig,
    sketch_set: ShardSet,
    degrade_now: Callable[..., ShardSet],
) -> ShardSet:
    return degrade_now(sketch_set.uri, sketch_data, tmp_path_factory.mktemp("companions"))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs shard and degrade do their tasks here, one after the other."""

    def run_here(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], **_: float) -> Iterator[Any]:
        for entry in arguments:
            yield function(*entry)

    for job in (shard, degrade):
        monkeypatch.setattr(job, "run_tasks", run_here)
        monkeypatch.setattr(job, "ray_connection", nullcontext)
