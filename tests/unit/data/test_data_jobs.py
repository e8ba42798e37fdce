"""Jobs shard and degrade: restartable, with results and errors for people. Ray runs their tasks in tests/e2e."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from degradations import Recipe, apply_recipe
from piti.config import Config
from piti.config.presets import load_config
from piti.data.decoding import decode_image, decode_variant
from piti.data.manifest import stats_uri
from piti.data.resizing import crop_photograph
from piti.data.shards import ShardSet
from piti.data.verify import verify_shards
from piti.errors import DataError
from piti.job import JobContext, JobSpec
from piti.jobs import degrade, shard
from piti.plan import Plan, Step

pytestmark = pytest.mark.usefixtures("without_ray")


def small_config(root: Path, source: dict[str, Any], **data: Any) -> Config:
    settings = {"source": source, "modality": "sketch", "image_size": 128, "samples_per_shard": 6, **data}
    return load_config("demo-sketch", {"root": str(root), "data": settings})


def run(module: Any, step: Step, config: Config, folder: Path) -> Any:
    return module.run(JobContext(JobSpec.for_step(step, config, str(folder))))


@pytest.mark.parametrize("geometry", ["squash", "random"])
def test_shard_then_degrade_then_again(tmp_path: Path, geometry: str) -> None:
    config = small_config(tmp_path, {"kind": "bundled", "train_crops": 16, "validation_crops": 5}, geometry=geometry)
    plan = Plan(config)
    result = run(shard, plan.shard, config, tmp_path / "job")
    assert result["samples"] == {"train": 16, "validation": 5}
    assert result["rejected"] == 0
    progress = json.loads((tmp_path / "job" / "progress.json").read_text())
    assert progress["done"] == progress["total"] == 21
    companions = run(degrade, plan.degrade, config, tmp_path / "job2")
    assert companions["samples"] == result["samples"]
    images, low = ShardSet(plan.shard.output), ShardSet(plan.degrade.output)
    for split in ("train", "validation"):
        assert low.keys(split) == images.keys(split)
        assert low.shard_names(split) == images.shard_names(split)
    assert list(verify_shards(plan.degrade.output)) == []
    replay(images, low)

    name = low.shard_names("train")[0]
    before = {path: path.read_bytes() for path in Path(plan.degrade.output).rglob("*.*")}
    Path(stats_uri(plan.degrade.output, name)).unlink()
    Path(low.shard_uri(name)).unlink()
    untouched = Path(low.shard_uri(low.shard_names("train")[1]))
    written = untouched.stat().st_mtime_ns
    run(degrade, plan.degrade, config, tmp_path / "job2")
    assert {path: path.read_bytes() for path in Path(plan.degrade.output).rglob("*.*")} == before
    assert untouched.stat().st_mtime_ns == written, "shards that are there are not made again"


def replay(images: ShardSet, low: ShardSet) -> None:
    """Every stored variant is what its stored recipe makes of the stored picture, bit for bit."""
    name = images.shard_names("train")[0]
    recipes = set()
    for (key, members), (other_key, companion) in zip(images.samples(name), low.samples(name), strict=True):
        assert key == other_key
        for variant, about in enumerate(json.loads(companion["json"])["variants"]):
            stored = decode_variant(companion, variant)
            image = decode_image(members)
            assert (stored.box is None) == (image.shape[:2] == (128, 128)) or stored.box is not None
            if stored.box is not None:
                image = np.ascontiguousarray(crop_photograph(image, stored.box, 128))
            recipe = json.dumps(about["recipe"])
            np.testing.assert_array_equal(apply_recipe(image, Recipe.from_json(recipe)), stored.image)
            recipes.add(recipe)
    assert len(recipes) > 4


def test_too_many_rejected_fails_and_names_the_first(tmp_path: Path, picture_folder: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, path in enumerate(sorted(picture_folder.rglob("*.*"))[:12]):
        (folder / f"{number}{path.suffix}").write_bytes(b"" if number < 3 else path.read_bytes())
    source = {"kind": "paired", "images": str(folder), "validation_share": 0.3}
    config = small_config(tmp_path / "root", source, max_rejected_share=0.2)
    with pytest.raises(DataError) as caught:
        run(shard, Plan(config).shard, config, tmp_path / "job")
    assert "3 of 12 items cannot be used" in str(caught.value)
    assert "file is empty" in str(caught.value)
    assert "max_rejected_share" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (Path(Plan(config).shard.output) / "manifest.parquet").exists()
    allowed = small_config(tmp_path / "root", source, max_rejected_share=0.25)
    assert run(shard, Plan(allowed).shard, allowed, tmp_path / "job")["rejected"] == 3


def test_every_item_found_is_accounted_for_in_a_few_shot_set(tmp_path: Path) -> None:
    source = {"kind": "bundled", "train_crops": 12, "validation_crops": 4}
    config = small_config(tmp_path, source, max_samples=5)
    result = run(shard, Plan(config).shard, config, tmp_path / "job")
    assert result["samples"] == {"train": 5, "validation": 4}
    assert (result["rejected"], result["filtered"], result["not_drawn"]) == (0, 0, 7)


def test_degrading_damaged_shards_says_which_sample(tmp_path: Path) -> None:
    config = small_config(tmp_path, {"kind": "bundled", "train_crops": 4, "validation_crops": 2})
    plan = Plan(config)
    run(shard, plan.shard, config, tmp_path / "job")
    shards = ShardSet(plan.shard.output)
    path = Path(shards.shard_uri("train-000000.tar"))
    row = next(row for row in shards.manifest.to_pylist() if row["shard"] == path.name)
    data = bytearray(path.read_bytes())
    data[row["offset"] + 700] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"sample {row['key']} in .* is damaged"):
        run(degrade, plan.degrade, config, tmp_path / "job")
