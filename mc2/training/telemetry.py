"""What a run costs and what it sees: samples and tokens per second, use of the GPU, waiting for data, share of each language in the batches, goodput."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mc2.benchmarks.callbacks import MultilingualBenchmark
from mc2.data.batch import PairBatch
from mc2.data.datamodule import ShardDataModule
from mc2.data.loader import Tally
from mc2.model.ranks import HostCopy, num_ranks
from mc2.training.board import write_hparams, write_layout, writers
from mc2.training.checkpoints import Checkpoints
from mc2.training.distillation import TEACHER
from mc2.training.flops import PairFlops, meta_towers, peak_flops
from mc2.training.goodput import Goodput
from mc2.training.module import ContrastiveModule

GOODPUT_SECONDS = 30.0  # between two writings of goodput.json


def num_tokens(tokens_BL: Tensor, eos_id: int) -> Tensor:
    """Tokens of each caption up to and with its first eos, (B,), on their device."""
    return (tokens_BL == eos_id).int().argmax(dim=1) + 1


def loss_by_language(losses: Sequence[float], languages: Sequence[str]) -> dict[str, float]:
    """Mean loss of the pairs of each language."""
    sums, numbers = Counter[str](), Counter[str]()
    for language, loss in zip(languages, losses, strict=True):
        sums[language or "unknown"] += loss  # type: ignore[assignment]  # Counter of nats
        numbers[language or "unknown"] += 1
    return {language: sums[language] / number for language, number in numbers.items()}


class StepFlops:
    """Operations of a step on this rank: of the students, and the teacher's forward pass."""

    def __init__(self, module: ContrastiveModule) -> None:
        self._first = PairFlops.of(meta_towers(module.tower_config), frozenset(module.locked))
        self._students = {name: PairFlops.of(meta_towers(each.towers)) for name, each in module.students_config.items()}
        self._teacher = PairFlops.of(module._teacher.towers) if module._teacher is not None else None
        self._parallel, self._micro_batches = module.parallel, module.micro_batches

    def __call__(self, batch: PairBatch, world_size: int) -> tuple[float, float]:
        """What is useful, and what is computed a second time."""
        num_pairs, all_pairs = len(batch.image), len(batch.image) * world_size
        students = [(self._first, batch.tokens), *((flops, batch.view(name).tokens) for name, flops in self._students.items())]
        useful = sum(flops.step(tokens.shape[1], all_pairs) for flops, tokens in students)
        again = sum(flops.recomputed(tokens.shape[1], self._parallel, self._micro_batches) for flops, tokens in students)
        if self._teacher is not None:
            useful += self._teacher.forward(batch.view(TEACHER).tokens.shape[1])
        return num_pairs * useful, num_pairs * again


class Written(NamedTuple):
    """Numbers that a step leaves on the device, on their way to the host; written with the numbers that the host knows when the next step is done."""

    step: int
    known: dict[str, float]
    languages: list[str]
    sums: HostCopy  # tokens and full captions, by captions
    ranks: HostCopy  # of each rank: seconds of waiting, GB
    losses: HostCopy | None


class Others(NamedTuple):
    """Seconds since the start of the process, of what is neither a step nor waiting for data."""

    checkpoint: float = 0.0
    evaluation: float = 0.0


class Telemetry(Callback):
    """Every `trainer.log_every_n_steps` steps, over the steps since the last time. Nothing is read from the device before the next step is done. Should come after the
    other callbacks:

    speed/samples_per_second  pairs of all ranks per second, data wait included, validation, benchmarks and checkpoints not
    speed/tokens_per_second   tokens of captions, up to and with their eos: padding does not count
    speed/mfu                 share of the GPU's peak in bf16 that the model's operations reach (what is computed twice does not count), this rank; only for a GPU
                              that `flops.PEAK_FLOPS` knows
    speed/hfu                 the same with what is computed twice (micro_batches, checkpointed blocks)
    speed/memory_gb           most memory of tensors on a GPU since the last time, of the rank that has most; only on a GPU
    speed/wait_seconds        seconds a step waits for its batch, mean over ranks
    speed/slowest_wait_seconds, speed/slowest_rank   the same of the rank that waits longest, which all others wait for, and its number
    speed/wait_share          this rank's wait as a share of the time
    languages/<code>          share of the captions of this rank's batches; "unknown" where the shards name no language
    loss/<code>               mean loss of this rank's pairs of that language in the step that is written
    rejected/<code>           share of the captions that this rank drew in that language and that balancing (or language_shares) turned away
    data/accepted             share of this rank's pairs that balancing let through; data/drops/<reason>: drops per sample
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
        self._drops: Counter[str] = Counter()
        self._accepted, self._rejected = Counter[str](), Counter[str]()
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
        self._pending, self._drops = None, drops(trainer)
        self._accepted, self._rejected = drawn(trainer)
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
        step = (
            perf_counter() - self._start - self._count_others(trainer)
        )  # with what other callbacks wait for: the device may be a step behind
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
        self._languages.update(language or "unknown" for language in batch.languages)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by a connector, declared nowhere
            losses = pl_module.loss.pair_losses if isinstance(pl_module, ContrastiveModule) else None
            self._prepare(trainer, pl_module.device, batch.languages, losses)
        self._ready = perf_counter()

    def _prepare(self, trainer: Trainer, device: torch.device, languages: list[str], losses: Tensor | None) -> None:
        """Everything about the steps since the last time, what is on the device as it is there."""
        wait, step = self._wait_seconds / max(1, self._timed_waits), self._step_seconds / self._steps
        captions = max(1, self._languages.total())
        known = {
            "speed/samples_per_second": self._samples / self._steps * trainer.world_size / (step + wait),
            "speed/wait_share": wait / (step + wait),
            **{f"languages/{language}": count / captions for language, count in self._languages.items()},
            **{f"time/{part}": share for part, share in self._goodput.shares().items()},
            **self._drop_rates(trainer),
            **self._rejection_rates(trainer),
        }
        if self._peak_flops:
            peak = self._peak_flops * self._steps * (step + wait)
            known |= {"speed/mfu": self._useful / peak, "speed/hfu": (self._useful + self._again) / peak}
        sums = torch.zeros(2, device=device) if self._sums is None else self._sums / self._samples
        memory = 0.0
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device) / 1e9
            torch.cuda.reset_peak_memory_stats(device)
        ranks = of_all_ranks([wait, memory], device)
        self._pending = Written(
            trainer.global_step - 1, known, languages, HostCopy(sums), HostCopy(ranks), None if losses is None else HostCopy(losses)
        )
        self._reset()

    def _drop_rates(self, trainer: Trainer) -> dict[str, float]:
        """Of this rank's data since the last time."""
        now = drops(trainer)
        new, self._drops = now - self._drops, now
        rates = {f"data/drops/{reason}": count / self._samples for reason, count in new.items()}
        balanced = isinstance(data_of(trainer), ShardDataModule) and data_of(trainer).balanced
        return {**rates, "data/accepted": self._samples / (self._samples + new["balanced_away"])} if balanced else rates

    def _rejection_rates(self, trainer: Trainer) -> dict[str, float]:
        """Of each language that this rank drew since the last time; empty where nothing was ever rejected."""
        accepted, rejected = drawn(trainer)
        new_accepted, new_rejected = accepted - self._accepted, rejected - self._rejected
        self._accepted, self._rejected = accepted, rejected
        new = new_accepted + new_rejected if rejected else Counter[str]()
        return {f"rejected/{language or 'unknown'}": new_rejected[language] / number for language, number in new.items()}

    def _write_pending(self, trainer: Trainer) -> None:
        if self._pending is None:
            return
        (step, known, languages, sums, ranks, losses), self._pending = self._pending, None
        tokens, full = sums.tolist()
        waits, memories = ranks.tolist()[::2], ranks.tolist()[1::2]
        metrics = {
            **known,
            "speed/wait_seconds": sum(waits) / len(waits),
            "speed/slowest_wait_seconds": max(waits),
            "speed/slowest_rank": float(waits.index(max(waits))),
        }
        if tokens:
            metrics |= {"speed/tokens_per_second": tokens * known["speed/samples_per_second"], "data/full_context": full}
        if max(memories):
            metrics["speed/memory_gb"] = max(memories)
        if losses is not None:
            metrics |= {f"loss/{language}": loss for language, loss in loss_by_language(losses.tolist(), languages).items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)  # Lightning numbers its own points from 0
        if trainer.is_global_zero and perf_counter() - self._goodput_written > GOODPUT_SECONDS:
            self._goodput_written = perf_counter()
            self._goodput.write(Path(trainer.default_root_dir), step + 1, time.time())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._validation_start = perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._validation += perf_counter() - self._validation_start


def data_of(trainer: Trainer) -> Any:
    """The data module; None without one."""
    return trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer, declared nowhere


def drops(trainer: Trainer) -> Counter[str]:
    """Drops of this rank's data so far, by reason."""
    data = data_of(trainer)
    return Counter(data.drops) if isinstance(data, ShardDataModule) else Counter()


def drawn(trainer: Trainer) -> tuple[Counter[str], Counter[str]]:
    """Captions of this rank's data so far, by language: accepted and rejected by balancing."""
    data = data_of(trainer)
    tally = data.tally if isinstance(data, ShardDataModule) else Tally()
    return Counter(tally.accepted), Counter(tally.rejected)


def saving_seconds(trainer: Trainer) -> float:
    """What training has waited for checkpoints so far."""
    return sum(callback.seconds for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints))


def benchmark_seconds(trainer: Trainer) -> float:
    """The same of benchmarks."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector, declared nowhere
    return sum(callback.seconds for callback in callbacks if isinstance(callback, MultilingualBenchmark))


def of_all_ranks(own: list[float], device: torch.device) -> Tensor:
    """The numbers of all ranks, one after the other. A collective that is queued, not waited for."""
    values = torch.tensor(own).to(device, non_blocking=True)
    if num_ranks() == 1:
        return values
    gathered = torch.empty(num_ranks() * len(own), device=device)
    dist.all_gather_into_tensor(gathered, values)
    return gathered
