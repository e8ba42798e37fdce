"""The study page in headless Chromium: whole at 360 and 1280 pixels, accessible, and nothing from data runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval import Metric
from eval.grid import PictureGrid
from eval.study import StudyColumn, StudyData, StudyRow, render_study, tradeoff_figure
from tests.browser import CHROMIUM
from tests.unit.eval.browser import MOST_PHONE_PIXELS, look_at
from tests.unit.eval.feature_sets import STAND_IN
from tests.unit.eval.test_report import HOSTILE, outline

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def row(name: str, position: float, value: float) -> StudyRow:
    metrics = {"fid": Metric("fd", value, network=STAND_IN), "lpips": Metric("pd", value, value - 1, value + 1)}
    differences = {"lpips": Metric("pd_difference", value - 9, value - 10, value - 8)} if value != 9 else {}
    same = {"psnr": Metric("psnr_upsampler", 21.5, 20, 23)}
    return StudyRow(name, "scale = 2", metrics | same, differences, [("report", "../r/report.html")], {"scale": position})  # fmt: skip


def study(**changes: object) -> StudyData:
    """Seven variants, as studies/guidance.yaml has them."""
    rows = [row(f"variant {number}", 1 + number // 2, 9.0 + number) for number in range(7)]
    pictures = [[np.full((64, 64, 3), 20 * column, np.uint8) for column in range(9)] for _ in range(6)]
    columns = ["condition", *(found.name for found in rows), "ground truth"]
    values: dict[str, object] = {
        "title": "Study guidance: demo", "question": "At which scale?", "baseline": "variant 0",
        "columns": [StudyColumn("fid", "Fréchet distance", "lower"), StudyColumn("lpips", "Perceptual distance", "lower"),
                    StudyColumn("psnr", "PSNR", "higher")],
        "rows": rows, "axes": ["scale"], "warnings": ["Compare with care."], "command": "prefect deployment run " * 8,
        "grid": PictureGrid(columns, pictures, [f"validation-{number:06d}-photograph" for number in range(6)]),
        "facts": [("data fingerprint", "0123456789abcdef" * 4)],
    }  # fmt: skip
    return StudyData(**(values | changes))  # type: ignore[arg-type]


@in_browser
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_it_fits_is_accessible_and_loads_nothing(width: int, dark: bool, tmp_path: Path) -> None:
    found = look_at(render_study(study()), width, tmp_path, dark, axe=True)
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["needs"] <= width
    assert found["height"] <= MOST_PHONE_PIXELS
    assert found["hidden"] == found["broken"] == 0
    assert found["violations"] == found["console"] == found["outside"] == []


def test_figures_say_what_they_were_measured_with() -> None:
    page = render_study(study())
    for words in ("fd: ", STAND_IN.name, STAND_IN.weights_sha256, "compares only with itself", "psnr_upsampler: needs no network"):  # fmt: skip
        assert words in page


@in_browser
def test_names_from_data_run_nothing(tmp_path: Path) -> None:
    payload = HOSTILE.replace("alert(1)", "window.ran=1").replace("alert(2)", "window.ran=2")
    rows = [replace(row(payload, 1, 9), settings=payload, positions={payload: 1}, links=[(payload, payload)]), replace(row("b", 2, 8), positions={payload: 2})]  # fmt: skip
    grid = PictureGrid([payload], [[np.zeros((8, 8, 3), np.uint8)]], [payload], payload, payload)
    page = render_study(study(
        title=payload, question=payload, baseline=payload, axes=[payload], rows=rows, grid=grid, warnings=[payload],
        facts=[(payload, payload)], command=payload, columns=[StudyColumn("fid", payload, payload)],
    ))  # fmt: skip
    assert "script" not in outline(page).tags
    assert look_at(page, 1280, tmp_path)["ran"] == "undefined"


def test_one_source_of_styles_and_plots_of_what_changes() -> None:
    page = render_study(study())
    assert page.startswith("<!doctype html>")
    assert len(re.findall(r"--page:", page)) == 2, "light and dark, once each"
    assert re.findall(r'alt="([^"]* against scale)"', page) == [
        "Fréchet distance against scale", "Perceptual distance against scale",
    ]  # fmt: skip


def test_variants_at_one_place_stand_beside_each_other_in_order() -> None:
    """Each with its number in the table, its value and its interval."""
    told = study()
    axes = tradeoff_figure(told, told.columns[1], "scale").axes[0]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3", "4", "5", "6", "7"]
    places = np.array([text.xy for text in axes.texts])
    assert places[:, 1].tolist() == [found.figures["lpips"].value for found in told.rows]
    assert (np.diff(places[:, 0]) > 0.1).all()
    assert places[:, 0].round().tolist() == [1, 1, 2, 2, 3, 3, 4]
    bars = [line.get_segments()[0] for line in axes.collections]
    assert [(low, high) for (_, low), (_, high) in bars] == [(value - 1, value + 1) for value in places[:, 1]]
