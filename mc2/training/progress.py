"""What a run shows of itself in a terminal: steps of the whole run (Lightning's own bars count epochs, which mean nothing here), time, pairs a second, losses."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from mc2.data.batch import PairBatch

RECENT_STEPS = 20  # that pairs a second are counted over
LOOK_SECONDS = 1.0  # between two looks at the losses: on a GPU a look waits for the step


class StepProgress(ProgressBar):
    """A line for training, with pairs a second of all ranks over the last steps, data wait included; another one while something is validated or tested.

    On rank 0, on stderr; what is no terminal gets the last state only.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._bars: Progress | None = None
        self._train: TaskID | None = None
        self._evaluation: TaskID | None = None
        self._steps: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS)  # seconds and pairs of each
        self._before: float | None = None  # end of the step before, if nothing but waiting for data came in between
        self._looked = 0.0

    def enable(self) -> None:
        self._shown = True

    def disable(self) -> None:
        self._shown = False

    def _begin(self) -> Progress:
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(10),
                MofNCompleteColumn(),
                TimeElapsedColumn(Column(min_width=7, no_wrap=True)),
                TextColumn("<"),
                TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True)),
                TextColumn("{task.fields[about]}"),
            )
            self._bars = Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty(), disable=not self._shown)
            self._bars.start()
        return self._bars

    def _end(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._train = self._evaluation = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._steps.clear()
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._train = self._begin().add_task("steps", total=total, completed=trainer.global_step, about="")
        self._before = perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        if self._bars is None or self._train is None or not self._shown:
            return
        now = perf_counter()
        if self._before is not None:
            self._steps.append((now - self._before, len(batch.image)))
        self._before = now
        self._bars.update(self._train, completed=trainer.global_step)
        if now - self._looked > LOOK_SECONDS or trainer.global_step == trainer.max_steps:
            self._looked = now
            self._bars.update(self._train, about=f"{self._speed(trainer):,.0f} pairs/s {losses(trainer)}")

    def _speed(self, trainer: Trainer) -> float:
        seconds, pairs = sum(seconds for seconds, _ in self._steps), sum(pairs for _, pairs in self._steps)
        return trainer.world_size * pairs / seconds if seconds else 0.0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        self._end()

    def _evaluated(self, name: str, batches: Sequence[float]) -> None:
        """One more of so many batches, of each loader."""
        bars = self._begin()
        if self._evaluation is None:
            self._evaluation = bars.add_task(name, total=sum(batches), about="")
        bars.advance(self._evaluation)

    def on_validation_batch_end(self, *_: Any) -> None:
        self._evaluated("validate", self.trainer.num_sanity_val_batches if self.trainer.sanity_checking else self.trainer.num_val_batches)

    def on_test_batch_end(self, *_: Any) -> None:
        self._evaluated("test", self.trainer.num_test_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._before = None
        if self._bars is not None and self._evaluation is not None and trainer.state.fn == "fit":
            self._bars.remove_task(self._evaluation)
            self._evaluation = None


def losses(trainer: Trainer) -> str:
    """The metrics that the module marks for the bar: "loss 2.017 val 2.035"."""
    short = {name.removeprefix("train/").removesuffix("/loss"): value for name, value in trainer.progress_bar_metrics.items()}
    return " ".join(f"{name} {value:.3f}" for name, value in short.items())
