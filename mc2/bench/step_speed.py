"""Pairs a second of a training step and its memory, ours and open_clip's: the same architecture, weights, batch, precision and optimizer, in one run.

Imports torch: only `mc2 bench step` imports this. Both sides hold their batch on the device: ours uint8 images, which the step normalises, theirs the normalised
fp32 images that open_clip's loader gives. Shapes: B pairs, H and W pixels, L tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import open_clip
import rich
import torch
from rich.table import Table
from torch import Tensor, nn

from mc2.interchange.open_clip_folder import model_cfg, places_of
from mc2.interchange.weight_names import to_theirs
from mc2.model.loss import ContrastiveLoss
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.training.blocks import ParallelConfig, prepare_blocks
from mc2.training.flops import PairFlops, peak_flops
from mc2.training.optimizer import OptimizerConfig, build_optimizer, clamp_log_scale

Precision = Literal["32-true", "bf16-mixed"]
OURS, THEIRS = "mc2", "open_clip"
TOLERANCE = {"32-true": 1e-4, "bf16-mixed": 2e-2}  # of the first loss, relative


@dataclass(frozen=True)
class Setting:
    """What is measured. `compile`: both sides are compiled, ours block by block, theirs as a whole, as their `--torchcompile` does."""

    towers: TwoTowerConfig
    batch: int
    precision: Precision
    compile: bool
    steps: int
    repeats: int
    device: str

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"step: found {name} {getattr(self, name)}, need at least 1")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("step: found no CUDA device; leave --device out")


def choose_device(device: str | None) -> str:
    """A GPU where one is, unless another wish is given."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


class Batch(NamedTuple):
    """uint8 images (B, 3, H, W) and token ids (B, L), every caption of full length: no side can trim."""

    image: Tensor
    tokens: Tensor

    @classmethod
    def random(cls, config: TwoTowerConfig, batch: int, device: str) -> Batch:
        generator, size, text = torch.Generator().manual_seed(0), config.vision.image_size, config.text
        image = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
        tokens = torch.randint(text.eos_id + 1, text.vocab_size, (batch, text.context_length), generator=generator)
        tokens[:, -1] = text.eos_id
        return cls(image.to(device), tokens.to(device))


Step = Callable[[], Tensor]  # a whole step; returns the loss


def our_step(setting: Setting, towers: TwoTower, batch: Batch) -> Step:
    """The step of `mc2 fit` without Lightning around it."""
    loss = ContrastiveLoss()
    prepare_blocks(towers, ParallelConfig(compile="inductor" if setting.compile else None))
    optimizer, _ = build_optimizer(towers, OptimizerConfig(warmup_steps=0), num_steps=1000)

    def step() -> Tensor:
        with autocast(setting):
            image_BD, text_BD, scale, bias = towers(batch.image, batch.tokens)
            value: Tensor = loss(image_BD, text_BD, scale, bias)
        torch.autograd.backward(value)
        optimizer.step()
        optimizer.zero_grad()
        clamp_log_scale(towers.logit_scale.log, 100.0)
        return value.detach()

    return step


def their_step(setting: Setting, towers: TwoTower, batch: Batch) -> Step:
    """The step of open_clip's training loop: its model, loss and flags, AdamW as it makes it."""
    cfg = model_cfg(towers)
    model: Any = open_clip.CLIP(cfg["embed_dim"], cfg["vision_cfg"], text_cfg(cfg["text_cfg"]), quick_gelu=cfg["quick_gelu"])
    model.load_state_dict(to_theirs(towers.state_dict(), places_of(towers)))
    model.to(setting.device).train()
    decayed = [p for name, p in model.named_parameters() if not exempt(name, p)]
    rest = [p for name, p in model.named_parameters() if exempt(name, p)]
    config = OptimizerConfig()
    groups = [{"params": rest, "weight_decay": 0.0}, {"params": decayed, "weight_decay": config.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps)
    loss = open_clip.ClipLoss()
    image_B3HW = (batch.image - towers.pixel_mean) / towers.pixel_std
    run = torch.compile(model) if setting.compile else model

    def step() -> Tensor:
        optimizer.zero_grad()
        with autocast(setting):
            value: Tensor = loss(*run(image_B3HW, batch.tokens))
        torch.autograd.backward(value)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return value.detach()

    return step


def text_cfg(cfg: dict[str, Any]) -> dict[str, Any]:
    """Without what the model's constructor does not take."""
    return {key: value for key, value in cfg.items() if key != "hf_tokenizer_name"}


def exempt(name: str, parameter: nn.Parameter) -> bool:
    """open_clip's rule of what does not decay."""
    return parameter.ndim < 2 or any(word in name for word in ("bn", "ln", "bias", "logit_scale"))


def autocast(setting: Setting) -> torch.autocast:
    """Of the precision that is measured."""
    return torch.autocast(setting.device, torch.bfloat16, enabled=setting.precision == "bf16-mixed")


# --- the measurement ----------------------------------------------------------------------------------------------------


def measure(setting: Setting) -> dict[str, Any]:
    """Figures of both sides. Errors: ValueError if their first losses differ, because then they do not do the same work."""
    torch.manual_seed(0)
    towers = TwoTower(setting.towers).to(setting.device).train()
    batch = Batch.random(setting.towers, setting.batch, setting.device)
    flops = setting.batch * PairFlops.of(towers).step(setting.towers.text.context_length, setting.batch)
    sides, own_bytes, first = {}, {}, {}
    for name, make in ((THEIRS, their_step), (OURS, our_step)):  # theirs first: it copies the weights before a step changes them
        before = allocated(setting.device)
        sides[name] = make(setting, towers, batch)
        first[name] = float(sides[name]())
        own_bytes[name] = allocated(setting.device) - before
    if abs(first[OURS] - first[THEIRS]) > TOLERANCE[setting.precision] * first[THEIRS]:
        raise ValueError(f"step: the first loss is {first[OURS]} here and {first[THEIRS]} in open_clip: the sides do not do the same work")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks = dict.fromkeys(sides, 0)
    for _ in range(setting.repeats):
        for name, step in sides.items():
            reset_peak(setting.device)
            seconds[name].append(timed(step, setting.steps, setting.device))
            others = sum(size for other, size in own_bytes.items() if other != name)
            peaks[name] = max(peaks[name], peak(setting.device) - others)
    peak_rate = peak_flops(torch.cuda.get_device_name()) if setting.device == "cuda" else None
    return {
        "first_loss": first[OURS],
        "parameters": sum(parameter.numel() for parameter in towers.parameters()),
        "flops_per_step": flops,
        "sides": {
            name: {
                "seconds_per_step": min(times),
                "pairs_per_second": setting.batch / min(times),
                "pairs_per_second_of_each_round": [setting.batch / each for each in times],
                "peak_bytes": peaks[name] if setting.device == "cuda" else None,
                "mfu": flops / min(times) / peak_rate if peak_rate else None,
            }
            for name, times in seconds.items()
        },
        "ratio": min(seconds[THEIRS]) / min(seconds[OURS]),
    }


def timed(step: Step, steps: int, device: str) -> float:
    """Seconds of one step, over so many of them."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise(device)
    return (time.perf_counter() - start) / steps


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def print_table(name: str, setting: Setting, figures: dict[str, Any]) -> None:
    """A row for each side, and the ratio."""
    compiled = ", compiled" if setting.compile else ""
    table = Table(
        title=f"{name}, {figures['parameters'] / 1e6:,.1f} M parameters, batch {setting.batch}, {setting.precision}{compiled}, {setting.device}"
    )
    for heading in ("", "pairs/s", "seconds a step", "peak GB", "MFU"):
        table.add_column(heading, justify="right" if heading else "left")
    for side, row in figures["sides"].items():
        memory = f"{row['peak_bytes'] / 1e9:.1f}" if row["peak_bytes"] else ""
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else ""
        table.add_row(side, f"{row['pairs_per_second']:,.1f}", f"{row['seconds_per_step']:.4f}", memory, mfu)
    rich.print(table)
    rich.print(f"mc2 runs {figures['ratio']:.2f} x as many pairs a second as open_clip. Both first losses are {figures['first_loss']:.4f}.")
