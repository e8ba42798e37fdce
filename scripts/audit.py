"""Lists the licences of the pinned dependencies and asks for their known vulnerabilities (pip-audit, in its own environment).

python scripts/audit.py            exit code 1 if a vulnerability is known; 0 if none is, or nobody could be asked
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
TOOL = "pip-audit>=2.9,<3"
UNKNOWN = "not stated"


def main() -> int:
    """Print licences, then vulnerabilities."""
    for licence, packages in sorted(licences().items()):
        print(f"{licence}: {', '.join(packages)}")
    with tempfile.TemporaryDirectory() as folder:
        return vulnerabilities(Path(folder))


def licences() -> dict[str, list[str]]:
    """The locked packages by licence, as their metadata state it; those for other systems are left out."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in re.findall(r"^([a-z0-9._-]+)==", LOCK.read_text(encoding="utf-8"), re.MULTILINE):
        try:
            about = metadata(name)
        except PackageNotFoundError:
            continue
        classified = [
            line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License")
        ]
        stated = about.get("License-Expression") or "; ".join(classified) or (about.get("License") or "").strip()
        found[stated.splitlines()[0][:60] if stated else UNKNOWN].append(name)
    return found


def vulnerabilities(folder: Path) -> int:
    """What pip-audit knows of the lock. A machine without a network, or an index without the data, is no failure."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    installed = subprocess.run([python, "-m", "pip", "install", "--quiet", TOOL], capture_output=True, check=False)
    if installed.returncode:
        print("audit: pip-audit cannot be installed here, so nothing is known about vulnerabilities")
        return 0
    command = [python, "-m", "pip_audit", "--disable-pip", "--no-deps", "--progress-spinner", "off", "-r", str(LOCK)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if re.search(r"^Found \d+ known", done.stderr, re.MULTILINE):
        print(done.stdout)
        return 1
    num_pins = len(re.findall(r"^[a-z0-9._-]+==", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
    num_asked = 0 if done.returncode else num_pins - (done.stdout + done.stderr).count("could not be audited")
    print(
        f"audit: no vulnerability is known of {num_asked} packages; about {num_pins - num_asked} nobody could be asked"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
