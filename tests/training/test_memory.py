"""The estimate of activations against the bytes that autograd keeps, and the other parts by hand."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from mc2.model import attention
from mc2.model.loss import ContrastiveLoss
from mc2.model.text_tower import TextConfig
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.model.vision_tower import VisionConfig
from mc2.training.blocks import ParallelConfig, prepare_blocks
from mc2.training.flops import meta_towers
from mc2.training.memory import StepSettings, checkpoint_bytes, host_bytes, memory_per_gpu, peak_bytes, tower_shapes
from mc2.training.plan import Plan
from tests.model.test_zoo import towers_of

TOKENS = 20
VISION = VisionConfig(image_size=56, patch_size=8, width=64, layers=3, heads=4)
TEXT = TextConfig(vocab_size=50, context_length=TOKENS, width=48, layers=2, heads=3)
BASE = TwoTowerConfig(embed_dim=32, vision=VISION, text=TEXT)
MODELS = {
    "base": BASE,
    "quick": replace(BASE, vision=replace(VISION, name="vit_base_patch16_clip_quickgelu_224"), text=replace(TEXT, activation="quick_gelu")),
    "wide vision": replace(BASE, vision=replace(VISION, width=128, layers=5, heads=8)),
    "patch dropout": replace(BASE, vision=replace(VISION, timm_kwargs={"patch_drop_rate": 0.5})),
}  # fmt: skip


def as_on_a_gpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float = 0.0) -> Tensor:
    """Attention in the type of its input; on the CPU our own computes it in fp32."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # for a few positions in fp32 torch may choose plain matrix products
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout)


def kept_bytes(forward: Callable[[], object]) -> int:
    """Bytes of the different storages that are alive after a forward pass because of it: saved for backward, or held for computing again."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    def storages() -> dict[int, int]:
        alive = [thing for thing in gc.get_objects() if type(thing) is Tensor]
        return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}

    before = storages()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    after = storages()
    assert result is not None
    return sum(size for place, size in after.items() if place not in before)


def bytes_per_sample(towers: TwoTower, name: str, mixed: bool) -> float:
    """Activations of one sequence: what two more of them add, so that copies of weights do not count."""
    size = towers.config.vision.image_size

    def kept(num: int) -> int:
        image, tokens = torch.zeros(num, 3, size, size, dtype=torch.uint8), torch.full((num, TOKENS), 2)
        with torch.autocast("cpu", dtype=torch.bfloat16) if mixed else nullcontext():
            return kept_bytes((lambda: towers.encode_image(image)) if name == "vision" else (lambda: towers.encode_text(tokens)))

    kept(1)  # what the first call alone makes
    return (kept(4) - kept(2)) / 2


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_activations_are_what_autograd_keeps(model: str, mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attend", as_on_a_gpu)
    towers = TwoTower(MODELS[model]).train()
    for name, shape in tower_shapes(meta_towers(MODELS[model]), TOKENS).items():
        found = bytes_per_sample(towers, name, mixed)
        assert shape.activation_bytes(2 if mixed else 4) == pytest.approx(found, rel=0.15), name


@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context")  # the selective ones are held by Python, which `kept_bytes` sees too
@pytest.mark.parametrize(("every", "selective"), [(1, False), (2, False), (1, True)])
def test_checkpointed_blocks_keep_less(every: int, selective: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attend", as_on_a_gpu)
    config = replace(BASE, vision=replace(VISION, layers=5), text=replace(TEXT, layers=4))
    towers = TwoTower(config).train()
    prepare_blocks(towers, ParallelConfig(checkpoint_every=every, selective=selective))
    for name, shape in tower_shapes(meta_towers(config), TOKENS).items():
        found = bytes_per_sample(towers, name, mixed=False)
        assert shape.activation_bytes(4, every, selective) == pytest.approx(found, rel=0.15), name
        assert found < 0.75 * shape.activation_bytes(4)


LARGER = replace(
    BASE, vision=replace(VISION, width=128, layers=6, heads=2), text=replace(TEXT, vocab_size=2000, width=128, layers=6, heads=2)
)


def measured_peak(configs: Sequence[TwoTowerConfig], step: StepSettings) -> float:
    """Bytes at the peak of a whole step of these students with AdamW, as torch's profiler sees allocations; weights and moments, which were there before, by
    their number.
    """
    students = nn.ModuleList([TwoTower(config).train() for config in configs])
    for towers in students:
        prepare_blocks(cast(TwoTower, towers), ParallelConfig(checkpoint_every=step.checkpoint_every, selective=step.selective))
    optimizer, loss = torch.optim.AdamW(students.parameters(), fused=True), ContrastiveLoss()
    sizes, pairs = {config.vision.image_size for config in configs}, step.all_pairs
    images = {size: torch.zeros(pairs, 3, size, size, dtype=torch.uint8) for size in sizes}
    tokens = torch.full((pairs, step.tokens), 2)

    def train() -> None:
        losses = []
        for config, towers in zip(configs, students, strict=True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step.mixed):
                features = towers(images[config.vision.image_size], tokens, step.micro_batches)
            losses.append(loss(*features))
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train()
    changes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return 12.0 * sum(weight.numel() for weight in students.parameters()) + float(max(accumulate(changes)))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("config", "more"),
    [
        (BASE, {}),
        (LARGER, {}),
        (LARGER, {"all_pairs": 8}),  # gradients are as large as activations
        (LARGER, {"checkpoint_every": 1}),
        (LARGER, {"micro_batches": 4}),
    ],
)
def test_the_peak_is_what_the_profiler_sees(
    config: TwoTowerConfig, more: dict[str, int], mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "attend", as_on_a_gpu)
    step = replace(StepSettings(all_pairs=64, tokens=TOKENS, embed_dim=32, mixed=mixed, sharded=False), **more)  # type: ignore[arg-type]
    parts = memory_per_gpu(tower_shapes(meta_towers(config), TOKENS), step, 1)
    assert peak_bytes(parts, step) == pytest.approx(measured_peak([config], step), rel=0.15)


@pytest.mark.parametrize(("mixed", "micro_batches"), [(False, 1), (True, 1), (False, 4)])
def test_the_peak_of_two_students(mixed: bool, micro_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attend", as_on_a_gpu)
    step = StepSettings(all_pairs=64, tokens=TOKENS, embed_dim=32, mixed=mixed, sharded=False, micro_batches=micro_batches)
    plan = Plan(LARGER, step, 1, students={"small": BASE})
    parts = memory_per_gpu(plan.shapes(), step, 1)
    assert peak_bytes(parts, step) == pytest.approx(measured_peak([LARGER, BASE], step), rel=0.15)


def test_weights_and_moments_of_vit_h14_by_hand() -> None:
    """1.8588 G parameters: 16 bytes each with AdamW in fp32, shared by the GPUs; what is locked has no gradient and no moments."""
    towers = meta_towers(towers_of("ViT-H-14-quickgelu", 901_629))
    step = StepSettings(all_pairs=75_264, tokens=77, embed_dim=1024, mixed=True, checkpoint_every=1)
    parts = memory_per_gpu(tower_shapes(towers, 77), step, 384)
    assert parts["weights"] + parts["gradients"] + parts["moments"] == pytest.approx(16 * 1.8588e9 / 384, rel=1e-3)
    assert parts["loss"] == 75_264 * (8 * 1024 + 4) + 8 * 2048 * 2048
    few = memory_per_gpu(tower_shapes(towers, 77), replace(step, replicate=48), 384)
    assert few["weights"] == pytest.approx(48 * parts["weights"])
    locked = memory_per_gpu(tower_shapes(towers, 77, frozenset({"vision"})), step, 384)
    assert locked["moments"] == pytest.approx(8 * (1.8588e9 - 0.6321e9) / 384, rel=1e-3)
    assert locked["activations"] < 0.3 * parts["activations"]
    alone = memory_per_gpu(tower_shapes(towers, 77), replace(step, all_pairs=8, sharded=False), 1)
    assert alone["gathered"] == pytest.approx(2 * 1.8588e9, rel=1e-3)


def test_a_lazy_vocabulary_and_an_average_by_hand() -> None:
    """On 8 GPUs the table of 901,629 rows of 1,024 has no gradient; an average costs the weights once more."""
    shapes = tower_shapes(meta_towers(towers_of("ViT-H-14-quickgelu", 901_629)), 77)
    step = StepSettings(all_pairs=8 * 196, tokens=77, embed_dim=1024, mixed=True)
    plain = memory_per_gpu(shapes, step, 8)
    lazy = memory_per_gpu(shapes, replace(step, lazy_vocabulary=True), 8)
    assert plain["gradients"] - lazy["gradients"] == 901_629 * 1024 * 4 / 8
    assert memory_per_gpu(shapes, replace(step, ema=True), 8) == {**plain, "average": plain["weights"]}


def test_a_teacher_offload_and_the_disk_by_hand() -> None:
    """ViT-H/14 has 1,858,783,745 parameters, 923,268,096 of them rows of tokens."""
    shapes = tower_shapes(meta_towers(towers_of("ViT-H-14-quickgelu", 901_629)), 77)
    rows, others = 923_268_096, 1_858_783_745 - 923_268_096 - 1  # the logit scale is nowhere counted
    step = StepSettings(all_pairs=1024, tokens=77, embed_dim=1024, mixed=True)
    plain = memory_per_gpu(shapes, step, 8)
    offloaded = replace(step, cpu_offload=True)
    assert host_bytes(shapes, offloaded, 8) == 16 * others / 8
    assert host_bytes(shapes, step, 8) == 0
    parts = memory_per_gpu(shapes, offloaded, 8)
    assert parts["weights"] + parts["gradients"] + parts["moments"] == 16 * rows / 8
    assert parts["gathered"] == plain["gathered"]
    taught = memory_per_gpu(shapes, replace(step, teacher=1000), 8)
    assert taught == {**plain, "teacher": 4 * 1000 / 8 + 1024 * (8 * 1024 + 4)}
    assert checkpoint_bytes(shapes, step) == 12 * (rows + others)
    assert checkpoint_bytes(shapes, replace(step, ema=True)) == 16 * (rows + others)
    locked = tower_shapes(meta_towers(towers_of("ViT-H-14-quickgelu", 901_629)), 77, frozenset({"text"}))
    assert checkpoint_bytes(locked, step) == 12 * 632_076_800 + 4 * (rows + others - 632_076_800)


def test_micro_batches_bound_activations_by_one_part_of_one_tower() -> None:
    shapes = tower_shapes(meta_towers(BASE), TOKENS)
    step = StepSettings(all_pairs=64, tokens=TOKENS, embed_dim=32, mixed=False)
    assert memory_per_gpu(shapes, step, 2)["activations"] == 32 * sum(shape.activation_bytes(4) for shape in shapes.values())
    parts = memory_per_gpu(shapes, replace(step, micro_batches=4), 2)
    assert parts["activations"] == 8 * max(shape.activation_bytes(4) for shape in shapes.values())
