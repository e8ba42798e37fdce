"""Bad inputs, each with its one line, found before any server is asked. Three of them end to end: tests/integration/test_stack.py."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import requests

from flows import cluster as cluster_module
from flows import preflight
from flows.cluster import Resources
from flows.preflight import config_problems, fit_beside_each_other, size_problems
from piti import storage
from piti.checkpoints import most_checkpoints
from piti.config import Config
from piti.config.presets import load_config
from piti.errors import ConfigError
from tests.unit.flows.test_attempts import Client, cluster_of

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
        ({"sampling.base_respacing": "ddim7777"}, "no whole stride takes exactly 7777"),
        ({"training.stage1.batch_size": 100_000}, "fewer than one batch of training.stage1 (100000)"),
        ({"models.base.model_channels": 20_000}, "GB free, this run needs about"),
        ({"pretrained.base": {"path": "/nowhere/base.pt"}}, "/nowhere/base.pt"),
    ],
)
def test_a_problem_is_one_line(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    (problem,) = problems_of(tmp_path, overrides)
    assert message in problem
    assert "\n" not in problem
    assert not (tmp_path / "root").exists()


def gpu_config(root: Path, **more: Any) -> Config:
    overrides = {"root": str(root), "cluster.use_gpu": True, "cluster.cpus_per_worker": 1, "cluster.num_workers": 8}
    for stage, batch_size in {"pretrain": 128, "stage1": 128, "stage2": 128, "upsampler": 4}.items():
        overrides[f"training.{stage}.batch_size"] = batch_size
    return load_config("demo-sketch", overrides | {key.replace("__", "."): value for key, value in more.items()})


@pytest.mark.parametrize(
    ("cluster", "gpus", "message"),
    [
        ({}, 8, None),
        ({}, 1, "training wants 8 GPUs, the cluster has 1"),
        ({"cluster__max_gpus": 8}, 1, None),
        ({"cluster__max_gpus": 4}, 1, "training wants 8 GPUs, the cluster grows to 4"),
        ({"cluster__num_workers": {"min": 2, "max": 8}}, 2, None),
        ({"cluster__num_workers": {"min": 2, "max": 8}}, 1, "training wants 2 GPUs, the cluster has 1"),
    ],
)
def test_a_cluster_counts_as_what_it_can_become(
    tmp_path: Path, cluster: dict[str, Any], gpus: int, message: str | None
) -> None:
    problems = [problem.problem for problem in size_problems(gpu_config(tmp_path, **cluster), Resources(64, gpus))]
    assert problems == ([] if message is None else [message])


def test_a_cluster_that_is_away_is_asked_again_whether_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[requests.Response | Exception] = [
        requests.ConnectionError("gone"),
        requests.Response(),
        requests.Response(),
    ]
    busy, grows = answers[1:]
    assert isinstance(busy, requests.Response)
    assert isinstance(grows, requests.Response)
    busy.status_code, busy._content = 503, b"{}"
    grows.status_code = 200
    grows._content = b'{"data": {"clusterStatus": {"autoscalerReport": {"activeNodes": {"gpus": 1}}}}}'

    class Answers(Client):
        def _do_request(self, method: str, path: str) -> requests.Response:
            if isinstance(answer := answers.pop(0), Exception):
                raise answer
            return answer

    cluster = cluster_of(Answers())
    monkeypatch.setattr(cluster_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(preflight, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(preflight, "_cluster", lambda: (cluster, LAPTOP))
    assert preflight.cluster_problems(gpu_config(tmp_path)) == [], "jobs wait until it has grown"
    assert answers == []
    (problem,) = preflight.cluster_problems(gpu_config(tmp_path, cluster__max_gpus=4, cluster__max_cpus=64))
    assert "grows to 4" in str(problem), "said by the config: Ray is not asked"


def test_the_upsampler_trains_beside_the_base_where_its_own_workers_fit(tmp_path: Path) -> None:
    """8 workers for the base, 4 for the upsampler, whose batch has four pictures."""
    config = gpu_config(tmp_path)
    assert not fit_beside_each_other(config, Resources(64, 11))
    assert fit_beside_each_other(config, Resources(64, 12))
    assert fit_beside_each_other(gpu_config(tmp_path, cluster__max_gpus=12), Resources(64, 8))
    assert not fit_beside_each_other(gpu_config(tmp_path, training__upsampler__batch_size=64), Resources(64, 15))


def test_published_presets_need_room_for_all_checkpoints_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/scaling.md: 70 GB for stage 2, 9 GB for stage 1, 73 GB for the upsampler. Preflight's figure is a bound, a tenth
    above at most; no picture is there."""
    for variable in ("PITI_DATA", "PITI_WEIGHTS", "PITI_ROOT"):
        monkeypatch.setenv(variable, str(tmp_path))
    config, truth = load_config("coco-mask"), 13 * 5.4e9 + 16 * 0.47e9 + 1.23e9 + 13 * 5.6e9
    assert [most_checkpoints(config.stage(stage)) for stage in ("stage1", "stage2", "upsampler")] == [16, 13, 13]
    for free, is_refused in ((truth, True), (1.1 * truth, False)):
        monkeypatch.setattr(storage, "free_bytes", lambda uri, free=free: free)
        assert bool(list(preflight._disk_problems(config, 0))) == is_refused


def test_the_demo_has_none(tmp_path: Path) -> None:
    assert problems_of(tmp_path, {}) == []


def test_two_workers_may_share_a_shard(tmp_path: Path) -> None:
    """The loader reads samples by their offsets: test_data_loader.py trains more ranks than there are shards."""
    assert problems_of(tmp_path, {"data.samples_per_shard": 100_000, "cluster.num_workers": 2}) == []


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
