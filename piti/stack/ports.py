"""Ports of the local stack: defaults, free ones, and who holds a taken one."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass

import psutil

from piti.errors import StackError

HOST = "127.0.0.1"

# Below the range that systems give to outgoing connections, so that nothing takes one between choice and use.
_FREE_RANGE = range(20000, 32000)
_REPORTS_OFFSET = 10


@dataclass(frozen=True)
class Ports:
    """Where the stack listens, always on loopback. 0 means: any free port; for `reports` Prefect's plus 10, if free."""

    prefect: int = 4200
    ray_dashboard: int = 8265
    ray: int = 6379
    reports: int = 0

    @classmethod
    def free(cls) -> Ports:
        return cls(0, 0, 0, 0)

    def chosen(self) -> Ports:
        """The same with a free port instead of each 0."""
        taken: list[int] = []
        for port in (self.prefect, self.ray_dashboard, self.ray):
            taken.append(port or free_port(taken))
        prefect, ray_dashboard, ray = taken
        near = prefect + _REPORTS_OFFSET  # the same at every start, so that links in the Prefect UI stay good
        reports = self.reports or (near if near not in taken and is_free(near) else free_port(taken))
        return Ports(prefect, ray_dashboard, ray, reports)

    @property
    def prefect_url(self) -> str:
        return f"http://{HOST}:{self.prefect}"

    @property
    def prefect_api_url(self) -> str:
        return f"{self.prefect_url}/api"

    @property
    def ray_url(self) -> str:
        return f"http://{HOST}:{self.ray_dashboard}"

    @property
    def reports_url(self) -> str:
        return f"http://{HOST}:{self.reports}"


OPTIONS = {"prefect": "--prefect-port", "ray_dashboard": "--ray-dashboard-port", "ray": "--ray-port"}


def is_free(port: int) -> bool:
    """Whether something could listen on this port of the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do it: connections that linger after a server's end do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port(besides: Collection[int] = ()) -> int:
    """A port that nobody listens on. Raises StackError if none is left."""
    for port in random.sample(_FREE_RANGE, k=500):
        if port not in besides and is_free(port):
            return port
    raise StackError(f"no free port between {_FREE_RANGE.start} and {_FREE_RANGE.stop}", "stop what holds them")


def holder(port: int) -> str | None:
    """Who listens on a port, as far as this user may know: `name (pid 123)`."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                return f"pid {connection.pid}"
    return None


def problems(ports: Ports, which: Collection[str]) -> Iterator[StackError]:
    """One error for each of the ports named in `which` that cannot be used."""
    numbers = asdict(ports)
    for name in which:
        port = numbers[name]
        if port and not is_free(port):
            by = holder(port)
            option = OPTIONS.get(name)
            other = "`piti down`, then `piti up`" if option is None else f"choose another port: piti up {option} N"
            yield StackError(f"port {port} is taken by {by or 'another program'}", f"stop it, or {other}")
