"""Models of open_clip: the folder that `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads, and bare checkpoints (mini_clip's too).

open_clip_config.json          {"model_cfg": sizes, "preprocess_cfg": mean, std, resize mode}
open_clip_model.safetensors    weights (read: also open_clip_pytorch_model.bin)
tokenizer files                see `tokenizer_files`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mc2 import storage
from mc2.data.preprocess import ImagePreprocess
from mc2.data.tokenizer import Tokenizer
from mc2.data.tokenizer_forms import MT5
from mc2.interchange.checkpoint import load_safely
from mc2.interchange.model_directory import Clip, write_weights
from mc2.interchange.parity import OtherSide
from mc2.interchange.tokenizer_files import write_tokenizer_files
from mc2.interchange.weight_names import Place, open_clip_places, strip_prefixes, to_theirs
from mc2.model.text_tower import TextConfig
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.model.vision_tower import VisionConfig

CONFIG = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
RESIZE_MODES = {"crop": "shortest", "squash": "squash"}

# What our towers do; another value of one of these keys is another architecture.
FIXED_VISION = {
    "pool_type": "tok",
    "no_ln_pre": False,
    "attentional_pool": False,
    "ls_init_value": None,
    "output_tokens": False,
    "pos_embed_type": "learnable",
}
FIXED_TEXT = {
    "pool_type": "eos",
    "no_causal_mask": False,
    "embed_cls": False,
    "ls_init_value": None,
    "proj_type": "linear",
    "proj_bias": False,
}
VISION_KEYS = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio", "patch_dropout", *FIXED_VISION}
TEXT_KEYS = {
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "eos_id", "pad_id", "hf_tokenizer_name", "tokenizer_kwargs", *FIXED_TEXT,
}  # fmt: skip


# --- sizes --------------------------------------------------------------------------------------------------------------


def clip_vision(image_size: int, patch_size: int, width: int, layers: int, heads: int, mlp_width: int, quick_gelu: bool) -> VisionConfig:
    """A vision tower in CLIP's form of any size."""
    name = "vit_base_patch16_clip_quickgelu_224" if quick_gelu else "vit_base_patch16_clip_224"
    kwargs = {} if mlp_width == 4 * width else {"mlp_ratio": mlp_width / width}
    return VisionConfig(name, image_size, patch_size, width, layers, heads, timm_kwargs=kwargs)


def towers_of(where: str, model_cfg: Mapping[str, Any]) -> TwoTowerConfig:
    """The towers of an open_clip configuration. Errors: ValueError for what our towers do not do."""
    vision, text = dict(model_cfg["vision_cfg"]), dict(model_cfg["text_cfg"])
    for part, section, known, fixed in (("vision_cfg", vision, VISION_KEYS, FIXED_VISION), ("text_cfg", text, TEXT_KEYS, {**FIXED_TEXT})):
        for key, value in section.items():
            if key not in known or (key in fixed and value != fixed[key]):
                raise ValueError(f"{where}: found {part}.{key} {value!r}, need a model of Meta CLIP 2's form")
    if text.get("pool_type") != "eos":
        raise ValueError(
            f"{where}: text_cfg.pool_type is not 'eos'; need a model whose captions are read at their first end-of-sequence token"
        )
    quick = bool(model_cfg.get("quick_gelu", False))
    width, layers, ratio = vision["width"], vision["layers"], vision.get("mlp_ratio", 4.0)
    heads = width // vision.get("head_width", 64)
    return TwoTowerConfig(
        model_cfg["embed_dim"],
        clip_vision(vision["image_size"], vision["patch_size"], width, layers, heads, int(width * ratio), quick),
        TextConfig(
            text["vocab_size"], text.get("context_length", 77), text["width"], text["layers"], text["heads"], text.get("mlp_ratio", 4.0),
            "quick_gelu" if quick else "gelu", text.get("eos_id", 2),
        ),
        init_logit_bias=model_cfg.get("init_logit_bias"),
    )  # fmt: skip


def model_cfg(towers: TwoTower) -> dict[str, Any]:
    """The configuration under open_clip's names."""
    trunk, text = vision_sizes(towers), towers.config.text
    bias = {} if towers.logit_bias is None else {"init_logit_bias": towers.config.init_logit_bias}
    return {
        "embed_dim": towers.config.embed_dim, **bias,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": towers.config.vision.image_size, "layers": trunk["layers"], "width": trunk["width"], "patch_size": trunk["patch_size"],
            "head_width": trunk["width"] // trunk["heads"], "mlp_ratio": trunk["mlp_width"] / trunk["width"],
        },
        "text_cfg": {
            "context_length": text.context_length, "vocab_size": text.vocab_size, "width": text.width, "heads": text.heads, "layers": text.layers,
            "mlp_ratio": text.mlp_ratio, "pool_type": "eos", "eos_id": text.eos_id, "hf_tokenizer_name": "beside this file",
        },
    }  # fmt: skip


def vision_sizes(towers: TwoTower) -> dict[str, Any]:
    """Width, layers, heads, mlp_width, patch_size and quick_gelu of the vision tower. Errors: ValueError if both towers' activations differ."""
    trunk: Any = towers.vision.trunk  # timm's modules have no types
    block = trunk.blocks[0]
    quick = "quick" in type(block.mlp.act).__name__.lower()
    if quick != (towers.config.text.activation == "quick_gelu"):
        raise ValueError("towers: one has QuickGELU and the other GELU; other tools know one activation for both")
    sizes = {"width": trunk.embed_dim, "layers": len(trunk.blocks), "heads": block.attn.num_heads, "mlp_width": block.mlp.fc1.out_features}
    return {**sizes, "patch_size": trunk.patch_embed.patch_size[0], "quick_gelu": quick}


def places_of(towers: TwoTower) -> dict[str, Place]:
    """Where open_clip keeps each weight."""
    return open_clip_places(len(towers.vision.trunk.blocks), towers.config.text.layers, towers.logit_bias is not None)


# --- the other side -----------------------------------------------------------------------------------------------------


def open_side(folder: Path) -> OtherSide:
    """What open_clip makes of the folder."""
    import open_clip

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return side(model, transform, open_clip.get_tokenizer(f"local-dir:{folder}"))


def checkpoint_side(towers: TwoTower, weights: Mapping[str, Tensor], tokenizer: Tokenizer, preprocess: ImagePreprocess) -> OtherSide:
    """open_clip's model of these sizes with a checkpoint's own weights, its transform in the resize mode, and transformers' tokenizer of the file."""
    import open_clip

    sizes = model_cfg(towers)
    sizes["text_cfg"].pop("hf_tokenizer_name")
    model = open_clip.CLIP(**sizes)
    model.load_state_dict(dict(weights), strict=True)
    mode = RESIZE_MODES[preprocess.mode]
    transform = open_clip.image_transform(
        preprocess.image_size, is_train=False, mean=preprocess.mean, std=preprocess.std, interpolation="bicubic", resize_mode=mode
    )
    return side(model, transform, transformers_tokens(tokenizer))


def side(model: Any, transform: Any, tokens: Callable[[list[str]], Tensor]) -> OtherSide:
    """A model of open_clip with its transform of a picture and its tokenizer."""
    model = model.eval()

    def pixels(images: list[Image.Image]) -> Tensor:
        return torch.stack([transform(image) for image in images])

    bias = None if model.logit_bias is None else float(model.logit_bias)
    return OtherSide(model.encode_image, pixels, model.encode_text, tokens, float(model.logit_scale.detach().exp()), bias)


def transformers_tokens(tokenizer: Tokenizer) -> Callable[[list[str]], Tensor]:
    """The ids that transformers' own class gives for the SentencePiece file. It knows no bytes (tokenizers of `mc2 tokenizer train` have them)."""
    from transformers import SiglipTokenizer, XLMRobertaTokenizer

    if tokenizer.form == MT5:
        theirs: Any = SiglipTokenizer(str(tokenizer.path))
    else:
        theirs = XLMRobertaTokenizer.from_pretrained(str(tokenizer.path))

    def tokens(texts: list[str]) -> Tensor:
        length = tokenizer.context_length
        ids: Tensor = theirs(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")["input_ids"]
        return ids

    return tokens


# --- folders and checkpoints --------------------------------------------------------------------------------------------


def write(folder: Path, clip: Clip) -> None:
    """Write a model as open_clip's folder, into a folder that is there. Errors: ValueError for towers that open_clip does not have."""
    towers, preprocess = clip.towers, clip.preprocess
    write_weights(folder / WEIGHT_FILES[0], to_theirs(towers.state_dict(), places_of(towers)))
    prepare = {
        "mean": list(preprocess.mean), "std": list(preprocess.std), "interpolation": "bicubic",
        "resize_mode": RESIZE_MODES[preprocess.mode],
    }  # fmt: skip
    storage.write_json(folder / CONFIG, {"model_cfg": model_cfg(towers), "preprocess_cfg": prepare})
    write_tokenizer_files(folder, clip.tokenizer)


def read_config(folder: Path) -> tuple[TwoTowerConfig, ImagePreprocess]:
    """Towers and preprocessing of a folder. Errors: ValueError."""
    value = storage.read_json(folder / CONFIG)
    prepare = value.get("preprocess_cfg", {})
    if prepare.get("interpolation", "bicubic") != "bicubic" or prepare.get("resize_mode", "shortest") not in ("shortest", "squash"):
        raise ValueError(f"{folder / CONFIG}: found preprocessing {prepare}, need bicubic with resize_mode shortest or squash")
    config = towers_of(str(folder / CONFIG), value["model_cfg"])
    mean, std = prepare.get("mean", config.mean), prepare.get("std", config.std)
    mode: Literal["crop", "squash"] = "squash" if prepare.get("resize_mode") == "squash" else "crop"
    config = replace(config, mean=tuple(mean), std=tuple(std))
    return config, ImagePreprocess(config.vision.image_size, mode, tuple(mean), tuple(std))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a folder, or of a checkpoint file: safetensors, or torch.save of {"state_dict": ...} or of the weights themselves.

    Only tensors are read, never code. Errors: ValueError.
    """
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).exists()]
        if not found:
            raise ValueError(f"{path}: found none of {', '.join(WEIGHT_FILES)}; give the whole folder of the model")
        path = found[0]
    value: Any = read_safetensors(path) if path.suffix == ".safetensors" else load_safely(path)
    weights = value.get("state_dict", value)
    if not isinstance(weights, dict) or not weights or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path}: has no state_dict of tensors; need a checkpoint of open_clip or mini_clip")
    return strip_prefixes(weights)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Errors: ValueError if it is missing, cut short or something else."""
    from safetensors import SafetensorError

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not found") from error
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or cut short ({error}); copy it again") from error
