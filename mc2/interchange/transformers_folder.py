"""Models of transformers: the folder that `MetaClip2Model.from_pretrained` and `AutoProcessor.from_pretrained` load.

config.json, model.safetensors      MetaClip2Model
preprocessor_config.json            CLIPImageProcessor
tokenizer files                     see `tokenizer_files`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from mc2 import storage
from mc2.data.preprocess import ImagePreprocess
from mc2.interchange.model_directory import Clip, write_weights
from mc2.interchange.open_clip_folder import clip_vision, read_safetensors, vision_sizes
from mc2.interchange.parity import OtherSide
from mc2.interchange.tokenizer_files import write_tokenizer_files
from mc2.interchange.weight_names import Place, join_qkv, split_qkv, to_theirs, transformers_places
from mc2.model.text_tower import TextConfig
from mc2.model.two_tower import TwoTower, TwoTowerConfig

MODEL_TYPE = "metaclip_2"
CONFIG, PREPROCESSOR, WEIGHTS, INDEX = "config.json", "preprocessor_config.json", "model.safetensors", "model.safetensors.index.json"


def places_of(towers: TwoTower) -> dict[str, Place]:
    """Where transformers keeps each weight, with qkv joined."""
    return transformers_places(len(towers.vision.trunk.blocks), towers.config.text.layers)


# --- writing ------------------------------------------------------------------------------------------------------------


def write(folder: Path, clip: Clip) -> None:
    """Write a model as transformers' folder, into a folder that is there. Errors: ValueError for towers that transformers does not have."""
    towers = clip.towers
    if towers.logit_bias is not None:
        raise ValueError("towers: found a logit bias, which MetaClip2Model has no place for; export to open_clip")
    write_weights(folder / WEIGHTS, split_qkv(to_theirs(towers.state_dict(), places_of(towers))))
    storage.write_json(folder / CONFIG, model_config(towers, clip.tokenizer.pad_id))
    storage.write_json(folder / PREPROCESSOR, preprocessor_config(clip.preprocess))
    write_tokenizer_files(folder, clip.tokenizer)


def model_config(towers: TwoTower, pad_id: int) -> dict[str, Any]:
    """`config.json` of MetaClip2Model."""
    vision, text, embed_dim = vision_sizes(towers), towers.config.text, towers.config.embed_dim
    activation = "quick_gelu" if vision["quick_gelu"] else "gelu"
    return {
        "architectures": ["MetaClip2Model"], "model_type": MODEL_TYPE, "projection_dim": embed_dim, "torch_dtype": "float32",
        "logit_scale_init_value": float(towers.logit_scale.log),
        "vision_config": {
            "model_type": "metaclip_2_vision_model", "hidden_size": vision["width"], "intermediate_size": vision["mlp_width"],
            "num_hidden_layers": vision["layers"], "num_attention_heads": vision["heads"], "image_size": towers.config.vision.image_size,
            "patch_size": vision["patch_size"], "projection_dim": embed_dim, "hidden_act": activation, "layer_norm_eps": 1e-5,
        },
        "text_config": {
            "model_type": "metaclip_2_text_model", "vocab_size": text.vocab_size, "hidden_size": text.width,
            "intermediate_size": int(text.mlp_ratio * text.width), "num_hidden_layers": text.layers, "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length, "projection_dim": embed_dim, "hidden_act": activation, "layer_norm_eps": 1e-5,
            "bos_token_id": 0, "eos_token_id": text.eos_id, "pad_token_id": pad_id,
        },
    }  # fmt: skip


def preprocessor_config(preprocess: ImagePreprocess) -> dict[str, Any]:
    """`preprocessor_config.json` of CLIPImageProcessor: a crop of the centre, or both edges resized."""
    size = preprocess.image_size
    edges = {"height": size, "width": size}
    crop = preprocess.mode == "crop"
    return {
        "image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 3,
        "size": {"shortest_edge": size} if crop else edges, "do_center_crop": crop, "crop_size": edges, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(preprocess.mean), "image_std": list(preprocess.std),
    }  # fmt: skip


# --- reading ------------------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> tuple[TwoTowerConfig, ImagePreprocess]:
    """Towers and preprocessing of a folder. Errors: ValueError for a model of another type."""
    config = storage.read_json(folder / CONFIG)
    if config.get("model_type") != MODEL_TYPE:
        raise ValueError(f"{folder / CONFIG}: found model_type {config.get('model_type')!r}, need {MODEL_TYPE!r}")
    defaults = default_config()
    vision, text = {**defaults["vision_config"], **config["vision_config"]}, {**defaults["text_config"], **config["text_config"]}
    quick = text["hidden_act"] == "quick_gelu"
    if vision["hidden_act"] != text["hidden_act"] or text["hidden_act"] not in ("quick_gelu", "gelu"):
        raise ValueError(
            f"{folder / CONFIG}: found activations {vision['hidden_act']} and {text['hidden_act']}, need gelu or quick_gelu in both"
        )
    preprocess = read_preprocessor(folder)
    towers = TwoTowerConfig(
        config["projection_dim"],
        clip_vision(
            vision["image_size"], vision["patch_size"], vision["hidden_size"], vision["num_hidden_layers"], vision["num_attention_heads"],
            vision["intermediate_size"], quick,
        ),
        TextConfig(
            text["vocab_size"], text["max_position_embeddings"], text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"],
            text["intermediate_size"] / text["hidden_size"], "quick_gelu" if quick else "gelu", text["eos_token_id"],
        ),
        mean=preprocess.mean,
        std=preprocess.std,
    )  # fmt: skip
    return towers, preprocess


def default_config() -> dict[str, Any]:
    """What transformers takes where config.json says nothing: saved files leave defaults out."""
    from transformers import MetaClip2Config

    value: dict[str, Any] = MetaClip2Config().to_dict()
    return value


def read_preprocessor(folder: Path) -> ImagePreprocess:
    """Errors: ValueError if no preprocessing of ours equals it."""
    name = PREPROCESSOR if (folder / PREPROCESSOR).exists() else "processor_config.json"
    value = storage.read_json(folder / name)
    value = value.get("image_processor", value)
    size = value["size"]
    edge = size.get("shortest_edge") or size.get("height")
    mode: Literal["crop", "squash"] = "crop" if size.get("shortest_edge") else "squash"
    if value.get("resample", 3) != 3 or (mode == "squash" and size["height"] != size["width"]):
        raise ValueError(f"{folder / name}: found size {size}, resample {value.get('resample')}; need square images and bicubic (3)")
    return ImagePreprocess(edge, mode, tuple(value["image_mean"]), tuple(value["image_std"]))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict with qkv joined, from one file or from the parts that an index names. Errors: ValueError."""
    names = sorted(set(storage.read_json(folder / INDEX)["weight_map"].values())) if (folder / INDEX).exists() else [WEIGHTS]
    weights: dict[str, Tensor] = {}
    for name in names:
        weights |= read_safetensors(folder / name)
    return {name: tensor for name, tensor in join_qkv(weights).items() if not name.endswith("position_ids")}


# --- the other side -----------------------------------------------------------------------------------------------------


def open_side(folder: Path) -> OtherSide:
    """What transformers makes of the folder."""
    from transformers import AutoImageProcessor, AutoTokenizer, MetaClip2Model

    classes: tuple[Any, ...] = MetaClip2Model, AutoImageProcessor, AutoTokenizer  # untyped
    model, processor, tokenizer = (one.from_pretrained(folder) for one in classes)
    model = model.float().eval()

    def pixels(images: list[Image.Image]) -> Tensor:
        values: Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
        return values

    def tokens(texts: list[str]) -> Tensor:
        length = model.config.text_config.max_position_embeddings
        ids: Tensor = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")["input_ids"]
        return ids

    def encode_pixels(pixels_N3HW: Tensor) -> Tensor:
        features: Tensor = model.get_image_features(pixel_values=pixels_N3HW).pooler_output
        return features

    def encode_tokens(tokens_TL: Tensor) -> Tensor:
        features: Tensor = model.get_text_features(input_ids=tokens_TL).pooler_output
        return features

    return OtherSide(encode_pixels, pixels, encode_tokens, tokens, float(model.logit_scale.detach().exp()))
