"""Names and shapes of the weights in other tools' state dicts: open_clip's (mini_clip's are the same) and transformers' MetaClip2Model (RECIPE 2.5).

Both know one form of vision tower, CLIP's: class token, norm before the blocks, no bias in the patch embedding, pooled at the class token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]

PREFIXES = ("_orig_mod.", "module.")  # what torch.compile and DDP put before names, in the order in which they are stripped


@dataclass(frozen=True)
class Place:
    """Where one of our weights is kept elsewhere: its name there, whether it is transposed, and how many leading axes of length 1 are left out."""

    name: str
    transposed: bool = False
    dropped_axes: int = 0

    def theirs(self, tensor: Tensor) -> Tensor:
        """Our weight in their shape."""
        shape = tensor.shape[self.dropped_axes :]
        return (tensor.T if self.transposed else tensor.reshape(shape)).contiguous()

    def ours(self, tensor: Tensor) -> Tensor:
        """Their weight in our shape."""
        return (tensor.T if self.transposed else tensor.reshape((1,) * self.dropped_axes + tuple(tensor.shape))).contiguous()


def open_clip_places(vision_layers: int, text_layers: int, has_bias: bool = False) -> dict[str, Place]:
    """Our name -> place in open_clip's state dict, of every weight; `has_bias`: of the logits."""
    places = {
        "vision.trunk.cls_token": Place("visual.class_embedding", dropped_axes=2),
        "vision.trunk.pos_embed": Place("visual.positional_embedding", dropped_axes=1),
        "vision.trunk.patch_embed.proj.weight": Place("visual.conv1.weight"),
        "vision.projection.weight": Place("visual.proj", transposed=True),
        "text.token_embedding.weight": Place("token_embedding.weight"),
        "text.position_embedding": Place("positional_embedding"),
        "text.projection.weight": Place("text_projection", transposed=True),
        "logit_scale.log": Place("logit_scale", dropped_axes=1),
    }
    if has_bias:
        places["logit_bias.bias"] = Place("logit_bias", dropped_axes=1)
    norms = {"vision.trunk.norm_pre": "visual.ln_pre", "vision.trunk.norm": "visual.ln_post", "text.ln_final": "ln_final"}
    block = {"norm1": "ln_1", "attn.proj": "attn.out_proj", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    stacks = (("vision.trunk.blocks", "visual.transformer.resblocks", vision_layers), ("text.blocks", "transformer.resblocks", text_layers))
    for ours, theirs, layers in stacks:
        for i in range(layers):
            norms |= {f"{ours}.{i}.{a}": f"{theirs}.{i}.{b}" for a, b in block.items()}
            places |= {f"{ours}.{i}.attn.qkv.{kind}": Place(f"{theirs}.{i}.attn.in_proj_{kind}") for kind in ("weight", "bias")}
    return places | with_bias(norms)


def transformers_places(vision_layers: int, text_layers: int) -> dict[str, Place]:
    """Our name -> place in the state dict of transformers' MetaClip2Model, with query, key and value of a block under `self_attn.qkv_proj`: `split_qkv`."""
    places = {
        "vision.trunk.cls_token": Place("vision_model.embeddings.class_embedding", dropped_axes=2),
        "vision.trunk.pos_embed": Place("vision_model.embeddings.position_embedding.weight", dropped_axes=1),
        "vision.trunk.patch_embed.proj.weight": Place("vision_model.embeddings.patch_embedding.weight"),
        "vision.projection.weight": Place("visual_projection.weight"),
        "text.token_embedding.weight": Place("text_model.embeddings.token_embedding.weight"),
        "text.position_embedding": Place("text_model.embeddings.position_embedding.weight"),
        "text.projection.weight": Place("text_projection.weight"),
        "logit_scale.log": Place("logit_scale", dropped_axes=1),
    }
    linear = {
        "vision.trunk.norm_pre": "vision_model.pre_layrnorm",  # their spelling
        "vision.trunk.norm": "vision_model.post_layernorm",
        "text.ln_final": "text_model.final_layer_norm",
    }
    block = {
        "norm1": "layer_norm1", "attn.qkv": "self_attn.qkv_proj", "attn.proj": "self_attn.out_proj", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    for ours, theirs, layers in (("vision.trunk.blocks", "vision_model", vision_layers), ("text.blocks", "text_model", text_layers)):
        for i in range(layers):
            linear |= {f"{ours}.{i}.{a}": f"{theirs}.encoder.layers.{i}.{b}" for a, b in block.items()}
    return places | with_bias(linear)


def with_bias(modules: Mapping[str, str]) -> dict[str, Place]:
    """Weight and bias of each module."""
    return {f"{ours}.{kind}": Place(f"{theirs}.{kind}") for ours, theirs in modules.items() for kind in ("weight", "bias")}


def to_theirs(weights: Weights, places: Mapping[str, Place]) -> dict[str, Tensor]:
    """Our weights under their names. Errors: ValueError if the towers have weights that the other tool has no place for, or lack some."""
    if weights.keys() != places.keys():
        found, need = sorted(weights.keys() - places.keys())[:3], sorted(places.keys() - weights.keys())[:3]
        raise ValueError(
            f"vision tower: is not in CLIP's form (more than it: {found or 'none'}, less: {need or 'none'}); need a class token, a norm before the blocks, no "
            "patch bias and readout pool, as experiments/models have it"
        )
    return {place.name: place.theirs(weights[name]) for name, place in places.items()}


def to_ours(where: str, weights: Weights, places: Mapping[str, Place]) -> dict[str, Tensor]:
    """Their weights under our names. Errors: ValueError that names missing and unknown weights."""
    names = {place.name for place in places.values()}
    missing, unknown = sorted(names - weights.keys()), sorted(weights.keys() - names)
    if missing or unknown:
        raise ValueError(
            f"{where}: weights of another architecture (missing: {', '.join(missing[:3]) or 'none'}; unknown: {', '.join(unknown[:3]) or 'none'}); "
            "name the right size"
        )
    return {name: place.ours(weights[place.name]) for name, place in places.items()}


def split_qkv(weights: Weights) -> dict[str, Tensor]:
    """`qkv_proj` of every block as q_proj, k_proj and v_proj."""
    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".qkv_proj." in name:
            result |= {name.replace(".qkv_proj.", f".{part}_proj."): piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            result[name] = tensor
    return {name: tensor.contiguous() for name, tensor in result.items()}


def join_qkv(weights: Weights) -> dict[str, Tensor]:
    """The inverse of `split_qkv`. A part without its two others stays as it is."""
    result = dict(weights)
    for name in weights:
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if ".q_proj." in name and all(part in weights for part in parts):
            result[name.replace(".q_proj.", ".qkv_proj.")] = torch.cat([result.pop(part) for part in parts])
    return result


def strip_prefixes(weights: Weights) -> dict[str, Tensor]:
    """Names without what wrappers put before all of them."""
    for prefix in PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return dict(weights)
