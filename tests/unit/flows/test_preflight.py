"""Bad inputs, each with its one line, found before any server is asked. Three of them end to end: tests/integration/test_stack.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.cluster import Resources
from flows.preflight import config_problems, size_problems
from piti.config.presets import load_config
from piti.errors import ConfigError

LAPTOP = Resources(cpus=2, gpus=0)


def problems_of(root: Path, overrides: dict[str, Any]) -> list[str]:
    config = load_config("demo-sketch", {"root": str(root / "root"), **overrides})
    return [str(problem) for problem in [*config_problems(config), *size_problems(config, LAPTOP)]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"cluster.num_workers": 8, "data.samples_per_shard": 4},
            "training wants 8 CPUs (8 workers), the cluster has 2",
        ),
        ({"cluster.use_gpu": True}, "GPUs, the cluster has 0"),
        ({"data.source": {"kind": "paired", "images": "/nowhere"}}, "/nowhere"),
        ({"sampling.base_respacing": "fast"}, "cannot read the respacing 'fast'"),
        ({"training.stage1.batch_size": 100_000}, "fewer than one batch of training.stage1 (100000)"),
        ({"data.samples_per_shard": 100_000, "cluster.num_workers": 2}, "make 1 shards, fewer than the 2 workers"),
        ({"models.base.model_channels": 20_000}, "GB free, this run needs about"),
        ({"pretrained.base": {"path": "/nowhere/base.pt"}}, "/nowhere/base.pt"),
    ],
)
def test_a_problem_is_one_line(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    (problem,) = problems_of(tmp_path, overrides)
    assert message in problem
    assert "\n" not in problem
    assert not (tmp_path / "root").exists()


def test_the_demo_has_none(tmp_path: Path) -> None:
    assert problems_of(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("dmeo", {}, "unknown preset 'dmeo'; did you mean 'demo'"),
        ("demo", {"training.stage2.batchsize": 4}, "did you mean 'training.stage2.batch_size'"),
        ("demo", {"seed": "many"}, "seed: Input should be a valid integer"),
    ],
)
def test_a_wrong_config_is_refused(config: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
