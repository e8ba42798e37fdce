"""A disk that is full while the jobs shard and degrade write: a clear error, nothing damaged, and on once there is space."""

from __future__ import annotations

import hashlib
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import pytest

from piti import storage
from piti.config import Config
from piti.config.presets import load_config
from piti.data.manifest import MANIFEST
from piti.data.verify import verify_shards
from piti.errors import DataError
from piti.job import JobContext, JobSpec
from piti.jobs import degrade, shard
from piti.plan import Plan, Step

JOBS = {"shard": shard, "degrade": degrade}


class Disk(Protocol):
    """Where a job writes. `message`: what an error about its being full says, whatever the case of its letters."""

    folder: Path
    message: str

    def limits(self, files: list[Path]) -> list[int]:
        """Bytes that do not suffice for `files`, one attempt after the other."""

    def leave(self, num_bytes: int) -> Any:
        """Only so much can be written, as long as this context lasts."""


class SmallDisk:
    """A real filesystem of 8 MiB, filled up with ballast."""

    message = "(?i)no space left"

    def __init__(self, folder: Path) -> None:
        self.folder, self._ballast = folder, folder / "ballast"

    def limits(self, files: list[Path]) -> list[int]:
        total = sum(path.stat().st_size for path in files)
        return [0, total // 7, total // 4, total // 4, 0]

    @contextmanager
    def leave(self, num_bytes: int) -> Iterator[None]:
        free = shutil.disk_usage(self.folder).free
        self._ballast.write_bytes(bytes(free - min(free, num_bytes)))
        try:
            yield
        finally:
            self._ballast.unlink()


class SmallFiles:
    """No full disk, but files that the kernel lets grow no further: a write fails midway all the same."""

    message = "(?i)no space left|too large"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def limits(self, files: list[Path]) -> list[int]:
        largest = max(path.stat().st_size for path in files)
        return [0, 1000, largest // 3, largest - 1000]

    @contextmanager
    def leave(self, num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["small disk", "small files"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "small files":
        yield SmallFiles(folder)
        return
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    if not done or done.returncode:
        pytest.skip("mounting a tmpfs is not permitted here; files of limited size take its place")
    yield SmallDisk(folder)
    subprocess.run(["umount", folder], check=True)


def run_here(function: Any, arguments: list[tuple[Any, ...]], **_: float) -> Iterator[Any]:
    """In place of Ray: one task after the other in this process."""
    for entry in arguments:
        yield function(*entry)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for job in JOBS.values():
        monkeypatch.setattr(job, "run_tasks", run_here)
        monkeypatch.setattr(job, "ray_connection", nullcontext)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    data = {
        "source": {"kind": "bundled", "train_crops": 24, "validation_crops": 4},
        "modality": "sketch", "image_size": 128, "samples_per_shard": 6,
    }  # fmt: skip
    return load_config("demo", {"root": str(tmp_path_factory.mktemp("whole")), "data": data})


@pytest.fixture(scope="module")
def plan(config: Config) -> Plan:
    """Both steps done where there is space."""
    done = Plan(config)
    with pytest.MonkeyPatch.context() as patch:
        for job in JOBS.values():
            patch.setattr(job, "run_tasks", run_here)
            patch.setattr(job, "ray_connection", nullcontext)
        for name, job in JOBS.items():
            step = getattr(done, name)
            job.run(context_of(step, config, Path(step.output)))
    return done


def context_of(step: Step, config: Config, output: Path) -> JobContext:
    folder = output.with_name(f"{output.name}-job")
    if output.parent.name == "disk":  # what the job tells others lies elsewhere
        folder = output.parent.with_name(f"{step.kind}-job")
    spec = JobSpec.for_step(step, config, str(folder)).model_copy(update={"output": str(output)})
    return JobContext(spec)


def hashes(folder: Path) -> dict[str, str]:
    """Of every file, hidden ones too."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("name", ["shard", "degrade"])
def test_a_full_disk_damages_nothing_and_work_goes_on_once_there_is_space(
    name: str, disk: Disk, config: Config, plan: Plan
) -> None:
    step: Step = getattr(plan, name)
    whole, output, job = Path(step.output), disk.folder / "set", JOBS[name]
    expected = hashes(whole)
    context = context_of(step, config, output)
    done_before = 0
    for limit in disk.limits([path for path in whole.rglob("*") if path.is_file()]):
        with disk.leave(limit), pytest.raises((DataError, OSError), match=disk.message) as caught:
            job.run(context)
        found = hashes(output)
        assert found.items() <= expected.items(), "what is there is whole, and nothing half-written is left"
        assert MANIFEST not in found
        assert len(found) >= done_before, "what was finished stays"
        done_before = len(found)
        if isinstance(disk, SmallDisk):
            assert isinstance(caught.value, DataError)
            assert "no space left for train-0000" in str(caught.value)
            assert "free some space" in str(caught.value)
    assert 0 < done_before < len(expected), "it went on from attempt to attempt"
    job.run(context)
    assert hashes(output) == expected
    assert list(verify_shards(str(output))) == []


@pytest.mark.parametrize("name", ["shard", "degrade"])
def test_a_disk_that_is_full_when_the_manifest_comes(name: str, disk: Disk, config: Config, plan: Plan) -> None:
    step: Step = getattr(plan, name)
    output = disk.folder / "set"
    shutil.copytree(step.output, output, copy_function=shutil.copyfile)
    (output / MANIFEST).unlink()
    expected = hashes(Path(step.output))
    context = context_of(step, config, output)
    with disk.leave(100), pytest.raises((DataError, OSError), match=disk.message):
        JOBS[name].run(context)
    assert hashes(output) == {path: digest for path, digest in expected.items() if path != MANIFEST}
    assert not storage.exists(str(output / MANIFEST))
    JOBS[name].run(context)
    assert hashes(output) == expected
