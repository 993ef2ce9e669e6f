"""Models to and from other tools. Every conversion is opened by the other tool itself and compared (`parity`) before anything gets its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import yaml

from mc2 import storage
from mc2.data.preprocess import ImagePreprocess
from mc2.data.tokenizer import Tokenizer
from mc2.interchange.model_directory import PARITY, SENTENCEPIECE_FILE, Clip, replace_folder, save
from mc2.interchange.parity import OtherSide, parity
from mc2.interchange.weight_names import Place, to_ours
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.model.weights import check_shapes

Target = Literal["open_clip", "transformers", "timm", "onnx"]
Mode = Literal["crop", "squash"]

MODULES = {
    "open_clip": "mc2.interchange.open_clip_folder",
    "transformers": "mc2.interchange.transformers_folder",
    "timm": "mc2.interchange.timm_folder",
    "onnx": "mc2.interchange.onnx_folder",
}


def tool(name: str) -> ModuleType:
    """The module that knows a tool. Errors: ValueError that names the extra if the tool is not installed."""
    try:
        return import_module(MODULES[name])
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: the package {error.name} is not installed; run `pip install 'mc2[interchange]'`") from error


# --- out ----------------------------------------------------------------------------------------------------------------


def export_model(clip: Clip, to: Target, out: Path) -> dict[str, Any]:
    """Write a model in the form of another tool, with parity.json. Returns the parity.

    Errors: ValueError for a model that the tool does not have, or that is another one there; then nothing is written.
    """
    if out.exists():
        raise ValueError(f"{out}: is there already; choose a new folder")
    form = tool(to)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        form.write(temporary, clip)
        report = compared(clip, form.open_side(temporary), str(out))
        storage.write_json(temporary / PARITY, report)
        replace_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def compared(clip: Clip, other: OtherSide, where: str) -> dict[str, Any]:
    """The parity as plain types. Errors: ValueError if both sides differ."""
    found = parity(clip, other)
    found.check(where)
    return asdict(found)


# --- in -----------------------------------------------------------------------------------------------------------------


def import_model(
    source: Path, out: Path, size: str | None = None, tokenizer: Path | None = None, mode: Mode | None = None
) -> dict[str, Any]:
    """Write a model of another tool as our model folder, with parity.json. Returns the parity.

    source: a folder of open_clip or transformers, or a checkpoint file of open_clip or mini_clip, which needs `size` and `tokenizer`.
    """
    if source.is_dir() and (source / "open_clip_config.json").exists():
        clip, other = _from_folder(tool("open_clip"), source, tokenizer, mode)
    elif source.is_dir() and (source / "config.json").exists():
        clip, other = _from_folder(tool("transformers"), source, tokenizer, mode)
    elif source.is_file():
        clip, other = _from_checkpoint(source, size, tokenizer, mode)
    else:
        raise ValueError(f"{source}: found no model; need a folder with open_clip_config.json or config.json, or a checkpoint file")
    report = compared(clip, other, str(out))
    save(out, clip.towers, clip.tokenizer, clip.preprocess, report)
    return report


def _from_folder(form: ModuleType, source: Path, tokenizer: Path | None, mode: Mode | None) -> tuple[Clip, OtherSide]:
    config, preprocess = form.read_config(source)
    file = tokenizer or source / SENTENCEPIECE_FILE
    if not file.exists():
        raise ValueError(f"{source}: has no {SENTENCEPIECE_FILE}; give the SentencePiece file with --tokenizer")
    towers = load_towers(str(source), config, form.read_weights(source), form.places_of)
    preprocess = replace(preprocess, mode=mode or preprocess.mode)
    return Clip(towers, Tokenizer(file, config.text.context_length), preprocess), form.open_side(source)


def _from_checkpoint(source: Path, size: str | None, tokenizer: Path | None, mode: Mode | None) -> tuple[Clip, OtherSide]:
    if size is None or tokenizer is None:
        raise ValueError(f"{source}: a checkpoint file does not say what it is; give --size (a file of experiments/models) and --tokenizer")
    form, config = tool("open_clip"), named_towers(size)
    pieces = Tokenizer(tokenizer, config.text.context_length)
    weights = form.read_weights(source)
    if "token_embedding.weight" not in weights:
        raise ValueError(f"{source}: has no token_embedding.weight; need a checkpoint of open_clip or mini_clip")
    rows = len(weights["token_embedding.weight"])
    if rows < pieces.vocab_size:
        raise ValueError(
            f"{source}: found {rows} rows of embeddings, need {pieces.vocab_size} for {tokenizer}; give the tokenizer of this model"
        )
    bias = 0.0 if "logit_bias" in weights else None  # where it starts; the checkpoint says where it is
    config = replace(config, text=replace(config.text, vocab_size=rows, eos_id=pieces.eos_id), init_logit_bias=bias)
    towers = load_towers(str(source), config, weights, form.places_of)
    preprocess = ImagePreprocess(config.vision.image_size, mode or "crop", config.mean, config.std)
    return Clip(towers, pieces, preprocess), form.checkpoint_side(towers, weights, pieces, preprocess)


def load_towers(where: str, config: TwoTowerConfig, weights: dict[str, Any], places_of: Callable[[TwoTower], dict[str, Place]]) -> TwoTower:
    """Towers with another tool's weights. Errors: ValueError for weights of another architecture."""
    towers = TwoTower(config)
    ours = to_ours(where, weights, places_of(towers))
    need = {name: tensor.shape for name, tensor in towers.state_dict().items()}
    check_shapes(where, {name: tensor.shape for name, tensor in ours.items()}, need)
    towers.load_state_dict(ours)
    return towers


def named_towers(size: str) -> TwoTowerConfig:
    """The towers of a YAML of experiments/models, by its name ("ViT-B-32") or its path; the vocabulary is not the YAML's to say.

    Errors: ValueError that lists the names.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    folder = storage.experiments() / "models"
    path = Path(size) if size.endswith(".yaml") else folder / f"{size}.yaml"
    if not path.is_file():
        raise ValueError(
            f"--size: found {size!r}, need one of {', '.join(sorted(file.stem for file in folder.glob('*.yaml')))}, or a YAML file"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TwoTowerConfig, "towers")
    try:
        section = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]["towers"]
        towers: TwoTowerConfig = parser.instantiate(parser.parse_object({"towers": section})).towers
    except (KeyError, TypeError, yaml.YAMLError, ArgumentError) as error:
        raise ValueError(f"{path}: has no model.init_args.towers that can be read ({error})") from error
    return towers
