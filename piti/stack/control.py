"""Starts and stops the stack. What it started is recorded in `<home>/stack.json`, whole after each start."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from piti import storage
from piti.errors import StackError
from piti.settings import Settings, settings
from piti.stack import processes
from piti.stack.environment import client_environment, server_environment, temporary_folder
from piti.stack.ports import Ports, problems
from piti.stack.processes import Identity
from piti.stack.secret_files import ensure_secret, read_secret
from piti.stack.services import Service, prune_ray_sessions, ray_folder, services
from piti.stack.trial_job import run_trial_job

SERVE_PATIENCE_SECONDS = 8.0
SERVERS_PATIENCE_SECONDS = 12.0
_POLL_SECONDS = 0.25

Report = Callable[[str], None]


class Stack(BaseModel):
    """The record of a running stack: its ports, its four processes by name, the `folder` they work in and that of their
    `temporary` files."""

    model_config = ConfigDict(frozen=True)

    id: str
    home: Path
    folder: Path
    temporary: Path = Field(default_factory=lambda: temporary_folder(settings()))
    ports: Ports
    num_cpus: int | None
    processes: dict[str, Identity]

    def environment(self) -> dict[str, str]:
        """Variables that a program needs to use this stack (PREFECT_API_URL, PITI_RAY_JOBS_URL, the token's file...)."""
        return client_environment(self._settings(), self.ports)

    @property
    def ray_folder(self) -> Path:
        return ray_folder(self._settings())

    def services(self) -> list[Service]:
        return services(self._settings(), self.ports, self.num_cpus)

    def lives(self, name: str) -> bool:
        """Whether the process of this service is still the one that was started."""
        identity = self.processes.get(name)
        return identity is not None and identity.find() is not None

    def answers(self, service: Service) -> bool:
        """Whether a service is of use: its process lives, and what it serves is there."""
        return self.lives(service.name) and service.answers(self.processes[service.name].started_at())

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def _settings(self) -> Settings:
        return settings().model_copy(update={"home": self.home})


def up(ports: Ports | None = None, num_cpus: int | None = None, report: Report = lambda line: None) -> Stack:
    """Start what is not running, wait until everything answers, and run a trial job. Twice in a row changes nothing.

    `ports` None: those of the running stack, else the defaults. `num_cpus` None: those of the running stack, else as many
    as the machine has. Raises StackError if PITI_HOME cannot be used, the stack runs with other ports or cores, a port is
    taken, a service does not come up or the trial job fails; what this call started is stopped then.
    """
    home = settings().home.absolute()
    with _lock(home):
        stack = _found_or_new(home, ports, num_cpus)
        missing = [service for service in stack.services() if not stack.lives(service.name)]
        if wrong := list(problems(stack.ports, [name for service in missing for name in service.port_names])):
            raise StackError("; ".join(str(problem) for problem in wrong))
        _prepare(stack, missing)
        started: list[str] = []
        try:
            for service in missing:
                report(f"starting {service.title}")
                stack = _start(stack, service)
                started.append(service.name)
            for service in stack.services():
                _wait(stack, service)
                report(f"{service.title} answers")
            if started:
                report("running a trial job")
                known = stack._settings()
                run_trial_job(known, stack.ports.ray_url, read_secret(known.token_file))
        except BaseException:
            _stop(stack, started)
            raise
        return stack


def down(report: Report = lambda line: None) -> bool:
    """Stop what `up` started, with all its offspring, and nothing else. False if nothing was there."""
    home = settings().home.absolute()
    if not _record(home).exists():
        return False
    with _lock(home):
        stack = running()
        if stack is None:
            return False
        report("stopping the stack")
        _stop(stack, list(stack.processes))
        return True


def running() -> Stack | None:
    """What is recorded as started and not yet stopped, alive or not; None if there is nothing.

    Raises StackError or DataError if the record is damaged.
    """
    record = _record(settings().home.absolute())
    try:
        return Stack.model_validate(storage.read_json(str(record)))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StackError(
            f"{record} is damaged or of another version", "end its processes yourself, then delete it"
        ) from error


def _record(home: Path) -> Path:
    return home / "stack.json"


def _save(stack: Stack) -> None:
    storage.write_json(str(_record(stack.home)), stack.model_dump(mode="json"))


@contextmanager
def _files(home: Path) -> Iterator[None]:
    """What goes wrong with the home's files is a StackError that names the file."""
    try:
        yield
    except OSError as error:
        what = error.filename or home
        remedy = f"make room, or correct {what}, or set PITI_HOME to another folder of yours"
        raise StackError(f"{what}: {(error.strerror or str(error)).lower()}", remedy) from error


def _make_ours(folder: Path) -> None:
    """Have a folder that only we can enter. Raises StackError if somebody else made it, or a link of its name; OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise StackError(f"{folder} belongs to another user", "set PITI_HOME to a folder of yours")
    folder.chmod(0o700)


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    with _files(home):
        _make_ours(Path(os.path.realpath(home)))
        stream = open(home / "stack.lock", "w", encoding="utf-8")  # noqa: SIM115 - closed by the `with` below
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError("another `piti up` or `piti down` is at work", "wait until it has finished") from error
        yield


def _found_or_new(home: Path, ports: Ports | None, num_cpus: int | None) -> Stack:
    stack = running()
    if stack is None or not any(stack.lives(name) for name in stack.processes):
        chosen = (ports or Ports()).chosen()
        return Stack(
            id=uuid.uuid4().hex, home=home, folder=_working_folder(), ports=chosen, num_cpus=num_cpus, processes={}
        )
    if ports is not None and not _fits(ports, stack.ports):
        raise StackError(f"the stack is running on other ports ({stack.ports.prefect_url})", "`piti down` first")
    if num_cpus not in (None, stack.num_cpus):
        raise StackError(f"the stack is running with {stack.num_cpus or 'all'} CPU cores", "`piti down` first")
    return stack.model_copy(update={"ports": stack.ports.chosen()})  # an older version's has no port for reports


def _fits(wanted: Ports, actual: Ports) -> bool:
    pairs = zip(vars(wanted).values(), vars(actual).values(), strict=True)
    return all(port in (0, at) for port, at in pairs)


def _working_folder() -> Path:
    try:
        folder = Path.cwd()
    except FileNotFoundError as error:
        raise StackError("the folder that you are in was deleted", "change to another folder") from error
    if os.pathsep in str(folder) and not settings().config_folders:
        raise StackError(
            f"the folder that you are in, {folder}, has a colon in its name, which separates folders of configs",
            "change to another folder, or set PITI_CONFIG_FOLDERS to that of your configs",
        )
    return folder


def _prepare(stack: Stack, missing: list[Service]) -> None:
    known = stack._settings()
    with _files(stack.home):
        ensure_secret(known.token_file)
        ensure_secret(known.auth_file, prefix="piti:")
        (stack.home / "prefect").mkdir(mode=0o700, parents=True, exist_ok=True)
        for database in (stack.home / "prefect").glob("prefect.db*"):  # made by an older version, perhaps
            if database.is_file():
                database.chmod(0o600)
        _make_ours(stack.temporary)
        if any(service.name == "ray" for service in missing):
            if not stack.ray_folder.is_relative_to(stack.home):
                _make_ours(stack.ray_folder.parent)
            stack.ray_folder.mkdir(mode=0o700, exist_ok=True)
            prune_ray_sessions(stack.ray_folder)


def _start(stack: Stack, service: Service) -> Stack:
    environment = server_environment(stack._settings(), stack.ports, stack.id, stack.folder, stack.temporary)
    with _files(stack.home):
        log = stack.log(service.name)
        identity = processes.start(service.command, environment, log, stack.folder, service.umask)
        stack = stack.model_copy(update={"processes": {**stack.processes, service.name: identity}})
        _save(stack)
    return stack


def _wait(stack: Stack, service: Service) -> None:
    deadline = time.monotonic() + settings().start_timeout_seconds
    while not stack.answers(service):
        where = stack.log(service.name)
        if not stack.lives(service.name):
            raise StackError(f"{service.title} ended at once: {_last_line(where)}", f"see {where}")
        if time.monotonic() > deadline:
            raise StackError(
                f"{service.title} does not answer after {settings().start_timeout_seconds:.0f} s",
                f"see {where}; PITI_START_TIMEOUT_SECONDS waits longer",
            )
        time.sleep(_POLL_SECONDS)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


def _stop(stack: Stack, names: list[str]) -> None:
    """Stop services in order: first who uses the servers, then the servers, then whoever did not listen."""
    identities = [stack.processes[name] for name in names if name in stack.processes]
    whole_stack = set(names) >= set(stack.processes)
    everyone = _everyone(stack, identities, whole_stack)
    _end_gently(stack, [name for name in names if name == "serve"], SERVE_PATIENCE_SECONDS)
    _end_gently(stack, [name for name in names if name != "serve"], SERVERS_PATIENCE_SECONDS)
    # What was started since the first look, by whoever was still running then.
    left = {process.pid: process for process in [*everyone, *_everyone(stack, identities, whole_stack)]}
    if stubborn := processes.kill(left.values()):
        raise StackError(f"{', '.join(str(process.pid) for process in stubborn)} cannot be stopped", "see `ps`")
    remaining = {name: identity for name, identity in stack.processes.items() if name not in names}
    if remaining:
        _save(stack.model_copy(update={"processes": remaining}))
        return
    _record(stack.home).unlink(missing_ok=True)
    shutil.rmtree(stack.temporary, ignore_errors=True)
    if not stack.ray_folder.is_relative_to(stack.home):
        shutil.rmtree(stack.ray_folder.parent, ignore_errors=True)


def _everyone(stack: Stack, identities: list[Identity], whole_stack: bool) -> list[psutil.Process]:
    return processes.family(identities, stack.id if whole_stack else "")


def _end_gently(stack: Stack, names: list[str], patience_seconds: float) -> None:
    roots = [stack.processes[name].find() for name in names if name in stack.processes]
    processes.terminate([root for root in roots if root is not None], patience_seconds)
