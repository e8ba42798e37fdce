"""Datasets in the exact layout of their distribution: unpacked, packed, in object storage, and with parts missing."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from piti.config import DataConfig
from piti.data.items import Item, RejectedItem
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.data.sources.trees import open_tree, shared_listings
from piti.data.verify import verify_shards
from tests.value_files import write_values

Cut = Callable[[int], np.ndarray]


@pytest.fixture(scope="module")
def cut(photograph: np.ndarray) -> Cut:
    """Different real crops of 96x80 pixels."""
    return lambda number: np.ascontiguousarray(photograph[5 * number : 5 * number + 80, 7 * number : 7 * number + 96])


@pytest.fixture(scope="module")
def ade(tmp_path_factory: pytest.TempPathFactory, cut: Cut) -> Path:
    """ADEChallengeData2016 with 5 + 3 pictures; labels 0, 1 and 150; the archive's other files too."""
    root = tmp_path_factory.mktemp("ade") / "ADEChallengeData2016"
    for folder, name, count in (("training", "train", 5), ("validation", "val", 3)):
        for number in range(count):
            labels = np.zeros((80, 96), np.uint8)
            labels[20:, 10:40], labels[40:, 40:] = 1, 150
            write_values(root / "images" / folder / f"ADE_{name}_{number + 1:08d}.jpg", cut(number))
            write_values(root / "annotations" / folder / f"ADE_{name}_{number + 1:08d}.png", labels)
    (root / "objectInfo150.txt").write_text("Idx\tRatio\n")
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory, cut: Cut) -> Path:
    """COCO 2017 with 6 + 3 pictures and COCO-Stuff's pixel maps: labels 0, 181 and 255; one photograph is grey."""
    root = tmp_path_factory.mktemp("coco")
    for folder, count in (("train2017", 6), ("val2017", 3)):
        for number in range(count):
            labels = np.full((80, 96), 255, np.uint8)
            labels[:30], labels[30:60, 20:] = 0, 181
            picture = cut(number) if number else np.asarray(Image.fromarray(cut(number)).convert("L"))
            write_values(root / folder / f"{number:012d}.jpg", picture)
            write_values(root / "stuffthingmaps" / folder / f"{number:012d}.png", labels)
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def diode(tmp_path_factory: pytest.TempPathFactory, cut: Cut) -> Path:
    """DIODE with indoors and outdoor scans, normals beside the rest; some depth NaN, infinite or masked out."""
    root = tmp_path_factory.mktemp("diode")
    for split in ("train", "val"):
        for kind, number in (("indoors", 0), ("indoors", 1), ("outdoor", 2), ("outdoor", 3)):
            scan = root / split / kind / "scan_of" / f"scene_0000{number}" / f"scan_0000{number}"
            name = f"0000{number}_0000{number}_{kind}_000_0{number}0"
            depth = np.linspace(1, 40, 80 * 96, dtype=np.float32).reshape(80, 96, 1)
            depth[0, 0], depth[0, 1], depth[0, 2] = np.nan, np.inf, -1
            valid = np.ones((80, 96), np.float32)
            valid[10:20] = 0
            normals = np.zeros((80, 96, 3), np.float32)
            normals[..., 2], normals[:5] = -1, 0
            write_values(scan / f"{name}.png", cut(number))
            write_values(scan / f"{name}_depth.npy", depth)
            write_values(scan / f"{name}_depth_mask.npy", valid)
            write_values(scan / f"{name}_normal.npy", normals)
    return root


def data_of(source: dict[str, Any], **settings: Any) -> DataConfig:
    return DataConfig.model_validate({"source": source, "image_size": 64, "samples_per_shard": 4, **settings})


def ade_data(root: Path | str, **settings: Any) -> DataConfig:
    return data_of({"kind": "ade20k", "root": str(root)}, **{"modality": "mask", "num_classes": 151, **settings})


def coco_data(root: Path | str, **settings: Any) -> DataConfig:
    return data_of({"kind": "coco-stuff", "root": str(root)}, **{"modality": "mask", "num_classes": 182, **settings})


def diode_data(root: Path | str, **source: Any) -> DataConfig:
    return data_of({"kind": "diode", "root": str(root), **source}, modality="geometry")


def items(data: DataConfig, split: str = "train") -> list[Item]:
    source = open_source(data)
    assert source.problems() == []
    return list(source.items(split))  # type: ignore[arg-type]


def messages(data: DataConfig) -> str:
    return "\n".join(str(problem) for problem in open_source(data).problems())


def zip_folder(folder: Path, archive: Path) -> Path:
    """`folder` itself is in the archive, as in the distributed ones."""
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(folder.rglob("*.*")):
            target.write(path, path.relative_to(folder.parent))
    return archive


def tar_folder(folder: Path, archive: Path) -> Path:
    compression = "" if archive.suffix == ".tar" else archive.suffix[1:]
    with tarfile.open(archive, f"w:{compression}") as target:  # type: ignore[call-overload]
        target.add(folder, arcname=folder.name)
    return archive


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITI_CACHE", str(tmp_path / "cache"))


def same_items(first: list[Item], second: list[Item]) -> None:
    assert [item.key for item in first] == [item.key for item in second]
    for one, other in zip(first, second, strict=True):
        a, b = one.load(), other.load()
        np.testing.assert_array_equal(a.image, b.image)
        assert a.condition is not None
        assert b.condition is not None
        np.testing.assert_array_equal(a.condition.values, b.condition.values)


def test_ade20k_has_its_splits_and_labels_0_to_150(ade: Path) -> None:
    train, validation = items(ade_data(ade)), items(ade_data(ade), "validation")
    assert [item.origin for item in validation] == [f"ADE_val_{number:08d}.jpg" for number in (1, 2, 3)]
    assert len(train) == 5
    condition = train[0].load().condition
    assert condition is not None
    assert set(np.unique(condition.values)) == {0, 1, 150}


def test_ade20k_is_found_unpacked_or_packed_in_any_of_its_places(ade: Path, tmp_path: Path) -> None:
    expected = items(ade_data(ade))
    same_items(items(ade_data(ade.parent)), expected)
    archive = zip_folder(ade, tmp_path / "ADEChallengeData2016.zip")
    same_items(items(ade_data(tmp_path)), expected)
    same_items(items(ade_data(archive)), expected)
    (tmp_path / "apart").mkdir()
    tar_folder(ade, tmp_path / "apart" / "ADEChallengeData2016.tar.gz")
    same_items(items(ade_data(tmp_path / "apart")), expected)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_unpacked_once(compression: str, ade: Path, tmp_path: Path) -> None:
    archive = tar_folder(ade, tmp_path / f"ADEChallengeData2016.tar.{compression}")
    found = items(ade_data(archive))
    unpacked = list((tmp_path / "cache" / "archives").glob("*.tar"))
    assert len(unpacked) == 1
    archive.unlink()
    same_items(found, items(ade_data(ade)))


def test_unpacked_copies_may_be_deleted_after_sharding(
    ade: Path, tmp_path: Path, shard_now: Callable[..., ShardSet]
) -> None:
    """The shards are whole without them, and the same process can read the dataset again."""
    data = ade_data(tar_folder(ade, tmp_path / "ADEChallengeData2016.tar.gz"))
    shards = shard_now(data, tmp_path / "out")
    before = open_source(data).fingerprint()
    shutil.rmtree(tmp_path / "cache" / "archives")
    assert list(verify_shards(shards.uri, decode=True)) == []
    same_items(items(data), items(ade_data(ade)))
    assert open_source(data).fingerprint() == before


def test_ade20k_says_what_is_missing(ade: Path, tmp_path: Path) -> None:
    found = messages(ade_data(tmp_path))
    for part in ("train pictures", "validation pictures", "train label maps", "validation label maps"):
        assert f"no {part} at {tmp_path}" in found
    assert "must hold images/training" in found
    assert "num_classes is 150, ADE20K has labels 0 to 150 - set data.num_classes to 151" in messages(
        ade_data(ade, num_classes=150)
    )
    assert "no depth" in messages(ade_data(ade, modality="geometry", num_classes=None))


def test_coco_stuff_reads_its_pixel_maps(coco: Path) -> None:
    train, validation = items(coco_data(coco)), items(coco_data(coco), "validation")
    assert (len(train), len(validation)) == (6, 3)
    loaded = train[0].load()
    assert loaded.condition is not None
    assert set(np.unique(loaded.condition.values)) == {0, 181, 255}
    assert loaded.image.shape == (80, 96, 3), "a grey photograph is one too"


def test_coco_stuff_is_read_from_its_archives(coco: Path, tmp_path: Path) -> None:
    for folder in ("train2017", "val2017"):
        zip_folder(coco / folder, tmp_path / f"{folder}.zip")
    with zipfile.ZipFile(tmp_path / "stuffthingmaps_trainval2017.zip", "w") as target:
        for path in sorted((coco / "stuffthingmaps").rglob("*.png")):
            target.write(path, path.relative_to(coco / "stuffthingmaps"))
    for split in ("train", "validation"):
        same_items(items(coco_data(tmp_path), split), items(coco_data(coco), split))


def test_coco_sketches_need_no_pixel_maps(coco: Path, tmp_path: Path) -> None:
    for folder in ("train2017", "val2017"):
        shutil.copytree(coco / folder, tmp_path / folder)
    data = coco_data(tmp_path, modality="sketch", num_classes=None)
    assert items(data)[0].load().condition is None
    assert "stuffthingmaps" in messages(coco_data(tmp_path))


def test_diode_unites_depth_mask_and_normals(diode: Path) -> None:
    found = items(diode_data(diode))
    assert [item.origin.split("/")[0] for item in found] == ["indoors", "indoors", "outdoor", "outdoor"]
    condition = found[0].load().condition
    assert condition is not None
    assert condition.normals is not None
    assert condition.values.shape == (80, 96)
    assert np.isfinite(condition.values).all()
    assert (condition.values[0, :3] == 0).all(), "NaN, infinity and negative depth are unknown"
    assert (condition.values[10:20] == 0).all(), "masked out"
    assert condition.values[79, 95] == pytest.approx(40)
    np.testing.assert_array_equal(condition.normals[50, 50], [0, 0, -1])
    assert not condition.normals[:5].any()


def test_diode_scenes_and_normals_can_be_left_out(diode: Path, tmp_path: Path) -> None:
    outdoor = items(diode_data(diode, scenes=["outdoor"], normals=False), "validation")
    assert len(outdoor) == 2
    condition = outdoor[0].load().condition
    assert condition is not None
    assert condition.normals is None
    copy = tmp_path / "diode"
    shutil.copytree(diode, copy, ignore=shutil.ignore_patterns("*_normal.npy"))
    assert "no normals (*_normal.npy) for the train split" in messages(diode_data(copy))
    assert "set data.source.normals to false" in messages(diode_data(copy))
    assert messages(diode_data(copy, normals=False)) == ""


def test_diode_is_read_from_its_archives_with_normals_apart(diode: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        apart, rest = tmp_path / "normals" / split, tmp_path / "rest" / split
        shutil.copytree(diode / split, rest, ignore=shutil.ignore_patterns("*_normal.npy"))
        shutil.copytree(diode / split, apart, ignore=shutil.ignore_patterns("*[0-9].png", "*_depth*"))
        (tmp_path / "packed").mkdir(exist_ok=True)
        tar_folder(rest, tmp_path / "packed" / f"{split}.tar.gz")
        tar_folder(apart, tmp_path / "packed" / f"{split}_normals.tar.gz")
    same_items(items(diode_data(tmp_path / "packed")), items(diode_data(diode)))


def test_diode_rejects_what_does_not_fit(diode: Path, tmp_path: Path) -> None:
    root = tmp_path / "diode"
    shutil.copytree(diode, root)
    first = next((root / "train" / "indoors").rglob("*[0-9].png"))
    reasons = {}
    for number, reason in enumerate(
        ("unknown at every pixel", "no numbers|damaged", "mask 40x40", "has shape", "no .*_depth_mask.npy", "is empty")
    ):
        stem = first.with_name(f"{first.stem}{number}")
        for suffix in (".png", "_depth.npy", "_depth_mask.npy", "_normal.npy"):
            shutil.copy(f"{first.with_suffix('')}{suffix}", f"{stem}{suffix}")
        reasons[stem.name] = reason
    base = str(first.with_suffix(""))
    np.save(f"{base}0_depth.npy", np.full((80, 96, 1), np.nan))
    np.save(f"{base}1_depth.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(f"{base}2_depth_mask.npy", np.ones((40, 40)))
    np.save(f"{base}3_normal.npy", np.ones((80, 96, 2)))
    Path(f"{base}4_depth_mask.npy").unlink()
    Path(f"{base}5_depth.npy").write_bytes(b"")
    shutil.copy(f"{base}_depth.npy", f"{base}9_depth.npy")
    found = {item.origin.rsplit("/", 1)[-1]: item for item in items(diode_data(root))}
    for name, reason in reasons.items():
        with pytest.raises(RejectedItem, match=reason):
            found[f"{name}.png"].load()
    with pytest.raises(RejectedItem, match="depth without a picture"):
        found[f"{first.stem}9_depth.npy"].load()
    assert len(found) == 4 + 6 + 1


def test_a_changed_file_changes_the_fingerprint(ade: Path, tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    shutil.copytree(ade, root)
    before = open_source(ade_data(root)).fingerprint()
    assert open_source(ade_data(root)).fingerprint() == before
    write_values(root / "annotations" / "training" / "ADE_train_00000001.png", np.ones((80, 96), np.uint8))
    assert open_source(ade_data(root)).fingerprint() != before


def test_within_shared_listings_a_folder_is_listed_once(tmp_path: Path) -> None:
    tree = open_tree(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"a")
    with shared_listings():
        assert len(tree.entries()) == 1
        (tmp_path / "b.png").write_bytes(b"b")
        assert len(tree.entries()) == 1
    assert len(tree.entries()) == 2
