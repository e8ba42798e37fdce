"""Ranks of truths: perfect for the truths themselves, by chance for unrelated pictures, and as counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.retrieval import truth_ranks


def test_pictures_that_are_their_truths_come_first() -> None:
    truths = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    assert truth_ranks(truths, truths).tolist() == [0] * 20


def test_unrelated_pictures_rank_by_chance() -> None:
    rng = np.random.default_rng(1)
    pictures, truths = (rng.integers(0, 256, (400, 16, 16, 3), dtype=np.uint8) for _ in range(2))
    share = (truth_ranks(pictures, truths) < 40).mean()
    assert share == pytest.approx(0.1, abs=0.06)  # four standard deviations of 400 draws


def test_ranks_count_the_nearer_truths() -> None:
    """Flat pictures of levels 0, 100, 200; the first picture is nearer to the second and third truth than to its own."""
    pictures, truths = (
        np.stack([np.full((64, 64, 3), level, dtype=np.uint8) for level in levels])
        for levels in ((160, 100, 90), (0, 100, 200))
    )
    assert truth_ranks(pictures, truths).tolist() == [2, 0, 2]


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    """What benchmarks/demo_conditions.py and benchmarks/demo_prior_pays.py measured of the demo's networks."""
    path = Path(__file__).resolve().parents[3] / "docs" / "demo-result.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def test_the_stored_demo_followed_its_conditions(stored: dict[str, Any]) -> None:
    """Chance is 5 of 48."""
    assert stored["pictures"] == 48
    for pictures in ("stage1", "base", "final"):
        assert stored["top5"][pictures]["own"] >= 0.6
        assert stored["top5"][pictures]["shuffled"] <= 0.2
    assert stored["top5"]["untrained"]["own"] <= 0.2


def test_the_stored_demo_sharpened_and_its_prior_paid(stored: dict[str, Any]) -> None:
    """At most 2 dB below bicubic enlargement; nearer to the truth than random weights after as many steps."""
    decibels = stored["upsampler"]["psnr_db"]
    assert decibels["upsampler"] >= decibels["bicubic"] - 2
    assert stored["prior_pays"]["gain_levels"]["low"] > 0
