"""FSDP2: every rank holds a part of each weight, gathers a block's weights when the block runs, and gets its part of the summed gradients.

One process needs none of this, and `strategy: ddp` works too: the same module runs in all three with equal results.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method

from mc2.model.two_tower import TwoTower
from mc2.training.blocks import tower_blocks
from mc2.training.checkpoint_files import read_parts


class FSDP2Strategy(ModelParallelStrategy):
    """All ranks hold parts of the weights. The module shards itself in `configure_model`.

    replicate: number of copies of the model (HSDP): ranks 0 .. world/replicate - 1 share the first, and so on; gradients are averaged over the copies.
        Set it to the number of nodes where gathering weights from other nodes is what costs.
    cpu_offload: weights, gradients and optimizer live in the memory of the host, and the step is made there (all but the rows of the token embedding, which
        stay on the GPU); for models that fit nowhere else.
    save_distributed_checkpoint: each rank writes its part into a folder, which only this strategy reads back (on any number of ranks). Without it rank 0
        gathers everything into one file that every strategy reads.
    timeout_minutes: a collective that takes longer is an error.

    Errors: ValueError, before any process is started, for a number of processes that `replicate` does not divide, and for `cpu_offload` without a GPU.
    """

    def __init__(
        self,
        replicate: int = 1,
        cpu_offload: bool = False,
        save_distributed_checkpoint: bool = False,
        timeout_minutes: float = 30.0,
    ) -> None:
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint, timeout=timedelta(minutes=timeout_minutes))
        if replicate < 1:
            raise ValueError(f"FSDP2Strategy.replicate: found {replicate}, need the number of copies of the model, at least 1")
        self.replicate, self.cpu_offload, self.save_distributed_checkpoint = replicate, cpu_offload, save_distributed_checkpoint
        self._mesh: DeviceMesh | None = None

    def set_world_ranks(self) -> None:
        """Lightning calls it first when the trainer is built: the earliest moment at which the number of processes is known."""
        num_ranks = self.num_nodes * self.num_processes
        if num_ranks % self.replicate:
            raise ValueError(
                f"FSDP2Strategy.replicate: found {self.replicate} for {num_ranks} processes, need a divisor; change it, trainer.devices or trainer.num_nodes"
            )
        if self.cpu_offload and self.root_device.type == "cpu":
            raise ValueError("FSDP2Strategy.cpu_offload: found true on the CPU, need a GPU whose memory it spares; set it to false")
        super().set_world_ranks()

    def setup_environment(self) -> None:
        # "auto" would be nodes x devices: with one node an axis of size 1, no exchange of gradients, and no error
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()
        if self.replicate == 1:
            self._mesh = self.device_mesh["data_parallel"]
        else:
            shape = (self.replicate, self.world_size // self.replicate)
            self._mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicate", "shard"))

    @property
    def mesh(self) -> DeviceMesh:
        """The axis of all ranks; with several copies the axes "replicate" and "shard"."""
        assert self._mesh is not None, "asked for before the processes have met"
        return self._mesh

    def _get_process_group_backend(self) -> str:
        # gradients and their norm are exchanged from where they live
        return "cpu:gloo,cuda:nccl" if self.cpu_offload else super()._get_process_group_backend()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ARG002  (never anything but weights)
        """A file or a folder, of any number of ranks, without running what is in it."""
        path = Path(self.broadcast(checkpoint_path))
        assert self.model is not None
        return read_parts(path, self.model, self.optimizers) if path.is_dir() else super().load_checkpoint(path, weights_only=True)

    def model_to_device(self) -> None:
        """Buffers too: with `cpu_offload` they are all that moves."""
        if not self.cpu_offload:
            super().model_to_device()
            return
        assert self.model is not None
        self.buffers_to_device(self.model)

    def buffers_to_device(self, model: nn.Module) -> None:
        """In place; the parameters stay where they are."""
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(self.root_device)


def mixed_precision(precision: str) -> MixedPrecisionPolicy:
    """What `trainer.precision` means for shards: with bf16-mixed weights travel and compute in bf16, gradients are summed in fp32.

    Errors: ValueError for a precision that is neither 32-true nor bf16-mixed.
    """
    if precision == "32-true":
        return MixedPrecisionPolicy()
    if precision == "bf16-mixed":
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    raise ValueError(f"trainer.precision: found {precision}, need 32-true or bf16-mixed with FSDP2Strategy")


def shard(towers: TwoTower, strategy: FSDP2Strategy, policy: MixedPrecisionPolicy) -> None:
    """Shard in place: the token embedding by rows, the rest block by block, then what is left of each tower, then logit scale and bias, which stay fp32.

    All ranks begin with the weights of rank 0, whatever their generators did before.
    """
    with torch.no_grad():
        for parameter in towers.parameters():
            whole = parameter.to(strategy.root_device)  # NCCL sends nothing from the memory of the host
            dist.broadcast(whole, src=0)
            parameter.copy_(whole)
    towers.text.token_embedding.shard(strategy.mesh, policy.param_dtype)
    rows = {towers.text.token_embedding.weight}  # these travel by themselves
    offload = CPUOffloadPolicy() if strategy.cpu_offload else OffloadPolicy()
    place = partial(fully_shard, mesh=strategy.mesh, offload_policy=offload)
    for tower, blocks in zip((towers.vision, towers.text), tower_blocks(towers), strict=True):
        for block in blocks:
            place(block, mp_policy=policy)
        place(tower, mp_policy=policy, ignored_params=rows)
    for scalar in (towers.logit_scale, towers.logit_bias):
        if scalar is not None:
            place(scalar)
    place(towers, ignored_params=rows)
    for method in ("encode_image", "encode_text"):  # without it a tower called alone mixes sharded and plain tensors
        register_fsdp_forward_method(towers, method)
