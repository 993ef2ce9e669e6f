"""What a run costs and what it sees: samples and tokens per second, use of the GPU, waiting for data, share of each language in the batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mc2.data.batch import PairBatch
from mc2.training.flops import PairFlops, meta_towers, peak_flops
from mc2.training.module import ContrastiveModule


def num_tokens(tokens_BL: Tensor, eos_id: int) -> Tensor:
    """Tokens of all captions up to and with the first eos of each; a scalar on their device."""
    return (tokens_BL == eos_id).int().argmax(dim=1).sum() + len(tokens_BL)


def loss_by_language(module: ContrastiveModule, languages: Sequence[str]) -> dict[str, float]:
    """Mean loss of the last batch's pairs of each language, on this rank."""
    assert module.loss.pair_losses is not None
    sums, numbers = Counter[str](), Counter[str]()
    for language, loss in zip(languages, module.loss.pair_losses.tolist(), strict=True):
        sums[language or "unknown"] += loss
        numbers[language or "unknown"] += 1
    return {language: sums[language] / number for language, number in numbers.items()}


class Telemetry(Callback):
    """Every `trainer.log_every_n_steps` steps, over the steps since the last time. Should come after the other callbacks:

    speed/samples_per_second  pairs of all ranks per second, data wait included, validation, benchmarks and checkpoints not
    speed/tokens_per_second   tokens of captions, up to and with their eos: padding does not count
    speed/mfu                 share of the GPU's peak in bf16 that the model's operations reach (what is computed twice does not count), this rank; only for a GPU
                              that `flops.PEAK_FLOPS` knows
    speed/hfu                 the same with what is computed twice (micro_batches, checkpointed blocks)
    speed/memory_gb           most memory of tensors on this rank's GPU since the last time; only on a GPU
    speed/wait_seconds        seconds a step waits for its batch (this rank)
    speed/wait_share          the same as a share of the time
    languages/<code>          share of the captions of this rank's batches; "unknown" where the shards name no language
    loss/<code>               mean loss of this rank's pairs of that language in the step that is written
    """

    def __init__(self) -> None:
        self._start = 0.0  # of the running step: its batch is there
        self._ready: float | None = None  # when the callbacks behind a step were done; None if something else than loading came in between
        self._hook: RemovableHandle | None = None
        self._peak_flops: float | None = None  # a second, of this rank's GPU
        self._pair_flops: PairFlops | None = None
        self._reset()

    def _reset(self) -> None:
        self._steps = self._timed_waits = 0
        self._samples, self._step_seconds, self._wait_seconds = 0, 0.0, 0.0
        self._languages: Counter[str] = Counter()
        self._tokens: Tensor | int = 0  # stays on the device until it is written: reading it would wait for the GPU
        self._flops = self._recomputed = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ready = None
        if pl_module.device.type == "cuda":
            self._peak_flops = peak_flops(torch.cuda.get_device_name(pl_module.device))
        if isinstance(pl_module, ContrastiveModule):
            self._pair_flops = PairFlops.of(meta_towers(pl_module.tower_config), frozenset(pl_module.locked))
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
        if isinstance(pl_module, ContrastiveModule) and self._pair_flops:
            self._tokens += num_tokens(batch.tokens, pl_module.tower_config.text.eos_id)
            num_pairs = len(batch.image)
            tokens = batch.tokens.shape[1]
            self._flops += num_pairs * self._pair_flops.step(tokens, num_pairs * trainer.world_size)
            self._recomputed += num_pairs * self._pair_flops.recomputed(tokens, pl_module.parallel, pl_module.micro_batches)
        self._steps += 1
        self._samples += len(batch.image)
        self._languages.update(language or "unknown" for language in batch.languages)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by a connector, declared nowhere
            losses = loss_by_language(pl_module, batch.languages) if isinstance(pl_module, ContrastiveModule) else {}
            self._write(trainer, {f"loss/{language}": loss for language, loss in losses.items()})
        self._ready = perf_counter()

    def _write(self, trainer: Trainer, losses: dict[str, float]) -> None:
        wait = self._wait_seconds / max(1, self._timed_waits)
        step = self._step_seconds / self._steps
        captions = max(1, self._languages.total())
        metrics = {
            "speed/samples_per_second": self._samples / self._steps * trainer.world_size / (step + wait),
            "speed/wait_seconds": wait,
            "speed/wait_share": wait / (step + wait),
            **{f"languages/{language}": count / captions for language, count in self._languages.items()},
            **losses,
        }
        if self._pair_flops:
            metrics["speed/tokens_per_second"] = float(self._tokens) / self._steps * trainer.world_size / (step + wait)
        if self._peak_flops:
            peak = self._peak_flops * self._steps * (step + wait)
            metrics |= {"speed/mfu": self._flops / peak, "speed/hfu": (self._flops + self._recomputed) / peak}
        if trainer.strategy.root_device.type == "cuda":
            metrics["speed/memory_gb"] = torch.cuda.max_memory_allocated(trainer.strategy.root_device) / 1e9
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step - 1)  # Lightning numbers its own points from 0
        self._reset()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._ready = None  # the time until the next batch is not waiting for data

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        self._ready = None
