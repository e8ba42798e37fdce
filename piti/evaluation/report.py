"""What an evaluation has to tell: provenance, loss curves and timings of the runs behind it, as the report's data."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from eval import Metric
from eval.curves import LossCurve
from eval.features import FeatureExtractor
from eval.grid import PictureGrid
from eval.lpips import PerceptualNetwork
from eval.report import MetricRow, ReportData, StageDistance
from piti import storage
from piti.checkpoints import Checkpoint
from piti.config import STAGE_LABELS, STAGES, Config, Stage
from piti.evaluation.cascade import picture_seed
from piti.evaluation.picture_sets import describe_sampling
from piti.job import JobSpec
from piti.plan import fingerprint
from piti.provenance import code_commit, code_versions
from piti.training.metrics import read_metrics

_METRIC_WORDS = {
    "fid": ("FID", "lower", "distance between the feature statistics of the generated pictures and of the truth"),
    "kid": ("KID", "lower", "the same with a polynomial kernel, unbiased at any number of pictures"),
    "lpips": ("LPIPS", "lower", "mean perceptual distance of each generated picture to its ground truth"),
    "lpips_diversity": ("LPIPS diversity", "higher", "mean perceptual distance between pictures of one condition"),
}


def loss_curve(stage: Stage, records: Sequence[Mapping[str, Any]], begins_as: str = "untrained") -> LossCurve:
    """The noise and variational losses of a run's metrics (`read_metrics`), which all stages have in common."""

    def points(split: str) -> list[tuple[float, float | None]]:
        mine = [record for record in records if record["split"] == split]
        return [(record["step"], _diffusion_loss(record)) for record in mine]

    return LossCurve(STAGE_LABELS[stage], points("train"), points("validation"), begins_as)


def loss_curves(config: Config, inputs: Mapping[str, str]) -> list[LossCurve]:
    """One curve for each training run among a score job's inputs, in the order of stages."""
    begins = {
        "pretrain": "untrained",
        "stage1": "pretrained decoder, untrained encoder",
        "stage2": "stage 1",
        "upsampler": "untrained" if config.pretrained.upsampler is None else "pretrained",
    }
    return [
        loss_curve(stage, read_metrics(inputs[f"run_{stage}"]), begins[stage])
        for stage in STAGES
        if f"run_{stage}" in inputs
    ]


def provenance(spec: JobSpec, extractor: FeatureExtractor, network: PerceptualNetwork) -> dict[str, Any]:
    """All that is needed to say where a figure came from; JSON-able."""
    config = spec.config
    settings = config.model_dump(mode="json", exclude={"root", "cluster"})
    return {
        "config": config.name,
        "config_fingerprint": fingerprint(settings),
        "data_fingerprint": storage.name(spec.inputs["shards"]),
        "step_fingerprint": spec.fingerprint,
        "code_commit": code_commit(),
        **describe_sampling(config),
        "extractor": _network(extractor),
        "perceptual_network": _network(network),
        "comparable": extractor.comparable and network.comparable,
        "versions": code_versions(),
    }


def metric_values(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """Metrics as JSON: {"value", "low", "high"} and a note where there is one; null for what is not finite."""
    return {name: {key: _json(value) for key, value in asdict(metric).items() if value is not None or key != "note"}
            for name, metric in metrics.items()}  # fmt: skip


def stage_labels(names: Sequence[str], checkpoint: Checkpoint) -> list[str]:
    """Headings for the sets at the base network's size."""
    return [f"{checkpoint.label} (this checkpoint)" if name == "base" else STAGE_LABELS[name] for name in names]


def report_data(
    spec: JobSpec,
    checkpoint: Checkpoint,
    origin: Mapping[str, Any],
    metrics: Mapping[str, Metric],
    comparison: Mapping[str, Mapping[str, Metric]],
    grids: Sequence[PictureGrid],
    keys: Sequence[str],
) -> ReportData:
    """Everything that the report's page shows. `origin` is what `provenance` returns."""
    config = spec.config
    side = config.models.upsampler.image_size
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    labels = stage_labels(list(comparison), checkpoint)
    return ReportData(
        title=f"Evaluation of {config.name}: {checkpoint.label}, step {checkpoint.step}",
        subtitle=f"{len(keys)} pictures of {side}×{side} from {config.data.modality} conditions · {when}",
        facts=_facts(spec, checkpoint, origin),
        warnings=_warnings(origin),
        metrics=[_metric_row(name, metric) for name, metric in metrics.items()],
        curves=loss_curves(config, spec.inputs),
        comparison=[
            StageDistance(label, distances["lpips"], distances["rmse"], distances.get("lpips_gain"))
            for label, distances in zip(labels, comparison.values(), strict=True)
        ],
        grids=grids,
        timings=_timings(spec.inputs),
        config_text=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        seeds=[(key, picture_seed(config.seed, key)) for key in keys],
    )


def _facts(spec: JobSpec, checkpoint: Checkpoint, origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    config, sampler, guidance = spec.config, origin["sampler"], origin["guidance"]
    normalized = "normalised (equation 8)" if guidance["normalized"] else "not normalised"
    return [
        ("config", config.name),
        ("config fingerprint", origin["config_fingerprint"]),
        ("data", f"{config.data.source.kind} photographs, {config.data.modality} conditions, {spec.inputs['shards']}"),
        ("data fingerprint", origin["data_fingerprint"]),
        ("code commit", origin["code_commit"]),
        ("base checkpoint", checkpoint.uri),
        ("upsampler checkpoint", spec.inputs["upsampler"]),
        ("base sampler", sampler["base"]),
        ("upsampler sampler", sampler["upsampler"]),
        ("classifier-free guidance", f"scale {guidance['scale']:g}, {normalized}"),
        ("seeds", f"config seed {config.seed}; a picture's is a hash of (seed, key, variant, network), listed below"),
        *((label, _network_words(origin[name])) for name, label in
          (("extractor", "network of FID and KID"), ("perceptual_network", "network of LPIPS"))),
        ("libraries", ", ".join(f"{name} {version}" for name, version in origin["versions"].items() if name != "commit")),
    ]  # fmt: skip


def _warnings(origin: Mapping[str, Any]) -> list[str]:
    if origin["comparable"]:
        return []
    names = [
        network["name"] for network in (origin["extractor"], origin["perceptual_network"]) if not network["comparable"]
    ]
    return [
        f"These figures cannot be compared with published ones: they were measured with {' and '.join(names)}. "
        "They only tell better from worse between runs of this project that were measured with the same networks."
    ]


def _metric_row(name: str, metric: Metric) -> MetricRow:
    label, better, meaning = _METRIC_WORDS[name]
    return MetricRow(label, meaning, metric, better)


def _timings(inputs: Mapping[str, str]) -> list[tuple[str, float]]:
    """Durations of the steps behind the report, as far as their results tell."""
    steps = [("sharding", inputs["shards"])]
    steps += [(STAGE_LABELS[stage], inputs[f"run_{stage}"]) for stage in STAGES if f"run_{stage}" in inputs]
    steps.append(("sampling", inputs["samples"]))
    timings = []
    for label, uri in steps:
        marker = storage.join(uri, storage.MARKER)
        result = storage.read_json(marker) if storage.exists(marker) else {}
        seconds = next((result[key] for key in ("wall_seconds", "duration_seconds", "seconds") if key in result), None)
        if seconds is not None:
            timings.append((label, float(seconds)))
    return timings


def _diffusion_loss(record: Mapping[str, Any]) -> float | None:
    """mse + vb: the upsampler's own `loss` also has picture terms, which begin in the middle of its training."""
    if "mse" in record and "vb" in record:
        return None if record["mse"] is None or record["vb"] is None else record["mse"] + record["vb"]
    loss: float | None = record.get("loss")
    return loss


def _network(network: FeatureExtractor | PerceptualNetwork) -> dict[str, Any]:
    return {"name": network.name, "weights_sha256": network.weights_sha256, "comparable": network.comparable}


def _network_words(network: Mapping[str, Any]) -> str:
    return f"{network['name']}, weights sha256 {network['weights_sha256']}"


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
