"""Training that begins with the weights of a model folder (`mc2 import`, `mc2 export`): fine-tuning, higher resolution, a locked tower."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mc2 import __version__, storage
from mc2.data.tokenizer import Tokenizer
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.model.weights import CONFIG, FORMAT, TEXT_POSITIONS, VISION_POSITIONS, WEIGHTS, check_shapes, load_towers, stored_shapes

Tower = Literal["vision", "text"]
TOWERS: tuple[Tower, ...] = ("vision", "text")

# What may differ between the modules of two towers whose weights mean the same: what has no weights and does nothing in evaluation.
WITHOUT_EFFECT = (nn.Dropout, nn.Identity)
WITHOUT_EFFECT_NAMES = ("DropPath", "PatchDropout")


def read_folder_config(path: Path) -> dict[str, Any]:
    """config.json of a model folder. Errors: ValueError for another format."""
    value = storage.read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f'{path}: not the config of an mc2 model folder; need "format": "{FORMAT}" (write one with `mc2 export`)')
    return value


def read_tower_config(folder: Path) -> TwoTowerConfig:
    """The towers of a model folder. Errors: ValueError if it is none, or written by a version with other settings."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"model.init_from: found no {CONFIG} in {folder}, need a model folder; `mc2 import` or `mc2 export` writes one")
    value = read_folder_config(folder / CONFIG)
    try:
        return TwoTowerConfig.from_json(value["towers"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder}: written by mc2 {value.get('mc2')}, this is {__version__} ({error}); export the model again") from error


def parts_of(towers: Collection[Tower], found: TwoTowerConfig, need: TwoTowerConfig) -> tuple[str, ...]:
    """The children of TwoTower that are read: scale and bias of the logits belong to a pair of towers, and the bias to both models or it begins anew."""
    if set(towers) != set(TOWERS):
        return tuple(towers)
    both_biased = found.init_logit_bias is not None and need.init_logit_bias is not None
    return (*towers, "logit_scale", "logit_bias") if both_biased else (*towers, "logit_scale")


def architecture(towers: TwoTower, parts: Collection[str]) -> dict[str, str]:
    """Name -> what kind of module with which settings, for every module that takes part in evaluation."""
    return {
        name: f"{type(module).__name__}({module.extra_repr()})"
        for name, module in towers.named_modules()
        if name.split(".")[0] in parts and not isinstance(module, WITHOUT_EFFECT) and type(module).__name__ not in WITHOUT_EFFECT_NAMES
    }


def check_settings(folder: Path, found: TwoTowerConfig, need: TwoTowerConfig, towers: Collection[Tower]) -> None:
    """Errors: ValueError for what no shape of a weight would tell: ids, pixel statistics, positions that nobody trained."""
    if "text" in towers and (found.text.vocab_size, found.text.eos_id) != (need.text.vocab_size, need.text.eos_id):
        raise ValueError(
            f"model.init_from: {folder} has a vocabulary of {found.text.vocab_size} ids (eos {found.text.eos_id}), need {need.text.vocab_size} "
            f"(eos {need.text.eos_id}) of data.tokenizer; give data.tokenizer: {folder}, or take the images' tower alone with init_towers: [vision]"
        )
    if "text" in towers and found.text.context_length < need.text.context_length:
        raise ValueError(
            f"model.init_from: {folder} has a context of {found.text.context_length} tokens, need {need.text.context_length}; nobody trained the "
            f"positions behind: give data.context_length at most {found.text.context_length}"
        )
    if "vision" in towers:
        for name in ("mean", "std"):
            if getattr(found, name) != getattr(need, name):
                raise ValueError(
                    f"model.init_from: {folder} has {name} {getattr(found, name)}, need {getattr(need, name)} of towers.{name}; give towers and "
                    "data.preprocess those of the folder"
                )
        if (found.vision.readout, found.vision.image_size) != (need.vision.readout, need.vision.image_size) and "concat" in (
            found.vision.readout,
            need.vision.readout,
        ):
            raise ValueError(
                f"model.init_from: {folder} reads out {found.vision.readout} at {found.vision.image_size} px, need {need.vision.readout} at "
                f"{need.vision.image_size} px; the projection of concat fits one grid only: give the readout and image_size of the folder"
            )


def check_initial_weights(folder: Path, need: TwoTowerConfig, towers: Collection[Tower]) -> list[str]:
    """What is changed on loading, in readable lines; only heads of files are read.

    Errors: ValueError if the folder is none of ours or its towers compute something else than those of `need`.
    """
    found = read_tower_config(folder)
    check_settings(folder, found, need, towers)
    with torch.device("meta"):
        theirs, ours = TwoTower(found), TwoTower(need)
    parts = parts_of(towers, found, need)
    their_modules, our_modules = architecture(theirs, parts), architecture(ours, parts)
    for name in [*our_modules, *their_modules]:
        one, other = their_modules.get(name, "nothing"), our_modules.get(name, "nothing")
        if one != other:
            raise ValueError(
                f"model.init_from: {folder} has another architecture at {name}: found {one}, need {other}; give towers the sizes, heads and "
                "activations of the folder's config.json"
            )
    stored = stored_shapes(folder / WEIGHTS)
    check_shapes(str(folder / WEIGHTS), stored, shapes(theirs))
    notes, sizes = [], shapes(ours)
    resized = {name: stored[name] for name in (VISION_POSITIONS, TEXT_POSITIONS) if stored.get(name) != sizes.get(name)}
    if VISION_POSITIONS in resized and "vision" in towers:
        notes.append(f"image positions {found.vision.image_size} px -> {need.vision.image_size} px, bicubic")
    if TEXT_POSITIONS in resized and "text" in towers:
        notes.append(f"the first {need.text.context_length} of {found.text.context_length} text positions")
    check_shapes(
        str(folder),
        {name: shape for name, shape in stored.items() if name.split(".")[0] in parts and name not in resized},
        {name: shape for name, shape in sizes.items() if name.split(".")[0] in parts and name not in resized},
    )
    return notes


def shapes(towers: TwoTower) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of every weight."""
    return {name: tuple(tensor.shape) for name, tensor in towers.state_dict().items()}


def load_initial_weights(towers: TwoTower, folder: Path, only: Collection[Tower]) -> None:
    """Fill the towers that `only` names from a model folder, in place. Errors: ValueError as `check_initial_weights`."""
    load_towers(towers, folder / WEIGHTS, parts_of(only, read_tower_config(folder), towers.config))


def check_tokenizer(found: Tokenizer, folder: Path) -> None:
    """Errors: ValueError if a model folder's text tower learned other pieces under the same ids."""
    need = Tokenizer(folder, found.context_length)
    size = found.pieces.get_piece_size()
    if size != need.pieces.get_piece_size() or any(found.pieces.id_to_piece(i) != need.pieces.id_to_piece(i) for i in range(size)):
        raise ValueError(
            f"data.tokenizer: found other pieces in {found.path} than model.init_from was trained with; give data.tokenizer: {folder}"
        )
