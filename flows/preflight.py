"""Checks that take seconds and run before any heavy step. One error lists all problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.cluster import Cluster, Resources, patiently
from flows.parameters import Overrides
from piti import storage
from piti.checkpoints import most_checkpoints
from piti.config import STAGES, Config, Stage
from piti.config.presets import load_config
from piti.data.sources import open_source
from piti.data.sources.trees import shared_listings
from piti.errors import ConfigError, PitiError, PreflightError
from piti.plan import Plan
from piti.settings import settings as machine_settings
from piti.weights import unpinned_keys, weights_problems


def preflight(config: str, overrides: Overrides = None, training: bool = True) -> Plan:
    """A plan whose config, data, weights, disk and cluster have been looked at. Raises PreflightError with all problems.

    Without `training` only what evaluation needs is asked for: the shards, or else the validation split of the dataset;
    not VGG19, not the weights that training begins from, no room for checkpoints, and a cluster that holds one worker.
    """
    return copy(
        _preflight(config, overrides, training)
    )  # Prefect would draw an arrow to every step that gets the task's own


@task(name="preflight", task_run_name="preflight {config}", cache_policy=NO_CACHE)
def _preflight(config: str, overrides: Overrides = None, training: bool = True) -> Plan:
    settings = load_config(config, overrides, machine_settings().allowed_folders())
    with shared_listings():
        problems = [*config_problems(settings, training), *cluster_problems(settings, training)]
        if problems:
            raise PreflightError(problems)
        plan = Plan(settings)
        data = plan.shard if training else plan.conditions
        for key in unpinned_keys(settings) if training else []:
            get_run_logger().warning("%s is not set: what is done already stays when another file takes its place", key)
        get_run_logger().info("config %s, data in %s, output in %s", settings.name, data.output, settings.root)
    return plan


def config_problems(config: Config, training: bool = True) -> list[PitiError]:
    """What is wrong with dataset, respacings, weights and, for `training`, pretrained networks, sizes and disk."""
    sharding = training or not _is_sharded(config)
    return [
        *(source_problems(config) if training else validation_problems(config) if sharding else []),
        *sampling_problems(config),
        *weights_problems(config, training),
        *(pretrained_problems(config) if training else []),
        *feature_network_problems(config),
    ]


def validation_problems(config: Config) -> list[PitiError]:
    """Problems of the dataset's validation split."""
    return open_source(config.data).problems(["validation"])


def _is_sharded(config: Config) -> bool:
    """Whether what evaluation reads of the dataset is there, so that the dataset itself need not be."""
    try:
        return Plan(config).conditions.result() is not None
    except PitiError:
        return False


def source_problems(config: Config) -> list[PitiError]:
    """What is wrong with the dataset itself, and with its size for this training and this disk."""
    source = open_source(config.data)
    if problems := list(source.problems()):
        return problems
    num_found = sum(1 for _ in source.items("train"))
    num_samples = num_found if config.data.max_samples is None else min(num_found, config.data.max_samples)
    return [*_size_problems(config, num_samples), *_disk_problems(config, num_samples)]


def _size_problems(config: Config, num_samples: int) -> Iterator[PitiError]:
    for stage in STAGES:
        settings = config.stage(stage)
        if settings is not None and num_samples < settings.batch_size:
            yield PitiError(
                f"the training split has {num_samples} pictures, fewer than one batch of training.{stage} ({settings.batch_size})",
                f"lower training.{stage}.batch_size or add pictures",
            )


def _disk_problems(config: Config, num_samples: int) -> Iterator[PitiError]:
    free = storage.free_bytes(config.root)
    if free is None:
        return
    # A PNG of a photograph needs at most about 2.5 bytes a pixel.
    pixels = config.data.image_size**2
    pictures = num_samples * pixels * 2.5 * (1 + config.degradation.variants / config.scale**2)
    checkpoints = sum(_checkpoints_bytes(config, stage) for stage in STAGES)
    needed = pictures + checkpoints
    if free < needed:
        yield PitiError(
            f"{config.root} has {free / 1e9:.1f} GB free, this run needs about {needed / 1e9:.1f} GB",
            "free some space, or set root to a larger disk",
        )


def _checkpoints_bytes(config: Config, stage: Stage) -> float:
    """What the checkpoints of a stage take at once at most. One holds weights, averages and two moments of what is
    trained; stage 1's decoder, which is not, is stored once."""
    settings = config.stage(stage)
    if settings is None:
        return 0.0
    encoder, decoder = _parameters_upper_bounds(config, stage)
    trained, frozen = (encoder, decoder) if stage == "stage1" else (encoder + decoder, 0.0)
    return 16 * trained * most_checkpoints(settings) + 4 * frozen


def _parameters_upper_bounds(config: Config, stage: Stage) -> tuple[float, float]:
    """Rough counts of the parameters of encoder and decoder: the published ones scaled by width squared."""
    model = config.models.upsampler if stage == "upsampler" else config.models.base
    return 30e6 * (model.encoder_width / 512) ** 2, 325e6 * (model.model_channels / 192) ** 2


def feature_network_problems(config: Config) -> list[PitiError]:
    """What is wrong with files of feature networks; without any, the libraries that open them are not even loaded."""
    if not any(config.evaluation.files.values()):
        return []
    from piti.evaluation import networks

    return networks.network_problems(config)


def pretrained_problems(config: Config) -> list[PitiError]:
    """Problems of the pretrained weights."""
    if config.pretrained.base is None and config.pretrained.upsampler is None:
        return []
    from piti.models import pretrained  # imports torch, which no other task needs

    return pretrained.pretrained_problems(config)


def sampling_problems(config: Config) -> list[PitiError]:
    """Problems of the respacings: those that the noise schedules cannot give."""
    from piti.diffusion.schedule import betas_of, respaced_timesteps  # imports torch, which no other task needs

    problems: list[PitiError] = []
    for network, respacing in (
        (config.diffusion.base, config.sampling.base_respacing),
        (config.diffusion.upsampler, config.sampling.upsampler_respacing),
    ):
        try:
            respaced_timesteps(betas_of(network.schedule, network.steps), respacing)
        except ConfigError as problem:
            problems.append(problem)
    return problems


def cluster_problems(config: Config, training: bool = True) -> list[PitiError]:
    """Whether the cluster answers, and is or can become large enough: for `training`, or else for one worker."""
    try:
        cluster, total = _cluster()
        problems = size_problems(config, total, training)
        is_limited = config.cluster.max_cpus is not None or config.cluster.max_gpus is not None
        if problems and not is_limited and patiently(get_run_logger(), cluster.grows):
            for problem in problems:
                get_run_logger().warning(
                    "%s now, and grows by itself; jobs wait until it has: cluster.max_cpus and max_gpus tell how far",
                    problem.problem,
                )
            return []
        return problems
    except PitiError as error:
        return [error]


def size_problems(config: Config, total: Resources, training: bool = True) -> list[PitiError]:
    """What training, or else evaluation's one worker, wants and a cluster of this size, or grown, cannot give."""
    wanted, most = wanted_resources(config, training), grown(config, total)
    what, workers = ("training", most_workers(config)) if training else ("evaluation", 1)
    grows = most != total
    has = "the cluster grows to" if grows else "the cluster has"
    problems: list[PitiError] = []
    if wanted.cpus > most.cpus:
        problems.append(
            PitiError(
                f"{what} wants {wanted.cpus:g} CPUs ({workers} workers), {has} {most.cpus:g}",
                "lower cluster.num_workers or cluster.cpus_per_worker, or add nodes",
            )
        )
    if wanted.gpus > most.gpus:
        problems.append(
            PitiError(
                f"{what} wants {wanted.gpus:g} GPUs, {has} {most.gpus:g}",
                "lower cluster.num_workers, set cluster.use_gpu to false, or add nodes",
            )
        )
    return problems


def grown(config: Config, total: Resources) -> Resources:
    """What a cluster that has `total` now can become: `cluster.max_cpus` and `max_gpus`, where they are larger."""
    return Resources(max(total.cpus, config.cluster.max_cpus or 0), max(total.gpus, config.cluster.max_gpus or 0))


def most_workers(config: Config, stages: Sequence[Stage] = STAGES) -> int:
    """Workers that any of `stages` needs at least."""
    return max(config.workers(stage).min for stage in stages)


def wanted_resources(config: Config, training: bool = True, stages: Sequence[Stage] = STAGES) -> Resources:
    """What a job of `stages` needs while it runs, or else the least that evaluation needs: one worker at a time."""
    workers = most_workers(config, stages) if training else 1
    return Resources(workers * config.cluster.cpus_per_worker, workers if config.cluster.use_gpu else 0)


def fit_beside_each_other(config: Config, total: Resources | None = None) -> bool:
    """Whether the cluster (of `total`; None: the one that runs) can train the base's stages and the upsampler at once."""
    most = grown(config, _cluster()[1] if total is None else total)
    base = wanted_resources(config, stages=["pretrain", "stage1", "stage2"])
    upsampler = wanted_resources(config, stages=["upsampler"])
    return base.cpus + upsampler.cpus <= most.cpus and base.gpus + upsampler.gpus <= most.gpus


def _cluster() -> tuple[Cluster, Resources]:
    """The cluster and what it has; one that is away is waited for."""

    def ask() -> tuple[Cluster, Resources]:
        cluster = Cluster()
        return cluster, cluster.resources()

    return patiently(get_run_logger(), ask)
