"""Real workers of torch.distributed (gloo over loopback), each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD_SIZE = 2
_PATIENCE_SECONDS = 240
_IMPORTED_ONCE = ["torch.distributed", "piti.training.loop"]  # which takes each process seconds


def run_workers(function: Callable[..., None], folder: Path, *arguments: Any, world_size: int = WORLD_SIZE) -> None:
    """`function(rank, folder, *arguments)` in each of `world_size`; they meet through a file in `folder`. Fails unless all end well."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_IMPORTED_ONCE)
    processes = [
        server.Process(target=_work, args=(function, rank, world_size, folder, *arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout=_PATIENCE_SECONDS)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    assert [process.exitcode for process in processes] == [0] * world_size


def _work(function: Callable[..., None], rank: int, world_size: int, folder: Path, *arguments: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        function(rank, folder, *arguments)
    finally:
        dist.destroy_process_group()
