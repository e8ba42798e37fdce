"""What an evaluation has to tell: provenance, loss curves and timings of the runs behind it, as the report's data."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from eval.curves import LossCurve
from eval.grid import PictureGrid
from eval.pictures import NetworkIdentity
from eval.report import MetricRow, ReportData, StageDistance
from piti import storage
from piti.checkpoints import Checkpoint
from piti.config import STAGE_LABELS, STAGES, Config, Stage
from piti.data.inspection import count_reasons
from piti.data.shards import ShardSet
from piti.evaluation.cascade import picture_seed
from piti.evaluation.figures import FIGURES, metric_from_json
from piti.evaluation.picture_sets import describe_sampling
from piti.job import JobSpec
from piti.plan import fingerprint
from piti.provenance import code_commit, code_versions
from piti.training.metrics import read_metrics

CONFIG_FILE = "config.yaml"
_REASONS_SHOWN = 10


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


def provenance(spec: JobSpec, extractor: NetworkIdentity, network: NetworkIdentity) -> dict[str, Any]:
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
        "extractor": asdict(extractor),
        "perceptual_network": asdict(network),
        "comparable": extractor.comparable and network.comparable,
        "versions": code_versions(),
    }


def stage_labels(names: Sequence[str], checkpoint: Checkpoint) -> list[str]:
    """Headings for the sets at the base network's size."""
    return [f"{checkpoint.label} (this checkpoint)" if name == "base" else STAGE_LABELS[name] for name in names]


def report_data(spec: JobSpec, stored: Mapping[str, Any], grids: Sequence[PictureGrid]) -> ReportData:
    """Everything that the report's page shows, from `stored` (metrics.json), pictures, and the results of earlier steps."""
    config, origin = spec.config, stored["provenance"]
    checkpoint = Checkpoint.at(stored["checkpoint"])
    side = config.models.upsampler.image_size
    comparison = {
        name: {kind: metric_from_json(value) for kind, value in distances.items()}
        for name, distances in stored["comparison"].items()
    }
    labels = stage_labels(list(comparison), checkpoint)
    return ReportData(
        title=f"Evaluation of {config.name}: {checkpoint.label}, step {checkpoint.step}",
        subtitle=f"{stored['num_samples']} pictures of {side}×{side} from {config.data.modality} conditions · {stored['evaluated']}",
        facts=_facts(spec, checkpoint, origin),
        warnings=_warnings(origin),
        metrics=metric_rows(config, stored["kinds"], stored["metrics"]),
        curves=loss_curves(config, spec.inputs),
        comparison=[
            StageDistance(label, distances["lpips"], distances["rmse"], distances.get("lpips_gain"))
            for label, distances in zip(labels, comparison.values(), strict=True)
        ],
        grids=grids,
        timings=_timings(spec.inputs),
        config_text=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        seeds=[(key, picture_seed(config.seed, key)) for key in stored["per_picture"]["lpips"]],
        data=_data_facts(spec.inputs["shards"]),
        command=_command(spec, checkpoint),
    )


def metric_rows(config: Config, kinds: Mapping[str, str], metrics: Mapping[str, Mapping[str, Any]]) -> list[MetricRow]:
    """Rows of figures. `kinds` maps the kinds of `FIGURES` to names in `metrics` (JSON)."""
    rows = []
    for kind, figure in FIGURES.items():
        if kind not in kinds:
            continue
        metric = metric_from_json(metrics[kinds[kind]])
        comparable = metric.network is None or metric.network.comparable
        published = config.evaluation.published.get(kind) if comparable else None
        rows.append(MetricRow(figure.label(metric), figure.meaning, metric, figure.better, published))
    return rows


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
        ("libraries", ", ".join(f"{name} {version}" for name, version in origin["versions"].items() if name != "commit")),
    ]  # fmt: skip


def _warnings(origin: Mapping[str, Any]) -> list[str]:
    names = [
        network["name"] for network in (origin["extractor"], origin["perceptual_network"]) if not network["comparable"]
    ]
    if not names:
        return []
    return [
        f"Figures measured with {' and '.join(names)} cannot be compared with published ones. "
        "They compare only with themselves: with figures of this project that were measured with the same networks."
    ]


def _command(spec: JobSpec, checkpoint: Checkpoint) -> str:
    """What evaluates the same checkpoint again, under the config that is stored beside the report."""
    arguments = (f"config={storage.join(spec.output, CONFIG_FILE)}", f"checkpoints={json.dumps([checkpoint.uri])}")
    return " ".join(
        ["prefect deployment run piti/evaluate", *(f"-p {shlex.quote(argument)}" for argument in arguments)]
    )


def _data_facts(uri: str) -> list[tuple[str, str]]:
    """Samples of each split, and what was not used and why."""
    shards = ShardSet(uri)
    facts = [(f"{split} split", f"{shards.num_samples(split)} pictures") for split in shards.splits]
    facts += [(status, f"{count}: {reason}") for status, reason, count in count_reasons(shards)[:_REASONS_SHOWN]]
    return facts


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
