"""Pictures that are very large, folders with very many, and a disk that is full."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from piti.config import DataConfig, DegradationConfig
from piti.data.decoding import decode_image
from piti.data.sharding import plan_shards, write_shard
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.errors import DataError
from piti.jobs.degrade import degrade_shard

MakeData = Callable[..., DataConfig]
Shard = Callable[..., ShardSet]


def test_a_20_megapixel_photograph_is_one_like_others(
    photograph: np.ndarray, tmp_path: Path, make_data: MakeData, shard_now: Shard
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    large = cv2.resize(photograph, (5472, 3648), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(large).save(folder / "large.jpg", quality=85)
    Image.fromarray(photograph[:90, :120]).save(folder / "small.png")
    shards = shard_now(make_data(folder, source={"validation_share": 0.5}), tmp_path / "out")
    assert shards.rejected() == []
    rows = {row["source"]: row for row in shards.manifest.to_pylist()}
    assert (rows["large.jpg"]["width"], rows["large.jpg"]["height"]) == (5472, 3648)
    stored = [members for name in shards.stats for _, members in shards.samples(name)]
    images = {json.loads(members["json"])["source"]: decode_image(members) for members in stored}
    expected = np.asarray(Image.fromarray(photograph).resize((64, 64), Image.Resampling.BICUBIC))
    difference = np.abs(images["large.jpg"].astype(int) - expected)
    assert difference.mean() < 6, "the same photograph, ten times enlarged, JPEG twice, and shrunk again"


@pytest.mark.slow
def test_ten_thousand_tiny_files(photograph: np.ndarray, tmp_path: Path, make_data: MakeData, shard_now: Shard) -> None:
    """Accepted and rejected make up what was found, in bounded shards, each key once."""
    folder = tmp_path / "in"
    contents = []
    for number in range(16):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(photograph[number : number + 18, :18])).save(
            buffer, "PNG", compress_level=1
        )
        contents.append(buffer.getvalue())
    for number in range(10_000):
        path = folder / f"{number % 37}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if number % 500 == 0 else contents[number % 16])
    data = make_data(folder, image_size=16, samples_per_shard=1000, source={"validation_share": 0.05})
    shards = shard_now(data, tmp_path / "out")
    keys = [key for split in shards.splits for key in shards.keys(split)]
    assert len(keys) == len(set(keys)) == 9980
    assert len(shards.rejected()) == 20
    assert max(stats.num_items for stats in shards.stats.values()) < 1200
    assert 350 < shards.num_samples("validation") < 650


def files_of(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if not done or done.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_damages_nothing_and_work_goes_on_once_there_is_space(
    sketch_data: DataConfig, sketch_set: ShardSet, small_disk: Path, shard_now: Shard
) -> None:
    data, uri = sketch_data, small_disk / "shards"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 128 * 1024)
    plans = plan_shards(open_source(data), data, seed=0)

    def write_all() -> None:
        for plan in plans:
            write_shard(plan, data, str(uri))

    with pytest.raises(DataError, match=re.escape("no space left for train-00000")) as caught:
        write_all()
    assert "free some space" in str(caught.value)
    expected = files_of(Path(sketch_set.uri))
    assert files_of(uri).items() <= expected.items(), "what is there is whole, and nothing half-written is left"
    name = sketch_set.shard_names("train")[0]
    with open(ballast, "ab") as stream:
        stream.write(b"x" * (shutil.disk_usage(small_disk).free - 4096))
    with pytest.raises(DataError, match="no space left"):
        degrade_shard(sketch_set.uri, name, str(small_disk / "low"), "p", data, DegradationConfig(), 4, 0)
    assert files_of(small_disk / "low") == {}
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    shard_now(data, uri)
    assert files_of(uri) == expected
