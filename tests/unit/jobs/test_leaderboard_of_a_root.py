"""The leaderboard is made anew from what lies below a root, whole, whatever else lies there."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from piti import storage
from piti.evaluation import leaderboard as room
from piti.evaluation.history import checkpoint_history, drawn_in_training
from piti.evaluation.leaderboard import rebuild_leaderboard


def metrics(fid: float, title: str = "stage 2, step 20", **changes: Any) -> dict[str, Any]:
    """metrics.json as the score job writes it."""
    network = {"name": "InceptionV3 (FID)", "slug": "inception_v3", "weights_sha256": "6" * 64, "comparable": True, "resize": "clean-fid"}  # fmt: skip
    origin = {
        "config": "demo", "base": {"title": title}, "data_fingerprint": "abc", "guidance": {"scale": 1.5, "normalized": True},
        "sampler": {"base": "ddim, 50 steps", "upsampler": "ddim, 27 steps"},
    }  # fmt: skip
    return {
        "checkpoint": "/r/runs/f/step-20", "step": 20, "num_samples": 48, "evaluated": "2026-01-01 00:00 UTC", "provenance": origin,
        "kinds": {"fid": "fid"}, "metrics": {"fid": {"name": "fid", "value": fid, "low": None, "high": None, "network": network}},
        **changes,
    }  # fmt: skip


def test_every_report_is_listed_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    for name, content in (
        ("a1", json.dumps(metrics(20.5))), ("b2", json.dumps(metrics(9.25, "published.pt"))), ("c3", "{damaged"),
        ("d4", json.dumps(metrics(1.0, metrics={}))),
    ):  # fmt: skip
        storage.write_bytes(str(tmp_path / "reports" / name / "metrics.json"), content.encode())
    (tmp_path / "reports" / "unfinished").mkdir()
    storage.write_json(str(tmp_path / "reports" / "e5" / "study.json"), {"name": "guidance <b>"})
    page = storage.read_text(rebuild_leaderboard(str(tmp_path)))
    for words in ("2 evaluations", "demo: published.pt", "./a1/report.html", "./b2/report.html", "c3/metrics.json", "d4/metrics.json", "ddim, 27 steps"):  # fmt: skip
        assert words in page
    assert '<a href="./e5/study.html">guidance &lt;b&gt;</a>' in page
    assert "unfinished" not in page
    table = pq.read_table(io.BytesIO((tmp_path / "reports" / "leaderboard.parquet").read_bytes())).to_pylist()
    assert {(row["evaluation"], row["figure"], row["value"], row["comparable"]) for row in table} == {
        ("demo: stage 2, step 20", "fid", 20.5, True), ("demo: published.pt", "fid", 9.25, True),
    }  # fmt: skip
    assert "published.pt" in (tmp_path / "reports" / "leaderboard.md").read_text()
    assert r"\begin{tabular}" in (tmp_path / "reports" / "leaderboard.tex").read_text()


def test_another_resizing_or_file_is_another_column(tmp_path: Path) -> None:
    """All are called FID: only figures that were measured in the same way stand below each other."""
    for name, fid, network in (("a1", 20.5, {}), ("b2", 9.25, {"resize": "torch-fidelity"}), ("c3", 8.0, {})):
        content = metrics(fid)
        content["metrics"]["fid"]["network"] = content["metrics"]["fid"]["network"] | network
        storage.write_json(str(tmp_path / "reports" / name / "metrics.json"), content)
    board = room.leaderboard(str(tmp_path / "reports"), ["a1", "b2", "c3"])
    same, other = sorted(board.columns, key=lambda column: "torch-fidelity" in column.name)
    assert [column.heading for column in board.columns] == ["FID", "FID"]
    values = [
        [one.metrics[c.name].value if c.name in one.metrics else None for c in (same, other)] for one in board.entries
    ]
    assert values == [[20.5, None], [None, 9.25], [8.0, None]]
    assert [board.is_best(one, same) for one in board.entries] == [False, False, True]


def test_no_report_keeps_the_others_from_the_board(tmp_path: Path) -> None:
    """One of a newer version with a figure that nobody knows here; one with a name that is no UTF-8."""
    newer = metrics(20.5, kinds={"fid": "fid", "fid_of_tomorrow": "fid"})
    odd = metrics(9.25, "published\udcff.pt")
    for name, content in (("a1", newer), ("b2", odd)):
        text = json.dumps(content)
        storage.write_bytes(str(tmp_path / "reports" / name / "metrics.json"), text.encode())
    page = storage.read_text(rebuild_leaderboard(str(tmp_path)))
    assert "2 evaluations" in page
    table = pq.read_table(io.BytesIO((tmp_path / "reports" / "leaderboard.parquet").read_bytes())).to_pylist()
    assert [row["evaluation"] for row in table] == ["demo: stage 2, step 20", "demo: published\\udcff.pt"]


def test_a_report_that_ends_meanwhile_is_taken_in(tmp_path: Path, monkeypatch: Any) -> None:
    """Two jobs end at once: the other's report lands between this one's listing and its writing."""
    storage.write_json(str(tmp_path / "reports" / "a1" / "metrics.json"), metrics(20.5))
    publish = room._publish

    def publish_late(folder: str, board: Any) -> None:
        publish(folder, board)
        storage.write_json(str(tmp_path / "reports" / "b2" / "metrics.json"), metrics(9.25))

    monkeypatch.setattr(room, "_publish", publish_late)
    page = storage.read_text(rebuild_leaderboard(str(tmp_path)))
    assert "./a1/report.html" in page
    assert "./b2/report.html" in page


def test_the_history_is_of_the_same_run_and_settings(tmp_path: Path) -> None:
    def told(step: int, fid: float, run: str | None = "/r/runs/f", **changes: Any) -> dict[str, Any]:
        content = metrics(fid, step=step, **changes)
        content["provenance"] |= {"base": {"title": "x", "run": run}, "config_fingerprint": "c"}
        return content

    reports = str(tmp_path)
    for name, content in (
        ("a1", told(10, 30.0)), ("a2", told(10, 29.0, evaluated="2026-01-02 00:00 UTC")), ("b1", told(20, 99.0)),
        ("c1", told(30, 1.0, run="/r/runs/g")), ("d1", told(40, 1.0, num_samples=7)), ("e1", told(50, 11.0)),
    ):  # fmt: skip
        storage.write_json(str(tmp_path / name / "metrics.json"), content)
    storage.write_bytes(str(tmp_path / "f1" / "metrics.json"), b"{damaged")
    found = checkpoint_history(reports, told(20, 20.0), "own")
    assert [(one.step, one.link, one.metrics["fid"].value) for one in found] == [
        (10, "../a2/report.html", 29.0), (20, None, 20.0), (50, "../e1/report.html", 11.0),
    ]  # fmt: skip
    assert checkpoint_history(reports, told(20, 20.0, run=None), "own") == []


def test_first_middle_and_last_pictures_of_training_are_shown(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (0, 100, 200, 300, 400):
        storage.write_bytes(str(run / "samples" / f"step-{step:08d}.png"), b"png of %d" % step)
    runs = {"stage2": {"run": str(run)}, "upsampler": {"run": str(tmp_path / "other")}}
    assert [(one.label, one.png) for one in drawn_in_training(runs)] == [
        (f"stage 2, step {step}", b"png of %d" % step) for step in (0, 200, 400)
    ]
    for path in sorted((run / "samples").iterdir())[1:]:
        path.unlink()
    assert [one.label for one in drawn_in_training(runs)] == ["stage 2, step 0"]


def test_a_root_without_reports_has_an_empty_board(tmp_path: Path) -> None:
    assert "0 evaluations" in storage.read_text(rebuild_leaderboard(str(tmp_path)))
