"""Job `train`: one training stage on Ray Train workers, resumed where it was left.

The driver (`run`) starts the workers and watches them; the workers (`_worker`) run `piti.training.loop.train`.
Everything of a run lies in its output folder, which is at the same time Ray Train's run folder: the run's name
is the output folder's, so whoever starts it again resumes it.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from piti import storage
from piti.checkpoints import clear_leftovers, newest_step, newest_whole_checkpoint
from piti.config import Stage
from piti.errors import PitiError, first_line
from piti.job import JobContext, JobResult, JobSpec
from piti.runs import WORKERS_FILE
from piti.training.failures import Cause, Retries, root_cause

logger = logging.getLogger("piti")

# Ray Train's defaults suit runs of hours. A trivial run of 2 workers on 2 cores took 30 s with them, 13 s with
# these: a report and the end of a run each wait for the next poll, and metrics.jsonl says what Ray's metrics would.
_QUICK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25", "RAY_TRAIN_METRICS_ENABLED": "0"}
# Only a cluster of several nodes can lose one; elsewhere it is a process less to start.
_SINGLE_NODE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
# Relative paths must mean the same in workers as in the driver. Log lines go to people, not to terminals.
_CONDUCT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
}

# Parts of Ray Train that nothing here uses: Ray Data's datasets, and a cleaner for controllers that outlive their job.
# Each starts a process, which takes seconds of every stage, and which the stage waits for.
_UNUSED_CALLBACKS = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


def run(context: JobContext) -> JobResult:
    """Train the stage `context.spec.name`.

    Raises PitiError for what trying again would not change, RuntimeError once `cluster.max_failures` is used up; both
    name the root cause.
    """
    _prefer(_QUICK | _CONDUCT)  # before Ray is imported, which is when it reads some of them
    import ray

    from piti.jobs.ray_tasks import ray_connection

    with ray_connection():
        if len(ray.nodes()) == 1:  # type: ignore[no-untyped-call]
            _prefer(_SINGLE_NODE)
        return _fit(context)


def _prefer(environment: dict[str, str]) -> None:
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def _fit(context: JobContext) -> JobResult:
    """Ray Train retries whatever a worker raises, even what will never change. So it is told not to: `Retries` decides."""
    import ray.train
    from ray.train.v2.api.exceptions import ControllerError

    name, retries = context.spec.name, Retries(context.config.cluster.max_failures)
    while True:
        try:
            return cast(JobResult, _trainer(context).fit().return_value)
        except ray.train.WorkerGroupError as error:
            cause = root_cause(error.worker_failures)
        except ControllerError as error:
            cause = Cause(f"Ray Train's controller failed: {first_line(error.controller_failure)}")
        if cause.error is not None:
            raise cause.error
        if not retries.after(cause, newest_step(context.spec.output)):
            raise _failed(name, cause, retries)
        context.info(
            f"{name}: {cause.line}; restart {retries.num_failures} of {retries.max_failures} from the last checkpoint"
        )


def _failed(name: str, cause: Cause, retries: Retries) -> Exception:
    """What the job fails with: a PitiError, which the flow does not try again, where the same error came twice."""
    if retries.repeats:
        remedy = (
            cause.remedy or "the traceback is in the job's log; the step's next run goes on from the last checkpoint"
        )
        return PitiError(f"{name} failed twice in the same place: {cause.line}", remedy)
    return RuntimeError(f"{name} failed {retries.num_failures} times without progress: {cause.line}")


def _trainer(context: JobContext) -> Any:
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if type(callback).__name__ not in _UNUSED_CALLBACKS]

    cluster, output = context.config.cluster, context.spec.output
    workers = context.config.workers(cast(Stage, context.spec.name))
    folder, filesystem = _ray_storage(output)
    run_config = RunConfig(
        name=storage.name(output),
        storage_path=folder,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=0),
        logging_config=LoggingConfig(log_level="WARNING"),
    )
    return Trainer(
        cast(Callable[[dict[Any, Any]], None], _worker),
        train_loop_config={"spec": context.spec},
        scaling_config=ScalingConfig(
            num_workers=workers.max if workers.min == workers.max else (workers.min, workers.max),
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.use_gpu else {})},
        ),
        run_config=run_config,
    )


def _ray_storage(output: str) -> tuple[str, Any]:
    """Ray Train's storage path and filesystem: the folder that `output` lies in, reached as piti.storage does."""
    parent = output.rstrip("/").rsplit("/", 1)[0]
    fs, path = storage.filesystem(parent)
    if storage.is_local(output):
        return path, None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return path, PyFileSystem(FSSpecHandler(fs))


def _worker(told: dict[str, JobSpec]) -> JobResult:
    """What each Ray Train worker runs. The first worker's result becomes the job's."""
    import ray.train
    import ray.train.torch
    import torch

    from piti.training.loop import train
    from piti.training.workers import Workers

    context = JobContext(told["spec"])
    _log_to_driver(ray.train.get_context().get_world_rank())
    if not context.config.cluster.use_gpu:
        torch.set_num_threads(context.config.cluster.cpus_per_worker)
    device = ray.train.torch.get_device()
    workers = Workers.current(device)
    run = context.spec.output
    places = workers.tell_all({"host": socket.gethostname(), "device": _device_name(device)})
    if workers.is_first:
        clear_leftovers(run)
        storage.write_json(storage.join(run, WORKERS_FILE), {"began": time.time(), "workers": places})
    resume_from = workers.agree(newest_whole_checkpoint(run) if workers.is_first else None)
    if resume_from is not None and workers.is_first:
        context.info(f"{context.spec.name}: resuming from {resume_from}")

    try:
        result = train(context, workers, resume_from)
    except PitiError:
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # it would log a traceback, the driver says it better
        raise
    if workers.is_first:
        _draw_curve(context.spec)
    return result


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _draw_curve(spec: JobSpec) -> None:
    """curve.png beside metrics.jsonl: the flow shows it in the Prefect UI."""
    from eval.curves import loss_curve_png
    from piti.evaluation.report import loss_curve
    from piti.training.metrics import read_metrics

    curve = loss_curve(cast(Stage, spec.name), read_metrics(spec.output))
    storage.write_bytes(storage.join(spec.output, "curve.png"), loss_curve_png(curve))


def _log_to_driver(rank: int) -> None:
    """Make this worker's log lines look like the driver's, which prints them."""
    handler = logging.StreamHandler(sys.stdout)
    place = "" if rank == 0 else f"worker {rank}: "
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {place}%(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
