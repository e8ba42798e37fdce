"""`scripts/check-architecture` finds every kind of import that must not be, in a checkout made for the purpose."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from piti.settings import PROJECT


def problems_of(folder: Path, files: dict[str, str]) -> list[str]:
    """What the check says of a checkout with these files, which it must refuse."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    script = [sys.executable, str(PROJECT / "scripts" / "check-architecture"), str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "text",
    [
        "from flows.steps import shard",
        "def later():\n    import flows.steps",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from flows import steps",
        "from ..flows import steps",
    ],
)
def test_an_upward_arrow(tmp_path: Path, text: str) -> None:
    files = {"flows/__init__.py": "", "flows/steps.py": "", "piti/plan.py": text}
    assert problems_of(tmp_path, files) == ["piti.plan imports flows.steps: piti.plan must not know flows"]


def test_a_circle_with_one_half_in_a_function(tmp_path: Path) -> None:
    files = {
        "piti/data/one.py": "from piti.data.two import x",
        "piti/data/two.py": "def later():\n    from piti.data import three",
        "piti/data/three.py": "from . import one",
        "piti/data/__init__.py": "",
    }
    expected = "these files import each other: piti.data.one, piti.data.three, piti.data.two"
    assert problems_of(tmp_path, files) == [expected]


def test_the_two_libraries_do_not_know_each_other_and_flows_touch_no_tensor(tmp_path: Path) -> None:
    files = {
        "eval/fid.py": "import degradations.bsr",
        "degradations/bsr.py": "",
        "flows/train.py": "def f():\n    from torch import nn",
    }
    assert problems_of(tmp_path, files) == [
        "eval.fid imports degradations.bsr: eval must not know degradations",
        "flows.train imports torch, which flows does without",
    ]


def test_this_house_stands() -> None:
    script = [sys.executable, str(PROJECT / "scripts" / "check-architecture")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
