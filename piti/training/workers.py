"""The training workers of a run: this worker's rank, and communication between all of them.

Works with torch.distributed's default group where there is one (Ray Train makes it: NCCL on GPUs, gloo on CPUs),
and alone where there is none.
"""

from __future__ import annotations

import resource
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from piti.data.loader import part_of

Precision = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class Workers:
    """This worker's `rank`, from 0 to `world_size` - 1, and operations over all workers."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls, device: torch.device | str = "cpu") -> Workers:
        """Read from torch.distributed; a single worker where it is not initialised."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), torch.device(device))
        return cls(device=torch.device(device))

    @property
    def is_first(self) -> bool:
        """Whether this worker does what must be done once, such as writing files and logs."""
        return self.rank == 0

    def share(self, num_pictures: int) -> range:
        """This worker's positions of a step's `num_pictures`: contiguous parts, which differ by one picture at most."""
        return part_of(num_pictures, self.rank, self.world_size)

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` such that its backward pass averages gradients over the workers."""
        if self.world_size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # After its first backward pass torch orders gradients anew, and with them the sums of three or more workers: a
        # resumed run would differ from an undisturbed one. With `find_unused_parameters` the first order stays.
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
        return DistributedDataParallel(
            module,
            device_ids=devices,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=True,
        )

    def gather(self, values: Tensor) -> Tensor:
        """Every worker's `values` (n, ...), of the same shape, one after the other in the order of ranks."""
        if self.world_size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def total(self, values: Tensor) -> Tensor:
        """The sum of every worker's `values`, elementwise."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the workers, for networks that are not wrapped."""
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def tell_all(self, value: Any) -> list[Any]:
        """Every worker's `value`, which must be picklable, in the order of ranks; the same list on all."""
        values = [value]
        if self.world_size > 1:
            values = [None] * self.world_size
            dist.all_gather_object(values, value)
        return values

    def peak_memory_bytes(self) -> int:
        """The most memory that this process has held: of its GPU where it has one."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def agree(self, value: Any) -> Any:
        """The first worker's `value`, on every worker. It must be picklable."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def send_all(self, value: Any) -> Any:
        """`agree` for containers of large tensors, which arrive on the CPU, bit for bit."""
        if self.world_size == 1:
            return value

        def sent_on(tensor: Tensor) -> Tensor:
            here = (
                tensor.to(self.device).contiguous()
                if self.is_first
                else torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
            )
            dist.broadcast(here, src=0)
            return here.cpu()

        outline = self.agree(tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), value))
        return tree_map_only(Tensor, sent_on, value if self.is_first else outline)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`. A GPU gets them from pinned memory, so that the host does not wait for the copy."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def without_synchronisation(module: nn.Module) -> AbstractContextManager[Any]:
    """A context in which a wrapped module's backward pass keeps gradients to itself (for gradient accumulation)."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def use_precision(precision: Precision) -> None:
    """Have this process's float32 products and convolutions on a GPU be exact, or TF32's for `tf32`."""
    # torch's own default is exact products, but TF32 in convolutions.
    # By these names, since torch.compile and torch.export read them and fail where the newer ones were set.
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """bf16 mixed precision (weights, losses and optimizer stay float32), or nothing for the others."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
