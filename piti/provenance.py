"""Format versions, code commit and library versions, for fingerprints, checkpoints, results and reports."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import piti

_LIBRARIES = (
    "torch",
    "ray",
    "prefect",
    "webdataset",
    "pyarrow",
    "torchmetrics",
    "lpips",
    "opencv-python-headless",
    "numpy",
)

FORMAT_VERSIONS = {"shard": 6, "degrade": 4, "train": 2, "sample": 3, "score": 4, "report": 1, "study": 1}
"""Raise a step's number when the same config would write other output than before. The number is part of the step's
fingerprint and of each shard's plan, so output of an older version is written again."""


@lru_cache
def code_commit() -> str:
    """The git commit of this code, with `+changes` if files are edited. `$PITI_COMMIT` (set in images) wins; "unknown"
    without git."""
    if stated := os.environ.get("PITI_COMMIT"):
        return stated
    folder = Path(piti.__file__).resolve().parent.parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


@lru_cache
def code_versions() -> dict[str, str]:
    """Commit and library versions as a flat mapping."""
    versions = {"piti": piti.__version__, "commit": code_commit(), "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions
