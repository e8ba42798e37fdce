"""Workers on machines that are not alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from piti.errors import ConfigError
from piti.training.workers import Workers
from tests.worker_processes import WORLD_SIZE, run_workers


def wrap_layouts(rank: int, folder: Path) -> None:
    workers = Workers.current()
    workers.wrap(nn.Conv2d(3, 3, 3))
    other = nn.Conv2d(3, 3, 3).to(memory_format=torch.channels_last if rank else torch.contiguous_format)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match=r"lay the network out differently .*set models\.base\.channels_last"):
        workers.wrap(other)
    (folder / f"refused-{rank}").touch()


def test_every_worker_says_so_where_layouts_differ(tmp_path: Path) -> None:
    run_workers(wrap_layouts, tmp_path)
    assert all((tmp_path / f"refused-{rank}").exists() for rank in range(WORLD_SIZE))
