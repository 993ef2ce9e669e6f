"""`mc2 export`: a checkpoint of training -> the model folder that `mc2.load` reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from mc2.data.datamodule import ShardDataModule
    from mc2.model.two_tower import TwoTower

TOWERS = "towers."  # prefix of the towers' weights in the training module


def main(argv: list[str]) -> int:
    """Export as the command line says; `argv` begins with the subcommand. Returns 0; errors are raised as ValueError."""
    parser = argparse.ArgumentParser(prog="mc2 export", description="Write a checkpoint as a model folder that mc2.load reads.")
    parser.add_argument("--config", type=Path, required=True, help="config.yaml that the run saved; names its tokenizer and preprocessing")
    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoint of the run: a file, or the folder of a sharded one")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write; an older model there is replaced")
    arguments = parser.parse_args(argv[1:])
    export(arguments.config, arguments.ckpt_path, arguments.out)
    print(f"{arguments.out}: written; read it with mc2.load({str(arguments.out)!r})")
    return 0


def export(config: Path, ckpt_path: Path, out: Path) -> None:
    """Write the model folder `out`. Needs the checkpoint, the run's config and its tokenizer, but neither its shards nor its balance."""
    from mc2.interchange.model_directory import save

    data = data_module(config)
    save(out, read_towers(ckpt_path), data.tokenizer, data.preprocess)


def read_towers(ckpt_path: Path) -> TwoTower:
    """The towers in a checkpoint. Errors: ValueError for a checkpoint of something else, or weights that do not fit its configuration."""
    from mc2.interchange.checkpoint import read_checkpoint
    from mc2.interchange.model_directory import check_shapes
    from mc2.model.two_tower import TwoTower, TwoTowerConfig

    checkpoint = read_checkpoint(ckpt_path)
    if "towers" not in checkpoint.values:
        raise ValueError(f"{ckpt_path}: does not say which towers it holds; need a checkpoint of mc2's ContrastiveModule")
    towers = TwoTower(TwoTowerConfig.from_json(checkpoint.values["towers"]))
    weights = {name.removeprefix(TOWERS): tensor for name, tensor in checkpoint.weights.items() if name.startswith(TOWERS)}
    need = {name: tensor.shape for name, tensor in towers.state_dict().items()}
    check_shapes(str(ckpt_path), {name: tensor.shape for name, tensor in weights.items()}, need)
    towers.load_state_dict(weights)
    return towers


def data_module(config: Path) -> ShardDataModule:
    """The data module of a run, built but not set up. Errors: ValueError for a config without one, or a tokenizer that is not there."""
    from jsonargparse import ArgumentError, ArgumentParser

    from mc2.data.datamodule import ShardDataModule

    section = read_section(config, "data")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ShardDataModule, "data")
    plain = section if "class_path" in section else {"class_path": "mc2.data.datamodule.ShardDataModule", "init_args": section}
    try:
        data: ShardDataModule = parser.instantiate(parser.parse_object({"data": plain})).data
    except ArgumentError as error:
        raise ValueError(f"{config}: {error}") from error
    return data


def read_section(config: Path, name: str) -> dict[str, Any]:
    """One top-level section of a YAML file. Errors: ValueError if the file or the section is not there."""
    try:
        value = yaml.safe_load(config.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{config}: not found; give the config.yaml beside the run's checkpoints") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config}: not valid YAML ({error})") from error
    section = value.get(name) if isinstance(value, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"{config}: has no section {name!r}; give the config.yaml that `mc2 fit` saved")
    return section
