"""Steps whose loss or gradient is no number are left out on all ranks together; losses far above the usual are reported with the pairs they came from.

Both go to <run>/spikes.jsonl, one line each: step, reason, loss, gradient_norm, and keys, the pairs of each rank's batch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.optim import AdamW, Optimizer

from mc2.data.batch import PairBatch
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


def squared_norm(tensors: list[Tensor], device: torch.device) -> Tensor:
    """This rank's share of the squared norm of all tensors, a scalar: the sum over ranks is the whole."""
    if not tensors:
        return torch.zeros((), device=device)
    norms = torch.stack([norm.to(device, torch.float32) for norm in torch._foreach_norm([local(tensor) for tensor in tensors])])
    return (norms.square() / torch.tensor([num_copies(tensor) for tensor in tensors], device=device)).sum()


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
    with optimizer.vocabulary lazy). Weights that are no numbers are refused before the first step.
    """

    def __init__(self, stop_after: int = 10, spike_deviations: float = 6.0) -> None:
        if stop_after < 1 or spike_deviations <= 0:
            raise ValueError(f"guard: found stop_after {stop_after} and spike_deviations {spike_deviations}, need at least 1 and above 0")
        self.stop_after, self.spike_deviations = stop_after, spike_deviations
        self.skipped = self.in_a_row = self._seen = 0
        self._mean = self._variance = 0.0
        self._pending: tuple[int, HostCopy, list[str]] | None = None  # a step that was made and not yet judged
        self._before: list[Tensor] | None = None  # weights before a step that is logged

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        check_weights(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn == "validate":
            check_weights(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        check_weights(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        self._keys = batch.keys

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        squares = squared_norm(gradients, pl_module.device)
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
        self._pending = trainer.global_step, HostCopy(values), self._keys
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by a connector, declared nowhere
            self._before = [local(parameter).detach().clone() for parameter in parameters]
            self._parameters = parameters

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._before is None or self._pending is None:
            return
        with torch.no_grad():
            updates = [  # sharded as the weights are, so that copies are counted alike
                DTensor.from_local(
                    local(now) - before, now.device_mesh, now.placements, run_check=False, shape=now.shape, stride=now.stride()
                )
                if isinstance(now, DTensor)
                else now - before
                for now, before in zip(self._parameters, self._before, strict=True)
            ]
            shares = torch.stack([squared_norm(self._parameters, pl_module.device), squared_norm(updates, pl_module.device)])
        parameters, update = sum_over_ranks(shares).sqrt().tolist()
        self._before = None
        gradient = math.sqrt(self._pending[1].tolist()[1])
        metrics = {
            "norm/gradient": gradient,
            "norm/parameters": parameters,
            "norm/update": update,
            "guard/skipped_steps": float(self.skipped),
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step - 1)  # Lightning numbers its own points from 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._judge(trainer)

    def _judge(self, trainer: Trainer) -> None:
        """Read what the last step was; all ranks read the same. Errors: ValueError if too many in a row were skipped."""
        if self._pending is None:
            return
        step, values, keys = self._pending
        self._pending = None
        loss, squared = values.tolist()
        path = Path(trainer.default_root_dir) / SPIKES
        if not math.isfinite(loss + squared):
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            report(path, step, "the loss is no number" if not math.isfinite(loss) else "the gradient is no number", loss, squared, keys)
            if self.in_a_row >= self.stop_after:
                raise ValueError(
                    f"guard: found {self.in_a_row} steps in a row without a finite loss and gradient, the last one {step}; {path} names the pairs of "
                    "their batches; take them out, or lower the learning rate, and go on from the last checkpoint"
                )
            return
        self.in_a_row = 0
        if self._seen >= SETTLED and loss > self._mean + self.spike_deviations * math.sqrt(self._variance):
            report(path, step, "the loss is far above its running mean", loss, squared, keys)
        self._remember(loss)

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


def report(path: Path, step: int, reason: str, loss: float, squared_gradient: float, keys: list[str]) -> None:
    """Append one line. All ranks call it; rank 0 writes."""
    parts: list[Any] = [keys]
    if num_ranks() > 1:
        parts = [None] * num_ranks()
        dist.all_gather_object(parts, keys)
    norm = math.sqrt(squared_gradient) if math.isfinite(squared_gradient) else None
    line = {"step": step, "reason": reason, "loss": loss if math.isfinite(loss) else None, "gradient_norm": norm, "keys": parts}
    if num_ranks() == 1 or dist.get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
