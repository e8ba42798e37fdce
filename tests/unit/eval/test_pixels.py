"""Distance in pixels against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from eval import pixel_distances


def test_a_constant_offset_is_its_own_distance() -> None:
    truth = np.full((3, 4, 5, 3), 100, np.uint8)
    generated = truth + np.array([0, 10, 20], np.uint8)[:, None, None, None]
    assert pixel_distances(generated, truth) == pytest.approx([0, 10, 20])
    assert pixel_distances(generated, truth, batch_size=2) == pytest.approx([0, 10, 20])


def test_the_square_is_averaged_within_a_picture() -> None:
    truth = np.zeros((1, 2, 2, 3), np.uint8)
    generated = truth.copy()
    generated[0, 0, 0] = 40  # one pixel of four: sqrt(40^2 / 4)
    assert pixel_distances(generated, truth) == pytest.approx([20])


def test_sets_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="do not pair up"):
        pixel_distances(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 4, 4, 3), np.uint8))
