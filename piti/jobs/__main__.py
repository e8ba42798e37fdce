"""Entry point of every Ray job: `python -m piti.jobs KIND --spec URI`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import cast, get_args

from piti import storage
from piti.errors import PitiError, StoppedError
from piti.job import ERROR_FILE, LEASE_LOOK_SECONDS, SPEC_FILE, JobContext, JobResult, JobSpec
from piti.plan import JobKind
from piti.provenance import code_versions

USER_ERROR_EXIT = 2
LAST_CHECKPOINT_SECONDS = 300.0


def main() -> int:
    """Run one job. Exit code 0: done; 2: a problem that a person must fix; any other: another attempt may succeed."""
    parser = argparse.ArgumentParser(prog="python -m piti.jobs", description=__doc__)
    parser.add_argument("kind", choices=get_args(JobKind))
    parser.add_argument("--spec", required=True, help="URI of the job's spec.json")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout, force=True
    )
    spec = JobSpec.model_validate(storage.read_json(arguments.spec))
    marker = storage.join(spec.output, storage.MARKER)
    if storage.exists(marker):
        logging.info("%s is already done: %s", spec.name, spec.output)
        return 0
    run = cast(Callable[[JobContext], JobResult], importlib.import_module(f"piti.jobs.{arguments.kind}").run)
    started = time.time()
    threading.Thread(target=_end_when_abandoned, args=(spec,), daemon=True, name="lease").start()
    try:
        result = run(JobContext(spec))
    except PitiError as error:
        _record_failure(spec, str(error), error.retryable, stopped=isinstance(error, StoppedError))
        logging.error("%s", error)
        return USER_ERROR_EXIT
    except Exception as error:  # noqa: BLE001 - the flow must learn the reason of any failure
        from piti.jobs.failures import reason_of  # imports Ray and torch

        _record_failure(spec, reason_of(error), retryable=True)
        traceback.print_exc()
        return 1
    about = {
        "kind": spec.kind, "name": spec.name, "fingerprint": spec.fingerprint, "started": started,
        "duration_seconds": round(time.time() - started, 3), "code": code_versions(),
    }  # fmt: skip
    storage.write_json(marker, {**about, **result})
    return 0


def _end_when_abandoned(spec: JobSpec) -> None:
    """End this process once no run follows the job any more. A training stage gets time for a last checkpoint."""
    context = JobContext(spec)
    while not context.is_abandoned():
        time.sleep(LEASE_LOOK_SECONDS)
    if spec.kind == "train":
        time.sleep(LAST_CHECKPOINT_SECONDS)
    logging.error("%s", context.abandoned())
    try:
        _record_failure(spec, str(context.abandoned()), retryable=True, stopped=True)
    finally:  # also where storage does not answer: nobody else would end this process
        os._exit(USER_ERROR_EXIT)


def _record_failure(spec: JobSpec, reason: str, retryable: bool, stopped: bool = False) -> None:
    """Write error.json once storage answers. Where it did not answer, another attempt may find what this one missed.

    `stopped`: the job was asked to end, or nobody followed it any more.
    """
    was_away = storage.wait_until_there(storage.join(spec.folder, SPEC_FILE))
    failure = {"reason": reason, "retryable": retryable or was_away, "stopped": stopped}
    storage.write_json(storage.join(spec.folder, ERROR_FILE), failure)


if __name__ == "__main__":
    sys.exit(main())
