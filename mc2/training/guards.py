"""Steps whose loss or gradient is no number are left out on all ranks together; losses far above the usual are reported with the pairs they came from.

Both go to <run>/spikes.jsonl, one line each: step, reason, loss, gradient_norm, and for each rank keys, the pairs of its batch, and shards, which it had open.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from mc2.data.batch import PairBatch
from mc2.data.loader import Loader
from mc2.model.ranks import HostCopy, local, num_ranks
from mc2.training.module import ContrastiveModule

SPIKES = "spikes.jsonl"
DECAY = 0.98  # of the running mean and variance of the loss
SETTLED = 100  # steps after which they are trusted


def num_copies(tensor: Tensor) -> float:
    """How many ranks hold the same values as this one."""
    if not isinstance(tensor, DTensor):
        return num_ranks()
    placed = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return num_ranks() / math.prod(size for size, placement in placed if isinstance(placement, Shard))


class Parameters:
    """The parameters of an optimizer, in groups of those that equally many ranks hold."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self._groups: dict[float, list[Parameter]] = {}
        for parameter in parameters:
            self._groups.setdefault(num_copies(parameter), []).append(parameter)

    def __iter__(self) -> Iterator[Parameter]:
        return chain.from_iterable(self._groups.values())

    def squared_norm(self, value: Callable[[Parameter], Tensor | None], device: torch.device) -> Tensor:
        """This rank's share of the squared norm of what `value` has for the parameters, a scalar: the sum over ranks is the whole."""
        total = torch.zeros((), device=device)
        for copies, parameters in self._groups.items():
            values = [local(found) for found in map(value, parameters) if found is not None]
            if values:
                squares = torch.stack(torch._foreach_norm(values, dtype=torch.float32)).square().sum()
                total = total + squares.to(device) / copies
        return total


class Origin(NamedTuple):
    """Where a batch came from: its pairs, and what says, when it is asked, from which shards."""

    keys: list[str]
    shards: Callable[[], list[str]] = list


class Made(NamedTuple):
    """A step that was made and not yet judged. norms: of parameters and update, where they are logged."""

    step: int
    loss_and_square: HostCopy  # of the gradient
    origin: Origin
    norms: HostCopy | None = None


def sum_over_ranks(values: Tensor) -> Tensor:
    """In place."""
    if num_ranks() > 1:
        dist.all_reduce(values)
    return values


def check_weights(module: LightningModule) -> None:
    """Errors: ValueError on all ranks with the names of weights that are no numbers."""
    names, weights = zip(*module.named_parameters(), strict=True)
    broken = torch.stack([(~local(weight).isfinite()).any().to(module.device, torch.float32) for weight in weights])
    found = [name for name, count in zip(names, sum_over_ranks(broken).tolist(), strict=True) if count]
    if found:
        raise ValueError(
            f"weights: found NaN or infinity in {len(found)} of them ({', '.join(found[:3])}), need numbers; take a checkpoint before it"
        )


class Guard(Callback):
    """Leaves out every step whose loss or gradient is not finite on any rank: weights and the optimizer's state stay, the schedule goes on.

    After `stop_after` such steps in a row the run ends with an error. A loss that exceeds its running mean by `spike_deviations` standard deviations is
    reported and trained on. Every `trainer.log_every_n_steps` steps: norm/gradient (before clipping), norm/parameters, norm/update, guard/skipped_steps.
    One all-reduce of two numbers a step; what it says is read one step later, so that the device never waits for it (but with gradient clipping and
    with optimizer.vocabulary lazy), and so are the norms. Weights that are no numbers are refused before the first step.
    """

    def __init__(self, stop_after: int = 10, spike_deviations: float = 6.0) -> None:
        if stop_after < 1 or spike_deviations <= 0:
            raise ValueError(f"guard: found stop_after {stop_after} and spike_deviations {spike_deviations}, need at least 1 and above 0")
        self.stop_after, self.spike_deviations = stop_after, spike_deviations
        self.skipped = self.in_a_row = self._seen = 0
        self._mean = self._variance = 0.0
        self._pending: Made | None = None
        self._before: dict[Parameter, Tensor] = {}  # this rank's part of the weights before a step that is logged

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_weights(pl_module)
        self._parameters = Parameters(parameter for group in trainer.optimizers[0].param_groups for parameter in group["params"])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn == "validate":
            check_weights(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        check_weights(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        loader = trainer.train_dataloader
        self._origin = Origin(batch.keys, loader.origin()) if isinstance(loader, Loader) else Origin(batch.keys)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        self._loss = loss.detach()

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        squares = self._parameters.squared_norm(lambda parameter: parameter.grad, pl_module.device)
        rows = pl_module.lazy_rows if isinstance(pl_module, ContrastiveModule) else None
        if rows is not None:  # the table's gradient lies there
            squares = squares + rows.gradient()[1].float().square().sum() / num_copies(rows.embedding.weight)
        values = torch.stack([self._loss.float() / num_ranks(), squares])
        values = sum_over_ranks(values)
        skip = 1.0 - values.isfinite().all().float()
        if rows is None and type(optimizer) is AdamW and optimizer.defaults["fused"]:
            optimizer.found_inf = skip  # type: ignore[attr-defined]  # as a gradient scaler tells it; the kernel then changes nothing
        elif bool(skip):
            if rows is not None:
                rows.left_out = True
            optimizer.zero_grad(set_to_none=True)  # what has no gradient is not touched
        self._judge(trainer)
        self._pending = Made(trainer.global_step, HostCopy(values), self._origin)
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by a connector, declared nowhere
            self._before = {parameter: local(parameter).detach().clone() for parameter in self._parameters}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        if not self._before or self._pending is None:
            return
        torch._foreach_sub_(list(self._before.values()), [local(parameter) for parameter in self._before])
        weights = self._parameters.squared_norm(lambda parameter: parameter, pl_module.device)
        update = self._parameters.squared_norm(lambda parameter: self._before[parameter], pl_module.device)
        self._pending = self._pending._replace(norms=HostCopy(sum_over_ranks(torch.stack([weights, update])).sqrt()))
        self._before = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._judge(trainer)

    def _judge(self, trainer: Trainer) -> None:
        """Read what the last step was; all ranks read the same. Errors: ValueError if too many in a row were skipped."""
        if self._pending is None:
            return
        (step, values, origin, norms), self._pending = self._pending, None
        loss, squared = values.tolist()
        broken = not math.isfinite(loss + squared)
        self.skipped, self.in_a_row = self.skipped + broken, self.in_a_row + 1 if broken else 0
        if norms is not None:
            self._log(trainer, step, squared, *norms.tolist())
        path = Path(trainer.default_root_dir) / SPIKES
        if broken:
            report(path, step, "the loss is no number" if not math.isfinite(loss) else "the gradient is no number", loss, squared, origin)
            if self.in_a_row >= self.stop_after:
                raise ValueError(
                    f"guard: found {self.in_a_row} steps in a row without a finite loss and gradient, the last one {step}; {path} names the pairs of "
                    "their batches; take them out, or lower the learning rate, and go on from the last checkpoint"
                )
            return
        if self._seen >= SETTLED and loss > self._mean + self.spike_deviations * math.sqrt(self._variance):
            report(path, step, "the loss is far above its running mean", loss, squared, origin)
        self._remember(loss)

    def _log(self, trainer: Trainer, step: int, squared_gradient: float, parameters: float, update: float) -> None:
        gradient = math.sqrt(squared_gradient)
        metrics = {
            "norm/gradient": gradient,
            "norm/parameters": parameters,
            "norm/update": update,
            "guard/skipped_steps": float(self.skipped),
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def _remember(self, loss: float) -> None:
        self._seen += 1
        weight = max(1 - DECAY, 1 / self._seen)
        change = loss - self._mean
        self._mean += weight * change
        self._variance = (1 - weight) * (self._variance + weight * change * change)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "seen": self._seen, "mean": self._mean, "variance": self._variance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self._seen, self._mean, self._variance = (state_dict[name] for name in ("skipped", "seen", "mean", "variance"))


def report(path: Path, step: int, reason: str, loss: float, squared_gradient: float, origin: Origin) -> None:
    """Append one line. All ranks call it; rank 0 writes."""
    own = origin.keys, origin.shards()
    parts = [own] * num_ranks()
    if num_ranks() > 1:
        dist.all_gather_object(parts, own)
    keys, shards = zip(*parts, strict=True)
    norm = math.sqrt(squared_gradient) if math.isfinite(squared_gradient) else None
    line = {
        "step": step,
        "reason": reason,
        "loss": loss if math.isfinite(loss) else None,
        "gradient_norm": norm,
        "keys": keys,
        "shards": shards,
    }
    if num_ranks() == 1 or dist.get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
