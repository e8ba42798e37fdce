"""The report is one page that needs nothing from outside, shows what it was given, and survives odd numbers."""

import html.parser
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from eval import Metric
from eval.curves import LossCurve, loss_curve_png, loss_curve_svg
from eval.grid import PictureGrid, grid_png
from eval.report import (
    MetricRow,
    ReportData,
    StageDistance,
    format_duration,
    format_number,
    format_percent,
    render_report,
)

NAN = math.nan


def picture(side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def curve(name: str = "stage 1") -> LossCurve:
    return LossCurve(name, [(10, 0.9), (20, None), (30, 0.2)], [(0, 1.0), (30, 0.25)], "untrained")


def report(**changes: object) -> ReportData:
    rows = [[picture(32, row), picture(128, row)] for row in range(2)]
    values: dict[str, object] = {
        "title": "Evaluation of demo", "subtitle": "two pictures", "facts": [("code commit", "abc123")],
        "warnings": ["Not comparable <at all>."],
        "metrics": [MetricRow("FID", "how far", Metric(12.3456, 11, 14, "biased upwards"))],
        "curves": [curve()], "comparison": [
            StageDistance("untrained", Metric(0.8, 0.7, 0.9), Metric(91.0, 80.0, 99.0)),
            StageDistance("stage 2", Metric(0.4, 0.3, 0.5), Metric(45.5, 40.0, 50.0), Metric(0.41, 0.32, 0.53)),
        ],
        "grids": [PictureGrid(["base", "truth"], rows, ["k1", "k2"])], "timings": [("sampling", 61.0)],
        "config_text": "name: demo\n", "seeds": [("k1", 123)],
    }  # fmt: skip
    return ReportData(**(values | changes))  # type: ignore[arg-type]


class Outline(html.parser.HTMLParser):
    """Collects what a page refers to, and checks that its elements are closed in order."""

    VOID = ("meta", "img", "br", "line", "circle", "polyline", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    return parsed


def test_the_page_is_whole_and_refers_to_nothing_outside() -> None:
    page = render_report(report())
    parsed = outline(page)
    assert parsed.references
    assert all(reference.startswith("data:image/png;base64,") for reference in parsed.references)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert not re.search(r"https?:|@import|url\(", page)


def test_the_page_shows_what_it_was_given() -> None:
    page = render_report(report())
    for words in (
        "Evaluation of demo",
        "abc123",
        "12.35",
        "11 to 14",
        "biased upwards",
        "−75 %",
        "0.32 to 0.53",
        "1 min 01 s",
        "123",
    ):
        assert words in page
    assert page.count("<img") == 4


def test_texts_are_not_markup() -> None:
    page = render_report(report())
    assert "Not comparable &lt;at all&gt;." in page
    assert "<at all>" not in page


def test_light_and_dark_define_the_same_colours() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", render_report(report()), re.DOTALL)
    names = [sorted(re.findall(r"(--[a-z-]+):", block)) for block in (light, dark)]
    assert names[0] == names[1]
    assert len(names[0]) >= 10


def test_missing_and_infinite_numbers_are_dashes() -> None:
    odd = report(
        metrics=[MetricRow("KID", "x", Metric(NAN, -math.inf, math.inf))],
        comparison=[StageDistance("a", Metric(NAN, NAN, NAN), Metric(NAN, NAN, NAN))],
        curves=[LossCurve("empty"), LossCurve("odd", [(0, NAN), (1, math.inf)], [(0, None)]), LossCurve("flat", [], [(0, 0.0), (5, 0.0)])],
        timings=[("sampling", NAN)],
    )  # fmt: skip
    page = render_report(odd)
    outline(page)
    shown = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf|None)\b", shown)
    assert "No losses were recorded." in page


def test_a_report_without_the_optional_parts_renders() -> None:
    page = render_report(report(warnings=[], curves=[], comparison=[], grids=[], timings=[], seeds=[]))
    outline(page)
    assert "Read this first" not in page
    assert "Closer to the ground truth" not in page


def test_bars_are_as_long_as_their_distances() -> None:
    widths = [float(width) for width in re.findall(r'<div style="width: ([\d.]+)%">', render_report(report()))]
    assert widths == [100.0, 50.0]


@pytest.mark.parametrize(
    "losses", [[1.0, 0.01], [0.5, 0.45], [2e-5, 1e-5], [3000.0, 2.0], [0.0, 1.0], [-1.0, 1.0], [0.3, 0.3]]
)
def test_curves_of_any_range_stay_inside_and_have_ticks(losses: list[float]) -> None:
    svg = loss_curve_svg(LossCurve("x", [], list(enumerate(losses))))
    outline(svg)
    width, height = (float(value) for value in re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', svg):
        assert 0 <= float(x) <= width
        assert 0 <= float(y) <= height
    assert 2 <= svg.count('class="tick end"') <= 9


def test_falling_losses_fall_on_the_page() -> None:
    svg = loss_curve_svg(LossCurve("x", [], [(0, 1.0), (10, 0.5), (20, 0.1)]))
    heights = [float(y) for y in re.findall(r'cy="([-\d.]+)"', svg)]
    assert heights == sorted(heights)
    assert heights[0] < heights[-1]


def test_change_is_measured_from_the_first_to_the_last_validation() -> None:
    assert curve().change_percent == pytest.approx(-75)
    assert LossCurve("x", [(0, 1.0)], []).change_percent is None
    assert LossCurve("x", [], [(0, None), (1, 2.0), (2, 1.0), (3, NAN)]).change_percent == pytest.approx(-50)


def test_curve_png_is_a_picture_even_without_losses() -> None:
    for some in (curve(), LossCurve("empty")):
        assert Image.open(io.BytesIO(loss_curve_png(some))).size == (760, 400)


def test_grid_png_holds_every_picture_in_its_place() -> None:
    colours = np.array([[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [200, 200, 0]]], dtype=np.uint8)
    rows = [
        [np.full((8 * (column + 1),) * 2 + (3,), colours[row, column], np.uint8) for column in (0, 1)] for row in (0, 1)
    ]
    sheet = np.asarray(Image.open(io.BytesIO(grid_png(PictureGrid(["a", "b"], rows, ["1", "2"]), cell_pixels=20))))
    for row in (0, 1):
        for column in (0, 1):
            y, x = 26 + row * 26 + 10, 6 + column * 26 + 10
            assert tuple(sheet[y, x]) == tuple(colours[row, column])
    with pytest.raises(ValueError, match="zip"):
        grid_png(PictureGrid(["a"], rows, ["1", "2"]))


def test_numbers_read_well() -> None:
    assert [format_number(value) for value in (0.0123449, 123456.7, None, NAN)] == ["0.01234", "123457", "–", "–"]
    assert [format_percent(value) for value in (-29.6, 3.2, None)] == ["−30 %", "+3 %", "–"]
    assert [format_duration(value) for value in (4.21, 59.6, 185, 7800, None)] == [
        "4.2 s", "1 min 00 s", "3 min 05 s", "2 h 10 min", "–",
    ]  # fmt: skip
