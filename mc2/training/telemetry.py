"""What a run costs and what it sees: samples and tokens per second, use of the GPU, waiting for data, drops, loss and share of each language, goodput."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from mc2.benchmarks.callbacks import MultilingualBenchmark
from mc2.data.batch import PairBatch
from mc2.data.datamodule import ShardDataModule
from mc2.data.loader import Tally
from mc2.data.stages import STAGES
from mc2.model.ranks import HostCopy
from mc2.records import DROP_REASONS
from mc2.training.all_ranks import UNKNOWN, columns_of_all_ranks, languages_of_all_ranks, read_languages
from mc2.training.board import write_hparams, write_layout, writers
from mc2.training.checkpoints import Checkpoints
from mc2.training.flops import peak_flops
from mc2.training.goodput import Goodput
from mc2.training.module import ContrastiveModule
from mc2.training.step_flops import StepFlops

GOODPUT_SECONDS = 30.0  # between two writings of goodput.json
COLUMNS = (
    "wait",
    "memory",
    "samples",
    *STAGES,
    *DROP_REASONS,
    "tokens",
    "full",
)  # what every rank tells the others; the last two lie on its device


def num_tokens(tokens_BL: Tensor, eos_id: int) -> Tensor:
    """Tokens of each caption up to and with its first eos, (B,), on their device."""
    return (tokens_BL == eos_id).int().argmax(dim=1) + 1


class Written(NamedTuple):
    """Numbers on their way to the host; written, with those that the host knows, when the next step is done."""

    step: int
    known: dict[str, float]
    ranks: HostCopy  # a row of COLUMNS of each rank
    languages: HostCopy


class Others(NamedTuple):
    """Seconds since the start of the process, of what is neither a step nor waiting for data."""

    checkpoint: float = 0.0
    evaluation: float = 0.0


class Telemetry(Callback):
    """Every `trainer.log_every_n_steps` steps, over the steps since the last time and over all ranks. Nothing is read from the device before the next step is done.
    Should come after the other callbacks:

    speed/samples_per_second  pairs of all ranks per second, data wait included, validation, benchmarks and checkpoints not
    speed/tokens_per_second   tokens of captions, up to and with their eos: padding does not count
    speed/mfu                 share of the GPU's peak in bf16 that the model's operations reach (what is computed twice does not count), rank 0; only for a GPU
                              that `flops.PEAK_FLOPS` knows
    speed/hfu                 the same with what is computed twice (micro_batches, checkpointed blocks)
    speed/memory_gb           most memory of tensors on a GPU since the last time, of the rank that has most; only on a GPU
    speed/wait_seconds        seconds a step waits for its batch, mean over ranks
    speed/slowest_wait_seconds, speed/slowest_rank   the same of the rank that waits longest, which all others wait for, and its number
    speed/wait_share          rank 0's wait as a share of the time
    wait/<stage>              parts of speed/wait_seconds, in proportion to the seconds that the data's processes spent in each stage (`mc2.data.stages`)
    languages/<code>          share of the captions; "unknown" where the shards name no language
    loss/<code>               mean loss of the pairs of that language in the step that is written
    data/accepted             share of the captions that balancing (and language_shares) let through, where there is one of them
    rejected/<code>           share of the captions of that language that they did not let through
    data/drops/<reason>       drops per sample
    data/full_context         share of captions that fill the context: nearly all of them were cut
    time/goodput              share of the run's wall time in steps, restarts and what was between them counted; time/<part>: where the rest went (see `goodput`)

    For TensorBoard it also writes an order of charts (tab Custom scalars) and the settings with the final metrics (tab HParams).
    """

    def __init__(self) -> None:
        self._started = time.time()
        self._start = 0.0  # of the running step: its batch is there
        self._ready: float | None = None  # when the callbacks behind a step were done; None before the first step
        self._others = Others()  # up to the last look
        self._validation_start = self._validation = 0.0
        self._peak_flops: float | None = None  # a second, of this rank's GPU
        self._flops: StepFlops | None = None
        self._pending: Written | None = None
        self._goodput, self._goodput_written = Goodput(), 0.0
        self._tally = Tally()  # at the last writing
        self._reasons: set[str] = set()  # of drops, seen so far: from then on 0 is written too
        self._reset()

    def _reset(self) -> None:
        self._steps = self._timed_waits = 0
        self._samples, self._step_seconds, self._wait_seconds = 0, 0.0, 0.0
        self._languages: Counter[str] = Counter()
        self._sums: Tensor | None = None  # tokens, captions that fill the context; on the device
        self._useful = self._again = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ready = None
        if pl_module.device.type == "cuda":
            self._peak_flops = peak_flops(torch.cuda.get_device_name(pl_module.device))
        if isinstance(pl_module, ContrastiveModule):
            self._flops = StepFlops(pl_module)
        self._reset()
        self._pending, self._tally = None, tally_of(trainer)
        self._others = self._other_seconds(trainer)
        self._goodput = Goodput.read(Path(trainer.default_root_dir))
        self._goodput.restart(trainer.global_step, self._started, time.time())
        if trainer.is_global_zero:
            for writer in writers(trainer.loggers):
                write_layout(writer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._write_pending(trainer)
        self._count_others(trainer)  # the last validation and checkpoint
        self._started = time.time()  # a second fit of the same objects
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector, declared nowhere
            self._goodput.write(Path(trainer.default_root_dir), trainer.global_step, time.time())
            for writer in writers(trainer.loggers):
                write_hparams(writer, Path(trainer.default_root_dir))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        self._start = perf_counter()
        if self._ready is not None:
            wait, others = self._start - self._ready, self._count_others(trainer)
            self._goodput.add("data", wait - others)
            if not others:  # else the workers had time to run ahead
                self._wait_seconds += wait
                self._timed_waits += 1

    def _other_seconds(self, trainer: Trainer) -> Others:
        return Others(saving_seconds(trainer), self._validation + benchmark_seconds(trainer))

    def _count_others(self, trainer: Trainer) -> float:
        """Seconds since the last look that were neither of a step nor of waiting for data."""
        now, before = self._other_seconds(trainer), self._others
        self._others = now
        for part, seconds in zip(Others._fields, (new - old for new, old in zip(now, before, strict=True)), strict=True):
            self._goodput.add(part, seconds)
        return sum(now) - sum(before)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        # with what other callbacks wait for: the device may be a step behind
        step = perf_counter() - self._start - self._count_others(trainer)
        self._step_seconds += step
        self._goodput.add("step", step)
        self._goodput.num_steps += 1
        self._write_pending(trainer)
        if isinstance(pl_module, ContrastiveModule) and self._flops is not None:
            tokens_B = num_tokens(batch.tokens, pl_module.tower_config.text.eos_id)
            sums = torch.stack([tokens_B.sum(), (tokens_B == pl_module.tower_config.text.context_length).sum()])
            self._sums = sums if self._sums is None else self._sums + sums
            useful, again = self._flops(batch, trainer.world_size)
            self._useful, self._again = self._useful + useful, self._again + again
        self._steps += 1
        self._samples += len(batch.image)
        self._languages.update(language or UNKNOWN for language in batch.languages)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by a connector, declared nowhere
            self._prepare(trainer, pl_module, batch.languages)
        self._ready = perf_counter()

    def _prepare(self, trainer: Trainer, module: LightningModule, languages: list[str]) -> None:
        """Everything about the steps since the last time, what is on the device as it is there."""
        wait, step = self._wait_seconds / max(1, self._timed_waits), self._step_seconds / self._steps
        known = {
            "speed/samples_per_second": self._samples / self._steps * trainer.world_size / (step + wait),
            "speed/wait_share": wait / (step + wait),
            **{f"time/{part}": share for part, share in self._goodput.shares().items()},
        }
        if self._peak_flops:
            peak = self._peak_flops * self._steps * (step + wait)
            known |= {"speed/mfu": self._useful / peak, "speed/hfu": (self._useful + self._again) / peak}
        memory = 0.0
        if module.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(module.device) / 1e9
            torch.cuda.reset_peak_memory_stats(module.device)
        tally, before = tally_of(trainer), self._tally
        self._tally = tally
        numbers = [wait, memory, float(self._samples)]
        numbers += [tally.seconds[stage] - before.seconds[stage] for stage in STAGES]
        numbers += [tally.drops[reason] - before.drops[reason] for reason in DROP_REASONS]
        ranks = columns_of_all_ranks(numbers, torch.zeros(2, device=module.device) if self._sums is None else self._sums)
        losses = module.loss.pair_losses if isinstance(module, ContrastiveModule) else None
        named = [language or UNKNOWN for language in languages] if losses is not None else []
        counts = languages_of_all_ranks(
            self._languages, tally.rejected - before.rejected, named, torch.zeros(0, device=module.device) if losses is None else losses
        )
        self._pending = Written(trainer.global_step - 1, known, ranks, counts)
        self._reset()

    def _write_pending(self, trainer: Trainer) -> None:
        if self._pending is None:
            return
        (step, known, ranks, counts), self._pending = self._pending, None
        if not trainer.is_global_zero:
            return
        columns = dict(zip(COLUMNS, ranks.values().double().numpy().T, strict=True))
        metrics = {**known, **self._of_columns(columns, known["speed/samples_per_second"]), **of_languages(counts, rejects(trainer))}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)  # Lightning numbers its own points from 0
        if perf_counter() - self._goodput_written > GOODPUT_SECONDS:
            self._goodput_written = perf_counter()
            self._goodput.write(Path(trainer.default_root_dir), step + 1, time.time())

    def _of_columns(self, columns: dict[str, NDArray[np.float64]], samples_per_second: float) -> dict[str, float]:
        """What follows from COLUMNS of all ranks."""
        wait, samples, tokens = columns["wait"], columns["samples"].sum(), columns["tokens"].sum()
        metrics: dict[str, Any] = {
            "speed/wait_seconds": wait.mean(),
            "speed/slowest_wait_seconds": wait.max(),
            "speed/slowest_rank": float(wait.argmax()),
        }
        of_stages = sum(columns[stage] for stage in STAGES)
        if np.all(of_stages):
            metrics |= {f"wait/{stage}": (wait * columns[stage] / of_stages).mean() for stage in STAGES}
        self._reasons |= {reason for reason in DROP_REASONS if columns[reason].any()}
        metrics |= {f"data/drops/{reason}": columns[reason].sum() / samples for reason in self._reasons}
        if tokens:
            metrics |= {
                "speed/tokens_per_second": tokens / samples * samples_per_second,
                "data/full_context": columns["full"].sum() / samples,
            }
        if columns["memory"].any():
            metrics["speed/memory_gb"] = columns["memory"].max()
        return {name: float(value) for name, value in metrics.items()}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._validation_start = perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._validation += perf_counter() - self._validation_start


def of_languages(counts: HostCopy, rejects: bool) -> dict[str, float]:
    """Share, loss and rejections of each language."""
    languages = read_languages(counts)
    captions, rejected = (sum(getattr(each, name) for each in languages.values()) for name in ("captions", "rejected"))
    metrics = {f"languages/{code}": each.captions / captions for code, each in languages.items()}
    metrics |= {f"loss/{code}": each.loss / each.pairs for code, each in languages.items() if each.pairs}
    if rejects:
        metrics["data/accepted"] = captions / (captions + rejected)
        metrics |= {f"rejected/{code}": each.rejected / (each.captions + each.rejected) for code, each in languages.items()}
    return metrics


def data_of(trainer: Trainer) -> Any:
    """The data module; None without one."""
    return trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer, declared nowhere


def tally_of(trainer: Trainer) -> Tally:
    """What happened to the records of this rank so far; a copy."""
    tally, data = Tally(), data_of(trainer)
    if isinstance(data, ShardDataModule):
        tally.add(data.tally)
    return tally


def rejects(trainer: Trainer) -> bool:
    """Whether captions are rejected on the way."""
    data = data_of(trainer)
    return isinstance(data, ShardDataModule) and data.rejects


def saving_seconds(trainer: Trainer) -> float:
    """What training has waited for checkpoints so far."""
    return sum(callback.seconds for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints))


def benchmark_seconds(trainer: Trainer) -> float:
    """The same of benchmarks."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector, declared nowhere
    return sum(callback.seconds for callback in callbacks if isinstance(callback, MultilingualBenchmark))
