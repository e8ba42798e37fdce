"""Grey PNGs are read as OpenCV reads them, whatever wrote them, and parts of them likewise."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from skimage import data

from piti.data.decoding import DamagedPictureError, decode_condition
from piti.data.geometry import CropBox, Modality
from piti.data.grey_png import decode_grey_png
from piti.data.sharding import encode_condition_png, encode_png
from piti.data.sources import RejectedItem, pictures
from piti.data.sources.structure import read_grey_png

BOXES = [
    None,
    CropBox(0, 0, 64),
    CropBox(1, 3, 8),
    CropBox(7, 11, 50),
    CropBox(9, 40, 60),
    CropBox(36, 1, 1),
    CropBox(37, 36, 64),
]
FILTERS = {
    "none": cv2.IMWRITE_PNG_FILTER_NONE, "sub": cv2.IMWRITE_PNG_FILTER_SUB, "up": cv2.IMWRITE_PNG_FILTER_UP,
    "average": cv2.IMWRITE_PNG_FILTER_AVG, "paeth": cv2.IMWRITE_PNG_FILTER_PAETH, "all": cv2.IMWRITE_PNG_ALL_FILTERS,
}  # fmt: skip


def photograph() -> NDArray[np.uint8]:
    return np.ascontiguousarray(data.camera()[100:200, 150:251])  # 101 columns: a row ends within a byte of bits


def by_opencv(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED))


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("modality", ["mask", "sketch"])
def test_stored_conditions_are_read_without_opencv(modality: Modality, box: CropBox | None) -> None:
    values = photograph() if modality == "mask" else np.where(photograph() > 100, np.uint8(255), np.uint8(0))
    found = decode_grey_png(encode_condition_png(values, modality), box)
    assert found is not None
    np.testing.assert_array_equal(found, values if box is None else box.cut(values))


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("bilevel", [0, 1])
@pytest.mark.parametrize("step", [1, 50], ids=["photograph", "areas"])
@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_gives_the_pixels_that_opencv_reads(
    name: str, step: int, bilevel: int, box: CropBox | None
) -> None:
    options = [cv2.IMWRITE_PNG_FILTER, FILTERS[name], cv2.IMWRITE_PNG_BILEVEL, bilevel]
    content = cv2.imencode(".png", photograph() // step * step, options)[1].tobytes()
    expected = by_opencv(content)
    found = decode_grey_png(content, box)
    assert found is not None
    np.testing.assert_array_equal(found, expected if box is None else box.cut(expected))


def saved(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png", **options)  # type: ignore[arg-type]
    return stream.getvalue()


def others() -> dict[str, bytes]:
    grey = Image.fromarray(photograph())
    return {
        "16 bits": encode_png(photograph().astype(np.uint16) * 257),
        "colours": encode_png(data.astronaut()[:90, :90]),
        "palette": saved(grey.convert("P")),
        "4 bits": saved(grey.convert("P", palette=Image.Palette.ADAPTIVE, colors=9), bits=4),
        "transparency": saved(grey, transparency=70),
        "interlaced": interlaced(photograph()),
    }


def interlaced(values: NDArray[np.uint8]) -> bytes:
    """Adam7: no encoder at hand writes it, so passes are put together here, without filters."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [b"\0" + row.tobytes() for y, x, down, across in passes for row in values[y::down, x::across]]
    return of_chunks(
        (b"IHDR", header_of(values, interlacing=1)), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")
    )


def header_of(values: NDArray[np.uint8], interlacing: int = 0) -> bytes:
    return struct.pack(">2L5B", values.shape[1], values.shape[0], 8, 0, 0, 0, interlacing)


def of_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of chunks, with their checksums."""
    written = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        written += struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))
    return written


def odd_structures() -> dict[str, bytes]:
    """Whole by their checksums, but refused by Pillow or OpenCV, or read differently."""
    values = photograph()
    header, end = (b"IHDR", header_of(values)), (b"IEND", b"")
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    start, rest = (b"IDAT", pixels[:900]), (b"IDAT", pixels[900:])
    return {
        "text amid the pixels": of_chunks(header, start, (b"tEXt", b"a\0b"), rest, end),
        "two headers": of_chunks(header, (b"IHDR", header_of(values[:50])), start, rest, end),
        "junk for a profile": of_chunks(header, (b"iCCP", b"x\0\5junk"), start, rest, end),
        "half a resolution": of_chunks(header, (b"pHYs", b"\0\0\1\0"), start, rest, end),
        "half a gamma": of_chunks(header, (b"gAMA", b"\0"), start, rest, end),
        "endless text": of_chunks(header, *[(b"tEXt", b"a\0" + bytes(1 << 19))] * 3, start, rest, end),
        "content at the end": of_chunks(header, start, rest, (b"IEND", b"?")),
        "no pixels": of_chunks(header, end),
        "two ends": of_chunks(header, start, rest, end, end),
    }


def test_chunks_that_change_no_value_are_passed_over() -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", "labels by hand")
    about.add(b"gAMA", struct.pack(">L", 45455))
    content = saved(Image.fromarray(photograph()), dpi=(300, 300), pnginfo=about)
    assert b"gAMA" in content
    assert b"pHYs" in content
    found = decode_grey_png(content)
    assert found is not None
    np.testing.assert_array_equal(found, photograph())
    np.testing.assert_array_equal(found, by_opencv(content))


@pytest.mark.parametrize("kind", others())
def test_other_files_are_left_to_opencv(kind: str) -> None:
    content = others()[kind]
    assert decode_grey_png(content) is None
    np.testing.assert_array_equal(decode_condition({"cond.png": content}).values, by_opencv(content))


def test_a_box_beyond_the_picture_is_left_to_opencv() -> None:
    content = encode_condition_png(photograph(), "mask")
    assert decode_grey_png(content, CropBox(40, 0, 64)) is None
    assert decode_grey_png(content, CropBox(0, 40, 64)) is None


def test_damaged_files_are_refused() -> None:
    content = encode_condition_png(photograph(), "mask")
    for cut in (b"", content[:8], content[:30], content[:37], b"GIF" + content[3:]):
        assert decode_grey_png(cut) is None
        with pytest.raises(DamagedPictureError, match="does not decode"):
            decode_condition({"cond.png": cut})
    for place in range(0, len(content), 97):  # wherever it is, nothing but an answer
        flipped = bytearray(content)
        flipped[place] ^= 0x55
        decode_grey_png(bytes(flipped))
    for side in (102, 1 << 24, (1 << 32) - 1):  # no memory is taken for a size that the pixels do not have
        assert decode_grey_png(content[:16] + 2 * side.to_bytes(4, "big") + content[24:]) is None


def grey_kinds() -> dict[str, bytes]:
    grey = Image.fromarray(photograph())
    about = PngImagePlugin.PngInfo()
    about.add(b"gAMA", struct.pack(">L", 45455))
    return {
        "8 bits": saved(grey), "1 bit": saved(grey.convert("1")), "16 bits": others()["16 bits"],
        "transparency": others()["transparency"], "interlaced": others()["interlaced"],
        "gamma": saved(grey, pnginfo=about), "palette": others()["palette"],
        **odd_structures(), "behind the end": saved(grey) + b"\0" * 9, "no checksum": saved(grey)[:-8] + b"IEND" + b"\0" * 4,
    }  # fmt: skip


@pytest.mark.parametrize("kind", grey_kinds())
def test_labels_and_edges_are_what_pillow_reads(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the quick way, the same values, or the same refusal."""
    found = []
    for quick in (True, False):
        if not quick:
            monkeypatch.setattr(pictures, "grey_values", lambda data, bits=None: None)
        for decode in (pictures.decode_labels, pictures.decode_edges):
            try:
                found.append(decode(grey_kinds()[kind]))
            except RejectedItem as reason:
                found.append(np.array(str(reason)))
    for quickly, slowly in zip(found[:2], found[2:], strict=True):
        assert quickly.dtype == slowly.dtype
        np.testing.assert_array_equal(quickly, slowly)


@pytest.mark.parametrize("kind", odd_structures())
def test_nothing_is_kept_of_which_decoders_could_differ(kind: str) -> None:
    assert read_grey_png(odd_structures()[kind]) is None
    assert decode_grey_png(odd_structures()[kind]) is None


def test_a_picture_of_too_many_pixels_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(Image.fromarray(photograph()))
    assert pictures.grey_values(content) is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_099)
    assert pictures.grey_values(content) is None
    with pytest.raises(RejectedItem, match="larger than 10099 pixels"):
        pictures.decode_labels(content)
