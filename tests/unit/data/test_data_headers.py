"""data.check headers: files that become part of a shard as they are, undecoded; what that leaves is found when loading."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydantic import ValidationError
from typer.testing import CliRunner

from piti.cli.app import app
from piti.config import DataConfig
from piti.data import sharding
from piti.data.decoding import decode_condition, decode_image
from piti.data.inspection import contact_sheet, count_labels
from piti.data.loader import TrainingLoader
from piti.data.publishing import published_shards
from piti.data.sharding import plan_shards, write_shard
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.data.sources.pictures import PlainJpeg, decode_labels, decode_picture
from piti.data.sources.structure import GreyPng, is_plain_jpeg, read_grey_png
from piti.data.tars import SampleTarWriter
from piti.data.verify import verify_shards
from tests.unit.data.conftest import read_json

Shard = Callable[[DataConfig, Path | str], ShardSet]
NUM_CLASSES = 20
HEIGHT, WIDTH = 80, 96


def png(values: np.ndarray | Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture = values if isinstance(values, Image.Image) else Image.fromarray(values)
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def jpeg(image: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=92, **options)
    return stream.getvalue()


def with_text(values: np.ndarray) -> bytes:
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", "labels by hand")
    return png(values, pnginfo=about, dpi=(72, 72))


def palette(values: np.ndarray) -> bytes:
    picture = Image.fromarray(values).convert("P")
    picture.putdata(values.ravel().tolist())
    picture.putpalette([level for label in range(256) for level in (label, 255 - label, 7)])
    return png(picture)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.fixture(scope="module")
def image(photograph: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(photograph[60 : 60 + HEIGHT, 180 : 180 + WIDTH])


@pytest.fixture(scope="module")
def labels(image: np.ndarray) -> np.ndarray:
    values = (image[..., 0] // 16).astype(np.uint8)
    values[:4] = 255
    return values


class Folder:
    """Pictures and conditions of one name, written as bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("images", "conditions"):
            (root / folder).mkdir(parents=True)

    def add(self, name: str, picture: bytes, condition: bytes, suffix: str = "png") -> None:
        kind = "png" if picture.startswith(b"\x89PNG") else "jpg"
        (self.root / "images" / f"{name}.{kind}").write_bytes(picture)
        (self.root / "conditions" / f"{name}.{suffix}").write_bytes(condition)

    def data(self, check: str, **changes: Any) -> DataConfig:
        source = {"kind": "paired", "images": str(self.root / "images"), "conditions": str(self.root / "conditions")}
        settings = {"modality": "mask", "geometry": "random", "image_size": 64, "samples_per_shard": 100, **changes}
        if settings["modality"] == "mask":
            settings.setdefault("num_classes", NUM_CLASSES)
        return DataConfig.model_validate({"source": {**source, "validation_share": 0.01}, "check": check, **settings})


@pytest.fixture
def folder(tmp_path: Path, image: np.ndarray, labels: np.ndarray) -> Folder:
    """One good pair for the validation split, whichever it is, and one more."""
    made = Folder(tmp_path / "dataset")
    made.add("good", jpeg(image), png(labels))
    made.add("good too", jpeg(image[:, ::-1].copy()), png(labels[:, ::-1].copy()))
    return made


def samples(shards: ShardSet) -> dict[str, dict[str, bytes]]:
    """Members of all samples by the name of their picture without its suffix."""
    found = {}
    for split in shards.splits:
        for name in shards.shard_names(split):
            for _, members in shards.samples(name):
                found[read_json(members)["source"].rsplit(".", 1)[0]] = members
    return found


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def test_bytes_are_kept_and_nothing_is_decoded(
    folder: Folder,
    tmp_path: Path,
    shard_now: Shard,
    monkeypatch: pytest.MonkeyPatch,
    labels: np.ndarray,
    image: np.ndarray,
) -> None:
    folder.add("with text", jpeg(image, progressive=True), with_text(labels))

    def refuse(*_: object) -> None:
        raise AssertionError("a file was decoded")

    monkeypatch.setattr(PlainJpeg, "check", refuse)
    monkeypatch.setattr(PlainJpeg, "decode", refuse)
    monkeypatch.setattr("piti.data.sources.pictures.decode_labels", refuse)
    found = samples(shard_now(folder.data("headers"), tmp_path / "shards"))
    monkeypatch.undo()
    assert found.keys() == {"good", "good too", "with text"}
    for name, members in found.items():
        assert members["jpg"] == (folder.root / "images" / f"{name}.jpg").read_bytes()
        assert members["cond.png"] == (folder.root / "conditions" / f"{name}.png").read_bytes()
        assert read_json(members)["check"] == "headers"


def test_whatever_is_not_in_stored_form_is_stored_as_ever(
    folder: Folder, tmp_path: Path, shard_now: Shard, image: np.ndarray, labels: np.ndarray
) -> None:
    """Both modes store the same files, whatever went in, and keep the bytes of the same conditions."""
    turned, small = jpeg(image[::-1, ::-1].copy(), exif=orientation(3)), np.ascontiguousarray(labels[::2, ::2])
    array = io.BytesIO()
    np.save(array, labels)
    folder.add("palette", jpeg(image), palette(labels))
    folder.add("16 bits", jpeg(image), png(labels.astype(np.uint16)))
    folder.add("colours", jpeg(image), png(np.dstack([labels] * 3)))
    folder.add("transparent", jpeg(image), png(Image.fromarray(labels), transparency=3))
    folder.add("half size", jpeg(image), png(small))
    folder.add("turned", turned, png(labels))
    folder.add("exif upright", jpeg(image, exif=orientation(1)), png(labels))
    folder.add("grey", jpeg(image[..., 0].copy()), png(labels))
    folder.add("png", png(image), png(labels))
    folder.add("alpha", png(np.dstack([image, image[..., :1]])), png(labels))
    folder.add("array", jpeg(image), array.getvalue(), "npy")
    folder.add("bilevel", jpeg(image), png(Image.fromarray(labels > 7)))
    folder.add("behind the end", jpeg(image) + b"\0" * 64, png(labels))
    settings = {"conditions_follow_exif": False}
    old = samples(shard_now(folder.data("pixels", **settings), tmp_path / "pixels"))
    new = samples(shard_now(folder.data("headers", **settings), tmp_path / "headers"))
    assert new.keys() == old.keys()
    assert len(new) == 15
    for name, members in new.items():
        np.testing.assert_array_equal(decode_image(members), decode_image(old[name]), err_msg=name)
        assert members["cond.png"] == old[name]["cond.png"], name
    encoded = {"palette", "16 bits", "colours", "transparent", "half size", "array", "bilevel"}
    for name in new.keys() - {"array"}:
        kept = new[name]["cond.png"] == (folder.root / "conditions" / f"{name}.png").read_bytes()
        assert kept == (name not in encoded | {"turned"}), name
    for name in encoded - {"16 bits", "half size", "bilevel", "array"}:
        np.testing.assert_array_equal(decode_condition(new[name]).values, labels, err_msg=name)
    assert read_json(new["behind the end"])["check"] == "headers", "its label map was not decoded"
    assert all(read_json(members)["check"] == "pixels" for members in old.values())


def test_given_sketches_of_one_bit_are_kept_others_thresholded(
    folder: Folder, tmp_path: Path, shard_now: Shard, image: np.ndarray
) -> None:
    edges = image[..., 0] > 120
    for path in (folder.root / "conditions").iterdir():
        path.write_bytes(png(Image.fromarray(edges)))
    folder.add("eight bits", jpeg(image), png(image[..., 0].copy()))
    old = samples(shard_now(folder.data("pixels", modality="sketch"), tmp_path / "pixels"))
    new = samples(shard_now(folder.data("headers", modality="sketch"), tmp_path / "headers"))
    assert new["good"]["cond.png"] == (folder.root / "conditions" / "good.png").read_bytes()
    for name, members in new.items():
        assert members["cond.png"] == old[name]["cond.png"]
        assert read_json(members)["sketch"] == {"name": "given"}


@pytest.mark.parametrize(
    "changes",
    [
        {"geometry": "squash"},
        {"geometry": "center"},
        {"require_classes": [3]},
        {"modality": "sketch", "conditions": None},
    ],
)
def test_what_needs_pixels_decodes_them(
    changes: dict[str, Any], folder: Folder, tmp_path: Path, shard_now: Shard
) -> None:
    detected = "conditions" in changes
    kept = {name: value for name, value in changes.items() if name != "conditions"}
    found = {}
    for check in ("pixels", "headers"):
        data = folder.data(check, **kept)
        if detected:
            source = {"kind": "paired", "images": str(folder.root / "images"), "validation_share": 0.01}
            data = DataConfig.model_validate({**data.model_dump(), "source": source})
        found[check] = samples(shard_now(data, tmp_path / check))
    assert found["pixels"].keys() == found["headers"].keys()
    for name, members in found["headers"].items():
        for suffix in members.keys() - {"json"}:
            assert members[suffix] == found["pixels"][name][suffix]


def broken_middle(data: bytes) -> bytes:
    """A JPEG without the middle third of its bytes: its beginning and its end are as they should be."""
    return data[: len(data) // 3] + data[2 * len(data) // 3 :]


@pytest.mark.parametrize("geometry", ["squash", "center"])
def test_pictures_of_training_size_are_kept_undecoded_whatever_the_geometry(
    geometry: str, tmp_path: Path, image: np.ndarray, labels: np.ndarray, shard_now: Shard
) -> None:
    """Only `headers` lets a lost middle in: nothing has to be resized."""
    folder = Folder(tmp_path / "squares")
    square, mask = jpeg(np.ascontiguousarray(image[:64, :64])), png(np.ascontiguousarray(labels[:64, :64]))
    for name in ("a", "b", "c"):
        folder.add(name, square, mask)
    folder.add("lost", broken_middle(square), mask)
    rejected = {
        check: shard_now(folder.data(check, geometry=geometry, max_rejected_share=1.0), tmp_path / check).rejected()
        for check in ("pixels", "headers")
    }
    assert [source for source, _ in rejected["pixels"]] == ["lost.jpg"]
    assert rejected["headers"] == []


def test_damage_that_shows_in_the_structure_is_refused_at_once(
    folder: Folder, tmp_path: Path, shard_now: Shard, image: np.ndarray, labels: np.ndarray
) -> None:
    good, mask = jpeg(image), png(labels)
    flipped = bytearray(mask)
    flipped[len(mask) // 2] ^= 1
    folder.add("cut picture", good[: len(good) // 2], mask)
    folder.add("no picture", b"\xff\xd8\xff" + b"\0" * 90 + b"\xff\xd9", mask)
    folder.add("empty picture", b"", mask)
    folder.add("cut labels", good, mask[: len(mask) // 2])
    folder.add("flipped labels", good, bytes(flipped))
    folder.add("no labels", good, b"no picture")
    folder.add("other frame", good, png(np.ascontiguousarray(labels[:, :40])))
    for check in ("pixels", "headers"):
        shards = shard_now(folder.data(check), tmp_path / check)
        reasons = {source.rsplit(".", 1)[0]: reason for source, reason in shards.rejected()}
        assert reasons.keys() == {
            "cut picture", "no picture", "empty picture", "cut labels", "flipped labels", "no labels", "other frame"
        }, check  # fmt: skip
        assert "condition is 40x80 pixels, the picture 96x80" in reasons["other frame"]


def bad_dataset(folder: Folder, image: np.ndarray, labels: np.ndarray) -> dict[str, str]:
    """Adds pairs that are damaged behind their headers; why each cannot be used."""
    wrong = labels.copy()
    wrong[5, 5] = 77
    header = struct.pack(">2L5B", WIDTH, HEIGHT, 8, 0, 0, 0, 0)
    no_stream = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"no zlib stream") + chunk(b"IEND", b"")
    folder.add("broken middle", broken_middle(jpeg(image)), png(labels))
    folder.add("out of range", jpeg(image), png(wrong))
    folder.add("no stream", jpeg(image), no_stream)
    return {
        "broken middle": "picture is damaged (Corrupt JPEG data: premature end of data segment)",
        "out of range": "label 77 is outside 0..19 (and not 255, unlabelled)",
        "no stream": "condition does not decode",
    }


def test_deeper_damage_is_skipped_and_listed_by_the_loader(
    folder: Folder, tmp_path: Path, shard_now: Shard, image: np.ndarray, labels: np.ndarray
) -> None:
    for number in range(5):
        folder.add(f"more {number}", jpeg(np.roll(image, number, axis=1)), png(np.roll(labels, number, axis=1)))
    reasons = bad_dataset(folder, image, labels)
    data = folder.data("headers")
    shards = shard_now(data, tmp_path / "shards")
    assert not shards.rejected()
    origins = {read_json(members)["key"]: name for name, members in samples(shards).items()}
    in_training = {origins[key] for key in shards.keys("train")}
    loader = TrainingLoader(
        shards.uri,
        data,
        degraded=None,
        scale=4,
        batch_size=len(in_training),
        rank=0,
        world_size=1,
        num_workers=2,
        seed=0,
    )
    batch = next(iter(loader))
    skipped = {origins[entry["key"]]: entry["reason"] for entry in loader.statistics["skipped"]}
    assert skipped == {name: reason for name, reason in reasons.items() if name in in_training}
    assert len(skipped) >= 2
    assert loader.statistics["samples_skipped"] == len(skipped)
    assert len(batch["keys"]) == len(in_training) - len(skipped)
    problems = {origins[str(found.key)]: found.what for found in verify_shards(shards.uri, decode=True)}
    assert problems == {name: f"came damaged: {reason}" for name, reason in reasons.items()}
    assert not list(verify_shards(shards.uri)), "the bytes are those that were written"
    counted, looked_at = count_labels(shards, 100)
    assert looked_at == len(origins) - 2
    assert 77 not in {entry.label for entry in counted}
    assert contact_sheet(shards, 20).startswith(b"\x89PNG")


def test_pixels_refuses_the_same_while_sharding(
    folder: Folder, tmp_path: Path, shard_now: Shard, image: np.ndarray, labels: np.ndarray
) -> None:
    expected = bad_dataset(folder, image, labels)
    reasons = {
        source.rsplit(".", 1)[0]: why for source, why in shard_now(folder.data("pixels"), tmp_path / "x").rejected()
    }
    assert reasons.keys() == expected.keys()
    for name in ("broken middle", "out of range"):
        assert reasons[name] == expected[name]


def test_damaged_pictures_have_companions_without_variants(
    folder: Folder,
    tmp_path: Path,
    shard_now: Shard,
    degrade_now: Callable[..., ShardSet],
    image: np.ndarray,
    labels: np.ndarray,
) -> None:
    bad_dataset(folder, image, labels)
    data = folder.data("headers")
    shards = shard_now(data, tmp_path / "shards")
    companions = degrade_now(shards.uri, data, tmp_path / "companions")
    settings = {"scale": 4, "batch_size": 1, "rank": 0, "world_size": 1, "num_workers": 0, "seed": 0}
    batches = iter(TrainingLoader(shards.uri, data, degraded=companions.uri, **settings))
    for _ in range(shards.num_samples("train")):
        assert next(batches)["low_res"].shape == (1, 3, 16, 16)
    assert not list(verify_shards(companions.uri, decode=True))
    assert contact_sheet(companions, 20).startswith(b"\x89PNG")


def test_the_check_is_part_of_the_plan_and_a_killed_run_goes_on(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, uri = folder.data("headers", samples_per_shard=1), str(tmp_path / "shards")
    plans = plan_shards(open_source(data), data, 0)
    other = folder.data("pixels", samples_per_shard=1)
    pixels = plan_shards(open_source(other), other, 0)
    assert pixels.digests.keys() == plans.digests.keys()
    assert not set(pixels.digests.values()) & set(plans.digests.values())
    first, *rest = list(plans)
    write_shard(first, data, uri)
    assert set(published_shards(uri, plans.digests)) == {first.name}
    assert not published_shards(uri, pixels.digests)
    before = (tmp_path / "shards" / first.name).read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sharding, "sample_members", killed)
    with pytest.raises(KeyboardInterrupt):
        write_shard(rest[0], data, uri)
    monkeypatch.undo()
    assert set(published_shards(uri, plans.digests)) == {first.name}
    for plan in plans:
        write_shard(plan, data, uri)
    assert set(published_shards(uri, plans.digests)) == set(plans.digests)
    assert (tmp_path / "shards" / first.name).read_bytes() == before


def test_verify_decodes_on_request(
    folder: Folder, tmp_path: Path, shard_now: Shard, image: np.ndarray, labels: np.ndarray
) -> None:
    reasons = bad_dataset(folder, image, labels)
    uri, runner = shard_now(folder.data("headers"), tmp_path / "shards").uri, CliRunner()
    assert "is whole" in runner.invoke(app, ["shards", "verify", uri]).output
    found = runner.invoke(app, ["shards", "verify", uri, "--decode"])
    told = found.output + str(found.exception)
    assert found.exit_code == 1
    assert all(f"came damaged: {reason}" in told for reason in reasons.values())
    both = runner.invoke(app, ["shards", "verify", uri, "--decode", "--repair"])
    assert both.exit_code == 1
    assert "--repair cannot mend" in both.output + str(both.exception)
    assert (tmp_path / "shards" / "manifest.parquet").exists()


def test_an_unknown_check_is_an_error(folder: Folder) -> None:
    with pytest.raises(ValidationError, match="check\n  Input should be 'pixels' or 'headers'"):
        folder.data("none")


def test_grey_pngs_are_told_from_all_others(labels: np.ndarray) -> None:
    whole = png(labels)
    assert read_grey_png(whole) == read_grey_png(with_text(labels)) == GreyPng(HEIGHT, WIDTH, 8)
    assert read_grey_png(png(Image.fromarray(labels > 7))) == GreyPng(HEIGHT, WIDTH, 1)
    for other in (
        palette(labels),
        png(Image.fromarray(labels), transparency=3),
        png(np.dstack([labels] * 3)),
        whole + b"\0",
        b"",
    ):
        assert read_grey_png(other) is None
    for length in range(len(whole)):
        assert read_grey_png(whole[:length]) is None
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        assert read_grey_png(bytes(damaged)) is None


def test_grey_pngs_decode_alike_with_opencv(labels: np.ndarray) -> None:
    for data in (png(labels), with_text(labels), png(labels, compress_level=0), png(labels, optimize=True)):
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read, decode_labels(data))


def test_plain_jpegs_by_their_headers_are_so_by_pillow(image: np.ndarray) -> None:
    plain = [
        jpeg(image),
        jpeg(image, progressive=True),
        jpeg(image, subsampling=0),
        jpeg(image, comment=b"x", icc_profile=b"y" * 99),
    ]
    for data in plain:
        assert is_plain_jpeg(data)
        assert decode_picture(data).keep == "jpg"
    cmyk = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(cmyk, "JPEG")
    more = io.BytesIO()
    Image.fromarray(image).save(more, "MPO", save_all=True, append_images=[Image.fromarray(image[::-1].copy())])
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    for data in (
        jpeg(image, exif=orientation(6)),
        jpeg(image, xmp=xmp),
        jpeg(image[..., 0].copy()),
        cmyk.getvalue(),
        more.getvalue(),
        png(image),
    ):
        assert not is_plain_jpeg(data)
    assert decode_picture(jpeg(image, xmp=xmp)).image.shape == (image.shape[1], image.shape[0], 3)
    assert decode_picture(jpeg(image, exif=orientation(1))).keep == "jpg", "Pillow looks at what the headers leave open"


def test_tar_headers_are_those_of_tarfile(tmp_path: Path) -> None:
    contents = {"jpg": b"x" * 1000, "cond.png": b"", "json": b"{}" * 700}
    with SampleTarWriter(tmp_path / "ours.tar") as writer:
        writer.add("a-key_1", contents)
        writer.finish()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for suffix, content in contents.items():
            info = tarfile.TarInfo(f"a-key_1.{suffix}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert (tmp_path / "ours.tar").read_bytes() == stream.getvalue()
    with SampleTarWriter(tmp_path / "long.tar") as writer, pytest.raises(ValueError, match="does not fit"):
        writer.add("k" * 80, {"s" * 40: b""})
