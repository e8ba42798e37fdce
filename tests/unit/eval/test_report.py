"""The report is one page that needs nothing from outside, shows what it was given, and survives odd numbers."""

import html.parser
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from eval import Metric
from eval.curves import LossCurve, loss_curve_png, loss_curve_uri, loss_figure
from eval.grid import PictureGrid, grid_png
from eval.pages import format_duration, format_number, format_percent
from eval.report import CheckpointFigures, DrawnInTraining, MetricRow, ReportData, StageDistance, render_report
from tests.unit.eval.feature_sets import PUBLISHED, STAND_IN

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
        "metrics": [
            MetricRow("FID", "how far", Metric("fid", 12.3456, 11, 14, 0.7, "biased upwards", PUBLISHED), "lower", 15.5),
            MetricRow("Kernel distance", "how else", Metric("kd_efficientnet_lite0", 0.5, network=STAND_IN)),
        ],
        "curves": [curve()], "comparison": [
            StageDistance("untrained", Metric("lpips", 0.8, 0.7, 0.9), Metric("rmse", 91.0, 80.0, 99.0)),
            StageDistance("stage 2", Metric("lpips", 0.4, 0.3, 0.5), Metric("rmse", 45.5, 40.0, 50.0), Metric("gain", 0.41, 0.32, 0.53)),
        ],
        "grids": [PictureGrid(["base", "truth"], rows, ["k1", "k2"], "chosen by hash", "Random", ["near", "far"])], "timings": [("sampling", 61.0)],
        "config_text": "name: demo\n", "seeds": [("k1", 123)], "data": [("rejected", "3: no label map")],
        "command": "prefect deployment run piti/evaluate",
        "history": [
            CheckpointFigures(10, "../a1/report.html", {"fid": Metric("fid", 20.75, 20, 22)}),
            CheckpointFigures(20, None, {"fid": Metric("fid", 12.3456, 11, 14)}),
        ],
        "drawn_in_training": [DrawnInTraining("stage 2, step 100", grid_png(PictureGrid(["base"], [rows[0][:1]], ["k1"])))],
    }  # fmt: skip
    return ReportData(**(values | changes))  # type: ignore[arg-type]


class Outline(html.parser.HTMLParser):
    """Collects what a page refers to, and checks that its elements are closed in order."""

    VOID = ("meta", "img", "br", "input", "line", "circle", "polyline", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}
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
    links = [reference for reference in parsed.references if not reference.startswith("data:image/")]
    assert links == ["../a1/report.html"], "another report beside this one"
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
        "published: 15.5",
        "no interval",
        "no label map",
        "prefect deployment run piti/evaluate",
        "far",
        "20.75",
        "20 (this report)",
        "stage 2, step 100",
        "1 min 01 s",
        "123",
    ):
        assert words in page
    assert page.count("<img") == 6


def test_a_figure_carries_its_network_wherever_it_stands() -> None:
    """In its tile and in the table: name, network, hash, resize, whether it compares, note."""
    page = render_report(report())
    tiles, _, table = page.partition("What the figures say")
    for row in report().metrics:
        network = row.metric.network
        assert network is not None
        for part in (tiles, table):
            for words in (row.metric.name, network.name, network.resize, row.comparability, network.weights_sha256, row.metric.note or ""):  # fmt: skip
                assert words in part
    assert tiles.count("biased upwards") == table.count("biased upwards") == 1
    assert "compares only with itself" in tiles


HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)> '$\\frac{1}{0}$"


def test_no_text_becomes_markup() -> None:
    """Names that data can choose, in every place that shows one, also given to the library's functions."""
    assert "Not comparable &lt;at all&gt;." in render_report(report())
    pictures = [[picture(32, 0)]]
    stage = StageDistance(HOSTILE, Metric("lpips", 0.8, 0.7, 0.9), Metric("rmse", 91.0, 80.0, 99.0))
    page = render_report(
        report(
            title=HOSTILE, subtitle=HOSTILE, facts=[(HOSTILE, HOSTILE)], warnings=[HOSTILE], comparison=[stage],
            metrics=[MetricRow(HOSTILE, HOSTILE, Metric(HOSTILE, 1.0, note=HOSTILE), HOSTILE)],
            curves=[LossCurve(HOSTILE, [(0, 1.0)], [(0, 1.0)], HOSTILE)], seeds=[(HOSTILE, 1)], timings=[(HOSTILE, 1.0)],
            grids=[PictureGrid([HOSTILE], pictures, [HOSTILE], HOSTILE, HOSTILE, [HOSTILE])],
            data=[(HOSTILE, HOSTILE)], command=HOSTILE, config_text=HOSTILE,
        )
    )  # fmt: skip
    parsed = outline(page)
    assert "script" not in parsed.tags
    assert "onerror" not in parsed.attributes
    assert all(reference.startswith(("data:image/", "../a1/")) for reference in parsed.references)
    assert loss_curve_uri(LossCurve(HOSTILE)).startswith("data:image/svg+xml;base64,")


def test_light_and_dark_define_the_same_colours() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", render_report(report()), re.DOTALL)
    names = [sorted(re.findall(r"(--[a-z-]+):", block)) for block in (light, dark)]
    assert names[0] == names[1]
    assert len(names[0]) >= 10


def test_missing_and_infinite_numbers_are_dashes() -> None:
    odd = report(
        metrics=[MetricRow("KID", "x", Metric("kid", 0.1))],
        comparison=[],
        curves=[LossCurve("empty"), LossCurve("odd", [(0, NAN), (1, math.inf)], [(0, None)]), LossCurve("flat", [], [(0, 0.0), (5, 0.0)])],
        timings=[("sampling", NAN)],
    )  # fmt: skip
    page = render_report(odd)
    outline(page)
    shown = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf|None)\b", shown)


def test_a_report_without_the_optional_parts_renders() -> None:
    page = render_report(
        report(warnings=[], metrics=[], curves=[], comparison=[], grids=[], timings=[], seeds=[], data=[], command="")
    )
    outline(page)
    assert "Read this first" not in page
    assert "Closer to the ground truth" not in page


def test_bars_are_as_long_as_their_distances() -> None:
    widths = [float(width) for width in re.findall(r'<div style="width: ([\d.]+)%">', render_report(report()))]
    assert widths == [100.0, 50.0]


def test_curves_are_drawn_as_they_are() -> None:
    """Both lines with their points, gaps left out, a falling loss on a logarithmic axis; the same bytes each time."""
    axes = loss_figure(curve()).axes[0]
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}
    assert lines["training batches"].tolist() == [[10, 0.9], [30, 0.2]]
    assert lines["validation"].tolist() == [[0, 1.0], [30, 0.25]]
    assert axes.get_yscale() == "log"
    assert loss_curve_uri(curve()) == loss_curve_uri(curve())


def test_change_is_measured_from_the_first_to_the_last_validation() -> None:
    assert curve().change_percent == pytest.approx(-75)
    assert LossCurve("x", [(0, 1.0)], []).change_percent is None
    assert LossCurve("x", [], [(0, None), (1, 2.0), (2, 1.0), (3, NAN)]).change_percent == pytest.approx(-50)


def test_curve_png_is_a_picture_even_without_losses() -> None:
    for some in (curve(), LossCurve("empty"), LossCurve("flat", [], [(0, 0.0), (5, 0.0)])):
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
