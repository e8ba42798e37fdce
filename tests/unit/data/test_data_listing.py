"""Listing: the same as ever for the same files, in folders and in zip archives."""

from __future__ import annotations

import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from piti.config import DataConfig
from piti.data.sources import open_source
from piti.data.sources.archives import ZipTree
from piti.data.sources.listing import Entry, Listing, alike
from piti.data.sources.names import draw_validation, stem
from piti.data.sources.retrying import UnreadableFileError
from piti.errors import DataError
from piti.seeds import stable_hash, unit_hash

ODD_NAMES = [
    b"a.jpg", b"a.png", b"a-b.jpg", b"a.b.jpg", b"a/a.jpg", b"a/b/c.PNG", b"a.d/x.jpg", b"png", "ä.jpg".encode(), "日本.webp".encode(),
    "😀.jpg".encode(), "\ue000.jpg".encode(), b"\xff.jpg", b"\x80.jpg", b"x\xc3.jpg", b".hidden/x.jpg", b"notes.txt",
]  # fmt: skip
ODD_CONDITIONS = [b"a.npy", b"a.png", b"a-b.npy", b"a/b/c.png", b"lost.png", b"lost.npy", b"lost-1.png", b"\xff.png", b"lost\xfe.png"]  # fmt: skip


def touch(folder: bytes, name: bytes, size_bytes: int) -> None:
    """A file of a fixed time."""
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(b"x" * size_bytes)
    os.utime(path, (1_700_000_000 + size_bytes,) * 2)


@pytest.fixture
def odd_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders `odd/images` and `odd/conditions` in the working directory, since places are part of a fingerprint."""
    monkeypatch.chdir(tmp_path)
    for folder, names in ((b"odd/images", ODD_NAMES), (b"odd/conditions", ODD_CONDITIONS)):
        for number, name in enumerate(names):
            touch(folder, name, number)
    for number in range(60):
        touch(b"odd/images", b"many/%d/%04d.jpg" % (number // 20, number), number)
        if number % 7:
            touch(b"odd/conditions", b"many/%d/%04d.png" % (number // 20, number), number)


def odd_data(make_data: Callable[..., DataConfig], **changes: object) -> DataConfig:
    source = {"conditions": "odd/conditions"}
    return make_data("odd/images", modality="mask", num_classes=20, source=source, samples_per_shard=16, **changes)


@pytest.mark.usefixtures("odd_tree")
def test_fingerprints_do_not_change_by_accident(make_data: Callable[..., DataConfig]) -> None:
    """Where they change, all shards are written anew: only together with a format version, then store new values here."""
    assert open_source(odd_data(make_data)).fingerprint() == FINGERPRINT


FINGERPRINT = "4c90b5890fd836b4bbb08d5d2ce869a0d8f15b59d98247cff0e961db4f41df99"


@pytest.mark.usefixtures("odd_tree")
def test_items_come_in_the_order_of_names_whatever_bytes_their_names_hold(make_data: Callable[..., DataConfig]) -> None:
    data = odd_data(make_data)
    for split in ("train", "validation"):
        items = list(open_source(data).items(split))
        pictures = [item.image.path for item in items if item.fault != "condition without a picture"]
        assert pictures == sorted(pictures, key=lambda path: (stem(path), path))
    train = {item.origin: item for item in open_source(data).items("train")}
    lonely = [name for name, item in train.items() if item.fault == "condition without a picture"]
    assert lonely == ["lost.png", "lost-1.png", "lost\\udcfe.png"], (
        "in the order of their stems, pictures before arrays"
    )
    found = train | {item.origin: item for item in open_source(data).items("validation")}
    assert found["\\udcff.jpg"].condition.path == "\udcff.png"
    assert found["a.jpg"].condition.path == "a.png"
    assert found["a-b.jpg"].condition.path == "a-b.npy"


@pytest.mark.parametrize("share", [0.0001, 0.05, 0.5])
def test_validation_is_drawn_as_from_a_set_of_names(share: float) -> None:
    for count in range(1, 30):
        names = [f"name {number % 17}" for number in range(count)]
        expected = {name for name in names if unit_hash("validation", name) < share}
        if not expected and len(set(names)) > 1:
            expected = {min(names, key=lambda name: stable_hash("validation", name))}
        is_drawn = draw_validation(iter(names), share)
        assert {name for name in names if is_drawn(name)} == expected


def test_files_named_alike_are_found_together() -> None:
    """Stems that begin other stems, files without a suffix, and folders that are called like files."""
    rng = random.Random(0)
    paths = {
        "/".join(part for part in "".join(rng.choices("ab./- ", k=9)).split("/") if part.strip("."))
        for _ in range(1000)
    }
    paths = {f"x/{path}" for path in paths if path}
    some, others = (set(rng.sample(sorted(paths), len(paths) // 2)) for _ in range(2))

    def named(among: set[str], name: str) -> list[str]:
        return sorted(path.removeprefix("x/") for path in among if stem(path) == f"x/{name}")

    def listed(paths: set[str]) -> Listing:
        return Listing(Entry(path, 0, "now") for path in paths).below("x")

    first, second = listed(some), listed(others)
    found = list(alike(first, None, second))
    names = sorted({stem(path.removeprefix("x/")) for path in some | others})
    assert [name for name, _ in found] == names
    for name, groups in found:
        expected = [named(some, name), [], named(others, name)]
        assert [[entry.path for entry in group] for group in groups] == expected
    assert [entry.path for entry in first] == [path for name in names for path in named(some, name)]
    assert all(first.get(entry.path) == entry for entry in first)


def test_zip_archives_of_every_kind_are_read_as_zipfile_reads_them(tmp_path: Path) -> None:
    """With a program before it, a comment after it, every method, folders, names in both encodings."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.comment = b"a comment PK"
        for number in range(200):
            method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)[number % 4]
            name = f"{'é' if number % 3 else 'e'}{number % 7}/{number}.jpg"
            archive.writestr(name, os.urandom(3) * number, method)
        archive.mkdir("folder")
        archive.writestr("__MACOSX/0.jpg", b"litter")
    path = tmp_path / "pictures.zip"
    path.write_bytes(b"#!/bin/sh\n" + content.getvalue())
    tree = ZipTree(str(path))
    with zipfile.ZipFile(path) as archive:
        members = sorted(
            (each for each in archive.infolist() if not each.is_dir() and "MACOSX" not in each.filename),
            key=lambda each: each.filename,
        )
        expected = [Entry(member.filename, member.file_size, f"{member.CRC:08x}") for member in members]
        assert list(tree.entries()) == expected
        for member in members:
            assert tree.read(member.filename) == archive.read(member)
    with pytest.raises(OSError, match=r"nowhere\.jpg is not in"):
        tree.read("nowhere.jpg")


def test_a_damaged_zip_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"0123456789" * 10)
        archive.writestr("b.jpg", b"0123456789" * 10)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0123456789", b"x123456789", 1))
    with pytest.raises(OSError, match=r"a\.jpg in .* cannot be read .*CRC"):
        ZipTree(str(path)).read("a.jpg")
    directory = whole.index(b"PK\x05\x06") + 16  # where the file says that its directory begins
    outside = whole[:directory] + bytes([whole[directory] ^ 0xFF]) + whole[directory + 1 :]
    for content in (whole[:-30], whole.replace(b"PK\x01\x02", b"PK\x01\x03", 1), outside):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not a whole zip archive"):
            ZipTree(str(path)).entries()


def test_an_encrypted_member_is_rejected_and_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "secret.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"secret")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"a\.jpg in .* cannot be read \(.*encrypted.*\)"):
        ZipTree(str(path)).read("a.jpg")
