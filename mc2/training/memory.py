"""An estimate of the memory of a GPU in a training step, from the shapes of the towers. Checked on the CPU (tests/training/test_memory.py): saved activations against
what autograd keeps, the peak against what torch's profiler sees in a step. What only a GPU shows is not in it: the CUDA context (about 1 GB), the allocator's fragments, NCCL's buffers, torch.compile.

Bytes; c is 2 with bf16-mixed, 4 with 32-true; W width, M hidden width of the MLP, H heads, L positions, b pairs that a tower works on at a time, B pairs of this rank,
G pairs of all ranks, D embedding, S ranks that share the weights.

    weights, gradients, moments   4 P / S, 4 T / S, 8 T / S for P parameters of which T are trained, all fp32; with a lazy vocabulary no gradients of the table
    average                       4 P / S with a moving average of the weights
    teacher                       4 P / S of the teacher, with S = 1 and bf16-mixed c P more, and G (8 D + 4) for its features of all pairs and their gradients
    gathered                      S > 1: two blocks in c, and for their gradients one in c and one in fp32; what of the larger tower is outside blocks, in c.
                                  S = 1: with bf16-mixed autocast's copy of the weights, c P
    token rows                    the rows of B L ids in c, their gradients in fp32 twice (S > 1; at most the table)
    activations of a block        b L (W (8 + 6 c) + k c M + 4 H + 16): inputs of both norms in fp32, inputs of qkv, proj and fc1, query, key and value, k = 2 tensors in the MLP
                                  (3 for x sigmoid(1.702 x)), log-sum-exp and the statistics of the norms
      checkpointed                b L 4 W, and once the activations of one block; selective: b L (W (4 + 6 c) + c M + 4 H)
      outside blocks              b (L 4 W (two for vision: norm before and behind), c 3 pixels)
    working memory                b L 4 c W: gradients on their way through the widest block, and the activations of that block where they are computed again
    loss                          G (2 x 4 D + 4): all captions and their gradients; 2 x 4 tile^2: two buffers of logits

Several students add up: their weights, their activations (all are made before the backward pass) and token rows; their losses follow one another, so the widest counts.

The backward pass frees activations while it makes gradients, so the peak has the larger of the two; with micro-batches, whose gradients add up, it has both. With
cpu_offload weights, gradients and moments are in the memory of the host, but for those of the token rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mc2.model.two_tower import TwoTower
from mc2.training.flops import training_positions


@dataclass(frozen=True)
class TowerShape:
    """What of a tower decides its memory. `parameters` without the table of tokens, `rest` those outside blocks."""

    parameters: int
    table: int
    block: int
    rest: int
    layers: int
    width: int
    hidden: int
    heads: int
    mlp_tensors: int
    positions: int
    pixels: int  # 3 H W; 0 for text
    norms: int  # outside blocks that see every position
    trained: bool

    def block_bytes(self, compute: int) -> int:
        """Activations that one block keeps of one sequence."""
        of_position = self.width * (8 + 6 * compute) + self.mlp_tensors * compute * self.hidden + 4 * self.heads + 16
        return self.positions * of_position

    def forgetful_block_bytes(self, compute: int, selective: bool) -> int:
        """The same of a block that is computed again in the backward pass."""
        kept = 6 * compute * self.width + compute * self.hidden + 4 * self.heads if selective else 0
        return self.positions * (4 * self.width + kept)

    def activation_bytes(self, compute: int, checkpoint_every: int = 0, selective: bool = False) -> int:
        """Of one sequence between forward and backward pass; 0 for a tower that is not trained."""
        if not self.trained:
            return 0
        forgetful = -(-self.layers // checkpoint_every) if checkpoint_every else 0
        outside = self.norms * self.positions * (4 * self.width + 8) + compute * self.pixels
        blocks = forgetful * self.forgetful_block_bytes(compute, selective) + (self.layers - forgetful) * self.block_bytes(compute)
        return outside + blocks

    def working_bytes(self, compute: int, checkpoint_every: int = 0) -> int:
        """Of one sequence in addition while it goes through the backward pass: gradients, and one block that is computed again."""
        again = self.block_bytes(compute) if checkpoint_every else 0
        return self.positions * 4 * compute * self.width + again if self.trained else 0


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def tower_shapes(towers: TwoTower, tokens: int, locked: frozenset[str] = frozenset()) -> dict[str, TowerShape]:
    """The shapes of both towers (which may be without memory, on the meta device) for captions of so many tokens."""
    shapes = {}
    trunk, text = towers.vision.trunk, towers.text
    image_size = towers.config.vision.image_size
    norms_before = 0 if isinstance(trunk.norm_pre, nn.Identity) else 1
    for name, tower, blocks, positions in (
        ("vision", towers.vision, list(trunk.blocks), training_positions(towers)),
        ("text", text, list(text.blocks), tokens),
    ):
        first = blocks[0]
        fc1, act = first.get_submodule("mlp").get_submodule("fc1"), first.get_submodule("mlp").get_submodule("act")
        assert isinstance(fc1, nn.Linear)
        table = text.token_embedding.weight.numel() if name == "text" else 0
        block = count(first)
        shapes[name] = TowerShape(
            parameters=count(tower) - table,
            table=table,
            block=block,
            rest=count(tower) - table - block * len(blocks),
            layers=len(blocks),
            width=fc1.in_features,
            hidden=fc1.out_features,
            heads=int(getattr(first.get_submodule("attn"), "num_heads")),  # noqa: B009  (a Module's attribute has no type)
            mlp_tensors=3 if "quick" in type(act).__name__.lower() else 2,
            positions=positions,
            pixels=3 * image_size * image_size if name == "vision" else 0,
            norms=norms_before + 1 if name == "vision" else 0,
            trained=name not in locked,
        )
    return shapes


@dataclass(frozen=True)
class StepSettings:
    """What of a run's configuration decides the memory of a step. `all_pairs` of all ranks; `embed_dim` of the widest student; `sharded` by FSDP2, in `replicate`
    copies; `teacher`: its parameters.
    """

    all_pairs: int
    tokens: int
    embed_dim: int
    mixed: bool
    sharded: bool = True
    replicate: int = 1
    micro_batches: int = 1
    checkpoint_every: int = 0
    selective: bool = False
    tile: int = 2048
    lazy_vocabulary: bool = False
    ema: bool = False
    cpu_offload: bool = False
    teacher: int = 0

    def shards(self, num_gpus: int) -> float:
        """GPUs that share the weights."""
        return num_gpus / self.replicate if self.sharded else 1


def state_bytes(
    shapes: dict[str, TowerShape], step: StepSettings, names: frozenset[str] = frozenset({"blocks", "table"})
) -> dict[str, float]:
    """What lives from step to step, of all GPUs together: of the token rows ("table") and of everything else ("blocks")."""
    parts = {"weights": 0.0, "gradients": 0.0, "moments": 0.0}
    for shape in shapes.values():
        for name, number in (("blocks", shape.parameters), ("table", shape.table)):
            if name in names:
                parts["weights"] += 4 * number
                parts["gradients"] += 4 * number * (shape.trained and not (name == "table" and step.lazy_vocabulary))
                parts["moments"] += 8 * number * shape.trained
    if step.ema:
        parts["average"] = parts["weights"]
    return parts


def host_bytes(shapes: dict[str, TowerShape], step: StepSettings, num_gpus: int) -> float:
    """Memory of the host for one process, with cpu_offload."""
    return sum(state_bytes(shapes, step, frozenset({"blocks"})).values()) / step.shards(num_gpus) if step.cpu_offload else 0.0


def memory_per_gpu(shapes: dict[str, TowerShape], step: StepSettings, num_gpus: int) -> dict[str, float]:
    """Part -> bytes on each of `num_gpus`, as the head of this file says; `peak_bytes` adds them up."""
    compute, shards = 2 if step.mixed else 4, step.shards(num_gpus)
    pairs = step.all_pairs / num_gpus
    at_once = pairs / step.micro_batches
    towers = list(shapes.values())
    state = state_bytes(shapes, step, frozenset({"table"} if step.cpu_offload else {"blocks", "table"}))
    parts = {name: number / shards for name, number in state.items()}
    if step.teacher:
        copy = compute if step.mixed and shards == 1 else 0
        parts["teacher"] = (4 / shards + copy) * step.teacher + step.all_pairs * (8 * step.embed_dim + 4)
    if shards > 1:
        block, rest = max(shape.block for shape in towers), max(shape.rest for shape in towers)
        rows = sum(min(pairs * step.tokens * shape.width, shape.table) for shape in towers)
        parts["gathered"] = block * (3 * compute + 4) + rest * compute + rows * (compute + 8)
    else:
        parts["gathered"] = compute * sum(shape.parameters + shape.table for shape in towers) if step.mixed else 0
    kept = [shape.activation_bytes(compute, step.checkpoint_every, step.selective) for shape in towers]
    parts["activations"] = at_once * (sum(kept) if step.micro_batches == 1 else max(kept))
    parts["working"] = at_once * max(shape.working_bytes(compute, step.checkpoint_every) for shape in towers)
    parts["loss"] = step.all_pairs * (8 * step.embed_dim + 4) + 8 * min(step.tile**2, pairs * step.all_pairs)
    return parts


def peak_bytes(parts: dict[str, float], step: StepSettings) -> float:
    """The estimated peak of a GPU: all parts, but of gradients and activations the larger one, unless micro-batches need both."""
    return sum(parts.values()) - (min(parts["gradients"], parts["activations"]) if step.micro_batches == 1 else 0)


def checkpoint_bytes(shapes: dict[str, TowerShape], step: StepSettings) -> float:
    """One checkpoint on the disk: weights, moments, the average."""
    return sum(number for name, number in state_bytes(shapes, step).items() if name != "gradients")
