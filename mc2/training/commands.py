"""`mc2 fit | validate | test | predict`: LightningCLI with the defaults of this project and errors in one line.

A run lives in `trainer.default_root_dir`: config.yaml (replays fit, validate, test and predict), checkpoints/, TensorBoard events.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mc2.benchmarks.callbacks import MultilingualBenchmark
from mc2.data.datamodule import ShardDataModule
from mc2.data.preprocess import ImagePreprocess
from mc2.data.tokenizer import Tokenizer
from mc2.data.views import Views
from mc2.model.two_tower import TwoTowerConfig
from mc2.training.checkpoints import (
    LAST,
    Checkpoints,
    check_checkpoint,
    checkpoint_folder,
    checkpoints_by_step,
    find_checkpoint,
    read_values,
    saves_parts,
)
from mc2.training.distillation import needed_views
from mc2.training.guards import Guard
from mc2.training.initial_weights import TOWERS, Tower, check_initial_weights, check_tokenizer
from mc2.training.module import ContrastiveModule, check_micro_batches
from mc2.training.nodes import Nodes, network_message
from mc2.training.parallel import FSDP2Strategy
from mc2.training.precision import cpu_computes_bf16
from mc2.training.preemption import Preemption
from mc2.training.progress import StepProgress
from mc2.training.ranking import RankingTrainer
from mc2.training.released import ReleasedModel
from mc2.training.slurm import add_environment, check_nodes
from mc2.training.telemetry import Telemetry
from mc2.usage import one_line

# Lightning's own defaults train for 1000 epochs, count validation inside epochs, and keep tensors of inference mode that training cannot touch (NCCL).
TRAINER_DEFAULTS = {
    "default_root_dir": "runs/default",
    "max_epochs": -1,
    "max_steps": -1,
    "check_val_every_n_epoch": None,
    "val_check_interval": 1000,
    "log_every_n_steps": 10,
    "inference_mode": False,
    "use_distributed_sampler": False,
    "enable_model_summary": False,  # it counts no operations of these towers and warns of bf16; ContrastiveModule.sizes says what they are
}


class SaveRunConfig(SaveConfigCallback):
    """config.yaml in the run folder, written by `fit` only: evaluating a run does not change what it was."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class Commands(LightningCLI):
    """The parser and the objects of one command line."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(Preemption, "preemption")
        parser.add_lightning_class_args(Nodes, "nodes")
        parser.add_lightning_class_args(Guard, "guard")
        parser.add_lightning_class_args(Telemetry, "telemetry")
        for source, target in (
            ("vocab_size", "text.vocab_size"),
            ("context_length", "text.context_length"),
            ("eos_id", "text.eos_id"),
        ):  # the tokenizer's, so never in YAML
            parser.link_arguments(f"data.{source}", f"model.init_args.towers.{target}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # always the list that `main` got

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let hyper-parameters inside a checkpoint overrule YAML and command line, and read the whole file for it."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The run folder is the log folder: no version_0 below it, so that a resumed run goes on in the same TensorBoard run."""
        settings = self._get(self.config_init, "trainer")
        if settings["logger"] in (None, True):
            kwargs["logger"] = TensorBoardLogger(save_dir=settings["default_root_dir"], name="", version="")
        kwargs["plugins"] = add_environment(settings["plugins"], os.environ)
        callbacks = (
            settings["callbacks"] if isinstance(settings["callbacks"], list) else [settings["callbacks"]] if settings["callbacks"] else []
        )
        if settings["enable_progress_bar"] is not False and not any(isinstance(each, ProgressBar) for each in callbacks):
            kwargs["callbacks"] = [*callbacks, StepProgress()]
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Settle which checkpoint is meant, and refuse what cannot work, before anything is started."""
        check_nodes(self.trainer, os.environ)
        settings, run = self.config_init[self.subcommand], self.trainer.default_root_dir
        path = find_checkpoint(settings["ckpt_path"], run) if settings["ckpt_path"] else None
        watch = self.subcommand == "test" and settings["watch"] is not None
        if path is None and self.subcommand != "fit" and not watch and not has_weights(self.model):
            raise ValueError(f"--ckpt_path: found no checkpoint, need one to {self.subcommand}, such as {checkpoint_folder(run)}/{LAST}")
        if settings["ckpt_path"] is None and self.subcommand == "fit" and checkpoints_by_step(checkpoint_folder(run)):
            raise ValueError(
                f"{run}: holds checkpoints of another run; go on with --ckpt_path last, or give another --trainer.default_root_dir"
            )
        if isinstance(self.model, ContrastiveModule):
            check_ids(self.datamodule, self.model.tower_config)
            if isinstance(self.datamodule, ShardDataModule):
                check_images(self.datamodule.preprocess, self.model.tower_config)
                if self.subcommand == "fit":
                    check_ranks(self.datamodule, self.trainer.world_size)
                check_micro_batches(self.model.micro_batches, self.datamodule.batch_size)
                views = needed_views(self.model.teacher_config if self.subcommand == "fit" else None, self.model.students_config)
                Views.needed(views, self.datamodule.tokenizer, self.datamodule.preprocess)  # what is missing is missed now
            if path is not None:
                reads_folders = isinstance(self.trainer.strategy, FSDP2Strategy)
                check_checkpoint(
                    path, self.model.tower_config.to_json(), reads_folders, self.model.ema is not None, self.model.students_json()
                )
                self.model.forget_beginning()
                if self.subcommand in ("validate", "test"):
                    for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector, declared nowhere
                        if isinstance(callback, MultilingualBenchmark):
                            callback.step = read_values(path)["global_step"]
            elif watch:
                self.model.forget_beginning()
            else:
                check_beginning(self.model, self.datamodule)
        if self.subcommand == "fit":
            check_run_folder(self.trainer)  # makes it, so nothing else may be wrong
            if isinstance(self.model, ContrastiveModule):
                rank_zero_only(print)("\n".join(f"model: {line}" for line in self.model.sizes()))
            on_cpu = isinstance(self.trainer.accelerator, CPUAccelerator)
            if on_cpu and str(self.trainer.precision).startswith("bf16") and not cpu_computes_bf16():
                rank_zero_only(print)("precision: this processor has no bf16, which makes it very slow; give --trainer.precision 32-true")
        if settings["ckpt_path"] is not None and self.subcommand == "fit":
            rank_zero_only(print)(f"checkpoint: {f'goes on from {path}' if path else f'none in {run} yet, begins anew'}")
        settings["ckpt_path"] = None if path is None else str(path)
        settings["weights_only"] = True


def check_run_folder(trainer: Trainer) -> None:
    """Errors: ValueError for a run folder that cannot be written, on the ranks that write."""
    if not trainer.is_global_zero and not saves_parts(trainer):
        return
    try:
        Path(trainer.default_root_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=trainer.default_root_dir):
            pass
    except OSError as error:
        raise ValueError(
            f"trainer.default_root_dir: found {trainer.default_root_dir}, where nothing can be written ({error.strerror}), need a folder for the run; "
            "choose another one"
        ) from error


def has_weights(model: LightningModule) -> bool:
    """Whether a module brings its own weights, both towers of a model folder."""
    from_folder = isinstance(model, ContrastiveModule) and model.init_from is not None and set(model.init_towers) == set(TOWERS)
    return from_folder or isinstance(model, ReleasedModel)


def check_images(found: ImagePreprocess, need: TwoTowerConfig) -> None:
    """Errors: ValueError if the data prepares images for another size or other pixel statistics than the towers'."""
    pairs = {"image_size": (found.image_size, need.vision.image_size), "mean": (found.mean, need.mean), "std": (found.std, need.std)}
    for name, (data, towers) in pairs.items():
        if data != towers:
            raise ValueError(f"data.preprocess.{name}: found {data}, need {towers} as in model.towers; give both the same")


def check_ids(data: LightningDataModule, towers: TwoTowerConfig) -> None:
    """Errors: ValueError if the data module does not say what the text tower must know of its tokenizer: the tower would look for the wrong eos, say."""
    for name in ("vocab_size", "context_length", "eos_id"):
        found, need = getattr(data, name, None), getattr(towers.text, name)
        if found != need:
            raise ValueError(
                f"data.{name}: found {found} in {type(data).__name__}, while the text tower has {need}; give the data module its tokenizer's {name} as an attribute"
            )


def check_ranks(data: ShardDataModule, world_size: int) -> None:
    """Errors: ValueError, before a process starts, for shards or validation pairs that do not suffice for all ranks: a rank without them would hang the others."""
    if data.val_pairs < world_size:
        raise ValueError(
            f"data.val_pairs: found {data.val_pairs} for {world_size} processes, need at least one pair for each; raise data.init_args.val_pairs"
        )
    data.loader(0, world_size)


def check_beginning(model: ContrastiveModule, data: LightningDataModule) -> None:
    """Say what of model folders is changed on loading. Errors: ValueError if one does not fit its towers or their tokenizer."""
    students = model.students_config.items()
    beginnings: list[tuple[str, Path | None, TwoTowerConfig, Sequence[Tower], Path | None]]
    beginnings = [("weights", model.init_from, model.tower_config, model.init_towers, None)]
    beginnings += [(f"weights of {name}", each.init_from, each.towers, TOWERS, each.tokenizer) for name, each in students]
    for what, folder, config, towers, path in beginnings:
        if folder is None:
            continue
        notes = check_initial_weights(folder, config, towers)
        if isinstance(data, ShardDataModule) and "text" in towers:
            check_tokenizer(data.tokenizer if path is None else Tokenizer(path, config.text.context_length), folder)
        rank_zero_only(print)(f"{what}: {', '.join(towers)} of {folder}" + "".join(f"; {note}" for note in notes))


def command_line(argv: list[str], kind: type[Commands] = Commands) -> Commands:
    """Parse, build everything and run; `mc2 plan` parses only. Errors: ArgumentError of jsonargparse, ValueError."""
    quiet = {"exit_on_error": False}
    return kind(
        LightningModule,
        LightningDataModule,
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"overwrite": True},
        trainer_class=RankingTrainer,
        trainer_defaults=TRAINER_DEFAULTS,
        seed_everything_default=0,
        parser_kwargs={"prog": "mc2", **quiet, **{name: dict(quiet) for name in Commands.subcommands()}},
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=argv,
    )


def quiet_logs() -> None:
    """Without Lightning's advertisements, and what the trainer's flags say anyway."""
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def main(argv: list[str]) -> int:
    """Exit status: 0 if the work is done, 128 + signal after SIGTERM and SIGUSR1. Errors: ValueError in one line; KeyboardInterrupt after Ctrl-C."""
    quiet_logs()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".isinstance\(treespec, LeafSpec\)", FutureWarning)  # Lightning 2.6 on torch 2.15
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")  # locked towers are meant to be
            warnings.filterwarnings("ignore", "The `srun` command is available")  # slurm.py says when it is needed
            commands = command_line(argv)
    except ArgumentError as error:
        cure = (
            "give a file that is there"
            if "does not exist" in str(error)
            else "`--print_config` at the end of the same line shows every key"
        )
        raise ValueError(f"{one_line(str(error))}; {cure}") from error
    except (ValueError, MisconfigurationException) as error:
        raise ValueError(one_line(str(error))) from error
    except RuntimeError as error:
        message = network_message(error)
        if message is None:
            raise
        raise ValueError(message) from error
    except SystemExit as error:  # Lightning turns an interrupt into exit status 1
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    return stop_status(commands.trainer)


def stop_status(trainer: Trainer) -> int:
    """How the run ended; ranks that were stopped leave together. Errors: KeyboardInterrupt if Ctrl-C ended it."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector, declared nowhere
    agreed = max((callback.agreed for callback in callbacks if isinstance(callback, Preemption)), default=0)
    mark = os.environ.get("MC2_REQUEUE")  # of train.sbatch
    if mark and agreed in (signal.SIGTERM, signal.SIGUSR1) and trainer.is_global_zero:
        Path(mark).touch()
    if agreed and dist.is_initialized():
        dist.barrier()  # srun ends all ranks when the first leaves with a status: the logs of each are whole by now
    if agreed == signal.SIGINT:
        raise KeyboardInterrupt
    return 128 + agreed if agreed else 0
