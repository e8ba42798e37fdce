"""What the end-to-end tests share: one whole run of the tiny config on the shared stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.runs import FlowRun, Prefect
from tests.e2e.tiny import tiny_overrides
from tests.running_stack import RunningStack


@pytest.fixture(scope="session")
def prefect(stack: RunningStack) -> Prefect:
    return Prefect(stack.environment)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `finished` put its output."""
    return tmp_path_factory.mktemp("full-train")


@pytest.fixture(scope="session")
def finished(prefect: Prefect, root: Path) -> FlowRun:
    """One full-train that went undisturbed."""
    return prefect.watch("full-train", config="demo-sketch", overrides=tiny_overrides(root))
