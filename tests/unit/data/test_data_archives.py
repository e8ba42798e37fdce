"""The same tree as a folder, a tar and a zip gives the same items; damage is an error that names the archive."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from piti.config import DataConfig
from piti.data.items import SPLITS, RejectedItem
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.data.sources.trees import open_tree
from piti.errors import DataError
from tests.unit.data.encoding import encoded, write_tar

MakeData = Callable[..., DataConfig]


def picture(number: int) -> bytes:
    return encoded(Image.fromarray(np.full((16, 16, 3), number, np.uint8)))


def put(path: Path | str | bytes, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(content)


def outcomes(place: Path | str, kind: str = "paired") -> dict[str, int | str]:
    """Each item's origin, with the grey level of its picture, or `rejected`."""
    source: dict[str, Any] = {"kind": "paired", "images": str(place)}
    if kind == "webdataset":
        source = {"kind": "webdataset", "train": str(place)}
    open_tree.cache_clear()
    data = DataConfig.model_validate({"source": source, "modality": "sketch"})
    found: dict[str, int | str] = {}
    for split in SPLITS:
        for item in open_source(data).items(split):
            assert item.origin not in found
            try:
                found[item.origin] = int(item.load().image[0, 0, 0])
            except RejectedItem:
                found[item.origin] = "rejected"
    return found


def as_tar(folder: Path, target: Path, *options: str) -> Path:
    subprocess.run(["tar", *options, "-cf", str(target), "-C", str(folder), "."], check=True, capture_output=True)
    return target


def as_zip(folder: Path, target: Path) -> Path:
    """As Info-ZIP writes it with `-y`: links as links, names as the bytes they are on the disk, without the UTF-8 flag."""
    with zipfile.ZipFile(target, "w") as archive:
        renamed: dict[bytes, bytes] = {}
        for place, folders, names in os.walk(os.fsencode(folder)):
            for name in (*names, *(one for one in folders if os.path.islink(os.path.join(place, one)))):
                path = os.path.join(place, name)
                if not stat.S_ISREG(os.lstat(path).st_mode) and not os.path.islink(path):
                    continue
                raw = os.path.relpath(path, os.fsencode(folder))
                stand_in = f"{len(renamed)}".rjust(len(raw), "#").encode()
                renamed[stand_in] = raw
                info = zipfile.ZipInfo(stand_in.decode())
                info.create_system = 3
                info.external_attr = os.lstat(path).st_mode << 16
                archive.writestr(
                    info, os.readlink(path) if os.path.islink(path) else Path(os.fsdecode(path)).read_bytes()
                )
    content = target.read_bytes()
    for stand_in, raw in renamed.items():
        content = content.replace(stand_in, raw)
    target.write_bytes(content)
    return target


NAMES = [b"a.png", b"b.png", "caf\u00e9.png".encode(), unicodedata.normalize("NFD", "caf\u00e9.png").encode(), b"\xff\xe9.png", b"x y.png", b"back\\slash.png", b"no suffix"]  # fmt: skip
FOLDERS = [b"", b"one", b"one/two", "f\u00f6lder".encode(), b"\xfe"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_tree_is_the_same_as_folder_tar_and_zip(data: st.DataObject) -> None:
    """Files, hard links, symbolic links to files and folders, to nowhere and in circles, under odd names."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "tree"
        put(root / "always.png", picture(1))
        files, places = [b"always.png"], [b""]
        for number in range(data.draw(st.integers(0, 8))):
            folder, name = data.draw(st.sampled_from(FOLDERS)), data.draw(st.sampled_from(NAMES))
            raw = os.path.join(folder, name)
            path = os.path.join(os.fsencode(root), raw)
            if os.path.lexists(path):
                continue
            kind = data.draw(st.sampled_from(["file", "file", "hard", "link", "folder link", "nowhere"]))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            places.append(folder)
            beginning = os.path.relpath(os.fsencode(root), os.path.dirname(path))
            if kind == "file":
                put(path, picture(number + 2))
                files.append(raw)
            elif kind == "hard":
                os.link(os.path.join(os.fsencode(root), data.draw(st.sampled_from(files))), path)
            elif kind == "link":
                os.symlink(os.path.join(beginning, data.draw(st.sampled_from(files))), path)
            elif kind == "nowhere":
                os.symlink(data.draw(st.sampled_from([b"gone.png", name, b"/etc/passwd.png"])), path)
            else:
                if not os.path.lexists(path + b" folder"):
                    os.symlink(os.path.join(beginning, data.draw(st.sampled_from(places))), path + b" folder")
        expected = outcomes(root)
        assert expected["always.png"] == 1
        for archive in (as_tar(root, Path(scratch) / "t.tar"), as_zip(root, Path(scratch) / "t.zip")):
            assert outcomes(archive) == expected


def test_links_in_a_tar_are_pictures_as_gnu_tar_extracts_them(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for number in range(3):
        put(root / "images" / f"p{number}.png", picture(number))
    os.link(root / "images/p0.png", root / "images/z.png")
    (root / "images/s.png").symlink_to("p1.png")
    (root / "more").symlink_to("images")
    (root / "images/out.png").symlink_to("../../outside.png")
    put(tmp_path / "outside.png", picture(9))
    archive = as_tar(root, tmp_path / "a.tar")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xf", archive, "-C", str(tmp_path / "out")], check=True)
    (tmp_path / "outside.png").unlink()
    expected = outcomes(tmp_path / "out")
    assert expected["images/z.png"] == 0
    assert expected["more/s.png"] == 1
    assert expected["images/out.png"] == "rejected"
    assert outcomes(archive) == expected
    below = outcomes(f"{archive}/images")
    assert (below["p0.png"], below["z.png"], below["s.png"]) == (0, 0, 1)
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w") as target:
        for path in sorted((root / "images").iterdir()):
            target.add(path, path.name)
    assert outcomes(packed, "webdataset") == {
        f"{packed.name}/{name}": value
        for name, value in {"p0": 0, "p1": 1, "p2": 2, "z": 0, "s": 1, "out": "rejected"}.items()
    }


def test_sparse_members_pipes_and_names_that_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(root / "sparse.png", picture(4))
    with open(root / "sparse.png", "r+b") as stream:  # a hole behind the picture's end
        stream.truncate(1 << 20)
    os.mkfifo(root / "pipe.png")
    for kind in ("gnu", "posix"):
        archive = as_tar(root, tmp_path / f"{kind}.tar", "--sparse", f"--format={kind}")
        assert archive.stat().st_size < 1 << 19, "it is stored as sparse"
        assert outcomes(archive) == {"sparse.png": 4, "pipe.png": "rejected"}
    names = ("../up.png", "./a/../b.png", "/abs.png", "c//d.png", "../../etc/x.png")
    write_tar(tmp_path / "out.tar", [(name, picture(number)) for number, name in enumerate(names)])
    with zipfile.ZipFile(tmp_path / "unix.zip", "w") as made_by_python:
        made_by_python.writestr(zipfile.ZipInfo("f\\x.png"), picture(7))
    assert outcomes(f"{tmp_path}/unix.zip/f") == {"x.png": 7}
    assert outcomes(tmp_path / "out.tar") == {"up.png": 0, "b.png": 1, "abs.png": 2, "c/d.png": 3, "etc/x.png": 4}


def test_of_two_members_with_one_name_the_later_one_counts(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.png", picture(1))
    put(tmp_path / "b" / "x.png", picture(2))
    archive = as_tar(tmp_path / "a", tmp_path / "a.tar")
    subprocess.run(["tar", "rf", archive, "-C", str(tmp_path / "b"), "x.png"], check=True)
    assert outcomes(archive) == {"x.png": 2}


def test_joined_tars_are_read_to_the_last(tmp_path: Path) -> None:
    content = b""
    for number in range(3):
        put(tmp_path / f"{number}" / f"p{number}.png", picture(number))
        content += as_tar(tmp_path / f"{number}", tmp_path / "one.tar").read_bytes()
    (tmp_path / "all.tar").write_bytes(content)
    assert outcomes(tmp_path / "all.tar") == {"p0.png": 0, "p1.png": 1, "p2.png": 2}


@pytest.mark.parametrize("kind", ["paired", "webdataset"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "zeroed", "cut between", "cut in a picture"])
def test_a_damaged_tar_is_an_error_that_names_it(damage: str, kind: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "good.tar", [(f"p{number}.png", picture(number)) for number in range(6)])
    whole = (tmp_path / "good.tar").read_bytes()
    with tarfile.open(tmp_path / "good.tar") as target:
        header = target.getmembers()[3].offset
    content = {
        "flipped": whole[: header + 5] + bytes([whole[header + 5] ^ 0xFF]) + whole[header + 6 :],
        "cut": whole[: header + 200],
        "zeroed": whole[:header] + bytes(512) + whole[header + 512 :],
        "cut between": whole[:header],
        "cut in a picture": whole[: header + 520],
    }[damage]
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.tar is (damaged|cut short|not a whole tar)"):
        outcomes(tmp_path / "bad.tar", kind)
    assert len(outcomes(tmp_path / "good.tar", kind)) == 6


def zip_with_names(path: Path, names: dict[str, bytes], system: int, extra: bool = False) -> None:
    """A zip whose members are called by the bytes given: by hand, since `zipfile` sets the UTF-8 flag as it likes."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, raw) in enumerate(names.items()):
            info = zipfile.ZipInfo(f"{number}".rjust(len(raw), "#"))
            info.create_system = system
            if extra:
                unicode_name = name.encode()
                body = b"\1" + zlib.crc32(raw).to_bytes(4, "little") + unicode_name
                info.extra = (0x7075).to_bytes(2, "little") + len(body).to_bytes(2, "little") + body
            archive.writestr(info, picture(number))
    content = path.read_bytes()
    for number, raw in enumerate(names.values()):
        content = content.replace(f"{number}".rjust(len(raw), "#").encode(), raw)
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["UTF-8 without the flag", "extra field", "backslashes", "code page", "Latin-1 bytes"])
def test_zip_names_are_what_unzip_shows(how: str, tmp_path: Path) -> None:
    names = ["f/caf\u00e9.png", "f/plain.png", "f/\u65e5\u672c.png"]
    path = tmp_path / "a.zip"
    if how == "UTF-8 without the flag":
        zip_with_names(path, {name: name.encode() for name in names}, system=3)
    elif how == "extra field":
        zip_with_names(
            path, {name: f"f/garbled{number}.png".encode() for number, name in enumerate(names)}, 0, extra=True
        )
    elif how == "backslashes":
        names = ["f/a.png", "f/b c.png"]
        zip_with_names(path, {name: name.replace("/", "\\").encode() for name in names}, system=0)
    elif how == "code page":
        names = ["f/caf\u00e9.png", "f/plain.png"]
        zip_with_names(path, {name: name.encode("cp437") for name in names}, system=0)
    else:
        names = [os.fsdecode(b"f/caf\xe9.png")]
        zip_with_names(path, {name: os.fsencode(name) for name in names}, system=3)
    tree = open_tree(str(path))
    assert sorted(entry.path for entry in tree.entries()) == sorted(names)
    assert len(outcomes(f"{path}/f")) == len(names)
    assert "rejected" not in outcomes(f"{path}/f").values()
    if shutil.which("unzip") and how != "Latin-1 bytes":
        (tmp_path / "out").mkdir()
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        subprocess.run(["unzip", "-q", path, "-d", tmp_path / "out"], env=environment, capture_output=True)
        if how != "code page":  # of which Debian's unzip has its own opinion
            assert sorted(
                str(each.relative_to(tmp_path / "out")) for each in (tmp_path / "out").rglob("*.png")
            ) == sorted(names)


def test_joined_zips_and_members_that_are_no_files(tmp_path: Path) -> None:
    for number in range(2):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            archive.writestr(f"p{number}.png", picture(number))
            pipe = zipfile.ZipInfo("pipe.png")
            pipe.create_system, pipe.external_attr = 3, (stat.S_IFIFO | 0o644) << 16
            archive.writestr(pipe, b"")
    assert outcomes(tmp_path / "0.zip") == {"p0.png": 0, "pipe.png": "rejected"}
    (tmp_path / "both.zip").write_bytes((tmp_path / "0.zip").read_bytes() + (tmp_path / "1.zip").read_bytes())
    with pytest.raises(DataError, match=r"both\.zip begins with \d+ bytes of another zip archive"):
        outcomes(tmp_path / "both.zip")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    put(folder / "p.png", picture(3))
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.png"))
        (folder / "null.png").symlink_to("/dev/zero")
        expected = {"p.png": 3, "pipe.png": "rejected", "socket.png": "rejected", "null.png": "rejected"}
        assert outcomes(folder) == expected
    os.mkfifo(tmp_path / "pipe.zip")
    os.mkfifo(tmp_path / "pipe.tar")
    for name in ("pipe.zip", "pipe.tar"):
        with pytest.raises(DataError, match="pipe, socket or device"):
            outcomes(tmp_path / name)


def test_composed_and_decomposed_names_pair(tmp_path: Path, make_data: MakeData) -> None:
    names = ["caf\u00e9", "plain", "m\u00fcll/voil\u00e0"]
    for number, name in enumerate(names):
        put(tmp_path / "i" / f"{unicodedata.normalize('NFD', name)}.png", picture(number))
        put(tmp_path / "l" / f"{unicodedata.normalize('NFC', name)}.png", picture(number))
    data = make_data(tmp_path / "i", modality="mask", num_classes=9, source={"conditions": str(tmp_path / "l")})
    for split in SPLITS:
        for item in open_source(data).items(split):
            loaded = item.load()
            assert loaded.condition is not None
            assert loaded.condition.values[0, 0] == loaded.image[0, 0, 0]


def test_a_name_that_is_no_utf_8_is_a_sample(
    tmp_path: Path, make_data: MakeData, shard_now: Callable[..., ShardSet]
) -> None:
    for name in (b"a.png", b"b.png", b"caf\xe9.png", b"\xff/\xfe.png"):
        put(os.fsencode(tmp_path / "in") + b"/" + name, picture(len(name)))
    put(os.fsencode(tmp_path / "in") + b"/broken\xe9.png", b"no picture")
    for place in (
        tmp_path / "in",
        as_tar(tmp_path / "in", tmp_path / "in.tar"),
        as_zip(tmp_path / "in", tmp_path / "in.zip"),
    ):
        shards = shard_now(
            make_data(place, source={"validation_share": 0.3}, max_rejected_share=1.0), tmp_path / f"out {place.name}"
        )
        assert shards.num_samples("train") + shards.num_samples("validation") == 4
        assert [name for name, _ in shards.rejected()] == ["broken\\udce9.png"]
