"""Shards: ordinary WebDataset, the same bytes each time, listed in a manifest, and checked again when asked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from piti.config import DataConfig
from piti.data.decoding import decode_image
from piti.data.publishing import ShardWriter, adopt_shards, published_shards, write_manifest
from piti.data.shards import ShardSet
from piti.data.sketch import DETECTOR, detect_edges
from piti.data.tars import read_in_order, split_members
from piti.data.verify import verify_shards
from piti.errors import DataError

MakeData = Callable[..., DataConfig]
Shard = Callable[..., ShardSet]


def files_of(folder: Path | str) -> dict[str, str]:
    """sha256 of every file of a set of shards, by relative path."""
    root = Path(folder)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_the_pipeline_of_the_documentation_reads_the_shards(sketch_set: ShardSet) -> None:
    """docs/data.md's own lines, but for the place of the shards."""
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = sketch_set.shard_names("train")
    last = names[-1].removeprefix("train-").removesuffix(".tar")
    urls = f"{sketch_set.uri}/train-{{000000..{last}}}.tar"
    snippet, replaced = re.subn(r'^urls = ".*"$', f"urls = {urls!r}", snippet, flags=re.MULTILINE)
    assert replaced == 1
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True)
    rows = {row["key"]: row["source"] for row in sketch_set.manifest.to_pylist() if row["split"] == "train"}
    expected = {f"{key} (64, 64) (64, 64) {source}" for key, source in rows.items()}
    found = done.stdout.splitlines()
    assert len(found) == len(expected)
    assert set(found) == expected
    assert found != [f"{key} (64, 64) (64, 64) {rows[key]}" for key in sketch_set.keys("train")], "it was shuffled"


_READ_WITH_DATASETS = """
import json, sys
from datasets import load_dataset
samples = load_dataset("webdataset", data_files={"train": json.loads(sys.argv[1])}, split="train", streaming=True)
found = [{"key": s["__key__"], "about": s["json"]["key"], "edges": s["cond.png"].size} for s in samples]
print(json.dumps(found))
"""


def test_the_hugging_face_loader_reads_the_tars(sketch_set: ShardSet, tmp_path: Path) -> None:
    """In a process of its own, without a network."""
    if find_spec("datasets") is None:
        pytest.skip("Hugging Face's datasets is not installed")
    urls = [sketch_set.shard_uri(name) for name in sketch_set.shard_names("train")]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", _READ_WITH_DATASETS, json.dumps(urls)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=offline)
    found = json.loads(done.stdout)
    assert [sample["key"] for sample in found] == [sample["about"] for sample in found] == sketch_set.keys("train")
    assert {tuple(sample["edges"]) for sample in found} == {(64, 64)}


def test_the_manifest_says_where_each_sample_lies(sketch_set: ShardSet) -> None:
    rows = sketch_set.manifest.to_pylist()
    assert len(rows) == 41
    assert sketch_set.splits == ["train", "validation"]
    assert sum(sketch_set.num_samples(split) for split in sketch_set.splits) == 41
    for row in rows:
        with open(sketch_set.shard_uri(row["shard"]), "rb") as stream:
            stream.seek(row["offset"])
            data = stream.read(row["size"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        members = split_members(data)
        assert [(row["key"], members)] == list(read_in_order([data])), "as webdataset reads it"
        about = json.loads(members["json"])
        assert (about["width"], about["height"], about["source"]) == (row["width"], row["height"], row["source"])
        assert about["sketch"] == DETECTOR
        image = decode_image(members)
        assert image.shape == (64, 64, 3)
        edges = cv2.imdecode(np.frombuffer(members["cond.png"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(edges)) <= {0, 255}
        assert ("jpg" in members) == row["source"].endswith("jpg"), "lossless pictures stay lossless"


def test_tars_are_listed_alike_by_tarfile(sketch_set: ShardSet) -> None:
    name = sketch_set.shard_names("train")[0]
    with tarfile.open(sketch_set.shard_uri(name)) as archive:
        infos = archive.getmembers()
    assert {(info.mtime, info.uid, info.gid, info.mode) for info in infos} == {(0, 0, 0, 0o644)}
    keys = dict.fromkeys(info.name.split(".")[0] for info in infos)
    assert list(keys) == [key for key, _ in sketch_set.samples(name)]


def test_same_source_same_bytes(
    sketch_data: DataConfig, sketch_set: ShardSet, tmp_path: Path, shard_now: Shard
) -> None:
    shard_now(sketch_data, tmp_path)
    assert files_of(tmp_path) == files_of(sketch_set.uri)


def test_plain_pictures_keep_their_bytes(
    picture_folder: Path, tmp_path: Path, make_data: MakeData, shard_now: Shard
) -> None:
    shards = shard_now(make_data(picture_folder, geometry="random"), tmp_path)
    for name in shards.shard_names("train"):
        for _, members in shards.samples(name):
            about = json.loads(members["json"])
            suffix = about["source"].rsplit(".")[-1]
            assert about["bytes_kept"]
            assert members[suffix] == (picture_folder / about["source"]).read_bytes()
            assert decode_image(members).shape == (about["height"], about["width"], 3)


def test_center_shows_the_middle_and_squash_everything(
    tmp_path: Path, photograph: np.ndarray, make_data: MakeData, shard_now: Shard
) -> None:
    wide = np.ascontiguousarray(photograph[:128, :256])
    for number in range(2):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(wide).save(tmp_path / "in" / f"{number}.png")
    expected = {"squash": wide, "center": wide[:, 64:192]}
    for geometry, region in expected.items():
        shards = shard_now(make_data(tmp_path / "in", geometry=geometry), tmp_path / geometry)
        _, members = next(shards.samples("train-000000.tar"))
        by_pillow = np.asarray(Image.fromarray(np.ascontiguousarray(region)).resize((64, 64), Image.Resampling.BICUBIC))
        stored = decode_image(members)
        assert np.abs(stored - by_pillow.astype(int)).max() <= 1
        edges = cv2.imdecode(np.frombuffer(members["cond.png"], np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(edges, detect_edges(stored))


def test_a_broken_off_shard_leaves_nothing(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path), "train-000000.tar", "plan") as writer:
        writer.add("a", {"txt": b"x"}, source="a", width=1, height=1)
        assert len(files_of(tmp_path)) == 1, "written aside"
    assert files_of(tmp_path) == {}
    assert published_shards(str(tmp_path), {"train-000000.tar": "plan"}) == {}
    with pytest.raises(DataError, match="is not finished"):
        write_manifest(str(tmp_path), ["train-000000.tar"], {})


def test_only_shards_of_the_same_plan_with_their_tar_count_as_done(tmp_path: Path) -> None:
    for name in ("train-000000.tar", "train-000001.tar", "train-000002.tar"):
        with ShardWriter(str(tmp_path), name, "plan") as writer:
            writer.add("a", {"txt": b"x"}, source="a", width=1, height=1)
            writer.publish()
    (tmp_path / "train-000000.tar").unlink()
    (tmp_path / "stats" / "train-000001.parquet").write_bytes(b"damaged")
    names = [f"train-00000{number}.tar" for number in range(4)]
    assert list(published_shards(str(tmp_path), dict.fromkeys(names, "plan"))) == ["train-000002.tar"]
    assert published_shards(str(tmp_path), dict.fromkeys(names, "other plan")) == {}


def test_shards_of_an_earlier_set_are_copied_if_they_are_whole(tmp_path: Path) -> None:
    names = [f"train-00000{number}.tar" for number in range(3)]
    for name in names:
        with ShardWriter(str(tmp_path / "old"), name, f"plan of {name}") as writer:
            writer.add(name[:-4], {"txt": b"x" * 5000}, source="a", width=1, height=1)
            writer.publish()
    old = files_of(tmp_path / "old")
    damaged = tmp_path / "old" / names[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    wanted = {**{name: f"plan of {name}" for name in names[:2]}, names[2]: "another plan"}
    adopted = adopt_shards(str(tmp_path / "new"), wanted)
    assert list(adopted) == [names[0]]
    expected = {path: old[path] for path in (names[0], "stats/train-000000.parquet")}
    assert files_of(tmp_path / "new") == expected


def test_a_shard_of_rejected_items_has_a_record_and_no_tar(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path), "train-000000.tar", "plan") as writer:
        writer.reject("a", "it is empty", source="x/a.jpg")
        stats = writer.publish()
    assert (stats.num_samples, stats.num_rejected) == (0, 1)
    assert list(files_of(tmp_path)) == ["stats/train-000000.parquet"]
    write_manifest(str(tmp_path), ["train-000000.tar"], {})
    shards = ShardSet(str(tmp_path))
    assert shards.rejected() == [("x/a.jpg", "it is empty")]
    assert shards.splits == []
    assert list(verify_shards(str(tmp_path))) == []


def test_keys_that_readers_would_misread_are_refused(tmp_path: Path) -> None:
    """And a name that does not fit a tar header."""
    about = {"source": "a", "width": 1, "height": 1}
    with ShardWriter(str(tmp_path), "train-000000.tar", "plan") as writer:
        for key in ("", "a.b", "a/b", "x" * 81):
            with pytest.raises(ValueError, match="cannot be a sample's key"):
                writer.add(key, {"txt": b"x"}, **about)
        with pytest.raises(ValueError, match="too long for a tar header"):
            writer.add("x" * 80, {"y" * 30: b""}, **about)


def test_no_manifest_no_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished set"):
        ShardSet(str(tmp_path))
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="damaged"):
        ShardSet(str(tmp_path))


def test_verification_names_what_is_damaged(sketch_data: DataConfig, tmp_path: Path, shard_now: Shard) -> None:
    shards = shard_now(sketch_data, tmp_path)
    assert list(verify_shards(str(tmp_path))) == []
    names = shards.shard_names("train")
    row = next(row for row in shards.manifest.to_pylist() if row["shard"] == names[0])
    data = bytearray((tmp_path / names[0]).read_bytes())
    data[row["offset"] + row["size"] // 2] ^= 1
    (tmp_path / names[0]).write_bytes(data)
    (tmp_path / names[1]).unlink()
    last = max((row for row in shards.manifest.to_pylist() if row["shard"] == names[2]), key=lambda row: row["offset"])
    (tmp_path / names[2]).write_bytes((tmp_path / names[2]).read_bytes()[: last["offset"] + 700])
    (tmp_path / names[3]).write_bytes((tmp_path / names[3]).read_bytes() + b"\1")
    (tmp_path / "train-000099.tar").write_bytes(b"")
    found = {(problem.shard, problem.key): problem.what for problem in verify_shards(str(tmp_path))}
    assert found.keys() == {
        (names[0], row["key"]), (names[1], None), (names[2], last["key"]), (names[3], None), ("train-000099.tar", None),
    }  # fmt: skip
    assert "other bytes" in found[names[0], row["key"]]
    assert "missing" in found[names[1], None]
    assert "cut off" in found[names[2], last["key"]]
    assert "not in the manifest" in found["train-000099.tar", None]
    with pytest.raises(DataError, match="is damaged"):
        list(shards.samples(names[0]))
    with pytest.raises(DataError, match="is missing"):
        list(shards.samples(names[1]))
