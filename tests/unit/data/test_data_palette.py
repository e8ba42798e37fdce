"""Label maps by colour: each flat colour's class is painted with the lower ends of its quarters."""

from __future__ import annotations

import itertools

import numpy as np

from piti.data.conditions import label_colors
from piti.data.palette import NUM_CLASSES, palette_labels


def test_every_flat_colour_is_painted_as_itself_rounded_down_to_quarters() -> None:
    colors = label_colors(NUM_CLASSES)
    seen = set()
    for color in itertools.product((10, 70, 190, 250), repeat=3):
        labels = palette_labels(np.full((96, 128, 3), color, dtype=np.uint8))
        assert labels.shape == (96, 128)
        (label,) = np.unique(labels)
        seen.add(int(label))
        wanted = [value // 64 * 64 for value in color]
        assert colors[label].tolist() == (wanted if any(wanted) else [32, 0, 0])
    assert seen == set(range(NUM_CLASSES))


def test_regions_keep_their_outline_and_specks_vanish() -> None:
    image = np.full((256, 256, 3), (200, 30, 30), dtype=np.uint8)
    image[:, 128:] = (30, 30, 200)
    image[40:44, 40:44] = 255
    labels = palette_labels(image)
    assert len(np.unique(labels[:, :128])) == 1
    assert len(np.unique(labels[:, 128:])) == 1
    assert labels[0, 127] != labels[0, 128]
