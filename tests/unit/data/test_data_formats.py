"""Which files count as pictures: all that Pillow opens and a dataset may hold, and some that it cannot, to say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piti.config import DataConfig
from piti.data.items import RejectedItem
from piti.data.shards import ShardSet
from piti.data.sources.files import PICTURE_SUFFIXES
from piti.data.sources.pictures import decode_picture
from tests.unit.data.encoding import encoded

# Readable for Pillow, but icons, textures of games, film, drawings, scans and data of other sciences.
_OTHERS = frozenset([
    ".blp", ".bufr", ".bw", ".cur", ".dcx", ".dds", ".emf", ".eps", ".fit", ".fits", ".flc", ".fli", ".ftc",
    ".ftu", ".gbr", ".grib", ".h5", ".hdf", ".icns", ".ico", ".iim", ".im", ".mpeg", ".mpg", ".msp", ".pcd",
    ".ps", ".pxr", ".ras", ".rgb", ".rgba", ".wmf", ".xbm", ".xpm",
])  # fmt: skip
_NOT_READ = frozenset({".heic", ".heif", ".hif", ".jxl"})


def test_the_list_is_what_pillow_reads() -> None:
    Image.init()
    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    assert readable >= PICTURE_SUFFIXES - _NOT_READ
    assert readable - PICTURE_SUFFIXES == _OTHERS, "a new format: is it one that datasets hold?"


@pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES - _NOT_READ - {".psd", ".pfm"}))
def test_each_is_read_and_a_damaged_one_is_refused(suffix: str, photograph: np.ndarray) -> None:
    """Cut anywhere or overwritten, a file is refused or gives some picture; no other error comes of it."""
    Image.init()
    kind = Image.registered_extensions()[suffix]
    picture = Image.fromarray(photograph[:48, :60]).convert(
        "L" if suffix == ".pgm" else "1" if suffix == ".pbm" else "RGB"
    )
    whole = encoded(picture, kind)
    assert decode_picture(whole).image.shape == (48, 60, 3)
    rng = np.random.default_rng(len(suffix))
    refused = 0
    for number in range(40):
        damaged = bytearray(whole[: int(rng.integers(1, len(whole)))] if number % 2 else whole)
        for place in rng.integers(0, len(damaged), size=8):
            damaged[place] ^= int(rng.integers(1, 256))
        try:
            decode_picture(bytes(damaged))
        except RejectedItem:
            refused += 1
    assert refused > 10


def test_nothing_that_looks_like_a_picture_vanishes(
    tmp_path: Path, photograph: np.ndarray, make_data: Callable[..., DataConfig], shard_now: Callable[..., ShardSet]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    kinds = {"a.jfif": "JPEG", "b.jp2": "JPEG2000", "c.AVIF": "AVIF", "d.png": "PNG", "e.tga": "TGA", "f.jpe": "JPEG"}
    for name, kind in kinds.items():
        Image.fromarray(photograph[:48, :60]).save(folder / name, kind)
    for name in ("g.heic", "h.jxl"):
        (folder / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    shards = shard_now(make_data(folder, source={"validation_share": 0.4}), tmp_path / "out")
    assert set(shards.manifest["source"].to_pylist()) == {*kinds, "g.heic", "h.jxl"}
    assert {source for source, _ in shards.rejected()} == {"g.heic", "h.jxl"}
