"""What integration and end-to-end tests share: one real stack, on free ports, for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.running_stack import RunningStack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A real Prefect server, Ray head and serving process that all tests share; nothing of it is left afterwards."""
    stack = RunningStack.start(tmp_path_factory.mktemp("stack"))
    yield stack
    assert stack.stop() == [], "`piti down` left processes of the stack behind"
