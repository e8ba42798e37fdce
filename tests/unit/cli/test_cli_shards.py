"""`piti shards` on real sets: listed, shown, counted, looked at, checked."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from piti.cli.app import app
from piti.config import DataConfig, DegradationConfig
from piti.data.publishing import published_shards, write_manifest
from piti.data.sharding import plan_shards, shard_dataset, write_shard
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.jobs.degrade import degrade_shard


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one finished set of masks (two pictures unusable, some filtered), its companions, and a half set."""
    import skimage

    photograph = cv2.imread(str(Path(skimage.__file__).parent / "data" / "coffee.png"))[..., ::-1]
    root = tmp_path_factory.mktemp("root")
    for name in ("images", "labels"):
        (root / "in" / name).mkdir(parents=True)
    for number in range(20):
        crop = np.ascontiguousarray(photograph[number : number + 64, 10 * number : 10 * number + 80])
        Image.fromarray(crop).save(root / "in" / "images" / f"{number}.png")
        labels = np.full((64, 80), 0 if number % 4 else 3, np.uint8)
        labels[:16], labels[16:32] = 255, 1 if number < 18 else 4
        Image.fromarray(labels).save(root / "in" / "labels" / f"{number}.png")
    (root / "in" / "images" / "3.png").write_bytes(b"")
    (root / "in" / "labels" / "5.png").unlink()
    source = {"kind": "paired", "images": str(root / "in" / "images"), "conditions": str(root / "in" / "labels"),
              "validation_share": 0.3}  # fmt: skip
    data = DataConfig.model_validate(
        {
            "source": source,
            "modality": "mask",
            "num_classes": 5,
            "image_size": 32,
            "samples_per_shard": 5,
            "require_classes": [1, 2],
        }
    )
    (root / "data.json").write_text(data.model_dump_json())
    uri = str(root / "shards" / "abc")
    shard_dataset(data, uri)
    write_shard(next(iter(plan_shards(open_source(data), data, seed=0))), data, str(root / "shards" / "half"))
    names = [name for split in ("train", "validation") for name in ShardSet(uri).shard_names(split)]
    for name in names:
        degrade_shard(uri, name, str(root / "degraded" / "def"), "plan", data, DegradationConfig(variants=2), 4, seed=0)
    write_manifest(str(root / "degraded" / "def"), names, {"scale": 4})
    return root


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["shards", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_ls_tells_sets_and_unfinished_ones(root: Path) -> None:
    lines = run("ls", str(root)).splitlines()
    assert [line.split()[0] for line in lines] == [
        str(root / folder) for folder in ("shards/abc", "shards/half", "degraded/def")
    ]
    shards = ShardSet(str(root / "shards" / "abc"))
    assert f"{shards.num_samples('train')} train, {shards.num_samples('validation')} validation" in lines[0]
    assert "not finished, 1 tars so far" in lines[1]
    assert run("ls", str(root / "shards")).splitlines() == lines[:2]
    assert run("ls", str(root / "shards" / "abc")).splitlines() == lines[:1]
    assert "there are no shards below" in run("ls", str(root / "in"), code=1)


def test_show_tells_of_a_set_or_a_sample(root: Path) -> None:
    uri = str(root / "shards" / "abc")
    whole = run("show", uri)
    shards = ShardSet(uri)
    assert '"num_classes": 5' in whole
    assert all(name in whole for name in shards.shard_names("train"))
    key = shards.keys("train")[0]
    about = json.loads(run("show", uri, key))
    assert about["manifest"]["key"] == about["json"]["key"] == key
    assert set(about["files"]) == {"png", "cond.png", "json"}
    rejected = next(row["key"] for row in shards.manifest.to_pylist() if row["status"] == "rejected")
    assert "reason" in json.loads(run("show", uri, rejected))["manifest"]
    assert "has no item nobody" in run("show", uri, "nobody", code=1)


def test_stats_count_everything_once(root: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    output = run("stats", str(root / "shards" / "abc"), "--sheet", str(sheet), "--sheet-samples", "4")
    assert "16 accepted" in output
    assert "2 rejected" in output
    assert "2 filtered" in output
    assert "width: 80 to 80 pixels, median 80" in output
    assert "rejected: 1 x file is empty (0 bytes)" in output
    assert "filtered: 2 x shows none of data.require_classes" in output
    lines = {line.split()[0]: line for line in output.splitlines() if "% of pixels" in line}
    assert lines.keys() == {"0", "1", "3", "255"}
    assert "25.00 % of pixels, in 16 masks" in lines["255"]
    assert "25.00 % of pixels, in 16 masks" in lines["1"]
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture)
    assert picture.format == "PNG"
    assert (pixels == (0, 128, 0)).all(axis=2).any(), "label 1 in its colour"


def test_a_sheet_of_companions_shows_the_variants(root: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    run("stats", str(root / "degraded" / "def"), "--sheet", str(sheet), "--sheet-samples", "3")
    with Image.open(sheet) as picture:
        assert picture.width == 2 * 166 + 6
        assert picture.height == 3 * 166 + 26 + 6


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def shard_again(uri: Path) -> list[str]:
    """What the job does in a set that is there: the shards that it writes."""
    data = DataConfig.model_validate_json((uri.parent.parent / "data.json").read_text())
    plans = plan_shards(open_source(data), data, seed=0)
    finished = published_shards(str(uri), plans.digests)
    shard_dataset(data, str(uri))
    return [plan.name for plan in plans if plan.name not in finished]


def test_repair_makes_the_next_run_write_what_is_damaged_and_nothing_else(root: Path) -> None:
    uri = root / "shards" / "abc"
    (uri / "DONE.json").write_text("{}")
    before = files_of(uri)
    assert "is whole" in run("verify", str(uri), "--repair")
    assert files_of(uri) == before
    names = ShardSet(str(uri)).shard_names("train")
    tar = uri / names[0]
    content = tar.read_bytes()
    tar.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])
    (uri / "train-000099.tar").write_bytes(b"")
    advice = " ".join(run("verify", str(uri), code=1).split())
    assert f"run `piti shards verify {uri} --repair`, then piti/prepare" in advice
    output = run("verify", str(uri), "--repair")
    record = f"stats/{names[0].removesuffix('.tar')}.parquet"
    gone = [record, "DONE.json", "manifest.parquet", "train-000099.tar"]
    assert names[0] in output
    for name in gone:
        assert f"deleted {uri}/{name}" in output.splitlines()
        assert not (uri / name).exists()
    assert files_of(uri).keys() == before.keys() - set(gone)
    assert shard_again(uri) == [names[0]]
    after = files_of(uri)
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items() if name != "DONE.json"
    }
    unchanged = before.keys() - {*gone, names[0]}
    assert all(after[name] == before[name] for name in unchanged)
    assert "is whole" in run("verify", str(uri))


def test_a_damaged_manifest_is_repaired_alike(root: Path) -> None:
    uri = root / "shards" / "abc"
    manifest = (uri / "manifest.parquet").read_bytes()
    (uri / "DONE.json").write_text("{}")
    (uri / "manifest.parquet").write_bytes(manifest[:-9])
    assert "--repair" in run("verify", str(uri), code=1)
    run("verify", str(uri), "--repair")
    assert not (uri / "DONE.json").exists()
    assert shard_again(uri) == []
    assert (uri / "manifest.parquet").read_bytes() == manifest
    assert "is no finished set" in run("verify", str(root / "shards" / "half"), "--repair", code=1)


def test_repair_of_a_wrong_uri_deletes_nothing(root: Path) -> None:
    checkpoint = root / "runs" / "abc"
    checkpoint.mkdir(parents=True)
    (checkpoint / "DONE.json").write_text("{}")
    assert "is no set of shards - give <root>/shards/<fingerprint>" in " ".join(
        run("verify", str(checkpoint), "--repair", code=1).split()
    )
    assert (checkpoint / "DONE.json").exists()
