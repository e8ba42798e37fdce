"""Label maps, depth and sketches are numbers: whoever wrote them, they come back as they were, or the file is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import cv2
import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from piti.data.items import RejectedItem
from piti.data.sources import measurements
from piti.data.sources.pictures import decode_picture, decode_sketch
from tests.unit.data.encoding import encoded, png_by_hand

Writer = Callable[[np.ndarray], bytes]


def by_pillow(kind: str, mode: str | None = None, **options: Any) -> Writer:
    def write(values: np.ndarray) -> bytes:
        picture = Image.fromarray(values)
        return encoded(picture if mode is None else picture.convert(mode), kind, **options)

    return write


def by_palette(kind: str, **options: Any) -> Writer:
    """The values number the colours of a palette in which none is grey."""

    def write(values: np.ndarray) -> bytes:
        picture = Image.fromarray(values)
        picture.putpalette([level for number in range(256) for level in (255 - number, 7, number)])
        return encoded(picture, kind, **options)

    return write


def by_opencv(suffix: str, *options: int) -> Writer:
    def write(values: np.ndarray) -> bytes:
        done, data = cv2.imencode(suffix, values, list(options))
        assert done
        return data.tobytes()

    return write


def by_tifffile(**options: Any) -> Writer:
    def write(values: np.ndarray) -> bytes:
        stream = io.BytesIO()
        tifffile.imwrite(stream, values, **options)
        return stream.getvalue()

    return write


def by_numpy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def by_imageio(extension: str) -> Writer:
    def write(values: np.ndarray) -> bytes:
        return bytes(imageio.imwrite("<bytes>", values, extension=extension))

    return write


def by_hand_png(bits: int) -> Writer:
    """A grey PNG of fewer than 8 bits a pixel."""

    return lambda values: png_by_hand(values, bits)


def by_hand_pnm(largest: int, is_text: bool) -> Writer:
    def write(values: np.ndarray) -> bytes:
        header = f"P{2 if is_text else 5}\n# a comment\n{values.shape[1]} {values.shape[0]}\n{largest}\n".encode()
        if is_text:
            return header + b"\n".join(b" ".join(str(int(value)).encode() for value in row) for row in values)
        return header + values.astype(">u2" if largest > 255 else np.uint8).tobytes()

    return write


def by_hand_pfm(values: np.ndarray) -> bytes:
    """Rows lie from the bottom up; the sign of -1 says that they are little-endian."""
    header = f"Pf\n{values.shape[1]} {values.shape[0]}\n-1.0\n".encode()
    return header + values[::-1].astype("<f4").tobytes()


# Writer, type of its numbers, largest number, whether it must be read (otherwise it may be refused as well).
WRITERS: dict[str, tuple[Writer, Any, int, bool]] = {
    "Pillow PNG 8": (by_pillow("PNG"), np.uint8, 255, True),
    "Pillow PNG 16": (by_pillow("PNG"), np.uint16, 65535, True),
    "Pillow PNG interlaced by OpenCV 16": (by_opencv(".png"), np.uint16, 65535, True),
    "Pillow PNG RGB": (by_pillow("PNG", "RGB"), np.uint8, 255, True),
    "Pillow PNG RGBA": (by_pillow("PNG", "RGBA"), np.uint8, 255, True),
    "Pillow PNG palette": (by_palette("PNG"), np.uint8, 255, True),
    "Pillow PNG palette 4 bits": (by_palette("PNG", bits=4), np.uint8, 15, True),
    "Pillow PNG palette 1 bit": (by_palette("PNG", bits=1), np.uint8, 1, True),
    "Pillow TIFF 8": (by_pillow("TIFF"), np.uint8, 255, True),
    "Pillow TIFF 16": (by_pillow("TIFF"), np.uint16, 65535, True),
    "Pillow TIFF 32": (by_pillow("TIFF"), np.int32, 65535, True),
    "Pillow TIFF LZW": (by_pillow("TIFF", compression="tiff_lzw"), np.uint8, 255, True),
    "Pillow TIFF JPEG": (by_pillow("TIFF", compression="jpeg"), np.uint8, 255, False),
    "Pillow TIFF palette": (by_palette("TIFF"), np.uint8, 255, True),
    "Pillow TIFF turned": (by_pillow("TIFF", tiffinfo={274: 6}), np.uint8, 255, True),
    "Pillow TIFF 16 turned": (by_pillow("TIFF", tiffinfo={274: 5}), np.uint16, 65535, True),
    "Pillow BMP": (by_pillow("BMP"), np.uint8, 255, True),
    "Pillow BMP palette": (by_palette("BMP"), np.uint8, 255, True),
    "Pillow PGM": (by_pillow("PPM"), np.uint8, 255, True),
    "Pillow PGM 16": (by_pillow("PPM"), np.uint16, 65535, True),
    "Pillow TGA": (by_pillow("TGA"), np.uint8, 255, True),
    "Pillow PCX": (by_pillow("PCX"), np.uint8, 255, True),
    "Pillow SGI": (by_pillow("SGI"), np.uint8, 255, True),
    "Pillow SGI 16": (by_pillow("SGI", bpc=2), np.uint8, 255, False),
    "Pillow GIF": (by_pillow("GIF"), np.uint8, 255, False),
    "Pillow GIF palette": (by_palette("GIF"), np.uint8, 255, False),
    "Pillow WebP lossless": (by_pillow("WEBP", "RGB", lossless=True), np.uint8, 255, True),
    "Pillow WebP": (by_pillow("WEBP", "RGB"), np.uint8, 255, False),
    "Pillow JPEG": (by_pillow("JPEG", quality=100), np.uint8, 255, False),
    "Pillow JPEG 2000": (by_pillow("JPEG2000"), np.uint8, 255, False),
    "Pillow JPEG 2000 16": (by_pillow("JPEG2000"), np.uint16, 65535, False),
    "Pillow AVIF": (by_pillow("AVIF", "RGB"), np.uint8, 255, False),
    "OpenCV PNG": (by_opencv(".png"), np.uint8, 255, True),
    "OpenCV PNG 1 bit": (lambda values: by_opencv(".png", cv2.IMWRITE_PNG_BILEVEL, 1)(values * 255), np.uint8, 1, True),
    "OpenCV TIFF": (by_opencv(".tiff"), np.uint8, 255, True),
    "OpenCV TIFF 16": (by_opencv(".tiff"), np.uint16, 65535, True),
    "OpenCV TIFF 32": (by_opencv(".tiff"), np.int32, 65535, True),
    "OpenCV BMP": (by_opencv(".bmp"), np.uint8, 255, True),
    "OpenCV PGM": (by_opencv(".pgm"), np.uint8, 255, True),
    "OpenCV PGM 16": (by_opencv(".pgm"), np.uint16, 65535, True),
    "OpenCV PGM text": (by_opencv(".pgm", cv2.IMWRITE_PXM_BINARY, 0), np.uint16, 65535, True),
    "OpenCV WebP lossless": (by_opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 101), np.uint8, 255, True),
    "tifffile 8": (by_tifffile(), np.uint8, 255, True),
    "tifffile 16, big-endian": (by_tifffile(byteorder=">"), np.uint16, 65535, True),
    "tifffile 32": (by_tifffile(), np.uint32, 65535, True),
    "tifffile int8": (by_tifffile(), np.int8, 127, True),
    "tifffile int16": (by_tifffile(), np.int16, 32767, True),
    "tifffile int32": (by_tifffile(), np.int32, 65535, True),
    "tifffile 64": (by_tifffile(), np.uint64, 65535, False),
    "tifffile zlib": (by_tifffile(compression="zlib"), np.uint8, 255, True),
    "tifffile tiles": (by_tifffile(tile=(16, 16), compression="zlib"), np.uint16, 65535, True),
    "tifffile white is zero": (by_tifffile(photometric="miniswhite"), np.uint8, 255, False),
    "tifffile palette": (
        by_tifffile(photometric="palette", colormap=np.arange(768).reshape(3, 256).astype(np.uint16) * 80), np.uint8, 255, True,
    ),
    "tifffile 1 bit": (lambda values: by_tifffile(photometric="minisblack")(values.astype(bool)), np.uint8, 1, True),
    "tifffile 1 bit, white is zero": (lambda values: by_tifffile()(values.astype(bool)), np.uint8, 1, False),
    "imageio PNG": (by_imageio(".png"), np.uint8, 255, True),
    "imageio PNG 16": (by_imageio(".png"), np.uint16, 65535, True),
    "imageio TIFF": (by_imageio(".tiff"), np.uint16, 65535, True),
    "imageio BMP": (by_imageio(".bmp"), np.uint8, 255, True),
    "imageio GIF": (by_imageio(".gif"), np.uint8, 255, False),
    "NumPy": (by_numpy, np.uint16, 65535, True),
    "NumPy int64": (by_numpy, np.int64, 65535, True),
    "by hand PNG 1": (by_hand_png(1), np.uint8, 1, True),
    "by hand PNG 2": (by_hand_png(2), np.uint8, 3, True),
    "by hand PNG 4": (by_hand_png(4), np.uint8, 15, True),
    "by hand PGM up to 20": (by_hand_pnm(20, False), np.uint8, 20, True),
    "by hand PGM up to 10000": (by_hand_pnm(10_000, False), np.uint16, 10_000, True),
    "by hand PGM text up to 7": (by_hand_pnm(7, True), np.uint8, 7, True),
    "by hand PGM text up to 999": (by_hand_pnm(999, True), np.uint16, 999, True),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_integers_come_back_as_they_were_written_or_are_refused(name: str, data: st.DataObject) -> None:
    write, kind, largest, must_be_read = WRITERS[name]
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    top = data.draw(st.integers(0, largest))
    values = (
        np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).integers(0, top + 1, (height, width)).astype(kind)
    )
    content = write(values)
    try:
        found = measurements.labels(content)
        metres = None if "palette" in name or "NumPy" in name else measurements.depth(content, 0.001)
    except RejectedItem:
        assert not must_be_read
        return
    np.testing.assert_array_equal(found, values)
    if metres is not None:
        np.testing.assert_array_equal(metres, (values.astype(np.float64) * 0.001).astype(np.float32))


def test_depth_of_floats_and_of_32_bits_is_read_as_it_is() -> None:
    metres = np.array([[0.0, 1.5, np.nan], [np.inf, -2.0, 80.25]], np.float32)
    for write in (by_tifffile(), by_opencv(".tiff"), by_pillow("TIFF"), by_opencv(".pfm"), by_hand_pfm):
        np.testing.assert_array_equal(measurements.depth(write(metres), 1.0), [[0, 1.5, 0], [0, 0, 80.25]])
    far = np.array([[3_000_000_000, 70_000]], np.uint32)
    np.testing.assert_allclose(measurements.depth(by_tifffile()(far), 0.001), [[3_000_000, 70]])
    np.testing.assert_array_equal(
        measurements.depth(by_numpy(metres.astype(np.float64)), 0.001), [[0, 1.5, 0], [0, 0, 80.25]]
    )


def test_a_refusal_says_why_and_which_numbers_were_found() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[10:20], labels[30:] = 15, 20
    for write, reason in (
        (
            by_pillow("JPEG", quality=95),
            "label map is a lossy file .JPEG., which does not keep numbers: store it as PNG",
        ),
        (by_pillow("WEBP", "RGB"), "lossy file .WEBP."),
        (by_pillow("TIFF", compression="jpeg"), "TIFF of compression 7"),
        (by_pillow("GIF"), "renumber"),
        (by_tifffile(photometric="miniswhite"), "0 is white"),
        (lambda values: by_tifffile()(values.astype(np.float32)), "holds 0, 15, 20 as float32"),
        (by_pillow("PPM", "1"), "a PBM, whose 0 is white"),
        (lambda values: by_hand_pfm(values), "holds 0, 15, 20 as float32"),
        (lambda values: by_numpy(values / 2), "holds 0, 7.5, 10 as float64"),
        (lambda values: by_numpy(values.astype(np.int64) * 10_000), "holds 0, 150000, 200000 as int64"),
        (lambda values: by_tifffile()(values.astype(np.int32) * 10_000), "holds 0, 150000, 200000 as int32"),
        (lambda values: by_tifffile()(values.astype(np.int16) - 1), "holds -1, 14, 19 as int32"),
        (
            lambda values: by_opencv(".png")(np.dstack([values.astype(np.uint16) * 300] * 3)),
            "several channels of 16 bits",
        ),
    ):
        with pytest.raises(RejectedItem, match=reason):
            measurements.labels(write(labels))
    for kind in (np.float16, np.float64, np.uint64):
        with pytest.raises(RejectedItem, match="TIFF of a kind that is not read: store 8, 16 or 32 bits"):
            measurements.depth(by_tifffile()(labels.astype(kind)), 0.001)
    with pytest.raises(RejectedItem, match=r"holds colours .RGB.*; it is a lossy file .WEBP."):
        measurements.depth(by_pillow("WEBP")(np.dstack([labels, labels.T, labels])), 0.001)
    with pytest.raises(RejectedItem, match="depth is a lossy file"):
        measurements.depth(by_pillow("JPEG")(labels), 0.001)
    for write, reason in (
        (by_palette("PNG"), "this picture has a palette of colours"),
        (by_pillow("PPM", "1"), "depth is a PBM, whose 0 is white"),
        (by_tifffile(photometric="miniswhite"), "depth is a TIFF whose 0 is white"),
    ):
        with pytest.raises(RejectedItem, match=reason):
            measurements.depth(write(labels), 0.001)
    with pytest.raises(RejectedItem, match="normal map is a lossy file"):
        measurements.normals(by_pillow("JPEG", "RGB")(labels))


def test_a_damaged_pnm_is_refused() -> None:
    whole = by_hand_pnm(20, False)(np.full((8, 8), 7, np.uint8))
    for content, reason in (
        (whole[:-1], "ends early"), (whole[:12], "header ends early"), (whole.replace(b"\n20\n", b"\n3\n"), "allows 3"),
        (b"P5 0 3 255\n", "header says"), (b"P2 2 1 9\n1 x", "something else than numbers"), (b"P5 99999 99999 9\n", "larger than"),
    ):  # fmt: skip
        with pytest.raises(RejectedItem, match=reason):
            measurements.labels(content)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_normals_are_not_turned_by_a_decoder(kind: str) -> None:
    values = np.random.default_rng(0).integers(1, 256, (20, 30, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(values), kind, exif=exif)
    np.testing.assert_allclose(measurements.normals(content), values / 127.5 - 1, atol=1e-6)


INK = np.zeros((96, 128), bool)
INK[20:22], INK[:, 60:62] = True, True


def rgba(colour: int) -> np.ndarray:
    return np.dstack([np.full((*INK.shape, 3), colour, np.uint8), np.where(INK, 255, 0).astype(np.uint8)])


def black_by_number(lines: np.ndarray) -> bytes:
    """A palette picture whose lines have the larger number and the darker colour."""
    picture = Image.fromarray(lines.astype(np.uint8))
    picture.putpalette([255, 255, 255, 0, 0, 0])
    return encoded(picture)


SKETCHES: dict[str, tuple[bytes, bool]] = {  # whether its lines are dark
    "bright on black": (by_pillow("PNG")(np.where(INK, 255, 0).astype(np.uint8)), False),
    "dark on white": (by_pillow("PNG")(np.where(INK, 0, 255).astype(np.uint8)), True),
    "dark on white, JPEG": (by_pillow("JPEG", quality=95)(np.where(INK, 0, 255).astype(np.uint8)), True),
    "white on nothing": (by_pillow("PNG")(rgba(255)), False),
    "black on nothing": (by_pillow("PNG")(rgba(0)), True),
    "ones and zeros": (by_pillow("PNG")(INK.astype(np.uint8)), False),
    "one bit": (by_hand_png(1)(INK.astype(np.uint8)), False),
    "one bit, dark": (by_hand_png(1)(1 - INK.astype(np.uint8)), True),
    "four bits": (by_hand_png(4)(INK.astype(np.uint8) * 15), False),
    "sixteen bits": (by_pillow("PNG")(INK.astype(np.uint16) * 65535), False),
    "PGM up to 20": (by_hand_pnm(20, False)(INK.astype(np.uint8) * 20), False),
    "TIFF whose 0 is white": (by_tifffile(photometric="miniswhite")(np.where(INK, 0, 255).astype(np.uint8)), False),
    "floats": (by_tifffile()(INK.astype(np.float32)), False),
    "floats, PFM": (by_hand_pfm(INK), False),
    "integers of 32 bits": (by_tifffile()(INK.astype(np.int32)), False),
    "PBM, whose 0 is white": (by_pillow("PPM", "1")(np.where(INK, 255, 0).astype(np.uint8)), False),
    "palette of white, then black": (black_by_number(INK), True),
    "WebP": (by_pillow("WEBP", "RGB", quality=95)(np.where(INK, 255, 0).astype(np.uint8)), False),
    "JPEG 2000": (by_pillow("JPEG2000")(np.where(INK, 255, 0).astype(np.uint8)), False),
    "TGA in colours": (by_pillow("TGA")(np.where(INK[..., None], (255, 255, 0), (0, 0, 255)).astype(np.uint8)), False),
}


@pytest.mark.parametrize("name", SKETCHES)
def test_lines_are_what_covers_less_of_a_sketch_unless_told_otherwise(name: str) -> None:
    content, are_dark = SKETCHES[name]
    edges, inverted = decode_sketch(content)
    np.testing.assert_array_equal(edges > 0, INK)
    assert inverted == are_dark
    np.testing.assert_array_equal(decode_sketch(content, are_dark)[0] > 0, INK)
    if "nothing" not in name:
        np.testing.assert_array_equal(decode_sketch(content, not are_dark)[0] > 0, ~INK)


@pytest.mark.parametrize("write", [by_tifffile(), by_hand_pfm, by_numpy])
@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_a_sketch_of_unknown_white_is_refused(write: Writer, kind: Any) -> None:
    """0 and 255, of a kind that leaves open which number is white; arrays are no sketches at all."""
    with pytest.raises(RejectedItem, match=r"nobody knows which is white|not a picture of a known format"):
        decode_sketch(write(np.where(INK, 255, 0).astype(kind)))


def test_an_empty_sketch_is_empty() -> None:
    for level in (0, 255):
        edges, _ = decode_sketch(by_pillow("PNG")(np.full((20, 20), level, np.uint8)))
        assert not edges.any()


def test_a_photograph_of_unknown_white_is_refused_not_black(photograph: np.ndarray) -> None:
    grey = np.ascontiguousarray(photograph[:64, :64, 0])
    for values in (grey.astype(np.int32), grey.astype(np.uint32), grey.astype(np.int16), grey.astype(np.float32)):
        with pytest.raises(RejectedItem, match="nobody knows which is white"):
            decode_picture(by_tifffile()(values))
    with pytest.raises(RejectedItem, match="nobody knows which is white"):
        decode_picture(by_hand_pfm(grey))
    for values in (grey.astype(np.uint16), np.dstack([grey.astype(np.uint16)] * 3)):
        with pytest.raises(RejectedItem, match="black at 8 bits"):
            decode_picture(by_tifffile()(values) if values.ndim == 2 else by_opencv(".png")(values))
    np.testing.assert_array_equal(decode_picture(by_hand_pnm(255, True)(grey)).image[..., 1], grey)
    scaled = decode_picture(by_hand_pnm(1000, False)(grey.astype(np.uint16) * 3)).image[..., 0]
    assert np.abs(scaled.astype(int) - grey * (765 / 1000)).max() <= 0.5
