"""What a run costs and what it sees: samples per second, waiting for data, share of each language in the batches."""

from __future__ import annotations

from collections import Counter
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.hooks import RemovableHandle

from mc2.data.batch import PairBatch


class Telemetry(Callback):
    """Every `trainer.log_every_n_steps` steps, over the steps since the last time. Should come after the other callbacks:

    speed/samples_per_second  pairs of all ranks per second, data wait included, validation, benchmarks and checkpoints not
    speed/wait_seconds        seconds a step waits for its batch (this rank)
    speed/wait_share          the same as a share of the time
    languages/<code>          share of the captions of this rank's batches; "unknown" where the shards name no language
    """

    def __init__(self) -> None:
        self._start = 0.0  # of the running step: its batch is there
        self._ready: float | None = None  # when the callbacks behind a step were done; None if something else than loading came in between
        self._hook: RemovableHandle | None = None
        self._reset()

    def _reset(self) -> None:
        self._steps = self._timed_waits = 0
        self._samples, self._step_seconds, self._wait_seconds = 0, 0.0, 0.0
        self._languages: Counter[str] = Counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._ready = None
        self._reset()
        self._hook = trainer.optimizers[0].register_step_post_hook(self._after_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        assert self._hook is not None
        self._hook.remove()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        self._start = perf_counter()
        if self._ready is not None:
            self._wait_seconds += self._start - self._ready
            self._timed_waits += 1

    def _after_step(self, *_: Any) -> None:
        self._step_seconds += (
            perf_counter() - self._start
        )  # here, because benchmarks in other callbacks' on_train_batch_end do not belong to the step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        self._steps += 1
        self._samples += len(batch.image)
        self._languages.update(language or "unknown" for language in batch.languages)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by a connector, declared nowhere
            self._write(trainer)
        self._ready = perf_counter()

    def _write(self, trainer: Trainer) -> None:
        wait = self._wait_seconds / max(1, self._timed_waits)
        step = self._step_seconds / self._steps
        captions = max(1, self._languages.total())
        metrics = {
            "speed/samples_per_second": self._samples / self._steps * trainer.world_size / (step + wait),
            "speed/wait_seconds": wait,
            "speed/wait_share": wait / (step + wait),
            **{f"languages/{language}": count / captions for language, count in self._languages.items()},
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step - 1)  # Lightning numbers its own points from 0
        self._reset()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._ready = None  # the time until the next batch is not waiting for data

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        self._ready = None
