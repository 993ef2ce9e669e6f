"""FSDP2: every rank holds a part of each weight, gathers a block's weights when the block runs, and gets its part of the summed gradients.

One process needs none of this, and `strategy: ddp` works too: the same module runs in all three with equal results.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from mc2.model.two_tower import TwoTower


class FSDP2Strategy(ModelParallelStrategy):
    """All ranks on one axis that shards the weights. The module shards itself in `configure_model`.

    `save_distributed_checkpoint`: each rank writes its part into a folder, which only this strategy reads back (on any number of ranks). Without it rank 0
    gathers everything into one file that every strategy reads. A collective that takes longer than `timeout_minutes` is an error.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, timeout_minutes: float = 30.0) -> None:
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint, timeout=timedelta(minutes=timeout_minutes))

    def setup_environment(self) -> None:
        # "auto" would be nodes x devices: with one node an axis of size 1, no exchange of gradients, and no error
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def mesh(self) -> DeviceMesh:
        """The axis of all ranks."""
        return self.device_mesh["data_parallel"]


def mixed_precision(precision: str) -> MixedPrecisionPolicy:
    """What `trainer.precision` means for shards: with bf16-mixed weights travel and compute in bf16, gradients are summed in fp32.

    Errors: ValueError for a precision that is neither 32-true nor bf16-mixed.
    """
    if precision == "32-true":
        return MixedPrecisionPolicy()
    if precision == "bf16-mixed":
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    raise ValueError(f"trainer.precision: found {precision}, need 32-true or bf16-mixed with FSDP2Strategy")


def shard(towers: TwoTower, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """Shard in place: the token embedding by rows, the rest block by block, then what is left of each tower, then the logit scale, which stays fp32.

    All ranks begin with the weights of rank 0, whatever their generators did before.
    """
    for parameter in towers.parameters():
        dist.broadcast(parameter.detach(), src=0)
    towers.text.token_embedding.shard(mesh, policy.param_dtype)
    rows = {towers.text.token_embedding.weight}  # these travel by themselves
    for tower, blocks in ((towers.vision, towers.vision.trunk.blocks), (towers.text, towers.text.blocks)):
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(tower, mesh=mesh, mp_policy=policy, ignored_params=rows)
    fully_shard(towers.logit_scale, mesh=mesh)
    fully_shard(towers, mesh=mesh, ignored_params=rows)
    for method in ("encode_image", "encode_text"):  # without it a tower called alone mixes sharded and plain tensors
        register_fsdp_forward_method(towers, method)
