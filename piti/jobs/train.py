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
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from piti import storage
from piti.checkpoints import clear_leftovers, newest_step
from piti.config import Stage
from piti.errors import PitiError, PreemptedError
from piti.job import SPEC_FILE, JobContext, JobResult, JobSpec
from piti.jobs.failures import reason_of
from piti.runs import WORKERS_FILE
from piti.training.failures import Cause, Retries, root_cause
from piti.training.watchdog import Watchdog, leave_stall

if TYPE_CHECKING:
    from piti.jobs.driver import Driver

logger = logging.getLogger("piti")

# Ray Train's defaults suit runs of hours. A trivial run of 2 workers on 2 cores took 30 s with them, 13 s with
# these: a report and the end of a run each wait for the next poll, and metrics.jsonl says what Ray's metrics would.
_QUICK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25", "RAY_TRAIN_METRICS_ENABLED": "0"}
_RESIZE_SECONDS = 300.0  # between looks for room for more workers: a resize goes back to the last checkpoint
_COLLECTIVE_SPARE_SECONDS = 120.0  # collectives outlast `stall_seconds`, so that the stacks of a hang come first
_LAST_SECONDS = 2.0  # for workers.json, which had the whole run to be written, where the run ends before its last step
# Relative paths must mean the same in workers as in the driver. Log lines go to people, not to terminals.
_CONDUCT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",  # the stacks of two workers that hang differ by numbers alone
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
    _prefer(_QUICK | _CONDUCT | time_outs(context))  # before Ray is imported, which is when it reads some of them
    from piti.jobs.driver import Driver
    from piti.jobs.ray_tasks import ray_connection

    with ray_connection(), Driver(context, cast(Stage, context.spec.name)) as driver:
        return _fit(context, driver)


def time_outs(context: JobContext) -> dict[str, str]:
    """Ray Train's own time-outs. NCCL's monitoring, where there is any, says which ranks' collectives disagree before
    `stall_seconds` ends the hang with every worker's stacks, but not while shards out of reach are waited for."""
    stall_seconds, start_seconds = context.config.cluster.stall_seconds, context.config.cluster.start_seconds
    limits = {"RAY_TRAIN_COLLECTIVE_TIMEOUT_S": f"{stall_seconds:g}"}
    workers = context.config.cluster.workers
    if workers.min == workers.max:  # else Ray's own, after which it looks anew for how many workers there is room
        limits["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{start_seconds:g}"
    if not context.config.cluster.use_gpu:
        return limits
    return limits | {
        "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": "1",
        "RAY_TRAIN_NCCL_RAS_ACTION": "observe",
        "RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S": f"{0.75 * stall_seconds:g}",
    }


def _prefer(environment: dict[str, str]) -> None:
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def _fit(context: JobContext, driver: Driver) -> JobResult:
    """Ray Train retries whatever a worker raises, even what will never change. So it is told not to: `Retries` decides."""
    import ray.train
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError

    name, retries = context.spec.name, Retries(context.config.cluster.max_failures)
    while True:
        _wait_for_storage(context.spec)
        try:
            return cast(JobResult, _trainer(context, driver.attempt()).fit().return_value)
        except ray.train.WorkerGroupError as error:
            cause = root_cause(error.worker_failures) if error.worker_failures else Cause(_told(error))
        except ControllerError as error:
            if isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
                continue  # nobody's fault either: `driver` says what the workers wait for
            reason = _reason_of_controller(error.controller_failure)
            cause = Cause(reason, signature=reason)
        if isinstance(cause.error, PreemptedError):  # nobody's fault: it does not count
            context.info(f"{cause.error}; going on elsewhere from the last checkpoint")
            continue
        if cause.error is not None:
            raise cause.error
        _wait_for_storage(context.spec)  # which tells of stalls and of progress
        if stalls := driver.stalls():
            cause = Cause(f"{stalls[0]}; the log has the stacks of every worker")
        if not retries.after(cause, newest_step(context.spec.output)):
            raise _failed(name, cause, retries)
        context.info(
            f"{name}: {cause.line}; restart {retries.num_failures} of {retries.max_failures} from the last checkpoint"
        )


def _reason_of_controller(failure: Exception) -> str:
    """One line. Of a worker that could not begin, Ray quotes the traceback, whose last line says why."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    quoted = str(failure).splitlines()[1:] if isinstance(failure, WorkerGroupStartupFailedError) else []
    return " ".join(["Ray Train's controller failed:", reason_of(failure), *quoted[-1:]])


def _told(error: Exception) -> str:
    """What Ray Train says of a group whose workers raised nothing, as NCCL's monitoring does of a hang."""
    return f"{type(error).__name__}: {str(error).partition(':')[2].strip().partition(chr(10))[0]}"


def _wait_for_storage(spec: JobSpec) -> None:
    """Without it, a start would find neither shards nor checkpoints, and take that for the truth."""
    storage.wait_until_there(storage.join(spec.folder, SPEC_FILE))


def _failed(name: str, cause: Cause, retries: Retries) -> Exception:
    """What the job fails with: a PitiError, which the flow does not try again, where the same error came twice."""
    if retries.repeats:
        remedy = (
            cause.remedy or "the traceback is in the job's log; the step's next run goes on from the last checkpoint"
        )
        return PitiError(f"{name} failed twice in the same place: {cause.line}", remedy)
    remedy = f" - {cause.remedy}" if cause.remedy else ""
    return RuntimeError(f"{name} failed {retries.num_failures} times without progress: {cause.line}{remedy}")


def _trainer(context: JobContext, attempt: str) -> Any:
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    from piti.jobs.driver import resources_of

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
        # Ray's collectives stay strict: workers that are about to go take part in each step until all end together.
        failure_config=FailureConfig(
            max_failures=0, controller_failure_limit=0, preemption_grace_s=cluster.preemption_grace_seconds
        ),
        logging_config=LoggingConfig(log_level="WARNING"),
    )
    return Trainer(
        cast(Callable[[dict[Any, Any]], None], _worker),
        train_loop_config={"spec": context.spec, "attempt": attempt},
        torch_config=TorchConfig(timeout_s=int(cluster.stall_seconds + _COLLECTIVE_SPARE_SECONDS)),
        scaling_config=ScalingConfig(
            num_workers=workers.max if workers.min == workers.max else (workers.min, workers.max),
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
            use_gpu=cluster.use_gpu,
            resources_per_worker=resources_of(cluster),
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


class WorkerContext(JobContext):
    """A worker's connection to the outside: Ray tells it of preemption, and a watchdog ends it where it hangs."""

    def __init__(self, spec: JobSpec, attempt: str, rank: int) -> None:
        super().__init__(spec)
        last_words = partial(leave_stall, spec.folder, attempt, rank)
        self.watchdog = Watchdog(spec.config.cluster.stall_seconds, f"worker {rank} of {spec.name}", last_words)

    def is_preempted(self) -> bool:
        import ray.train

        return ray.train.get_preemption_info() is not None

    def alive(self, step: int) -> None:
        self.watchdog.fed(step)


def _worker(told: dict[str, Any]) -> JobResult:
    """What each Ray Train worker runs. The first worker's result becomes the job's."""
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    _log_to_driver(rank)
    context = WorkerContext(told["spec"], told["attempt"], rank)
    try:
        return _train(context, told["attempt"])
    finally:
        context.watchdog.close()


def _train(context: WorkerContext, attempt: str) -> JobResult:
    import ray.train.torch
    import torch

    from piti.training.loop import train
    from piti.training.publisher import Publisher
    from piti.training.workers import Workers

    if not context.config.cluster.use_gpu:
        torch.set_num_threads(context.config.cluster.cpus_per_worker)
    device = ray.train.torch.get_device()
    workers = Workers.current(device)
    run = context.spec.output
    _wait_for_storage(context.spec)
    places = workers.tell_all({"host": socket.gethostname(), "device": _device_name(device)})
    publisher = Publisher()
    if workers.is_first:
        clear_leftovers(run)
        about = {"attempt": attempt, "began": time.time(), "workers": places}
        publisher.put(WORKERS_FILE, partial(storage.write_json, storage.join(run, WORKERS_FILE), about))
    try:
        result = train(context, workers)
    except Exception as error:
        if isinstance(error, PitiError):
            # Ray Train would log a traceback; the driver says it better.
            logging.getLogger("ray.train").setLevel(logging.CRITICAL)
        publisher.close(time.monotonic() + _LAST_SECONDS)
        raise
    if workers.is_first:
        publisher.put("curve.png", partial(_draw_curve, context.spec))
    publisher.close()
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
