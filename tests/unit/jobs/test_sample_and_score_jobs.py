"""The jobs as a cluster runs them: sample, restart after losses, score; on a Ray of two CPUs in this process."""

import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from piti import storage
from piti.config import Config
from piti.config.presets import load_config
from piti.errors import CheckpointError, DataError
from piti.evaluation.measurement import Evaluation
from piti.evaluation.picture_sets import Part, PictureSet, write_pictures
from piti.job import JobContext, JobSpec
from piti.jobs import sample, score
from piti.jobs.degrade import degrade_shard
from piti.jobs.ray_tasks import run_tasks

pytestmark = pytest.mark.integration
SpecMaker = Callable[..., JobSpec]


@pytest.fixture(scope="module", autouse=True)
def small_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def sampled(small_config: Config, small_inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    """A finished sample job."""
    folder = tmp_path_factory.mktemp("sampled")
    spec = JobSpec(
        kind="sample", name="sample", fingerprint="1" * 64, output=str(folder / "out"), inputs=small_inputs,
        folder=str(folder / "job"), config=small_config,
    )  # fmt: skip
    storage.write_json(storage.join(spec.output, storage.MARKER), sample.run(JobContext(spec)))
    return spec


def tars(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.tar"))}


def test_sampling_leaves_every_set_and_says_what_it_drew(sampled: JobSpec) -> None:
    result = storage.read_json(storage.join(sampled.output, storage.MARKER))
    counts = {name: about["count"] for name, about in result["sets"].items()}
    assert counts == {"final": 6, "base": 6, "stage1": 6, "untrained": 6, "diversity": 6}
    assert sorted(name for about in result["sets"].values() for name in about["files"]) == sorted(tars(sampled.output))
    assert result["guidance"] == {"scale": 1.5, "normalized": True}
    assert PictureSet(sampled.output, "final").picture(PictureSet(sampled.output, "final").keys[0]).shape == (32, 32, 3)
    assert PictureSet(sampled.output, "diversity").variants(PictureSet(sampled.output, "base").keys[0]).shape == (
        2,
        32,
        32,
        3,
    )
    assert storage.read_json(storage.join(sampled.folder, "progress.json"))["done"] == 24


def test_a_restart_draws_the_missing_parts_only_and_gets_the_same_pictures(
    sampled: JobSpec, job_spec: SpecMaker
) -> None:
    """With some tars of an earlier attempt there, those stay untouched and the others come out byte for byte."""
    spec = job_spec("sample")
    before = tars(sampled.output)
    kept = {"final-000000.tar", "base-000000.tar", "untrained-000000.tar"}
    for name in kept:
        storage.write_bytes(storage.join(spec.output, name), b"kept as it is")
    result = sample.run(JobContext(spec))
    after = tars(spec.output)
    assert {name for name, data in after.items() if data == b"kept as it is"} == kept
    assert {name: data for name, data in after.items() if name not in kept} == {
        name: data for name, data in before.items() if name not in kept
    }
    assert result["pictures_drawn"] == 12


def test_a_lost_worker_costs_a_retry(job_spec: SpecMaker, sampled: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker process that dies the moment it begins its part is replaced, and the pictures are the same."""
    spec = job_spec("sample")
    died = Path(spec.folder) / "died"
    draw = sample.draw_part

    def draw_and_die_once(described: dict[str, object], part: Part) -> int:
        if not died.exists():
            died.parent.mkdir(parents=True, exist_ok=True)
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(described, part)

    monkeypatch.setattr(sample, "draw_part", draw_and_die_once)
    sample.run(JobContext(spec))
    assert died.exists()
    assert tars(spec.output) == tars(sampled.output)


def test_a_problem_of_a_worker_is_raised_as_it_was(job_spec: SpecMaker) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        sample.run(JobContext(job_spec("sample", checkpoint="/nowhere/step-00000001")))


def test_a_problem_of_a_data_task_is_raised_as_it_was(small_config: Config, tmp_path: Path) -> None:
    """The jobs shard and degrade run their tasks through `run_tasks`; elsewhere their tests do without Ray."""
    folder = str(tmp_path)
    work = [(folder, "train-000000.tar", folder, "plan", small_config.data, small_config.degradation, 4, 0)]
    with pytest.raises(DataError, match=r"is no finished set of shards .* - run piti/prepare"):
        list(run_tasks(degrade_shard, work))


def test_scoring_writes_metrics_report_and_grid(sampled: JobSpec, job_spec: SpecMaker) -> None:
    spec = job_spec("score", samples=sampled.output)
    result = score.run(JobContext(spec))
    metrics = json.loads(storage.read_text(storage.join(spec.output, "metrics.json")))
    assert list(metrics["metrics"]) == [f"{name}_efficientnet_lite0" for name in ("fd", "kd", "pd", "pd_diversity")]
    assert list(metrics["kinds"]) == ["fid", "kid", "lpips", "lpips_diversity"]
    for metric in metrics["metrics"].values():
        assert metric["network"]["slug"] == "efficientnet_lite0"
        assert len(metric["network"]["weights_sha256"]) == 64
        assert not metric["network"]["comparable"]
    frechet, perceptual = (metrics["metrics"][f"{name}_efficientnet_lite0"] for name in ("fd", "pd"))
    assert "biased" in frechet["note"]
    assert frechet["low"] is None
    assert frechet["network"]["resize"] == spec.config.evaluation.resize
    assert perceptual["low"] <= perceptual["value"] <= perceptual["high"]
    assert metrics["num_samples"] == len(metrics["per_picture"]["lpips"]) == 6
    assert (metrics["checkpoint"], metrics["step"]) == (spec.inputs["checkpoint"], 20)
    origin = metrics["provenance"]
    assert not origin["comparable"]
    assert origin["extractor"]["slug"] == "efficientnet_lite0"
    assert origin["data_fingerprint"] == "shards"
    assert origin["versions"]["torch"]
    comparison = metrics["comparison"]
    assert list(comparison) == ["untrained", "stage1", "base"]
    for before, after in itertools.pairwise(comparison.values()):
        gain = before["lpips"]["value"] - after["lpips"]["value"]
        assert after["lpips_gain"]["value"] == pytest.approx(gain)
    assert result["metrics"] == metrics["metrics"]
    grid = np.asarray(Image.open(storage.local_path(result["grid"])))
    assert grid.shape[2] == 3
    page = storage.read_text(result["report"])
    for words in (
        "compare only with themselves", "stage 2 (this checkpoint)", "−50 %", spec.inputs["checkpoint"], "dpm++",
        "fd_efficientnet_lite0", "Best pictures", "Worst pictures", "validation split", "piti/evaluate -p config=",
    ):  # fmt: skip
        assert words in page
    assert ">FID<" not in page
    assert load_config(storage.join(spec.output, "config.yaml")) == spec.config
    assert storage.read_json(storage.join(spec.folder, "progress.json"))["message"] == "done"


def test_another_grid_computes_nothing_again(sampled: JobSpec, job_spec: SpecMaker) -> None:
    """Features and distances are stored: a second report has the same figures, and no network saw a picture for it."""
    spec = job_spec("score", samples=sampled.output)
    first = score.score(JobContext(spec))
    evaluation = spec.config.evaluation.model_copy(update={"grid_samples": 1})
    other = job_spec("score", config=spec.config.model_copy(update={"evaluation": evaluation}), samples=sampled.output)
    second = score.score(JobContext(other))
    assert second["arrays_computed"] == 0
    assert second["metrics"] == first["metrics"]
    with Image.open(storage.local_path(second["grid"])) as sheet:
        assert sheet.height < 250


def test_damaged_stored_features_are_computed_again(sampled: JobSpec, job_spec: SpecMaker) -> None:
    """To the same bits, by a job of as many threads: two threads round features otherwise than one, by up to 1e-6."""
    spec = job_spec("score", samples=sampled.output)
    first = score.run(JobContext(spec))
    for path in Path(spec.config.root, "features").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:50])
    second = score.run(JobContext(spec))
    assert second["arrays_computed"] > 0
    assert second["metrics"] == first["metrics"]


def test_pictures_that_are_the_truth_have_no_distance(sampled: JobSpec, job_spec: SpecMaker, tmp_path: Path) -> None:
    """The whole way from shards to metrics: with the truth in place of generated pictures, distances are 0."""
    evaluation = Evaluation(sampled.config, sampled.inputs["shards"], sampled.output)
    perfect = str(tmp_path / "perfect")
    for product, small in (("final", False), ("base", True)):
        truths = {key: evaluation.truth(key) for key in evaluation.keys}
        pictures = {key: truth.small if small else truth.picture for key, truth in truths.items()}
        write_pictures(storage.join(perfect, f"{product}-000000.tar"), pictures)
    result = score.score(JobContext(job_spec("score", config=only_final(sampled.config), samples=perfect)))
    assert result["metrics"]["pd_efficientnet_lite0"]["value"] == 0
    assert result["metrics"]["fd_efficientnet_lite0"]["value"] < 1e-5
    assert {name: distance["value"] for name, distance in result["comparison"]["base"].items()} == {
        "lpips": 0,
        "rmse": 0,
    }
    assert "pd_diversity_efficientnet_lite0" not in result["metrics"]


def only_final(config: Config) -> Config:
    """Without diversity and without the comparison of stages."""
    return config.model_copy(
        update={
            "sampling": config.sampling.model_copy(update={"diversity_conditions": 0}),
            "evaluation": config.evaluation.model_copy(update={"compare_stages": False}),
        }
    )


@pytest.mark.parametrize("lost", ["final", "base", "stage1", "diversity"])
def test_missing_pictures_are_named(sampled: JobSpec, job_spec: SpecMaker, tmp_path: Path, lost: str) -> None:
    samples = tmp_path / "samples"
    shutil.copytree(sampled.output, samples)
    for path in samples.glob(f"{lost}-*.tar"):
        path.unlink()
    key = PictureSet(sampled.output, "final").keys[0]
    with pytest.raises(DataError, match=rf"pictures of the set {lost} are missing: {re.escape(key)}"):
        score.score(JobContext(job_spec("score", samples=str(samples))))


def test_without_weights_scoring_is_refused_unless_the_config_allows_it(sampled: JobSpec, job_spec: SpecMaker) -> None:
    config = sampled.config.model_copy(update={"allow_stand_in_networks": False})
    spec = job_spec("score", config=config, samples=sampled.output)
    with pytest.raises(CheckpointError, match=r"evaluation\.inception is not set, .* set evaluation\.inception\.path"):
        score.run(JobContext(spec))
    assert not Path(spec.output).exists()


def test_too_few_pictures_are_refused(sampled: JobSpec, job_spec: SpecMaker) -> None:
    sampling = sampled.config.sampling.model_copy(update={"num_samples": 3})
    config = sampled.config.model_copy(update={"sampling": sampling})
    with pytest.raises(DataError, match="there are 3 pictures to measure"):
        score.score(JobContext(job_spec("score", config=config, samples=sampled.output)))
