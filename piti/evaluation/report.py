"""The report's data: figures, provenance, loss curves and timings of the runs behind an evaluation."""

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
from piti.config import STAGE_LABELS, STAGES, Config, Stage
from piti.data.inspection import count_reasons
from piti.data.shards import ShardSet
from piti.evaluation.cascade import picture_seed
from piti.evaluation.figures import FIGURES, metric_from_json
from piti.evaluation.history import checkpoint_history, drawn_in_training
from piti.evaluation.picture_sets import describe_sampling
from piti.evaluation.targets import Network
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


def loss_curves(runs: Mapping[str, Mapping[str, str]]) -> list[LossCurve]:
    """One curve for each training run behind the networks (`training_runs`) whose metrics are there."""
    found = ((stage, runs[stage], read_metrics(runs[stage]["run"])) for stage in STAGES if stage in runs)
    return [loss_curve(stage, records, run["begins_as"]) for stage, run, records in found if records]


def training_runs(*networks: Network) -> dict[str, dict[str, str]]:
    """The runs that networks were trained in, by stage, and what each began from: as far as checkpoints tell."""
    runs: dict[str, dict[str, str]] = {}
    for network in (ancestor for evaluated in networks for ancestor in evaluated.lineage()):
        if network.checkpoint is not None and network.run is not None:
            origin = network.checkpoint.about.get("origin") or {}
            runs.setdefault(str(network.stage), {"run": network.run, "begins_as": _begins_as(origin)})
    return runs


def _begins_as(origin: Mapping[str, Any]) -> str:
    if "decoder" in origin:
        return "pretrained decoder, untrained encoder"
    if "path" in origin:
        parts = {"model": "pretrained", "decoder": "pretrained decoder, untrained encoder"}
        return parts.get(str(origin.get("loaded")), "pretrained encoder, untrained decoder")
    return "stage 1" if "/" in str(origin.get("model", "")) else "untrained"


def provenance(
    spec: JobSpec, extractor: NetworkIdentity, network: NetworkIdentity, drawn_by: Mapping[str, Any]
) -> dict[str, Any]:
    """All that is needed to say where a figure came from; JSON-able. `drawn_by`: `PictureSet.about` of a final picture.

    What is said of training is what the evaluated checkpoints say of their own: nothing, for a file.
    """
    config = spec.config
    base, upsampler = (Network.at(spec.inputs[name]) for name in ("checkpoint", "upsampler"))
    settings = config.model_dump(mode="json", exclude={"root", "cluster", "tracking"})
    return {
        "config": config.name,
        "config_fingerprint": fingerprint(settings),
        "data_fingerprint": storage.name(spec.inputs["shards"]),
        "step_fingerprint": spec.fingerprint,
        "base": base.describe() | _loaded(drawn_by, "base"),
        "upsampler": upsampler.describe() | _loaded(drawn_by, "upsampler"),
        "runs": training_runs(base, upsampler),
        "code_commit": code_commit(),
        **describe_sampling(config),
        "extractor": asdict(extractor),
        "perceptual_network": asdict(network),
        "comparable": extractor.comparable and network.comparable,
        "versions": code_versions(),
    }


def _loaded(drawn_by: Mapping[str, Any], network: str) -> dict[str, str]:
    """Which part of a network a file filled."""
    told = drawn_by.get(network, {})
    return {"loaded": told["loaded"]} if "loaded" in told else {}


def stage_labels(names: Sequence[str], origin: Mapping[str, Any]) -> list[str]:
    """Headings for the sets at the base network's size. `origin`: the stored provenance."""
    stage = origin["base"].get("stage")
    label = STAGE_LABELS.get(stage, stage) if stage else origin["base"]["title"]
    return [f"{label} (this checkpoint)" if name == "base" else STAGE_LABELS[name] for name in names]


def report_data(spec: JobSpec, stored: Mapping[str, Any], grids: Sequence[PictureGrid]) -> ReportData:
    """Everything that the report's page shows, from `stored` (metrics.json), pictures, and the results of earlier steps."""
    config, origin = spec.config, stored["provenance"]
    side = config.models.upsampler.image_size
    comparison = {
        name: {kind: metric_from_json(value) for kind, value in distances.items()}
        for name, distances in stored["comparison"].items()
    }
    labels = stage_labels(list(comparison), origin)
    return ReportData(
        title=f"Evaluation of {config.name}: {origin['base']['title']}",
        subtitle=f"{stored['num_samples']} pictures of {side}×{side} from {config.data.modality} conditions · {stored['evaluated']}",
        facts=_facts(spec, origin),
        warnings=_warnings(origin),
        metrics=metric_rows(config, stored["kinds"], stored["metrics"]),
        curves=loss_curves(origin["runs"]),
        comparison=[
            StageDistance(label, distances["lpips"], distances["rmse"], distances.get("lpips_gain"))
            for label, distances in zip(labels, comparison.values(), strict=True)
        ],
        grids=grids,
        timings=_timings(spec.inputs, origin["runs"]),
        config_text=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        seeds=[(key, picture_seed(config.seed, key)) for key in stored["per_picture"]["lpips"]],
        data=_data_facts(spec.inputs["shards"]),
        command=_command(spec, origin),
        history=checkpoint_history(spec.output.rstrip("/").rpartition("/")[0], stored, storage.name(spec.output)),
        drawn_in_training=drawn_in_training(origin["runs"]),
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


def _facts(spec: JobSpec, origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    config, sampler, guidance = spec.config, origin["sampler"], origin["guidance"]
    normalized = "normalised (equation 8)" if guidance["normalized"] else "not normalised"
    return [
        ("config", config.name),
        ("config fingerprint", origin["config_fingerprint"]),
        ("data", f"{config.data.source.kind} photographs, {config.data.modality} conditions, {spec.inputs['shards']}"),
        ("data fingerprint", origin["data_fingerprint"]),
        ("code commit", origin["code_commit"]),
        *_network_facts("base", origin["base"]),
        *_network_facts("upsampler", origin["upsampler"]),
        ("base sampler", sampler["base"]),
        ("upsampler sampler", sampler["upsampler"]),
        ("classifier-free guidance", f"scale {guidance['scale']:g}, {normalized}"),
        ("seeds", f"config seed {config.seed}; a picture's is a hash of (seed, key, variant, network), listed below"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in origin["versions"].items() if name != "commit")),
    ]  # fmt: skip


def _network_facts(name: str, network: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a network's weights are from, and what its checkpoint says of its training."""
    facts = [(f"{name} checkpoint", network["uri"]), (f"{name} weights", ", ".join(network["sha256"].values()))]
    if "fingerprint" in network:
        told = f"{network.get('samples', 'unknown')} pictures seen, seed {network.get('seed', 'unknown')}"
        facts.append((f"{name} training", f"run {network['fingerprint']}, {told}, code {network.get('code_commit')}"))
    return facts


def _warnings(origin: Mapping[str, Any]) -> list[str]:
    return [*_part_warnings(origin), *_comparability_warnings(origin)]


def _part_warnings(origin: Mapping[str, Any]) -> list[str]:
    other = {"decoder": "encoder", "encoder": "decoder"}
    return [
        f"{origin[name]['uri']} holds {origin[name]['loaded']} weights alone: the {name} network's "
        f"{other[origin[name]['loaded']]} is untrained."
        for name in ("base", "upsampler")
        if origin[name].get("loaded") in other
    ]


def _comparability_warnings(origin: Mapping[str, Any]) -> list[str]:
    names = [
        network["name"] for network in (origin["extractor"], origin["perceptual_network"]) if not network["comparable"]
    ]
    if not names:
        return []
    return [
        f"Figures measured with {' and '.join(names)} cannot be compared with published ones. "
        "They compare only with themselves: with figures of this project that were measured with the same networks."
    ]


def _command(spec: JobSpec, origin: Mapping[str, Any]) -> str:
    """What evaluates the same pair again, under the config that is stored beside the report."""
    arguments = (
        f"config={storage.join(spec.output, CONFIG_FILE)}", f"checkpoints={json.dumps([origin['base']['uri']])}",
        f"upsampler={json.dumps(origin['upsampler']['uri'])}",
    )  # fmt: skip
    return " ".join(
        ["prefect deployment run piti/evaluate", *(f"-p {shlex.quote(argument)}" for argument in arguments)]
    )


def _data_facts(uri: str) -> list[tuple[str, str]]:
    """Samples of each split, and what was not used and why."""
    shards = ShardSet(uri)
    facts = [(f"{split} split", f"{shards.num_samples(split)} pictures") for split in shards.splits]
    facts += [(status, f"{count}: {reason}") for status, reason, count in count_reasons(shards)[:_REASONS_SHOWN]]
    return facts


def _timings(inputs: Mapping[str, str], runs: Mapping[str, Mapping[str, str]]) -> list[tuple[str, float]]:
    """Durations of the steps behind the report, as far as their results tell."""
    steps = [("sharding", inputs["shards"])]
    steps += [(STAGE_LABELS[stage], runs[stage]["run"]) for stage in STAGES if stage in runs]
    steps += [("sampling", inputs["samples"]), ("scoring", inputs["score"])]
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
