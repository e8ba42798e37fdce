"""Grey PNGs, read several times faster than OpenCV does it, and only the part of them that is needed.

Conditions are such files. libpng inflates them with zlib, to which the runs of a label map are a long way byte by
byte; libdeflate is ten times as fast. Of the rows below and the columns to the right of the part nothing is computed.
"""

from __future__ import annotations

import deflate
import numpy as np
from numpy.typing import NDArray

from degradations.compiling import compiled
from piti.data.geometry import CropBox
from piti.data.sources.structure import grey_png_header, grey_png_pixels

_MOST_INFLATED = 1032  # times, by DEFLATE
_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4


def decode_grey_png(data: bytes, box: CropBox | None = None) -> NDArray[np.uint8] | None:
    """The pixels in `box` (None: all of them) of a PNG of 8 bits or 1 bit (widened to 0 or 255): uint8 (H, W).

    None where it is another kind of file, is damaged (checksums of chunks are not looked at), or ends before the box
    does: then another decoder has to say what it is.
    """
    header = grey_png_header(data)
    if header is None or header.bits not in (1, 8):
        return None
    height, width, bits = header.height, header.width, header.bits
    row_bytes = -(-width * bits // 8)
    if height * (1 + row_bytes) > _MOST_INFLATED * len(data):  # no memory for a size that is wrong
        return None
    parts = grey_png_pixels(data)
    try:
        pixels = deflate.zlib_decompress(b"".join(data[start:end] for start, end in parts), height * (1 + row_bytes))
    except deflate.DeflateError:
        return None
    left, top, right, bottom = (0, 0, width, height) if box is None else box.corners
    if len(pixels) != height * (1 + row_bytes) or right > width or bottom > height:
        return None
    rows = np.frombuffer(pixels, dtype=np.uint8).reshape(height, 1 + row_bytes)
    first, end = left * bits // 8, -(-right * bits // 8)
    if not _undo_filters(rows, top, bottom, 1 + end):
        return None
    part = rows[top:bottom, 1 + first : 1 + end]
    if bits == 8:
        return part
    return np.negative(np.unpackbits(part, axis=1)[:, left - 8 * first : right - 8 * first])


@compiled
def _undo_filters(rows: NDArray[np.uint8], top: int, bottom: int, end: int) -> bool:
    """Undo in place the filters that are named in column 0, in rows `top` to `bottom`, columns 1 to `end`.

    False where there is no such filter. Up, which sharding writes, Average and Paeth need the rows above. Filters are
    those of the PNG specification, section 9, of pixels that take a byte or less.
    """
    first = top
    while first > 0 and rows[first, 0] > _SUB:
        first -= 1
    for row in range(first, bottom):
        name = rows[row, 0]
        if name > _PAETH:
            return False
        if name == _SUB:
            value = np.uint8(0)
            for column in range(1, end):
                value = np.uint8(value + rows[row, column])
                rows[row, column] = value
        elif name == _UP and row > 0:
            for column in range(1, end):
                rows[row, column] += rows[row - 1, column]
        elif name == _AVERAGE:
            left = 0
            for column in range(1, end):
                above = rows[row - 1, column] if row > 0 else 0
                left = (rows[row, column] + (left + above) // 2) & 0xFF
                rows[row, column] = left
        elif name == _PAETH:
            left = corner = 0
            for column in range(1, end):
                above = int(rows[row - 1, column]) if row > 0 else 0
                if above == corner:  # as within a run, where it need not be computed what is the nearest
                    near = left
                elif left == corner:
                    near = above
                else:
                    from_left, from_above = abs(above - corner), abs(left - corner)
                    from_corner = abs(left + above - 2 * corner)
                    if from_left <= from_above and from_left <= from_corner:
                        near = left
                    else:
                        near = above if from_above <= from_corner else corner
                left, corner = (rows[row, column] + near) & 0xFF, above
                rows[row, column] = left
    return True
