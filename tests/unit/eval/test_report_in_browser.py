"""The report in headless Chromium: accessible, short and nothing off-screen on a phone, and nothing from data runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval import Metric
from eval.grid import PictureGrid
from eval.report import MetricRow, render_report
from tests.browser import CHROMIUM
from tests.unit.eval.browser import MOST_PHONE_PIXELS, look_at
from tests.unit.eval.feature_sets import PUBLISHED
from tests.unit.eval.test_report import HOSTILE, curve, report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def whole_report() -> str:
    """As long as reports get: every figure of the registry, grids of a real preset's size, four stages."""
    meaning = "a sentence of about the usual length that says what this figure is a measure of, and of which pictures"
    named = (("fid", PUBLISHED), ("miou_small", PUBLISHED), ("psnr_upsampler", None))
    metrics = [
        MetricRow(f"Figure {number}", meaning, Metric(f"{name}_{number}", 0.5, 0.4, 0.6, 0.1, meaning, network))
        for number, (name, network) in enumerate(named * 6)
    ]

    def grid(rows: int, columns: int) -> PictureGrid:
        shown = [[np.full((256, 256, 3), 40 * column, np.uint8) for column in range(columns)] for _ in range(rows)]
        keys = [f"validation-{row:06d}-photograph" for row in range(rows)]
        return PictureGrid([f"column {column}" for column in range(columns)], shown, keys, meaning)

    grids = [grid(8, 4), grid(3, 3), grid(3, 3), grid(3, 3), grid(8, 4)]
    facts = [(f"fact {number}", "0123456789abcdef" * 5) for number in range(16)]
    curves = [curve(f"stage {number}") for number in range(4)]
    seeds = [(f"validation-{number:06d}", number) for number in range(50)]
    return render_report(report(metrics=metrics, grids=grids, facts=facts, curves=curves, seeds=seeds))


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_nothing_is_off_screen_and_axe_finds_nothing(width: int, dark: bool, tmp_path: Path) -> None:
    found = look_at(render_report(report()), width, tmp_path, dark, axe=True)
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["needs"] <= width
    assert found["hidden"] == found["broken"] == 0
    assert found["violations"] == found["console"] == found["outside"] == []


def test_on_a_phone_a_whole_report_is_short_and_on_a_desk_unfolded(tmp_path: Path) -> None:
    seen = "return [...document.images].filter(one => one.checkVisibility()).length"
    page = whole_report()
    phone = look_at(page, 360, tmp_path, act=seen)
    assert phone["height"] <= MOST_PHONE_PIXELS
    assert phone["needs"] <= 360
    assert phone["hidden"] == 0
    desk = look_at(page, 1280, tmp_path, act=seen)
    assert phone["acted"] < desk["acted"] == page.count("<img")


def test_names_from_data_run_nothing(tmp_path: Path) -> None:
    payload = HOSTILE.replace("alert(1)", "window.ran=1").replace("alert(2)", "window.ran=2")
    page = render_report(report(title=payload, facts=[(payload, payload)], seeds=[(payload, 1)], command=payload))
    assert look_at(page, 1280, tmp_path)["ran"] == "undefined"
