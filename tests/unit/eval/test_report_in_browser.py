"""The report in headless Chromium: accessible, nothing off-screen on a phone, and nothing from data runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.report import render_report
from tests.browser import CHROMIUM
from tests.unit.eval.browser import look_at
from tests.unit.eval.test_report import HOSTILE, report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_nothing_is_off_screen_and_axe_finds_nothing(width: int, dark: bool, tmp_path: Path) -> None:
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    found = look_at(render_report(report()), width, tmp_path, *options)
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["needs"] <= width
    assert found["hidden"] == found["broken"] == 0
    assert found["violations"] == found["console"] == found["outside"] == []


def test_names_from_data_run_nothing(tmp_path: Path) -> None:
    payload = HOSTILE.replace("alert(1)", "window.ran=1").replace("alert(2)", "window.ran=2")
    page = render_report(report(title=payload, facts=[(payload, payload)], seeds=[(payload, 1)], command=payload))
    assert look_at(page, 1280, tmp_path)["ran"] == "undefined"
