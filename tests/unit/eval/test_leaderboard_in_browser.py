"""The leaderboard in headless Chromium: sorting and side by side work, on a phone too, and nothing from data runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.leaderboard import render_leaderboard
from tests.browser import CHROMIUM
from tests.unit.eval.browser import MOST_PHONE_PIXELS, look_at
from tests.unit.eval.test_leaderboard import FID, RECALL, board, entry
from tests.unit.eval.test_report import HOSTILE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

PLAY = """
const names = () => [...document.querySelectorAll(".board td.name")].map(cell => cell.textContent.trim());
const head = number => document.querySelectorAll(".board th button")[number];
const steps = {begin: names()};
head(1).click(); steps.fid_falling = names();
head(3).click(); steps.recall_falling = names();
const select = document.getElementById("sort");
select.value = "0"; select.dispatchEvent(new Event("change")); steps.by_name = names();
steps.sorted = [...document.querySelectorAll(".board th[aria-sort]")].map(cell => cell.getAttribute("aria-sort"));
const boxes = [...document.querySelectorAll(".board input")];
steps.before = document.getElementById("comparison").hidden;
for (const box of [boxes[2], boxes[0], boxes[1]]) box.click();
steps.checked = boxes.map(box => box.checked);
steps.pair = [...document.querySelectorAll("#comparison tbody tr")].map(row => [...row.cells].map(cell => cell.textContent));
steps.grids = [...document.querySelectorAll("#comparison img")].map(one => one.getAttribute("src"));
return steps;
"""


def with_grids(folder: Path) -> Path:
    for name in ("f0", "f1", "f2"):
        (folder / name).mkdir()
        Image.fromarray(np.zeros((40, 300, 3), np.uint8)).save(folder / name / "grid.png")
    return folder


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_it_sorts_compares_and_fits(width: int, dark: bool, tmp_path: Path) -> None:
    found = look_at(render_leaderboard(board()), width, with_grids(tmp_path), dark, PLAY, axe=True)
    a, b, demo = "a, step 100", "b, step 200", "demo"
    steps = found["acted"]
    assert steps["begin"] == [b, a, demo], "the best FID first, what has none last"
    assert steps["fid_falling"] == [a, b, demo]
    assert steps["recall_falling"] == [a, b, demo]
    assert steps["by_name"] == [a, b, demo]
    assert steps["sorted"] == ["ascending"]
    assert steps["before"] is True
    assert steps["checked"] == [True, True, False], "a third choice takes the place of the first"
    assert steps["pair"][0] == ["FID", "20.5 (19.5 to 21.5)", "9.25 (8.25 to 10.25)", "-11.3 (B is better)"]
    assert steps["pair"][1] == ["Recall", "0.3 (no interval)", "0.2 (no interval)", "-0.100 (B is worse)"]
    assert steps["grids"] == ["./f1/grid.png", "./f2/grid.png"]
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["needs"] <= width
    assert found["broken"] == found["hidden"] == 0
    assert found["violations"] == found["console"] == found["outside"] == []


def test_of_many_evaluations_the_best_are_shown_first(tmp_path: Path) -> None:
    """Whatever they are sorted by; the others behind a button, so that a phone's page stays short."""
    act = """
    const shown = () => [...document.querySelectorAll(".board tbody tr")].filter(row => !row.hidden).map(row => row.cells[1].textContent.trim());
    const steps = [shown()];
    document.querySelectorAll(".board th button")[2].click(); steps.push(shown());
    steps.push(document.documentElement.scrollHeight);
    document.getElementById("all").click(); steps.push(shown().length);
    return steps;
    """
    facts = {f"setting {number}": "a value of some length" for number in range(5)}
    rows = [entry(f"{number:02d}", 10.0 + number, 0.9 - number / 100, **facts, guidance=str(number)) for number in range(60)]  # fmt: skip
    found = look_at(render_leaderboard(board(entries=rows, columns=[FID, RECALL])), 360, tmp_path, act=act)
    by_fid, by_recall, height, count = found["acted"]
    assert by_fid == by_recall == [f"{number:02d}" for number in range(20)]
    assert height <= MOST_PHONE_PIXELS
    assert count == 60


def test_evaluations_of_other_pictures_are_not_subtracted(tmp_path: Path) -> None:
    rows = [replace(entry("a", 20.5), group="x"), replace(entry("b", 9.25), group="y")]
    act = """
    document.querySelectorAll(".board input").forEach(box => box.click());
    return [...document.querySelectorAll("#comparison tbody tr")].map(row => row.cells[3].textContent);
    """
    page = render_leaderboard(board(entries=rows, columns=[FID]))
    assert look_at(page, 1280, tmp_path, act=act)["acted"] == ["of other pictures"]


def test_names_from_data_run_nothing(tmp_path: Path) -> None:
    payload = HOSTILE.replace("alert(1)", "window.ran=1").replace("alert(2)", "window.ran=2")
    rows = [entry(payload, 1.0, folder=payload, **{payload: payload}), entry(payload, 2.0)]
    act = 'document.querySelectorAll(".board input").forEach(box => box.click());'
    page = render_leaderboard(board(title=payload, entries=rows, unreadable=[payload]))
    assert look_at(page, 1280, tmp_path, act=act)["ran"] == "undefined"
