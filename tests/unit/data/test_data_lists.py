"""Tables of pairs and existing WebDataset tars: every row and every key is an item, whatever is wrong with it."""

from __future__ import annotations

import csv
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from piti.config import DataConfig
from piti.data.items import SPLITS, Item, RejectedItem
from piti.data.sources import open_source
from piti.data.sources.webdataset import expand_tars
from piti.errors import DataError
from tests.unit.data.encoding import write_tar


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photograph: np.ndarray) -> Path:
    """Eight pictures `p/0.jpg` ... and label maps `m/0.png` ..."""
    root = tmp_path_factory.mktemp("listed")
    for name in ("p", "m"):
        (root / name).mkdir()
    for number in range(8):
        Image.fromarray(np.ascontiguousarray(photograph[number : number + 60, :70])).save(root / "p" / f"{number}.jpg")
        Image.fromarray(np.full((60, 70), number, np.uint8)).save(root / "m" / f"{number}.png")
    return root


def list_data(path: Path | str, source: dict[str, Any] | None = None, **settings: Any) -> DataConfig:
    settings = {"modality": "mask", "num_classes": 8, "image_size": 64, **settings}
    return DataConfig.model_validate({"source": {"kind": "list", "path": str(path), **(source or {})}, **settings})


def tar_data(train: Path | str, source: dict[str, Any] | None = None, **settings: Any) -> DataConfig:
    settings = {"modality": "mask", "num_classes": 8, "image_size": 64, **settings}
    source = {"kind": "webdataset", "train": str(train), "condition": "seg.png", **(source or {})}
    return DataConfig.model_validate({"source": source, **settings})


def items(data: DataConfig, split: str = "train") -> list[Item]:
    return list(open_source(data).items(split))  # type: ignore[arg-type]


def messages(data: DataConfig) -> str:
    return "\n".join(str(problem) for problem in open_source(data).problems())


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


RENAMED = {"image": "photo", "condition": "labels", "split": "part"}


@pytest.mark.parametrize(
    ("suffix", "columns"), [("csv", {}), ("tsv", {}), ("parquet", {}), ("csv", RENAMED), ("parquet", RENAMED)]
)
def test_a_table_pairs_files_and_splits_them(
    folder: Path, tmp_path: Path, suffix: str, columns: dict[str, str]
) -> None:
    rows = [
        {"image": f"p/{number}.jpg", "condition": f"m/{number}.png", "split": "val" if number > 5 else "training"}
        for number in range(8)
    ]
    rows = [{columns.get(name, name): value for name, value in row.items()} for row in rows]
    data = list_data(write_table(tmp_path / f"list.{suffix}", rows), {"root": str(folder), **columns})
    assert messages(data) == ""
    found = {split: items(data, split) for split in ("train", "validation")}
    assert [len(found[split]) for split in ("train", "validation")] == [6, 2]
    for number, item in enumerate(found["train"]):
        condition = item.load().condition
        assert condition is not None
        assert (condition.values == number).all()


def test_names_may_be_relative_to_the_table_or_absolute(folder: Path) -> None:
    rows = [
        {"image": str(folder / "p" / "1.jpg"), "condition": "m/1.png"},
        {"image": "./p/2.jpg", "condition": "m/2.png"},
    ]
    data = list_data(write_table(folder / "list.csv", rows))
    loaded = [item.load() for split in ("train", "validation") for item in items(data, split)]
    assert sorted(int(entry.condition.values[0, 0]) for entry in loaded if entry.condition) == [1, 2]
    (folder / "list.csv").unlink()


def test_rows_that_cannot_be_samples_are_rejected_by_number(folder: Path, tmp_path: Path) -> None:
    good = {"image": "p/0.jpg", "condition": "m/0.png"}
    rows = [good, {"image": "", "condition": "m/1.png"}, {"image": "p/none.jpg", "condition": "m/1.png"}, good]
    rows += [{"image": "p/3.jpg", "condition": ""}, {"image": "p/4.jpg", "condition": "m/none.png"}]
    data = list_data(write_table(tmp_path / "list.csv", rows), {"root": str(folder)})
    reasons: dict[str, str] = {}
    every = [item for split in ("train", "validation") for item in items(data, split)]
    for item in every:
        try:
            item.load()
        except RejectedItem as reason:
            reasons[item.origin.split(":")[0]] = str(reason)
    assert len(every) == len({item.key for item in every}) == 6
    assert reasons == {
        "row 2": "row names no picture",
        "row 3": f"there is no file p/none.jpg in {folder}",
        "row 4": "row 4 repeats row 1",
        "row 5": "row names no condition",
        "row 6": f"there is no file m/none.png in {folder}",
    }


def test_a_table_that_cannot_be_used_says_why(folder: Path, tmp_path: Path) -> None:
    assert "there is no list" in messages(list_data(tmp_path / "none.csv"))
    (tmp_path / "empty.csv").write_text("image,condition\n")
    assert "has no rows" in messages(list_data(tmp_path / "empty.csv"))
    (tmp_path / "list.txt").write_text("a\n")
    assert "neither .csv, .tsv nor .parquet" in messages(list_data(tmp_path / "list.txt"))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 no more")
    assert "no whole Parquet" in messages(list_data(tmp_path / "cut.parquet"))
    named = write_table(tmp_path / "named.csv", [{"photo": "p/1.jpg"}])
    assert "no column 'image' among its 1" in messages(list_data(named))
    assert "names no conditions" in messages(list_data(named, {"image": "photo", "root": str(folder)}))
    assert "none of the 1 pictures" in messages(list_data(named, {"image": "photo"}))
    wrong = write_table(tmp_path / "split.csv", [{"image": "a", "split": "train"}, {"image": "b", "split": "tset"}])
    assert "row 2: the split is neither train nor validation" in messages(list_data(wrong))
    half = write_table(tmp_path / "half.csv", [{"image": "a", "split": "train"}, {"image": "b", "split": ""}])
    assert "row 2 has no split, others have" in messages(list_data(half))
    with pytest.raises(DataError, match="row 2: the split"):
        items(list_data(wrong))


@pytest.mark.parametrize(
    ("content", "source"),
    [
        ("hunter2,x\nhunter2,x\n", {}),
        ("root:hunter2:0:0\n", {}),
        ("user,hunter2\n", {}),
        ("login,password\nme,hunter2\n", {"image": "login", "split": "password"}),
        ("login,password\nme,hunter2\n", {"image": "password"}),
        ("image,condition\ns3://key:hunter2@bucket/x,y\n", {}),
        ("image,condition\ny,https://hunter2@host/x\n", {}),
        ("image,condition\nhttp://hunter2/latest,y\n", {}),
        ("image,condition\nsimplecache::http://hunter2/latest,y\n", {}),
    ],
)
def test_nothing_of_a_file_that_is_no_such_table_is_repeated(
    tmp_path: Path, content: str, source: dict[str, str]
) -> None:
    (tmp_path / "secrets.csv").write_text(content)
    found = messages(list_data(tmp_path / "secrets.csv", source))
    assert found.startswith((str(tmp_path), "none of the"))
    assert "hunter2" not in found


@pytest.mark.parametrize("header", ["image, condition", " Image ,CONDITION", "\ufeffimage,condition\t"])
def test_spaces_and_case_of_a_header_do_not_matter(folder: Path, header: str) -> None:
    (folder / "spaced.csv").write_text(f"{header}\n" + "".join(f"p/{n}.jpg, m/{n}.png\n" for n in range(1, 5)))
    found = [item.load() for split in SPLITS for item in items(list_data(folder / "spaced.csv"), split)]
    assert [loaded.condition is not None for loaded in found] == [True] * 4


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("image,conditions", "no column 'condition', but 'conditions' - set data.source.condition to 'conditions'"),
        ("image,condtion", "no column 'condition', but 'condtion'"),
        ("image,splits", "no column 'split', but 'splits' - set data.source.split"),
        ("image,normal", "no column 'normals', but 'normal'"),
        ("image,condition,Condition ", "[]"),
        ("image,Condition,CONDITION", "several columns 'condition'"),
        ("image,width,caption,source", "[]"),
    ],
)
def test_a_column_that_nearly_has_the_expected_name_is_not_passed_over(folder: Path, header: str, reason: str) -> None:
    row = ",".join(["p/1.jpg", "m/1.png", "m/1.png", "x"][: header.count(",") + 1])
    (folder / "near.csv").write_text(f"{header}\n{row}\n")
    found = messages(list_data(folder / "near.csv", modality="sketch", num_classes=None))
    assert reason in (found or "[]")


def test_relative_names_mean_what_open_finds(folder: Path) -> None:
    (folder / "lists").mkdir()
    beginnings = [("lists", part) for part in ("../", "..//", "..\\")] + [
        (".", part) for part in ("", "./", "p/.././", "p/../")
    ]
    for number, (where, beginning) in enumerate(beginnings):
        path = folder / where / f"{number}.csv"
        parts = [("p", "m"), ("p/", "m/"), ("p/.", "m/.")][number % 3]
        path.write_text(
            "image,condition\n"
            + "".join(f"{beginning}{parts[0]}/{n}.jpg,{beginning}{parts[1]}/{n}.png\n" for n in range(1, 5))
        )
        found = [item.load() for split in SPLITS for item in items(list_data(path), split)]
        assert sorted(int(loaded.condition.values[0, 0]) for loaded in found if loaded.condition) == [1, 2, 3, 4]


def test_a_table_reaches_nothing_outside_an_archive(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "set.tar"
    with tarfile.open(archive, "w") as target:
        target.add(folder / "p", "set/p")
        target.add(folder / "m", "set/m")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "1.jpg").write_bytes((folder / "p" / "1.jpg").read_bytes())
    (tmp_path / "list.csv").write_text("image,condition\n../p/1.jpg,m/1.png\np/1.jpg,m/1.png\n")
    data = list_data(tmp_path / "list.csv", {"root": f"{archive}/set"})
    found = {item.origin: item for split in SPLITS for item in items(data, split)}
    assert found["row 2: p/1.jpg"].load().condition is not None
    with pytest.raises(RejectedItem, match=r"there is no file \.\./p/1\.jpg"):
        found["row 1: ../p/1.jpg"].load()


def test_a_pipe_in_a_table_is_rejected(folder: Path) -> None:
    os.mkfifo(folder / "p" / "pipe.jpg")
    (folder / "list.csv").write_text(
        f"image,condition\np/pipe.jpg,m/1.png\n{folder}/p/pipe.jpg,m/1.png\np/1.jpg,m/1.png\n"
    )
    found = [item for split in SPLITS for item in items(list_data(folder / "list.csv"), split)]
    assert len(found) == 3
    for item in found:
        if "pipe" in item.origin:
            with pytest.raises(RejectedItem, match="pipe, socket or device"):
                item.load()


def test_fingerprint_of_a_table_sees_the_files_it_names(folder: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "list.csv", [{"image": "a.png"}])
    Image.open(folder / "p" / "0.jpg").save(tmp_path / "a.png")
    data = list_data(path, modality="sketch", num_classes=None)
    before = open_source(data).fingerprint()
    Image.open(folder / "p" / "1.jpg").save(tmp_path / "other.png")
    assert open_source(data).fingerprint() == before
    Image.open(folder / "p" / "1.jpg").save(tmp_path / "a.png")
    assert open_source(data).fingerprint() != before


def sample(folder: Path, number: int, key: str | None = None) -> list[tuple[str, bytes]]:
    key = key or f"{number:04d}"
    return [
        (f"{key}.jpg", (folder / "p" / f"{number}.jpg").read_bytes()),
        (f"{key}.seg.png", (folder / "m" / f"{number}.png").read_bytes()),
        (f"{key}.json", b"{}"),
    ]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_existing_tars_are_read_key_by_key(
    folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PITI_CACHE", str(tmp_path / "cache"))
    for shard in range(2):
        members = [part for number in range(4) for part in sample(folder, 4 * shard + number)]
        write_tar(tmp_path / "tars" / f"shard-{shard:03d}.{suffix}", members)
    by_folder = tar_data(tmp_path / "tars", {"validation_share": 0.3})
    by_range = tar_data(tmp_path / "tars" / f"shard-{{000..001}}.{suffix}", {"validation_share": 0.3})
    assert messages(by_folder) == messages(by_range) == ""
    train, validation = items(by_folder), items(by_folder, "validation")
    assert validation
    assert len({item.key for item in train + validation}) == 8
    assert [item.key for item in items(by_range)] == [item.key for item in train]
    labels = {int(item.load().condition.values[0, 0]) for item in train + validation}  # type: ignore[union-attr]
    assert labels == set(range(8))


def test_tars_of_train_and_validation_may_share_names(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_tar(tmp_path / split / "0.tar", sample(folder, 1))
    data = tar_data(tmp_path / "train", {"validation": str(tmp_path / "val")})
    first, second = items(data)[0], items(data, "validation")[0]
    assert first.key != second.key


def test_keys_that_cannot_be_samples_are_rejected(folder: Path, tmp_path: Path) -> None:
    members = sample(folder, 0, "good") + sample(folder, 1, "no-picture")[1:] + sample(folder, 2, "no-label")[:1]
    members += [*sample(folder, 3, "twice"), sample(folder, 3, "twice")[0], (".hidden.jpg", b"x")]
    write_tar(tmp_path / "0.tar", members)
    data = tar_data(tmp_path, {"validation": str(tmp_path / "0.tar")})
    reasons: dict[str, str] = {}
    for item in items(data):
        try:
            item.load()
        except RejectedItem as reason:
            reasons[item.origin] = str(reason)
    assert reasons == {
        "0.tar/no-picture": "no picture among json, seg.png",
        "0.tar/no-label": "no seg.png",
        "0.tar/twice": "two files twice.jpg",
    }


def test_tars_that_cannot_be_used_say_why(folder: Path, tmp_path: Path) -> None:
    assert "there are no tars" in messages(tar_data(tmp_path))
    assert "there is no" in messages(tar_data(tmp_path / "{0..3}.tar"))
    write_tar(tmp_path / "0.tar", sample(folder, 0)[:1])
    assert "holds no seg.png, only jpg" in messages(tar_data(tmp_path))
    assert "set data.source.condition" in messages(tar_data(tmp_path, {"condition": None}))
    (tmp_path / "0.tar").write_bytes(b"not a tar at all")
    assert "not a whole tar" in messages(tar_data(tmp_path))
    with pytest.raises(ValueError, match="without its leading dot"):
        tar_data(tmp_path, {"condition": ".png"})


def test_ranges_of_tars() -> None:
    assert expand_tars("s3://b/x-{008..010}.tar") == [f"s3://b/x-{number}.tar" for number in ("008", "009", "010")]
    assert expand_tars("/d/{0..1}/{0..1}.tar") == ["/d/0/0.tar", "/d/0/1.tar", "/d/1/0.tar", "/d/1/1.tar"]
