"""How the blocks of both towers are run: compiled one by one, with their activations kept or computed again in the backward pass.

Both are done in place before sharding, and neither changes a name: checkpoints of runs with and without them are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mc2.model.two_tower import TwoTower

ATEN = torch.ops.aten
# What is expensive to compute again: matrix products and attention (the kernels that a device may choose).
KEPT = {
    ATEN.mm.default,
    ATEN.addmm.default,
    ATEN.bmm.default,
    ATEN.baddbmm.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    ATEN._scaled_dot_product_flash_attention.default,
    ATEN._scaled_dot_product_efficient_attention.default,
    ATEN._scaled_dot_product_cudnn_attention.default,
}


@dataclass(frozen=True)
class ParallelConfig:
    """Speed and memory of the blocks; the results are the same up to rounding. The order is: compile, checkpoint, shard (the strategy's work).

    compile: backend of torch.compile, usually inductor; each block is compiled on its own, so that equal blocks are compiled once.
    checkpoint_every: every n-th block keeps only its input and is computed again in the backward pass: 1 every block, 2 every other one, 0 none.
    selective: these blocks keep the results of matrix products and attention too, and compute only the rest again: less memory saved, hardly slower.
    """

    compile: str | None = None
    checkpoint_every: int = 0
    selective: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint_every < 0:
            raise ValueError(f"model.parallel.checkpoint_every: found {self.checkpoint_every}, need 0 (none) or n for every n-th block")
        if self.selective and not self.checkpoint_every:
            raise ValueError(
                "model.parallel.selective: found true without checkpoint_every, need blocks to apply to; set checkpoint_every to 1"
            )
        if self.compile is not None and self.compile not in torch.compiler.list_backends(exclude_tags=()):
            raise ValueError(
                f"model.parallel.compile: found {self.compile!r}, need a backend of torch.compile; set inductor, or null for none"
            )


def prepare_blocks(towers: TwoTower, config: ParallelConfig) -> None:
    """Compile and checkpoint in place; before `fully_shard`, which hooks into what it finds. Errors: ValueError if no block would be checkpointed."""
    if config.compile:
        torch._dynamo.config.optimize_ddp = False  # DDP's splitting of graphs knows no checkpoints; blocks are split already
    for blocks in tower_blocks(towers):
        for index, block in enumerate(blocks):
            if config.checkpoint_every and index % config.checkpoint_every == 0:
                recompute_in_backward(block, config.selective)
            if config.compile:
                block.compile(backend=config.compile)  # in place: it covers what `forward` is when the block is first called


def tower_blocks(towers: TwoTower) -> Iterator[list[nn.Module]]:
    """The transformer blocks of each tower, in order."""
    yield list(towers.vision.trunk.blocks)
    yield list(towers.text.blocks)


def recompute_in_backward(block: nn.Module, selective: bool) -> None:
    """Replace the block's forward by one that forgets. (torch's wrapper module would put its own name into every key of a checkpoint.)"""
    contexts: dict[str, Any] = {"context_fn": partial(create_selective_checkpoint_contexts, keep_expensive)} if selective else {}
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, **contexts)


def keep_expensive(context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:  # noqa: ARG001  (torch's signature)
    """Keep what is in KEPT."""
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
