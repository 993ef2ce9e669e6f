"""The towers of a run as Lightning holds them: built, begun from model folders, sharded, averaged; which of them is evaluated; what a checkpoint says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mc2.data.datamodule import ShardDataModule
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.training.blocks import ParallelConfig, prepare_blocks
from mc2.training.distillation import StudentConfig, StudentEncoder, StudentInputs, student_inputs
from mc2.training.ema import EmaConfig, follow
from mc2.training.flops import meta_towers
from mc2.training.initial_weights import TOWERS, Tower, load_initial_weights
from mc2.training.parallel import FSDP2Strategy, mixed_precision, shard


def check_towers(init_from: Path | None, init_towers: Sequence[Tower], locked: Sequence[Tower]) -> None:
    """Errors: ValueError for locked towers that nobody trained, for nothing left to train, or for a choice without effect."""
    if init_from is None and set(init_towers) != set(TOWERS):
        raise ValueError(f"model.init_towers: found {list(init_towers)} without model.init_from, need a model folder to take them from")
    if not init_towers:
        raise ValueError("model.init_towers: found none, need at least one of vision and text; leave init_from out to begin anew")
    if set(locked) >= set(TOWERS):
        raise ValueError("model.locked: found both towers, need one that is trained; lock vision or text")
    if locked and (init_from is None or not set(locked) <= set(init_towers)):
        raise ValueError(
            f"model.locked: found {list(locked)} with init_from {init_from} and init_towers {list(init_towers)}, need trained weights for what is locked; give init_from"
        )


class TowersModule(LightningModule):
    """Two towers, those of further students, and their moving averages. Its settings are those of `ContrastiveModule`; students are complete.

    Errors: ValueError for settings that contradict each other.
    """

    def __init__(
        self,
        towers: TwoTowerConfig,
        students: Mapping[str, StudentConfig],
        init_from: Path | None,
        init_towers: Sequence[Tower],
        locked: Sequence[Tower],
        parallel: ParallelConfig,
        ema: EmaConfig | None,
    ) -> None:
        super().__init__()
        check_towers(init_from, init_towers, locked)
        self.tower_config, self.students_config = towers, dict(students)
        self.init_from, self.init_towers, self.locked = init_from, tuple(init_towers), tuple(locked)
        self.parallel, self.ema = parallel, ema

    def configure_model(self) -> None:
        if "towers" in self._modules:  # runs once per stage (fit, validate, ...): only the first call may build and shard
            return
        self.towers = self._ready(self.tower_config, self.init_from, self.init_towers, self.locked)
        students = self.students_config.items()
        self.students = nn.ModuleDict({name: self._ready(student.towers, student.init_from) for name, student in students})
        if self.ema is not None:
            self.ema_towers = self._ready(self.tower_config, trained=False)
            self.ema_students = nn.ModuleDict({name: self._ready(student.towers, trained=False) for name, student in students})
            self._follow(decay=0.0)

    def _ready(
        self,
        config: TwoTowerConfig,
        init_from: Path | None = None,
        init_towers: Sequence[Tower] = TOWERS,
        locked: Sequence[Tower] = (),
        trained: bool = True,
    ) -> TwoTower:
        """Towers with the weights to begin from, locked, compiled and sharded as the settings say."""
        towers = TwoTower(config).requires_grad_(trained)
        if init_from is not None and self.trainer.is_global_zero:  # DDP and `shard` give the others what rank 0 has
            load_initial_weights(towers, init_from, init_towers)
        towers.lock(locked)
        prepare_blocks(towers, self.parallel)
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDP2Strategy):
            shard(towers, strategy, mixed_precision(str(self.trainer.precision)))
        return towers

    @property
    def active_towers(self) -> TwoTower:
        """The towers themselves in training, and what is to be evaluated otherwise."""
        return self.active_student(None)

    def active_student(self, name: str | None) -> TwoTower:
        """The same of a further student; None is the module's own."""
        averaged = self.ema is not None and self.ema.evaluate and not self.training
        if name is None:
            return self.ema_towers if averaged else self.towers
        return cast(TwoTower, (self.ema_students if averaged else self.students)[name])

    def student(self, name: str) -> tuple[StudentEncoder, StudentInputs]:
        """A further student for a benchmark. Errors: ValueError for a name that is none, or a data module that does not say how it prepares images."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer, declared nowhere
        if name not in self.students_config or not isinstance(data, ShardDataModule):
            raise ValueError(
                f"benchmarks: found student {name!r} with {type(data).__name__}, need one of {list(self.students_config)} with ShardDataModule"
            )
        return StudentEncoder(partial(self.active_student, name)), student_inputs(
            self.students_config[name], data.tokenizer, data.preprocess
        )

    def all_towers(self) -> list[TwoTower]:
        """Of all students."""
        return [self.towers, *cast(Iterable[TwoTower], self.students.values())]

    def _follow(self, decay: float) -> None:
        """Move the averages towards the weights."""
        follow(self.ema_towers, self.towers, decay)
        if self.students:
            follow(self.ema_students, self.students, decay)

    def forget_beginning(self) -> None:
        """Read no folder to begin from: a checkpoint has every weight, and the folders need not be there any more."""
        self.init_from = None
        self.students_config = {name: replace(student, init_from=None) for name, student in self.students_config.items()}

    def encode_image(self, image_B3HW: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> fp32 features of unit length, (B, D). Under FSDP2 all ranks must call it equally often."""
        image_BD: Tensor = self.active_towers.encode_image(image_B3HW)
        return image_BD

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Token ids (B, L) -> fp32 features of unit length, (B, D). Under FSDP2 all ranks must call it equally often."""
        text_BD: Tensor = self.active_towers.encode_text(tokens_BL)
        return text_BD

    def text_state(self) -> tuple[str, Mapping[str, Tensor]]:
        """All that decides `encode_text`: settings in words, and the weights of the tower that is evaluated now, sharded as they are."""
        return f"{self.tower_config.text} {self.tower_config.embed_dim} {self.trainer.precision}", self.active_towers.text.state_dict()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["towers"] = self.tower_config.to_json()  # export and the check before loading need nothing but the checkpoint
        checkpoint["students"] = self.students_json()
        checkpoint["ema"] = self.ema is not None

    def sizes(self) -> list[str]:
        """Parameters of the towers, a line for each student."""
        lines = []
        for name, config in {"": self.tower_config, **{name: student.towers for name, student in self.students_config.items()}}.items():
            towers = meta_towers(config)
            parts = towers.vision, towers.text, towers.text.token_embedding
            vision, text, rows = (sum(parameter.numel() for parameter in part.parameters()) / 1e6 for part in parts)
            line = f"vision {vision:,.4g} M parameters, text {text:,.4g} M, {rows:,.4g} M of them rows of tokens"
            lines.append(f"{name}: {line}" if name else f"{line}; locked: {', '.join(self.locked)}" if self.locked else line)
        return lines

    def students_json(self) -> dict[str, Any]:
        """The configurations of the further students' towers, plain values."""
        return {name: student.towers.to_json() for name, student in self.students_config.items()}
