"""The leaderboard: every evaluation with all that its figures carry, in four forms; texts from data stay texts."""

import re
from dataclasses import replace

import pyarrow as pa
import pytest

from eval import Metric
from eval.leaderboard import (
    Column,
    Entry,
    Leaderboard,
    leaderboard_latex,
    leaderboard_markdown,
    leaderboard_rows,
    render_leaderboard,
)
from tests.unit.eval.feature_sets import PUBLISHED, STAND_IN
from tests.unit.eval.test_report import HOSTILE, outline

FID = Column("fid", "FID", "", "lower", "how far")
RECALL = Column("recall", "Recall", "", "higher", "how much of it")
OWN = Column("fd_efficientnet_lite0", "Fréchet distance", "", "lower", "how far")


def entry(title: str, fid: float | None, recall: float | None = None, folder: str = "abc", **facts: str) -> Entry:
    metrics = {}
    if fid is not None:
        metrics["fid"] = Metric("fid", fid, fid - 1, fid + 1, 0.5, "biased upwards", PUBLISHED)
    if recall is not None:
        metrics["recall"] = Metric("recall", recall, network=PUBLISHED)
    return Entry(title, folder, {"pictures": "5000", **facts}, metrics)


def board(**changes: object) -> Leaderboard:
    own = Entry("demo", "f0", {"pictures": "48"}, {OWN.name: Metric(OWN.name, 0.5, network=STAND_IN)})
    values: dict[str, object] = {
        "title": "Evaluations", "columns": [FID, OWN, RECALL],
        "entries": [entry("a, step 100", 20.5, 0.3, "f1"), entry("b, step 200", 9.25, 0.2, "f2"), own],
    }  # fmt: skip
    return Leaderboard(**(values | changes))  # type: ignore[arg-type]


def test_the_page_links_every_report_and_loads_nothing() -> None:
    page = render_leaderboard(board(unreadable=["f9/metrics.json (not valid JSON)"]))
    references = outline(page).references
    assert {"./f0/report.html", "./f1/report.html", "./f2/report.html"} <= set(references)
    assert all(reference.startswith("./") for reference in references)
    assert "<img" not in page
    assert not re.search(r"https?:|@import|url\(", page)
    for words in ("9.25", "8.25 to 10.25", PUBLISHED.weights_sha256, STAND_IN.weights_sha256, "biased upwards", "not valid JSON", "compares only with itself"):  # fmt: skip
        assert words in page


def test_an_empty_board_is_a_page_too() -> None:
    page = render_leaderboard(board(columns=[], entries=[]))
    assert "0 evaluations" in page
    assert leaderboard_markdown(board(columns=[], entries=[])).startswith("# Evaluations")
    assert list(leaderboard_rows(board(columns=[], entries=[]))) == []


def test_markdown_has_a_line_for_each_and_says_what_measured() -> None:
    lines = leaderboard_markdown(board()).splitlines()
    assert lines[2].startswith("| evaluation | pictures | FID `fid` (lower is better) |")
    assert lines[5] == "| [b, step 200](./f2/report.html) | 5000 | 9.25 (8.25 to 10.25) |  | 0.2 (no interval) |"
    assert sum(line.count(PUBLISHED.weights_sha256) for line in lines) == 2


def test_latex_is_a_table_with_the_best_in_bold() -> None:
    text = leaderboard_latex(board(entries=[entry("50 % of a_b & {c}", 20.5, 0.3), entry("b", 9.25, 0.2)]))
    assert r"50 \% of a\_b \& \{c\} & 20.5 & -- & \textbf{0.3} \\" in text
    assert r"b & \textbf{9.25} & -- & 0.2 \\" in text
    assert text.count(r"\begin{tabular}{lrrr}") == text.count(r"\end{tabular}") == 1


def test_rows_carry_all_that_a_figure_carries() -> None:
    table = pa.Table.from_pylist(list(leaderboard_rows(board())))
    assert table.num_rows == 5
    (fid,) = [row for row in table.to_pylist() if row["evaluation"] == "b, step 200" and row["figure"] == "fid"]
    assert (fid["value"], fid["low"], fid["high"], fid["standard_error"]) == (9.25, 8.25, 10.25, 0.5)
    assert (fid["weights_sha256"], fid["resize"], fid["comparable"]) == (
        PUBLISHED.weights_sha256,
        "torch-fidelity",
        True,
    )
    assert (fid["note"], fid["report"], fid["pictures"]) == ("biased upwards", "./f2/report.html", "5000")


def test_texts_from_data_stay_texts() -> None:
    hostile = board(
        title=HOSTILE, unreadable=[HOSTILE],
        entries=[entry(HOSTILE, 1.0, folder=f"javascript:{HOSTILE}", **{HOSTILE: HOSTILE})],
    )  # fmt: skip
    parsed = outline(render_leaderboard(hostile))
    assert parsed.tags.count("script") == 1
    assert not {name for name in parsed.attributes if name.startswith("on")}
    assert all(reference.startswith("./") for reference in parsed.references)
    markdown = leaderboard_markdown(hostile)
    assert "<" not in markdown
    assert not re.search(r"(?<!\\)\]\((?!\./)", markdown)
    assert len(leaderboard_markdown(board(entries=[entry("a\n| b |\n# c", 1.0)])).splitlines()) == 10


@pytest.mark.parametrize(("better", "best"), [("lower", 9.25), ("higher", 20.5)])
def test_the_best_is_by_the_columns_direction(better: str, best: float) -> None:
    column = Column("fid", "FID", "", better, "")
    found = board()
    assert [one.metrics["fid"].value for one in found.entries if found.is_best(one, column)] == [best]
    alone = board(entries=[entry("a", 1.0)])
    assert not alone.is_best(alone.entries[0], column)


def test_figures_of_other_pictures_have_no_common_best() -> None:
    """FID falls with the number of pictures, and other data are another task."""
    rows = [replace(entry(title, fid), group=group) for title, fid, group in (("a", 3.0, "x"), ("b", 2.0, "x"), ("c", 1.0, "y"))]  # fmt: skip
    found = board(entries=rows)
    assert [one.title for one in rows if found.is_best(one, FID)] == ["b"]
