"""Arrays that are a pure function of a name and a shape, so that no test has to store weights or inputs."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn


def uniform_array(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Uniform in [-1, 1), float64: SplitMix64 of a counter that begins at the first 8 bytes of sha256(name)."""
    start = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    count = int(np.prod(shape, dtype=np.int64))
    with np.errstate(over="ignore"):
        z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) / 2**52 - 1.0).reshape(shape)


def normal_array(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Standard normal, float64: Box and Muller's transform of two uniform arrays."""
    radius = np.sqrt(-2 * np.log((1.0 - uniform_array(f"{name}/radius", shape)) / 2))
    result: npt.NDArray[np.float64] = radius * np.cos(np.pi * uniform_array(f"{name}/angle", shape))
    return result


def weight_array(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """A weight by its key: near 1 for norms' gains, small for other vectors, of unit gain for matrices and kernels."""
    values = uniform_array(name, shape)
    if len(shape) == 1:
        return 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
    if not name.endswith("weight"):  # class token and positions
        return 0.1 * values
    result: npt.NDArray[np.float64] = values * np.sqrt(3 * shape[0] / values.size)
    return result


def fill_weights(module: nn.Module) -> nn.Module:
    """Set every parameter to `weight_array` of its key and shape."""
    with torch.no_grad():
        for key, parameter in module.state_dict().items():
            parameter.copy_(torch.from_numpy(weight_array(key, tuple(parameter.shape))))
    return module


@pytest.fixture(scope="session")
def uniform() -> Callable[[str, tuple[int, ...]], Tensor]:
    """Uniform in [-1, 1), float64, a function of name and shape."""
    return lambda name, shape: torch.from_numpy(uniform_array(name, shape))


@pytest.fixture(scope="session")
def normal() -> Callable[[str, tuple[int, ...]], Tensor]:
    """Standard normal, float64, a function of name and shape."""
    return lambda name, shape: torch.from_numpy(normal_array(name, shape))


@pytest.fixture(scope="session")
def filled() -> Callable[[nn.Module], nn.Module]:
    """Gives a module the weights that the golden vectors were computed with."""
    return fill_weights


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an empty bucket. Copies of its shards go to a folder of the test."""
    import fsspec  # here: few tests need it
    from moto.server import ThreadedMotoServer

    bucket = f"bucket-{uuid.uuid4().hex}"  # one process keeps the buckets of all its servers
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "PITI_CACHE": str(tmp_path_factory.mktemp("cache")),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield f"s3://{bucket}"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()
