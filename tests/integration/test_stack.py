"""The stack for real: `up` finds what is there and brings back what died; `down` takes all of it and nothing else."""

from __future__ import annotations

import stat
from typing import Any

import pytest

from piti.stack.http import prefect_answers, ray_answers, served_deployments
from piti.stack.services import DEPLOYMENTS

pytestmark = pytest.mark.integration


def test_everything_answers_and_the_token_is_private(stack: Any) -> None:
    record = stack.record
    token = stack.home / "ray-token"
    assert prefect_answers(record.ports.prefect_api_url)
    assert set(served_deployments(record.ports.prefect_api_url)) >= DEPLOYMENTS
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert ray_answers(record.ports.ray_url, token.read_text())
    assert not ray_answers(record.ports.ray_url, None), "Ray must ask for the token"
    assert not ray_answers(record.ports.ray_url, "wrong"), "Ray must ask for the right token"
