"""The jobs as a cluster runs them: sample, restart after losses, score, report; on a Ray of two CPUs in this process."""

import io
import itertools
import json
import os
import re
import shutil
import signal
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from piti import storage
from piti.config import Config
from piti.config.presets import load_config
from piti.data.examples import Example, ExampleReader
from piti.errors import CheckpointError, DataError
from piti.evaluation import networks
from piti.evaluation.measurement import Evaluation
from piti.evaluation.picture_sets import PICTURES, Part, PictureSet, PictureSetName, set_folders, write_pictures
from piti.job import JobContext, JobSpec
from piti.jobs import report, sample, score
from piti.jobs.degrade import degrade_shard
from piti.jobs.ray_tasks import run_tasks
from piti.models.checkpoints import load_model
from piti.models.pretrained import export_piti
from tests.unit.jobs.conftest import with_pictures

pytestmark = pytest.mark.integration
SpecMaker = Callable[..., JobSpec]
SETS: tuple[PictureSetName, ...] = ("final", "base", "diversity", "upsampled", "stage1", "untrained")


@pytest.fixture(scope="module", autouse=True)
def small_ray() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="warning")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def sampled(small_config: Config, small_inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    """A finished sample job."""
    folder = str(tmp_path_factory.mktemp("sampled"))
    spec = JobSpec(
        kind="sample", name="sample", fingerprint="1" * 64, output=f"{folder}/out", folder=f"{folder}/job",
        inputs=with_pictures(small_inputs, f"{folder}/pictures", *SETS), config=small_config,
    )  # fmt: skip
    storage.write_json(storage.join(spec.output, storage.MARKER), sample.run(JobContext(spec)))
    return spec


def tars(spec: JobSpec) -> dict[str, bytes]:
    """Of all sets of a sample job, by `<set>/<name>`."""
    paths = [path for folder in set_folders(spec.inputs).values() for path in sorted(Path(folder).glob("*.tar"))]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


def pictures_of(spec: JobSpec, name: PictureSetName) -> PictureSet:
    return PictureSet(set_folders(spec.inputs)[name])


def test_sampling_leaves_every_set_and_says_what_it_drew(sampled: JobSpec) -> None:
    result = storage.read_json(storage.join(sampled.output, storage.MARKER))
    found = {name: pictures_of(sampled, name) for name in result["sets"]}
    assert {name: len(pictures) for name, pictures in found.items()} == {
        "final": 6, "base": 6, "diversity": 3, "upsampled": 4, "stage1": 6, "untrained": 6,
    }  # fmt: skip
    assert result["guidance"] == {"scale": 1.5, "normalized": True}
    key = found["final"].keys[0]
    assert found["final"].picture(key).shape == (32, 32, 3)
    assert found["diversity"].variants(key).shape == (2, 32, 32, 3)
    assert storage.read_json(storage.join(sampled.folder, "progress.json"))["done"] == 28


def test_a_restart_draws_the_missing_parts_only_and_gets_the_same_pictures(
    sampled: JobSpec, job_spec: SpecMaker, tmp_path: Path
) -> None:
    """With some tars of an earlier attempt there, those stay untouched and the others come out byte for byte."""
    spec = job_spec("sample", **with_pictures({}, str(tmp_path / "pictures"), *SETS))
    before = tars(sampled)
    kept = {name for name in before if name.startswith(("final/", "base/", "untrained/"))}
    for name in kept:
        storage.write_bytes(str(tmp_path / "pictures" / name), b"kept as it is")
    result = sample.run(JobContext(spec))
    after = tars(spec)
    assert {name for name, data in after.items() if data == b"kept as it is"} == kept
    assert after == before | dict.fromkeys(kept, b"kept as it is")
    assert result["pictures_drawn"] == 16


def test_more_samples_draw_the_rest(sampled: JobSpec, job_spec: SpecMaker, tmp_path: Path) -> None:
    """Of 7 pictures 6 are there: one is drawn, by both networks."""
    shutil.copytree(Path(set_folders(sampled.inputs)["final"]).parent, tmp_path / "pictures")
    sampling = sampled.config.sampling.model_copy(update={"num_samples": 7})
    config = sampled.config.model_copy(update={"sampling": sampling})
    spec = job_spec("sample", config=config, **with_pictures({}, str(tmp_path / "pictures"), "final", "base"))
    assert sample.run(JobContext(spec))["pictures_drawn"] == 1
    assert [name for name in tars(spec) if name not in tars(sampled)] == [
        "final/000006-000007.tar",
        "base/000006-000007.tar",
    ]
    assert len(pictures_of(spec, "final")) == len(pictures_of(spec, "base")) == 7


@pytest.mark.parametrize("num_workers", [1, 3])
def test_any_number_of_workers_draws_the_same_pictures(
    sampled: JobSpec, job_spec: SpecMaker, tmp_path: Path, num_workers: int
) -> None:
    """Two drew `sampled`."""
    cluster = sampled.config.cluster.model_copy(update={"num_workers": num_workers})
    inputs = with_pictures(sampled.inputs, str(tmp_path / "pictures"), *SETS)
    spec = job_spec("sample", config=sampled.config.model_copy(update={"cluster": cluster}), **inputs)
    sample.run(JobContext(spec))
    assert sampled.config.cluster.workers.max == 2
    assert tars(spec) == tars(sampled)


def test_a_lost_worker_costs_a_retry(
    job_spec: SpecMaker, sampled: JobSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker process that dies the moment it begins its part is replaced, and the pictures are the same."""
    spec = job_spec("sample", **with_pictures({}, str(tmp_path / "pictures"), "final", "base"))
    died = Path(spec.folder) / "died"
    draw = sample.draw_part

    def draw_and_die_once(described: JobSpec, part: Part) -> int:
        if not died.exists():
            died.parent.mkdir(parents=True, exist_ok=True)
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(described, part)

    monkeypatch.setattr(sample, "draw_part", draw_and_die_once)
    sample.run(JobContext(spec))
    assert died.exists()
    assert tars(spec) == {name: data for name, data in tars(sampled).items() if name in tars(spec)} != {}


def test_a_problem_of_a_worker_is_raised_as_it_was(job_spec: SpecMaker, tmp_path: Path) -> None:
    inputs = with_pictures({"checkpoint": "/nowhere/step-00000001"}, str(tmp_path / "pictures"), "final", "base")
    with pytest.raises(CheckpointError, match="nowhere"):
        sample.run(JobContext(job_spec("sample", **inputs)))


def test_a_problem_of_a_data_task_is_raised_as_it_was(small_config: Config, tmp_path: Path) -> None:
    """The jobs shard and degrade run their tasks through `run_tasks`; elsewhere their tests do without Ray."""
    folder = str(tmp_path)
    work = [(folder, "train-000000.tar", folder, "plan", small_config.data, small_config.degradation, 4, 0)]
    with pytest.raises(DataError, match=r"is no finished set of shards .* - run piti/prepare"):
        list(run_tasks(degrade_shard, work))


def score_inputs(sampled: JobSpec) -> dict[str, str]:
    """What a score job gets besides the networks."""
    return {**sampled.inputs, "samples": sampled.output}


def test_scoring_writes_metrics_and_the_report_shows_them(
    sampled: JobSpec, job_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job_spec("score", **score_inputs(sampled))
    claims = [
        storage.join(run, "claims", step, f"{storage.name(sampled.output)}.json")
        for run, _, step in (spec.inputs[role].rpartition("/") for role in ("checkpoint", "upsampler", "stage1"))
    ]
    assert all(storage.exists(claim) for claim in claims), "their runs may delete them before the report is made"
    scored = score.run(JobContext(spec))
    monkeypatch.setattr(networks, "open_extractor", None)  # a report needs no network
    monkeypatch.setattr(networks, "open_perceptual_network", None)
    reported = job_spec("report", **spec.inputs, score=spec.output)
    reported = reported.model_copy(update={"output": f"{spec.config.root}/reports/0123456789abcdef"})
    result = report.run(JobContext(reported))
    assert not any(storage.exists(claim) for claim in claims)
    metrics = json.loads(storage.read_text(storage.join(spec.output, "metrics.json")))
    through_the_stand_in = [f"{name}_efficientnet_lite0" for name in ("fd", "kd", "pd", "pd_diversity")]
    assert list(metrics["metrics"]) == [*through_the_stand_in, "psnr_upsampler", "ssim_upsampler", "edge_f1_canny"]
    assert list(metrics["kinds"]) == ["fid", "kid", "lpips", "lpips_diversity", "psnr", "ssim", "edge_f1"]
    assert 0 < metrics["metrics"]["edge_f1_canny"]["value"] < 1
    assert metrics["metrics"]["edge_f1_canny"]["note"].startswith("the photographs themselves come to 0.9")
    for metric in (metrics["metrics"][name] for name in through_the_stand_in):
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
    assert result["metrics"] == scored["metrics"] == metrics["metrics"]
    assert list(origin["runs"]) == ["stage2", "stage1", "pretrain", "upsampler"]
    assert origin["base"]["title"] == "stage 2, step 20"
    grid = np.asarray(Image.open(storage.local_path(result["grid"])))
    assert grid.shape[2] == 3
    page = storage.read_text(result["report"])
    for words in (
        "compare only with themselves", "stage 2 (this checkpoint)", "−50 %", spec.inputs["checkpoint"], "dpm++",
        "fd_efficientnet_lite0", "Best pictures", "Worst pictures", "validation split", "piti/evaluate -p config=",
    ):  # fmt: skip
        assert words in page
    assert ">FID<" not in page
    board = storage.read_text(result["leaderboard"])
    assert 'href="./0123456789abcdef/report.html"' in board
    assert "stage 2, step 20" in board
    assert load_config(storage.join(reported.output, "config.yaml")) == spec.config
    assert storage.read_json(storage.join(reported.output, "metrics.json")) == metrics
    assert storage.read_json(storage.join(spec.folder, "progress.json"))["message"] == "done"


def test_nothing_is_said_of_the_training_of_a_file(
    sampled: JobSpec, job_spec: SpecMaker, tmp_path: Path, small_config: Config
) -> None:
    """The runs of this config are there, but they are not those of the evaluated weights."""
    file = str(tmp_path / "published.pt")
    export_piti(load_model(sampled.inputs["checkpoint"], small_config.models.base), file)
    spec = job_spec("score", **{**score_inputs(sampled), "checkpoint": file, "upsampler": file})
    score.score(JobContext(spec))
    metrics = storage.read_json(storage.join(spec.output, "metrics.json"))
    assert (metrics["checkpoint"], metrics["step"]) == (file, 0)
    assert metrics["provenance"]["runs"] == {}
    assert metrics["provenance"]["base"] == {
        "uri": file, "title": "published.pt", "sha256": {"file": storage.sha256_file(file)}, "run": None,
    }  # fmt: skip
    result = report.run(JobContext(job_spec("report", **spec.inputs, score=spec.output)))
    page = storage.read_text(result["report"])
    assert "published.pt" in page
    assert "base training" not in page


def test_another_grid_needs_no_figures(sampled: JobSpec, job_spec: SpecMaker) -> None:
    """A second report from the same stored figures: its own step."""
    spec = job_spec("score", **score_inputs(sampled))
    score.score(JobContext(spec))
    evaluation = spec.config.evaluation.model_copy(update={"grid_samples": 1})
    other = spec.config.model_copy(update={"evaluation": evaluation})
    result = report.run(JobContext(job_spec("report", config=other, **spec.inputs, score=spec.output)))
    with Image.open(storage.local_path(result["grid"])) as sheet:
        assert sheet.height < 250
    assert score.score(JobContext(spec))["arrays_computed"] == 0


def test_damaged_stored_features_are_computed_again(sampled: JobSpec, job_spec: SpecMaker) -> None:
    """To the same bits, by a job of as many threads: two threads round features otherwise than one, by up to 1e-6."""
    spec = job_spec("score", **score_inputs(sampled))
    first = score.run(JobContext(spec))
    for path in Path(spec.config.root, "features").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:50])
    second = score.run(JobContext(spec))
    assert second["arrays_computed"] > 0
    assert second["metrics"] == first["metrics"]


def test_every_picture_of_the_truth_is_decoded_once(
    sampled: JobSpec, job_spec: SpecMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever looks at it: features, distances of three sets, edges, PSNR. With all that stored, none is decoded."""
    config = sampled.config.model_copy(update={"root": str(tmp_path / "root")})
    decoded: Counter[int] = Counter()
    example = ExampleReader.example

    def counted(reader: ExampleReader, number: int, seed: int | None) -> Example:
        decoded[number] += 1
        return example(reader, number, seed)

    monkeypatch.setattr(ExampleReader, "example", counted)
    spec = job_spec("score", config=config, **score_inputs(sampled))
    first = score.score(JobContext(spec))
    assert decoded == dict.fromkeys(range(6), 1)
    decoded.clear()
    again = score.score(JobContext(spec))
    assert (again["metrics"], again["arrays_computed"], decoded) == (first["metrics"], 0, {})


def test_a_damaged_truth_is_named(sampled: JobSpec, job_spec: SpecMaker, tmp_path: Path) -> None:
    shutil.copytree(sampled.inputs["shards"], tmp_path / "shards")
    reader = ExampleReader(sampled.inputs["shards"], "validation", sampled.config.data, None, sampled.config.scale)
    (tar,) = (tmp_path / "shards").glob("validation-*.tar")
    content = bytearray(tar.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 200] ^= 1  # in the first JPEG
    tar.write_bytes(content)
    inputs = {**score_inputs(sampled), "shards": str(tmp_path / "shards")}
    with pytest.raises(DataError, match=f"{re.escape(str(tmp_path))}/shards: sample {re.escape(reader.keys[0])} is damaged"):  # fmt: skip
        score.score(JobContext(job_spec("score", **inputs)))


def test_pictures_that_are_the_truth_have_no_distance(sampled: JobSpec, job_spec: SpecMaker, tmp_path: Path) -> None:
    """The whole way from shards to metrics: with the truth in place of generated pictures, distances are 0."""
    evaluation = Evaluation(sampled.config, sampled.inputs)
    perfect = with_pictures({}, str(tmp_path / "perfect"), "final", "base")
    for name, small in (("final", False), ("base", True)):
        truths = {key: evaluation.truth(key) for key in evaluation.keys}
        pictures = {key: truth.small if small else truth.picture for key, truth in truths.items()}
        write_pictures(storage.join(perfect[f"{PICTURES}{name}"], "000000-000006.tar"), pictures)
    result = score.score(JobContext(job_spec("score", **perfect, samples=sampled.output)))
    assert result["metrics"]["pd_efficientnet_lite0"]["value"] == 0
    assert result["metrics"]["fd_efficientnet_lite0"]["value"] < 1e-5
    assert {name: distance["value"] for name, distance in result["comparison"]["base"].items()} == {
        "lpips": 0,
        "rmse": 0,
    }
    assert result["metrics"]["edge_f1_canny"]["value"] > 0.9  # not 1: edges were found before the picture became a JPEG
    assert "pd_diversity_efficientnet_lite0" not in result["metrics"]
    assert "psnr_upsampler" not in result["metrics"]


@pytest.mark.parametrize("lost", ["final", "base", "stage1", "diversity", "upsampled"])
def test_missing_pictures_are_named(sampled: JobSpec, job_spec: SpecMaker, tmp_path: Path, lost: str) -> None:
    shutil.copytree(Path(set_folders(sampled.inputs)["final"]).parent, tmp_path / "pictures")
    for path in (tmp_path / "pictures" / lost).glob("*.tar"):
        path.unlink()
    key = pictures_of(sampled, "final").keys[0]
    inputs = score_inputs(sampled) | with_pictures({}, str(tmp_path / "pictures"), *SETS)
    with pytest.raises(DataError, match=rf"pictures of the set {lost} are missing: {re.escape(key)}"):
        score.score(JobContext(job_spec("score", **inputs)))


@pytest.mark.parametrize(("lost", "member"), [("final", "{key}.png"), ("diversity", "{key}.2.png")])
def test_a_picture_that_its_tar_lacks_is_named_and_drawn_anew(
    sampled: JobSpec, job_spec: SpecMaker, tmp_path: Path, lost: str, member: str
) -> None:
    """The remedy names the tar: once that is deleted, its pictures are missing, and are drawn."""
    shutil.copytree(Path(set_folders(sampled.inputs)["final"]).parent, tmp_path / "pictures")
    key = pictures_of(sampled, "final").keys[1]
    pictures = with_pictures({}, str(tmp_path / "pictures"), *SETS)
    holed = []
    for path in sorted((tmp_path / "pictures" / lost).glob("*.tar")):
        with tarfile.open(path) as archive:
            members = [(one, archive.extractfile(one).read()) for one in archive]  # type: ignore[union-attr]
        if member.format(key=key) in {one.name for one, _ in members}:
            holed.append(str(path))
            with tarfile.open(path, "w") as archive:
                for one, data in members:
                    if one.name != member.format(key=key):
                        archive.addfile(one, io.BytesIO(data))
    (tar,) = holed
    with pytest.raises(DataError, match=rf"1 of \d+ pictures of the set {lost} are missing: {re.escape(key)} - delete {re.escape(tar)} and run"):  # fmt: skip
        score.score(JobContext(job_spec("score", **(score_inputs(sampled) | pictures))))
    Path(tar).unlink()
    available = sample.count_conditions(sampled)
    parts = sample.missing_parts(sampled.config, set_folders(pictures), available)
    assert [part.set for part in parts] == [lost]


def test_without_weights_scoring_is_refused_unless_the_config_allows_it(sampled: JobSpec, job_spec: SpecMaker) -> None:
    config = sampled.config.model_copy(update={"allow_stand_in_networks": False})
    spec = job_spec("score", config=config, **score_inputs(sampled))
    with pytest.raises(CheckpointError, match=r"evaluation\.inception is not set, .* set evaluation\.inception\.path"):
        score.run(JobContext(spec))
    assert not Path(spec.output).exists()


def test_too_few_pictures_are_refused(sampled: JobSpec, job_spec: SpecMaker) -> None:
    sampling = sampled.config.sampling.model_copy(update={"num_samples": 3})
    config = sampled.config.model_copy(update={"sampling": sampling})
    with pytest.raises(DataError, match="there are 3 pictures to measure"):
        score.score(JobContext(job_spec("score", config=config, **score_inputs(sampled))))
