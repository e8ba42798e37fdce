"""The stack on one machine: Prefect server, Ray head, reports and serving process, on loopback.

`up` starts what is missing and waits until it answers; `down` stops exactly what `up` started.
"""

from piti.stack.control import Stack, down, running, up
from piti.stack.ports import Ports
from piti.stack.prefect_api import wait_until_prefect_answers

__all__ = ["Ports", "Stack", "down", "running", "up", "wait_until_prefect_answers"]
