"""Writes requirements.lock: every version that `make setup` installs. `make lock` takes newer releases where it can.

    python scripts/lock.py             newest releases that pyproject.toml admits
    python scripts/lock.py --keep      only what pyproject.toml's changes make necessary

pip's own configuration (indexes, folders with wheels) is used and leaves no trace in the file.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LOCK = PROJECT / "requirements.lock"
HEADER = """\
# Every version that `make setup` installs, extras dev and s3 included. Written by `make lock`; do not edit.
"""


def main() -> int:
    """Exit code of pip-compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="do not look for newer releases")
    arguments = parser.parse_args()
    command = [
        sys.executable, "-m", "piptools", "compile", "--extra", "dev", "--extra", "s3", "--allow-unsafe", "--strip-extras",
        "--no-header", "--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host", "--no-emit-options",
        "--annotation-style", "line", "--quiet", "--output-file", LOCK.name, *([] if arguments.keep else ["--upgrade"]), "pyproject.toml",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=PROJECT, check=False)
    if done.returncode == 0:
        LOCK.write_text(HEADER + portable(LOCK.read_text(encoding="utf-8")), encoding="utf-8")
    return done.returncode


def portable(lock: str) -> str:
    """Without local version labels (`2.13.0+cpu`: each machine takes its own build), options, headers, and pip itself."""
    lines = [re.sub(r"^([\w.-]+==[\w.]+)\+[\w.]+", r"\1", line) for line in lock.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("-", "#", "pip=="))]
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    sys.exit(main())
