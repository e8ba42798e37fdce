"""A photograph that its EXIF block turns, and the condition that goes with it: does it lie like the file or like the
picture people see? Its size tells where the picture is turned onto its side; elsewhere the config has to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piti.data.items import RejectedItem

_TELLING = 0.02  # difference of logarithms of width / height; less may come from rounding a resized condition's sides


@dataclass(frozen=True)
class Turn:
    """From stored to upright: first rows and columns change places, then rows, columns are reversed."""

    transposed: bool
    rows_reversed: bool
    columns_reversed: bool

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        """(H, W) or (H, W, C) turned."""
        turned = values.swapaxes(0, 1) if self.transposed else values
        return np.ascontiguousarray(
            turned[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1],
        )

    def apply_to_normals(self, normals: NDArray[np.float32]) -> NDArray[np.float32]:
        """(H, W, 3) turned, the vectors with the picture: x to the right of it before and after.

        Cameras' axes are right-handed, so where surfaces that face the camera have a positive z, y is up, else down.
        """
        turned = self.apply(normals)
        x, y = turned[..., 0].copy(), turned[..., 1].copy()
        if self.transposed:
            is_y_up = float(normals[..., 2].sum(dtype=np.float64)) > 0
            x, y = (-y, -x) if is_y_up else (y, x)
        turned[..., 0] = -x if self.columns_reversed else x
        turned[..., 1] = -y if self.rows_reversed else y
        return turned


_BY_ORIENTATION = {
    2: Turn(False, False, True), 3: Turn(False, True, True), 4: Turn(False, True, False), 5: Turn(True, False, False),
    6: Turn(True, False, True), 7: Turn(True, True, True), 8: Turn(True, True, False),
}  # fmt: skip


def is_stored(shape: tuple[int, ...], upright: tuple[int, ...], orientation: int, follows: bool | None) -> bool:
    """Whether a condition of `shape` lies like the stored pixels of a picture that is `upright` (both (H, W, ...)).

    Where the sizes do not tell, `follows` (`data.conditions_follow_exif`) does. Raises RejectedItem where that is None.
    """
    turn = _BY_ORIENTATION.get(orientation)
    if turn is None:
        return False
    if turn.transposed:
        size, turned_size = upright[:2], upright[1::-1]
        if shape[:2] in (size, turned_size) and size != turned_size:
            return shape[:2] == turned_size
        as_upright, as_stored = _distance(shape, size), _distance(shape, turned_size)
        if abs(as_stored - as_upright) > _TELLING:
            return as_stored < as_upright
    if follows is None:
        raise RejectedItem(
            f"EXIF turns the picture (orientation {orientation}), and the size of its condition does not tell whether it "
            "is turned already: set data.conditions_follow_exif"
        )
    return follows


def turned_values(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A condition (H, W) that lies like the stored pixels, upright."""
    return _BY_ORIENTATION[orientation].apply(values)


def turned_normals(normals: NDArray[np.float32], orientation: int) -> NDArray[np.float32]:
    """Normals (H, W, 3) that lie like the stored pixels, upright."""
    return _BY_ORIENTATION[orientation].apply_to_normals(normals)


def _distance(shape: tuple[int, ...], size: tuple[int, ...]) -> float:
    """How far two frames' aspects are apart: 0 where they agree."""
    return abs(float(np.log((shape[1] * size[0]) / (shape[0] * size[1]))))
