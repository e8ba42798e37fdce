"""Pictures side by side: a labelled contact sheet as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eval.pictures import PictureArray

_GAP_PIXELS = 6
_HEADER_PIXELS = 26
_BACKGROUND, _INK = (255, 255, 255), (70, 75, 85)


@dataclass(frozen=True)
class PictureGrid:
    """Rows of uint8 (H,W,3) pictures under common headings. Sizes may differ between columns.

    Args:
        labels: a name for each row.
        notes: a remark for each row, or none at all.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[PictureArray]]
    labels: Sequence[str]
    caption: str = ""
    title: str = "Pictures"
    notes: Sequence[str] = ()


def grid_png(grid: PictureGrid, cell_pixels: int = 160) -> bytes:
    """The grid as one PNG on white, each picture enlarged (without smoothing) or reduced to the cell's size.

    Raises ValueError if a row has not as many pictures as there are columns.
    """
    step = cell_pixels + _GAP_PIXELS
    width, height = step * len(grid.columns) + _GAP_PIXELS, step * len(grid.rows) + _HEADER_PIXELS + _GAP_PIXELS
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for column, heading in enumerate(grid.columns):
        draw.text((_GAP_PIXELS + column * step + cell_pixels / 2, 15), heading, _INK, font, anchor="mm")
    for row, pictures in enumerate(grid.rows):
        for column, (_, picture) in enumerate(zip(grid.columns, pictures, strict=True)):
            place = (_GAP_PIXELS + column * step, _HEADER_PIXELS + row * step)
            sheet.paste(_fitted(picture, cell_pixels), place)
    return _png(sheet)


def data_uri(picture: PictureArray) -> str:
    """A picture as a `data:` URI that a page can carry inside itself."""
    return f"data:image/png;base64,{base64.b64encode(_png(Image.fromarray(np.ascontiguousarray(picture)))).decode()}"


def _fitted(picture: PictureArray, cell_pixels: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture))
    enlarges = max(image.size) < cell_pixels
    return image.resize((cell_pixels, cell_pixels), Image.Resampling.NEAREST if enlarges else Image.Resampling.BOX)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
