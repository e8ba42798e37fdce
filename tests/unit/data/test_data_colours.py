"""What decoders do on load, unseen: orientation, transparency at every depth, colour profiles; each as people see it."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from piti.config import DataConfig
from piti.data.items import SPLITS, RejectedItem
from piti.data.sources import measurements, open_source
from piti.data.sources.pictures import decode_picture
from tests.unit.data.encoding import encoded, png_by_hand
from tests.value_files import write_values


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The rows and columns of a file that is `upright` once EXIF is applied: by the EXIF standard, with numpy alone."""
    swapped = upright.swapaxes(0, 1)
    return np.ascontiguousarray({
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: swapped, 6: swapped[::-1],
        7: swapped[::-1, ::-1], 8: swapped[:, ::-1],
    }[orientation])  # fmt: skip


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "JPEG", "TIFF grey 16", "TIFF LZW", "JPEG by XMP"])
def test_every_format_is_turned_as_it_says(kind: str, orientation: int, small: np.ndarray) -> None:
    values = stored(small, orientation)
    tolerance = 0.0
    if kind == "TIFF grey 16":
        data = encoded(Image.fromarray(values[..., 1].astype(np.uint16) * 257), "TIFF", tiffinfo={274: orientation})
    elif kind == "TIFF LZW":
        data = encoded(Image.fromarray(values), "TIFF", tiffinfo={274: orientation}, compression="tiff_lzw")
    elif kind == "JPEG by XMP":
        data, tolerance = encoded(Image.fromarray(values), "JPEG", quality=98, xmp=XMP.format(orientation).encode()), 3
    else:
        options: dict[str, Any] = {"JPEG": {"quality": 98}, "WEBP": {"lossless": True}}.get(kind, {})
        data, tolerance = (
            encoded(Image.fromarray(values), kind, exif=exif(orientation), **options),
            3 * (kind == "JPEG"),
        )
    picture = decode_picture(data)
    expected = np.repeat(small[..., 1:2], 3, axis=2) if kind == "TIFF grey 16" else small
    assert picture.image.shape == expected.shape
    assert np.abs(picture.image.astype(int) - expected).mean() <= tolerance
    assert picture.orientation == orientation
    assert orientation == 1 or picture.keep is None


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_conditions_own_orientation_is_not_read(kind: str, orientation: int) -> None:
    labels = np.arange(600, dtype=np.uint8).reshape(20, 30)
    picture = Image.fromarray(labels) if kind != "WEBP" else Image.fromarray(labels).convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(
        measurements.labels(encoded(picture, kind, exif=exif(orientation), **options)), labels
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_conditions_of_turned_photographs_lie_right_or_nobody_knows(
    kind: str, tmp_path: Path, small: np.ndarray, make_data: Callable[..., DataConfig]
) -> None:
    labels = np.zeros(small.shape[:2], np.uint8)
    labels[:30], labels[:, :20] = 1, 2
    for orientation in range(1, 9):
        for number, lies_like_file in enumerate((False, True)):
            name = f"{orientation}-{number}"
            (tmp_path / "i").mkdir(exist_ok=True)
            (tmp_path / "l").mkdir(exist_ok=True)
            data = encoded(Image.fromarray(stored(small, orientation)), kind, exif=exif(orientation))
            (tmp_path / "i" / f"{name}.{kind.lower()[:4]}").write_bytes(data)
            Image.fromarray(stored(labels, orientation) if lies_like_file else labels).save(
                tmp_path / "l" / f"{name}.png"
            )
    for path in (tmp_path / "i").iterdir():
        path.rename(path.with_suffix({"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif"}[kind]))
    data_config = make_data(tmp_path / "i", modality="mask", num_classes=5, source={"conditions": str(tmp_path / "l")})
    items = [item for split in ("train", "validation") for item in open_source(data_config).items(split)]
    assert len(items) == 16
    for item in items:
        orientation = int(item.origin[0])
        if orientation in (2, 3, 4):  # its size is that of the picture either way
            with pytest.raises(
                RejectedItem, match=rf"orientation {orientation}\), and the size of its condition does not tell"
            ):
                item.load()
        else:
            loaded = item.load()
            assert loaded.condition is not None
            np.testing.assert_array_equal(loaded.condition.values, labels)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_normals_of_turned_photographs_lie_upright_or_are_rejected(
    orientation: int, tmp_path: Path, small: np.ndarray, make_data: Callable[..., DataConfig]
) -> None:
    """Depth is turned with its photograph; normals, whose x and y would have to turn as well, are not."""
    normals = np.full(small.shape, (128, 128, 255), np.uint8)
    normals[:30, :20] = (255, 128, 128)
    depth = np.linspace(1, 9, small.shape[0] * small.shape[1], dtype=np.float32).reshape(small.shape[:2])
    picture = encoded(Image.fromarray(stored(small, orientation)), "JPEG", exif=exif(orientation))
    for name, beside in (("upright", normals), ("as stored", stored(normals, orientation))):
        write_values(tmp_path / "n" / f"{name}.png", beside)
        write_values(tmp_path / "d" / f"{name}.npy", stored(depth, orientation))
        (tmp_path / "i").mkdir(exist_ok=True)
        (tmp_path / "i" / f"{name}.jpg").write_bytes(picture)
    source = {"conditions": str(tmp_path / "d"), "normals": str(tmp_path / "n")}
    opened = open_source(make_data(tmp_path / "i", modality="geometry", source=source))
    items = {item.origin: item for split in SPLITS for item in opened.items(split)}
    condition = items["upright.jpg"].load().condition
    assert condition is not None
    assert condition.normals is not None
    np.testing.assert_array_equal(condition.values, depth)
    np.testing.assert_allclose(condition.normals, normals / 127.5 - 1, atol=1e-6)
    with pytest.raises(RejectedItem, match="normal map lies like the file's pixels"):
        items["as stored.jpg"].load()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_at_every_depth(bits: int) -> None:
    largest = 2**bits - 1
    values = np.random.default_rng(bits).integers(0, largest + 1, (20, 24))
    values[0, 0], values[0, 1] = largest, 0
    data = png_by_hand(values, bits, transparent=[0])
    expected = np.where(values == 0, 255, values >> 8 if bits == 16 else values * 255 // largest)
    np.testing.assert_array_equal(decode_picture(data).image, np.repeat(expected[..., None], 3, axis=2))
    np.testing.assert_array_equal(measurements.labels(data), values)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_is_white_at_every_depth(bits: int, small: np.ndarray) -> None:
    values = small.astype(np.uint16) * (257 if bits == 16 else 1)
    values[:10], values[10:20] = values[0, 0], values[0, 0]
    values[10:20, :, 2] += 1  # at 16 bits it differs in the lower byte alone
    image = decode_picture(png_by_hand(values, bits, transparent=values[0, 0])).image
    assert (image[:10] == 255).all()
    np.testing.assert_array_equal(image[10:], values[10:] >> (8 if bits == 16 else 0))


def profile(primaries: tuple[tuple[float, ...], ...], gamma: float) -> bytes:
    """An ICC profile of three primaries (XYZ, D50) and one gamma, by hand."""

    def s15(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(map(s15, values))

    curve, white = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)), (0.9642, 1.0, 0.8249)
    tags = [(b"desc", b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)), (b"cprt", b"text" + bytes(4) + b"none\0"),
            (b"wtpt", xyz(white)), *((name, xyz(values)) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)),
            (b"rTRC", curve), (b"gTRC", curve), (b"bTRC", curve)]  # fmt: skip
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for sign, content in tags:
        content += bytes(-len(content) % 4)
        table, body = table + sign + struct.pack(">II", start + len(body), len(content)), body + content
    head = (
        struct.pack(">I4xI", start + len(body), 0x02400000) + b"mntrRGB XYZ " + struct.pack(">6H", 2020, 1, 1, 0, 0, 0)
    )
    return head + b"acsp" + bytes(28) + b"".join(map(s15, white)) + bytes(48) + table + body


ADOBE_RGB = (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)
SRGB = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)


def to_adobe_rgb(levels: np.ndarray) -> np.ndarray:
    """sRGB levels as AdobeRGB's, by the formulas of both standards."""
    share = levels / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    other = linear @ np.array(SRGB) @ np.linalg.inv(np.array(ADOBE_RGB))
    return np.rint(np.clip(other, 0, 1) ** (256 / 563) * 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_an_embedded_profile_is_applied(kind: str, small: np.ndarray) -> None:
    options = {"JPEG": {"quality": 99, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(Image.fromarray(to_adobe_rgb(small)), kind, icc_profile=profile(ADOBE_RGB, 563 / 256), **options)
    picture = decode_picture(data)
    assert np.abs(picture.image.astype(int) - small).mean() < (1.5 if kind == "JPEG" else 0.6)
    assert picture.keep is None
    assert picture.colours == "converted to sRGB from the embedded profile"


def test_the_profile_of_srgb_changes_nothing_and_keeps_the_file(small: np.ndarray) -> None:
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind, suffix in (("PNG", "png"), ("JPEG", "jpg")):
        picture = decode_picture(encoded(Image.fromarray(small), kind, icc_profile=plain))
        assert (picture.keep, picture.colours) == (suffix, None)
        np.testing.assert_array_equal(picture.image, decode_picture(encoded(Image.fromarray(small), kind)).image)


@pytest.mark.parametrize("content", [b"no profile at all", b"", bytes(200)])
def test_a_broken_profile_is_a_warning(
    content: bytes,
    small: np.ndarray,
    tmp_path: Path,
    make_data: Callable[..., DataConfig],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(
            encoded(Image.fromarray(small), "JPEG", icc_profile=content, quality=98)
        )
    items = list(open_source(make_data(tmp_path)).items("train"))
    with caplog.at_level(logging.WARNING, "piti"):
        loaded = items[0].load()
    assert np.abs(loaded.image.astype(int) - small).mean() < 3
    if content:
        assert "unusable colour profile" in caplog.text
        assert items[0].origin in caplog.text
        assert loaded.provenance["colours"].startswith("unusable")


def test_grey_and_transparent_pictures_with_profiles(small: np.ndarray) -> None:
    wide = profile(ADOBE_RGB, 563 / 256)
    grey = Image.fromarray(np.ascontiguousarray(small[..., 1]))
    found = decode_picture(encoded(grey, "JPEG", icc_profile=wide, quality=99)).image.astype(int)
    expected = ((small[..., 1] / 255) ** (563 / 256))[..., None]
    expected = np.where(expected <= 0.0031308, 12.92 * expected, 1.055 * expected ** (1 / 2.4) - 0.055) * 255
    assert np.abs(found - expected).mean() < 1.5
    alpha = np.full(small.shape[:2], 255, np.uint8)
    alpha[:20] = 0
    image = decode_picture(
        encoded(Image.fromarray(np.dstack([to_adobe_rgb(small), alpha])), "PNG", icc_profile=wide)
    ).image
    assert (image[:20] == 255).all()
    assert np.abs(image[20:].astype(int) - small[20:]).mean() < 0.6


def test_lab_pictures_are_converted(small: np.ndarray) -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(small), to_lab)
    assert lab is not None
    assert np.abs(decode_picture(encoded(lab, "TIFF")).image.astype(int) - small).mean() < 3
