"""The vision tower for timm: the folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads. Its head is our projection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor

from mc2 import storage
from mc2.data.preprocess import ImagePreprocess
from mc2.interchange.model_directory import Clip, write_weights
from mc2.interchange.parity import OtherSide
from mc2.model.vision_tower import VisionConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write(folder: Path, clip: Clip) -> None:
    """Write the vision tower, into a folder that is there. Errors: ValueError for a readout that timm does not have."""
    config, embed_dim = clip.towers.config.vision, clip.towers.config.embed_dim
    if config.readout != "pool":
        raise ValueError(f"vision tower: found readout {config.readout!r}, need 'pool': timm has no other")
    trunk = {name: tensor for name, tensor in clip.towers.vision.trunk.state_dict().items() if not name.startswith("head.")}
    head = {"head.weight": clip.towers.vision.projection.weight, "head.bias": torch.zeros(embed_dim)}
    write_weights(folder / WEIGHTS, {**trunk, **head})
    storage.write_json(folder / CONFIG, timm_config(config, embed_dim, clip.preprocess))


def timm_config(config: VisionConfig, embed_dim: int, preprocess: ImagePreprocess) -> dict[str, Any]:
    """`config.json` as timm writes it to the hub."""
    size, crop = preprocess.image_size, preprocess.mode == "crop"
    return {
        "architecture": config.name,
        "num_classes": embed_dim,
        "model_args": config.overrides(),
        "pretrained_cfg": {
            "input_size": [3, size, size], "fixed_input_size": True, "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center" if crop else "squash",
            "mean": list(preprocess.mean), "std": list(preprocess.std), "num_classes": embed_dim, "classifier": "head",
        },
    }  # fmt: skip


def open_side(folder: Path) -> OtherSide:
    """What timm makes of the folder."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data: Any = timm.data  # untyped
    transform = data.create_transform(**data.resolve_model_data_config(model), is_training=False)

    def pixels(images: list[Image.Image]) -> Tensor:
        return torch.stack([transform(image.convert("RGB")) for image in images])

    return OtherSide(model, pixels)
