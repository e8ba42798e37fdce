"""Weights divided over the workers (FSDP2): each keeps a part of every weight, and of its gradient, average and moments.

A divided tensor is a DTensor that holds this worker's part of the first dimension. Checkpoints hold whole tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from piti.models.encoder import TransformerLayer
from piti.models.unet import Block
from piti.training.workers import Workers


def shard(module: nn.Module, workers: Workers) -> None:
    """Divide the weights of `module` that learn, in place, and move them to the workers' devices.

    They must be equal on all workers. A block is whole only while it computes. The backward pass averages gradients over
    the workers.
    """
    mesh = init_device_mesh(workers.device.type, (workers.world_size,))
    frozen = {parameter for parameter in module.parameters() if not parameter.requires_grad}
    for parameter in set(module.parameters()) - frozen:
        parameter.data = parameter.data.contiguous()  # torch divides no other
    blocks = [part for part in module.modules() if isinstance(part, Block | TransformerLayer)]
    for part in [*blocks, module]:
        fully_shard(part, mesh=mesh, ignored_params=frozen)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, divided or not, on the same device. Every worker must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mine(tensor: Tensor) -> Tensor:
    """This worker's part of a divided tensor, which shares its memory; any other tensor itself. Without gradient."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of the whole `tensor` as `like` lies: device, type, order in memory, and division over the workers."""
    if isinstance(like, DTensor):  # every worker has the whole, and takes its part
        tensor = tensor.to(like.device, like.dtype)
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return torch.empty_like(like, requires_grad=False).copy_(tensor)
