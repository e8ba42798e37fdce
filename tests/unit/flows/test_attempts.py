"""One attempt, one job: several runs that want the same output at the same moment, and what may lie in `jobs/`.

Ray's side is a stand-in with its two properties that matter: an id is taken once, and a new cluster knows no old jobs.
"""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from flows.cluster import Cluster, submission_prefix
from piti import storage
from piti.config.presets import load_config
from piti.errors import DataError
from piti.plan import Plan


class Client:
    """The Jobs API of one cluster."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobStatus] = {}
        self.barrier: threading.Barrier | None = None
        self._lock = threading.Lock()

    def submit_job(self, *, submission_id: str, **_: Any) -> None:
        if self.barrier is not None:
            self.barrier.wait(10)
        with self._lock:
            if submission_id in self.jobs:
                raise RuntimeError(f"{submission_id} already exists")
            self.jobs[submission_id] = JobStatus.RUNNING

    def stop_job(self, submission_id: str) -> bool:
        self.jobs[submission_id] = JobStatus.STOPPED
        return True

    def get_job_status(self, submission_id: str) -> JobStatus:
        if submission_id not in self.jobs:
            raise RuntimeError(f"404: {submission_id} does not exist")
        return self.jobs[submission_id]


def cluster_of(client: Client, session: str = "one") -> Cluster:
    cluster = Cluster.__new__(Cluster)
    cluster.url, cluster.session, cluster._client = "", session, client  # type: ignore[assignment]
    return cluster


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(load_config("demo", {"root": str(tmp_path)}))


def test_runs_at_the_same_moment_share_one_job(plan: Plan) -> None:
    client = Client()
    client.barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda who: cluster_of(client).submit_or_attach(plan.shard, plan.config, str(who)), range(4))
        )
    assert len({job.id for job, _ in answers}) == 1
    assert sorted(attached for _, attached in answers) == [False, True, True, True]
    assert len(client.jobs) == 1
    assert sorted(answers[0][0].followers.names()) == ["0", "1", "2", "3"]


def test_a_claim_whose_run_died_is_taken_over(plan: Plan) -> None:
    """Between spec.json and submission."""
    client = Client()
    job, _ = cluster_of(client).submit_or_attach(plan.shard, plan.config, "a")
    del client.jobs[job.id]
    again, attached = cluster_of(client).submit_or_attach(plan.shard, plan.config, "b")
    assert (again.id, attached) == (job.id, False)


def test_an_ended_attempt_or_one_of_another_cluster_is_over(plan: Plan) -> None:
    client = Client()
    first, _ = cluster_of(client).submit_or_attach(plan.shard, plan.config, "a")
    client.jobs[first.id] = JobStatus.FAILED
    second, _ = cluster_of(client).submit_or_attach(plan.shard, plan.config, "a")
    third, _ = cluster_of(Client(), "two").submit_or_attach(plan.shard, plan.config, "a")
    prefix = submission_prefix(plan.shard)
    assert [first.id, second.id, third.id] == [f"{prefix}1", f"{prefix}2", f"{prefix}3"]


def test_stray_folders_harm_nobody(plan: Plan) -> None:
    prefix = submission_prefix(plan.shard)
    for name in (f"{prefix}old", f"{prefix}1 (copy)", prefix, "notes", f"{prefix}٣"):
        storage.write_bytes(storage.join(plan.config.root, "jobs", name, "x"), b"")
    storage.write_bytes(storage.join(plan.config.root, "jobs", f"{prefix}4", "spec.json"), b"{")
    job, attached = cluster_of(Client()).submit_or_attach(plan.shard, plan.config, "a")
    assert (job.id, attached) == (f"{prefix}5", False)


def test_a_stray_file_harms_nobody(plan: Plan) -> None:
    prefix = submission_prefix(plan.shard)
    storage.write_bytes(storage.join(plan.config.root, "jobs", f"{prefix}5"), b"")
    job, attached = cluster_of(Client()).submit_or_attach(plan.shard, plan.config, "a")
    assert (job.id, attached) == (f"{prefix}6", False)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EROFS, "read-only"), DataError("full")])
def test_ray_is_told_to_stop_where_the_request_cannot_be_written(
    plan: Plan, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client()
    job, _ = cluster_of(client).submit_or_attach(plan.shard, plan.config, "a")

    def fail(*_: Any, **__: Any) -> bool:
        raise error

    monkeypatch.setattr(storage, "create_bytes", fail)
    assert job.stop()
    assert client.jobs[job.id] == JobStatus.STOPPED


@pytest.mark.parametrize(
    ("node_types", "grows"),
    [(["node_4f8ac2d83cd79a9b482b3636ae13cf4d9130dd59be4f3263021aa5ab"], False), (["headgroup", "nodes"], True), ([], False)],
)  # fmt: skip
def test_a_cluster_grows_where_an_autoscaler_names_its_nodes(node_types: list[str], grows: bool) -> None:
    """As Ray's dashboard answers, with its own way of spelling keys."""
    from ray.dashboard.utils import to_google_style

    report = {"autoscaler_report": {"active_nodes": dict.fromkeys(node_types, 1)}}
    answer = {"data": {"clusterStatus": to_google_style(report)}}

    class Answers(Client):
        def _do_request(self, method: str, path: str) -> Any:
            return SimpleNamespace(json=lambda: answer, raise_for_status=lambda: None)

    assert cluster_of(Answers()).grows() == grows
