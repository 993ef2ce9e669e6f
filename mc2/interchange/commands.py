"""`mc2 import | export`: models of other tools in, checkpoints of training and model folders out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

if TYPE_CHECKING:
    from mc2.data.datamodule import ShardDataModule
    from mc2.model.two_tower import TwoTower

TOWERS, EMA_TOWERS = "towers.", "ema_towers."  # prefixes of the weights in the training module
STUDENTS, EMA_STUDENTS = "students.", "ema_students."  # those of further students, before their names


def main(argv: list[str]) -> int:
    """Run `mc2 import` or `mc2 export`; `argv` begins with the subcommand. Returns 0; errors are raised as ValueError."""
    from mc2.usage import Parser

    command: Any = {"import": import_, "export": export}[argv[0]]
    parser = Parser(prog=f"mc2 {argv[0]}", description=str(command.__doc__).splitlines()[0])
    parser.add_function_arguments(command, as_group=False)  # auto_cli would take --config for itself
    command(**parser.parse_args(argv[1:]).as_dict())
    return 0


def import_(
    source: Path, out: Path, size: str | None = None, tokenizer: Path | None = None, mode: Literal["crop", "squash"] | None = None
) -> None:
    """Turn a model of open_clip, transformers or mini_clip into a model folder that mc2.load reads; the other tool's own results are compared first.

    Args:
        source: Folder of open_clip (open_clip_config.json) or transformers (config.json of MetaClip2Model), or a checkpoint file of open_clip or mini_clip.
        out: Model folder to write, with parity.json.
        size: What a checkpoint file holds: a name of experiments/models such as ViT-H-14-quickgelu, or a YAML like these.
        tokenizer: SentencePiece file (or folder with tokenizer.model), where the source has none: XLM-V's sentencepiece.bpe.model, mT5's for the mT5 sizes.
        mode: How evaluation makes images square: crop (224 px) or squash (378 px in open_clip); by default what the source says, else crop.
    """
    from mc2.interchange.convert import import_model

    report = import_model(source, out, size, tokenizer, mode)
    print(f"{out}: written; read it with mc2.load({str(out)!r}). Largest differences to the source: {differences(report)}")


def export(
    out: Path,
    model: Path | None = None,
    config: Path | None = None,
    ckpt_path: Path | None = None,
    to: Literal["mc2", "open_clip", "transformers", "timm", "onnx"] = "mc2",
    ema: bool = False,
    student: str | None = None,
) -> None:
    """Write a checkpoint of training as a model folder that mc2.load reads, or a model in the form of another tool.

    Args:
        out: Folder to write. An older model folder there is replaced; for other tools it must be new.
        model: Model folder to convert; instead of config and ckpt_path.
        config: config.yaml that the run saved; names its tokenizer and preprocessing.
        ckpt_path: Checkpoint of the run: a file, or the folder of a sharded one.
        to: "mc2", or a folder for open_clip ("local-dir:..."), transformers (MetaClip2Model), timm (vision tower alone) or ONNX (both towers).
        ema: Take the moving average of the weights (model.init_args.ema of the run) instead of the weights of the last step.
        student: Take this one of the run's further students (model.init_args.students).
    """
    from mc2.interchange.convert import export_model
    from mc2.interchange.model_directory import Clip, load, save
    from mc2.training.distillation import StudentConfig, student_inputs

    if (model is None) == (config is None or ckpt_path is None):
        raise ValueError("export: need either --model, or --config and --ckpt_path of a run")
    if model is not None:
        if to == "mc2":
            raise ValueError(f"{model}: is a model folder already; say with --to for which tool it should be written")
        if ema or student:
            raise ValueError(f"{model}: found --ema or --student with a model folder, need a checkpoint, which can have them; leave it out")
        clip = load(model)
    else:
        assert config is not None
        assert ckpt_path is not None
        data = data_module(config)
        towers = read_towers(ckpt_path, ema, student)
        tokenizer, preprocess = data.tokenizer, data.preprocess
        if student:
            settings = StudentConfig(towers.config, tokenizer_of_student(config, student))
            tokenizer, preprocess = student_inputs(settings, tokenizer, preprocess)
        clip = Clip(towers, tokenizer, preprocess)
    if to == "mc2":
        save(out, clip.towers, clip.tokenizer, clip.preprocess)
        print(f"{out}: written; read it with mc2.load({str(out)!r})")
    else:
        report = export_model(clip, to, out)
        print(f"{out}: written for {to}. Largest differences: {differences(report)}")


def differences(report: dict[str, Any]) -> str:
    """The parity in one line."""
    shown = ("image_features", "text_features", "logits", "pixel_levels", "texts_with_other_ids")
    return ", ".join(f"{name} {report[name]:.2g}" for name in shown if report[name] is not None)


def tokenizer_of_student(config: Path, student: str) -> Path | None:
    """Its folder, as a run's config.yaml has it; None for the tokenizer of the data."""
    settings = read_section(config, "model")
    path = (settings.get("init_args", settings).get("students") or {}).get(student, {}).get("tokenizer")
    return None if path is None else Path(path)


def read_towers(ckpt_path: Path, ema: bool = False, student: str | None = None) -> TwoTower:
    """The towers in a checkpoint, or one of its further students, or the moving average. Errors: ValueError for a checkpoint of something else, or weights that do not fit its configuration."""
    from mc2.interchange.checkpoint import read_checkpoint
    from mc2.model.two_tower import TwoTower, TwoTowerConfig
    from mc2.model.weights import check_shapes

    checkpoint = read_checkpoint(ckpt_path)
    if "towers" not in checkpoint.values:
        raise ValueError(f"{ckpt_path}: does not say which towers it holds; need a checkpoint of mc2's ContrastiveModule")
    students = checkpoint.values.get("students") or {}
    if student and student not in students:
        raise ValueError(f"{ckpt_path}: found students {list(students)}, need {student!r}; give one of them, or leave --student out")
    towers = TwoTower(TwoTowerConfig.from_json(students[student] if student else checkpoint.values["towers"]))
    if ema and not checkpoint.values.get("ema"):
        raise ValueError(f"{ckpt_path}: has no moving average; leave --ema out, or train with model.init_args.ema")
    prefix = EMA_TOWERS if ema else TOWERS
    if student:
        prefix = f"{EMA_STUDENTS if ema else STUDENTS}{student}."
    weights = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.weights.items() if name.startswith(prefix)}
    need = {name: tensor.shape for name, tensor in towers.state_dict().items()}
    check_shapes(str(ckpt_path), {name: tensor.shape for name, tensor in weights.items()}, need)
    broken = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(
            f"{ckpt_path}: found NaN or infinity in {len(broken)} weights ({', '.join(broken[:3])}), need numbers; take a checkpoint before it"
        )
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
