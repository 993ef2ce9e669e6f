"""Weights of a model folder, under the names of `TwoTower.state_dict()`, and how they fit towers of another resolution or context.

Shapes: P prefix tokens (class, registers), R x R patches of the grid, L positions of captions, W width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mc2.model.two_tower import TwoTower

FORMAT = "mc2"  # of a model folder; its files are named in interchange/model_directory.py
WEIGHTS, CONFIG = "model.safetensors", "config.json"

Shapes = Mapping[str, Sequence[int]]
VISION_POSITIONS, TEXT_POSITIONS = "vision.trunk.pos_embed", "text.position_embedding"


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a safetensors file; only its head is read. Errors: ValueError for another kind of file, or one that is cut short."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not found; give a model folder that `mc2 import` or `mc2 export` wrote") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: no safetensors file, or cut short ({error}); copy or export it again") from error


def check_shapes(where: str, found: Shapes, need: Shapes) -> None:
    """Errors: ValueError that names the first weight that is missing, unknown or of another shape."""
    for name in [*need, *found]:
        if name not in found or name not in need:
            raise ValueError(
                f"{where}: {'found no' if name not in found else 'found an unknown'} weight {name!r}; the model has another architecture"
            )
        if tuple(found[name]) != tuple(need[name]):
            raise ValueError(
                f"{where}: found {name} of shape {tuple(found[name])}, need {tuple(need[name])}; the model has another architecture"
            )


def read_weights(path: Path, need: Shapes) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Errors: ValueError for another kind of file, one that is cut short, or other names and shapes than
    `need`.
    """
    check_shapes(str(path), stored_shapes(path), need)
    return load_file(path)


def resize_grid(positions_1LW: Tensor, num_prefix: int, side: int) -> Tensor:
    """Position embeddings of a square grid for a grid of side x side patches: bicubic with antialias, as open_clip; the prefix stays. (1, P + R^2, W)."""
    prefix_1PW, grid_1RW = positions_1LW[:, :num_prefix], positions_1LW[:, num_prefix:]
    before = isqrt(grid_1RW.shape[1])
    if before * before != grid_1RW.shape[1]:
        raise ValueError(f"position embeddings: found {grid_1RW.shape[1]} patches, need a square grid")
    image_1WRR = grid_1RW.float().reshape(1, before, before, -1).permute(0, 3, 1, 2)
    resized_1WRR = F.interpolate(image_1WRR, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([prefix_1PW.float(), resized_1WRR.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def fit_positions(name: str, stored: Tensor, towers: TwoTower) -> Tensor:
    """A stored tensor in the shape that the towers have: a grid of another side is resized, of a longer context the first positions are kept."""
    positions = towers.vision.trunk.pos_embed
    if name == VISION_POSITIONS and positions is not None and stored.shape != positions.shape:
        grid = towers.vision.trunk.patch_embed.num_patches
        return resize_grid(stored, positions.shape[1] - grid, isqrt(grid))
    if name == TEXT_POSITIONS:
        return stored[: len(towers.text.position_embedding)]
    return stored


@torch.no_grad()
def load_towers(towers: TwoTower, path: Path, parts: Collection[str]) -> None:
    """Fill those children of `towers` that `parts` names (vision, text, logit_scale), one tensor after the other: no second copy in memory.

    Errors: ValueError for names or shapes that do not fit.
    """
    need = {name: tensor for name, tensor in towers.state_dict().items() if name.split(".")[0] in parts}
    with safe_open(path, framework="pt") as file:
        for name, tensor in need.items():
            stored = fit_positions(name, file.get_tensor(name), towers)
            check_shapes(str(path), {name: stored.shape}, {name: tensor.shape})
            tensor.copy_(stored)
