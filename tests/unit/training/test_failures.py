"""A failure names its root cause, and is tried again as often as that makes sense."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from piti.errors import DataError, first_line
from piti.jobs.train import _failed
from piti.training import loop
from piti.training.failures import Cause, Retries, WorkerError, root_cause
from piti.training.loop import train
from piti.training.stages import TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers


def failure_of(pipeline: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> WorkerError:
    """What a worker raises where `error` happens in the step after the third."""
    accumulate = loop.accumulate_gradients

    def fail(state: Any, *arguments: Any) -> Any:
        if state.progress.step == 3:
            raise error
        return accumulate(state, *arguments)

    monkeypatch.setattr(loop, "accumulate_gradients", fail)
    with pytest.raises(WorkerError) as caught:
        train(pipeline.context("pretrain"), Workers())
    travelled: WorkerError = pickle.loads(pickle.dumps(caught.value))
    assert str(travelled) == str(caught.value)
    return travelled


def test_a_workers_error_says_what_where_and_with_which_pictures(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = failure_of(pipeline, monkeypatch, ValueError("bad shape\nand a long story"))
    line = str(failure)
    assert line.startswith("ValueError: bad shape (test_failures.py:")
    assert "worker 0 on" in line
    assert "step 3, pictures " in line
    assert len(set(line.partition("pictures ")[2].removesuffix(")").split(", "))) == 4
    assert "\n" not in line
    assert failure.signature.startswith("ValueError at test_failures.py:")
    assert failure.remedy is None


def test_a_users_problem_is_not_wrapped(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise DataError("the shards are gone", "bring them back")

    monkeypatch.setattr(loop, "accumulate_gradients", fail)
    with pytest.raises(DataError, match="the shards are gone"):
        train(pipeline.context("pretrain"), Workers())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        torch.distributed.DistBackendError(
            "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error\nCuda failure 2 'out of memory'"
        ),
        MemoryError(),
    ],
)
def test_too_little_memory_names_the_setting(pipeline: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    failure = failure_of(pipeline, monkeypatch, error)
    assert failure.remedy is not None
    assert "lower training.pretrain.microbatch_size" in failure.remedy
    assert "models.base.activation_checkpointing" in failure.remedy
    assert not failure.is_others_fault


@pytest.mark.parametrize(
    ("overrides", "workers", "remedy"),
    [
        ({}, 1, "lower training.pretrain.microbatch_size (now 4), or set models.base.activation_checkpointing to true"),
        (
            {"models__base__activation_checkpointing": True},
            3,
            "lower training.pretrain.microbatch_size (now 2), or divide weights over the workers (cluster.strategy fsdp)",
        ),
        (
            {"training__pretrain__microbatch_size": None},
            2,
            "lower training.pretrain.microbatch_size (now 2), or set models.base.activation_checkpointing to true, or "
            "divide weights over the workers (cluster.strategy fsdp)",
        ),
        (
            {"training__pretrain__microbatch_size": 8, "models__base__activation_checkpointing": True},
            4,
            "divide weights over the workers (cluster.strategy fsdp)",
        ),
        (
            {
                "training__pretrain__microbatch_size": 1,
                "models__base__activation_checkpointing": True,
                "cluster__strategy": "fsdp",
            },
            2,
            "use nodes with more memory",
        ),
    ],
)
def test_too_little_memory_names_only_what_can_still_help(
    pipeline: Any, overrides: dict[str, Any], workers: int, remedy: str
) -> None:
    """Four pictures a step."""
    stage = TrainingStage("pretrain", pipeline.config(**overrides))
    failure = WorkerError.of(MemoryError(), stage, Workers(world_size=workers), 3, [])
    assert failure.remedy == remedy


def test_too_little_memory_for_weights_has_a_remedy(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingState, "begin", full)
    with pytest.raises(WorkerError, match=r"CUDA out of memory \(.*worker 0 on .*, before its first step\)") as caught:
        train(pipeline.context("pretrain"), Workers())
    assert "cluster.strategy fsdp" in str(caught.value.remedy)


def test_a_failure_that_did_not_repeat_itself_has_its_remedy_too() -> None:
    retries = Retries(max_failures=0)
    assert not retries.after(Cause("too little memory", signature="x", remedy="lower the microbatch"), step=-1)
    error = _failed("stage2", Cause("too little memory", remedy="lower the microbatch"), retries)
    assert str(error) == "stage2 failed 1 times without progress: too little memory - lower the microbatch"


def worker_error(line: str, *, is_others_fault: bool = False) -> WorkerError:
    return WorkerError(line, f"signature of {line}", None, is_others_fault)


def test_the_root_cause_is_found_among_the_workers() -> None:
    """Whatever their ranks: the user's problem, then a worker's own error, then a lost worker, then what follows of it."""
    user, own = DataError("no shards"), worker_error("ValueError: x")
    lost, follows = ActorDiedError(), worker_error("RuntimeError: Connection closed by peer", is_others_fault=True)
    assert root_cause({0: follows, 1: lost, 2: own, 3: user}).error is user
    assert root_cause({0: follows, 1: lost, 2: own}).line == "ValueError: x"
    assert root_cause({0: follows, 1: lost}).line.startswith("worker 1 was lost: ActorDiedError")
    assert root_cause({0: follows}) == Cause("RuntimeError: Connection closed by peer")
    assert root_cause({1: OSError("no network")}).line == "OSError: no network (worker 1, before its first step)"


def lost(error: Exception) -> WorkerHealthCheckFailedError:
    """As Ray Train tells of a worker that does not answer any more: its own words stand before what happened."""
    return WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: Worker(...)", failure=error)


def died(message: str) -> ActorDiedError:
    """As Ray makes it of what the cluster tells about an actor."""
    told = ActorDiedErrorContext(
        error_message=message, actor_id=b"\x01" * 16, class_name="RayTrainWorker", pid=4321, node_ip_address="10.0.0.7"
    )
    return ActorDiedError(told)


@pytest.mark.parametrize(
    ("error", "parts", "is_memory"),
    [
        (died("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
              "Worker exits with an exit code 70."),
         ["worker 1 was lost: ActorDiedError", "pid: 4321", "ip: 10.0.0.7", "SYSTEM_ERROR", "exit code 70"], False),
        (died("The actor died because its node has died. Node Id: 00ff\n\tthe actor's node was terminated unexpectedly"),
         ["its node has died. Node Id: 00ff", "terminated unexpectedly"], False),
        (OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.7) was "
                          "30GB / 31GB (0.97)"),
         ["running low on memory", "10.0.0.7", "30GB / 31GB"], True),
        (NodeDiedError("The node is dead"), ["NodeDiedError: The node is dead"], False),
    ],
)  # fmt: skip
def test_a_lost_worker_says_how_it_ended(error: Exception, parts: list[str], is_memory: bool) -> None:
    """Exit, node and, of the memory monitor, the remedy; for one that others' errors follow from."""
    follows = worker_error("RuntimeError: Connection closed by peer", is_others_fault=True)
    cause = root_cause({0: follows, 1: lost(error)})
    assert all(part in cause.line for part in parts), cause.line
    assert "\n" not in cause.line
    assert "actor_id" not in cause.line
    assert cause.signature is None
    assert (cause.remedy is not None and "nodes with more memory" in cause.remedy) is is_memory


def test_an_error_of_torch_distributed_is_recognised_as_anothers_fault(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]")
    assert failure_of(pipeline, monkeypatch, error).is_others_fault


def test_an_error_that_repeats_itself_is_tried_once_more() -> None:
    retries = Retries(max_failures=3)
    cause = Cause("ValueError: x", signature="ValueError at a.py:1")
    assert retries.after(cause, step=100)
    assert not retries.after(cause, step=100)
    assert retries.repeats


def test_other_failures_use_up_the_budget_and_progress_restores_it() -> None:
    lost = Cause("worker 1 was lost")
    retries = Retries(max_failures=2)
    assert [retries.after(lost, step=-1) for _ in range(3)] == [True, True, False]
    assert not retries.repeats
    retries = Retries(max_failures=2)
    assert all(retries.after(lost, step) for step in range(10))
    error = Cause("x", signature="x")
    assert all(retries.after(error, step) for step in range(10, 20)), "the same error, but with progress between"
    assert first_line(ValueError("x")) == "ValueError: x"
