"""AdamW for the token embedding that works only on the rows of a batch: no gradient and no step for the rest of the table, with AdamW's result.

A row without a gradient is left behind: what AdamW would have done to it meanwhile (`skipped_steps`) is done when it is read (on the fly), when it gets a
gradient (for good), and before anything is saved (all rows). A checkpoint is therefore the one of dense AdamW, and either form goes on from it.
Ranks exchange the gradients of rows, not of tables: with the owners of the rows under FSDP2, with all replicas under DDP and HSDP.

Shapes: P rows on this rank, N rows that are worked on, W width.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from mc2.model.ranks import local
from mc2.model.token_embedding import TokenEmbedding, group_size
from mc2.training.parallel import FSDP2Strategy
from mc2.training.skipped_steps import Betas, StepHistory, catch_up

CHUNK = 1 << 15  # rows that are brought up to date at a time: with 1024 columns 128 MiB for each temporary


def check_lazy_rows(trainer: Trainer) -> None:
    """Errors: ValueError for a trainer whose gradients of rows would not be averaged, unscaled or clipped."""
    cure = "change it, or set optimizer.vocabulary: dense"
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | FSDP2Strategy):
        found = type(trainer.strategy).__name__
        raise ValueError(f"trainer.strategy: found {found}, need one device, DDP or FSDP2Strategy with vocabulary: lazy; {cure}")
    if str(trainer.precision) not in ("32-true", "bf16-mixed"):
        raise ValueError(f"trainer.precision: found {trainer.precision}, need 32-true or bf16-mixed with vocabulary: lazy; {cure}")
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        raise ValueError(f"trainer.gradient_clip_algorithm: found value, need norm with vocabulary: lazy; {cure}")


def hide_from_ddp(module: nn.Module, name: str) -> None:
    """DDP must wait for no gradient of this parameter. Before the module is wrapped."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, [name])  # type: ignore[no-untyped-call]


def sum_of_equal_rows(places_N: Tensor, rows_NW: Tensor) -> tuple[Tensor, Tensor]:
    """Different places in rising order and the sum of the rows of each."""
    places, inverse = torch.unique(places_N, return_inverse=True)
    return places, rows_NW.new_zeros(len(places), rows_NW.shape[1]).index_add_(0, inverse, rows_NW)


def gather_rows(places_N: Tensor, rows_NW: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """The places and rows of all ranks of a group, which may bring different numbers of them."""
    if group_size(group) == 1:
        return places_N, rows_NW
    counts = [torch.zeros(1, dtype=torch.int64, device=places_N.device) for _ in range(group_size(group))]
    dist.all_gather(counts, torch.tensor([len(places_N)], device=places_N.device), group=group)
    numbers = [int(count) for count in counts]
    padding = max(numbers) - len(places_N)
    gathered = []
    for own in (places_N, rows_NW):
        padded = torch.cat([own, own.new_zeros(padding, *own.shape[1:])])
        parts = [torch.empty_like(padded) for _ in numbers]
        dist.all_gather(parts, padded, group=group)
        gathered.append(torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)]))
    return gathered[0], gathered[1]


class LazyRows:
    """Makes the steps of one embedding beside an AdamW that holds its table in one of its groups, with that group's settings as they change.

    It takes the place of the table's gradient: `optimizer.step()` makes both steps, `clip_gradients` counts both, state dicts of either are up to date.
    num_rows: rows of this rank's part that the last step worked on.
    """

    def __init__(self, embedding: TokenEmbedding, optimizer: AdamW) -> None:
        self.embedding, self.optimizer = embedding, optimizer
        sharded = isinstance(embedding.weight, DTensor)
        self.replicas = embedding.replicas if sharded else dist.group.WORLD if dist.is_initialized() else None
        self.num_rows = 0
        self.left_out = False  # whether the next step is to change nothing
        self._gradient: tuple[Tensor, Tensor] | None = None
        if not sharded and group_size(self.replicas) > 1:  # DDP does not see the table
            dist.broadcast(embedding.weight.detach(), src=0)
        self._restart()
        embedding.read = self.read
        self._hooks = [
            optimizer.register_step_post_hook(lambda *_: self._step()),
            optimizer.register_state_dict_pre_hook(lambda *_: self.flush()),
            optimizer.register_load_state_dict_post_hook(lambda *_: self._restart()),
            embedding.register_state_dict_pre_hook(lambda *_: self.flush()),  # type: ignore[no-untyped-call]
            embedding.register_load_state_dict_post_hook(lambda *_: self._restart()),  # type: ignore[no-untyped-call]
        ]

    def release(self) -> None:
        """Leave an embedding that is up to date and on its own again."""
        self.flush()
        self.embedding.read = None
        for hook in self._hooks:
            hook.remove()

    @property
    def group(self) -> dict[str, Any]:
        """The settings of the table, as they are now."""
        return next(group for group in self.optimizer.param_groups if any(each is self.embedding.weight for each in group["params"]))

    @property
    def state(self) -> dict[str, Any]:
        """The state of the table in the optimizer, as AdamW itself would have it; begun when it is not there."""
        weight = self.embedding.weight
        state = cast(dict[str, Any], self.optimizer.state[weight])
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        return state

    def _restart(self) -> None:
        """All rows are up to date: what is in the table and in the optimizer was loaded just now."""
        weight = local(self.embedding.weight)
        begun = self.optimizer.state.get(self.embedding.weight)
        self.history = StepHistory(int(begun["step"]) if begun else 0, weight.device)
        self.seen_P = torch.full((len(weight),), self.history.last_step, device=weight.device)
        self.betas = Betas(self.group["betas"][0], self.group["betas"][1], self.group["eps"])
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget gradients; forward passes whose backward pass is still to come stay."""
        self._gradient = None
        self.embedding.uses = [use for use in self.embedding.uses if use.rows_UW.grad is None]

    @torch.no_grad()
    def read(self, places_N: Tensor) -> Tensor:
        """Values of rows as AdamW would have them now, (N, W), by any places of this rank's part. Changes nothing."""
        if self.embedding.weight not in self.optimizer.state:  # before the first step; a state must not begin before torch loads one
            return local(self.embedding.weight)[places_N]
        places, inverse = torch.unique(places_N, return_inverse=True)
        reordered, weight, _, _ = self._up_to_date(places)
        return weight[reordered.argsort()][inverse]

    def _up_to_date(self, places_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Places in another order, values, first and second moments of these rows."""
        places = places_N[self.seen_P[places_N].argsort(descending=True)]
        weight, m, v = (local(each)[places] for each in (self.embedding.weight, self.state["exp_avg"], self.state["exp_avg_sq"]))
        catch_up(weight, m, v, self.seen_P[places], self.history, self.betas)
        return places, weight, m, v

    def _write(self, places: Tensor, weight: Tensor, m: Tensor, v: Tensor) -> None:
        local(self.embedding.weight)[places] = weight
        local(self.state["exp_avg"])[places] = m
        local(self.state["exp_avg_sq"])[places] = v
        self.seen_P[places] = self.history.last_step

    @torch.no_grad()
    def flush(self) -> None:
        """Bring all rows up to date for good."""
        if self.embedding.weight in self.optimizer.state and self.history.last_step > self.history.first_step:
            for places in torch.arange(len(self.seen_P), device=self.seen_P.device).split(CHUNK):  # type: ignore[no-untyped-call]
                self._write(*self._up_to_date(places))
            self.history = StepHistory(self.history.last_step, self.seen_P.device)

    @torch.no_grad()
    def gradient(self) -> tuple[Tensor, Tensor]:
        """Places (N,) in this rank's part that the batches of all ranks touched, and their gradients (N, W), averaged over ranks. A collective."""
        if self._gradient is None:
            uses = [(use.route, use.rows_UW.grad) for use in self.embedding.uses if use.rows_UW.grad is not None]
            parts = [(route.wanted_N.long(), route.to_owners(gradient)) for route, gradient in uses]
            nothing = (self.seen_P.new_empty(0), local(self.embedding.weight).new_empty(0, self.embedding.weight.shape[1]))
            places, rows = (torch.cat(each) for each in zip(nothing, *parts, strict=True))
            places, rows = sum_of_equal_rows(*gather_rows(*sum_of_equal_rows(places, rows), self.replicas))
            self._gradient = places, rows.div_(group_size(self.embedding.shards) * group_size(self.replicas))
        return self._gradient

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale the gradients of all parameters, these rows among them, to a norm of at most `max_norm`; the norm before, a scalar."""
        others = [parameter for group in self.optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
        norm = nn.utils.get_total_norm([cast(Tensor, parameter.grad) for parameter in others])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        _, rows = self.gradient()
        squares = rows.double().square().sum()
        if group_size(self.embedding.shards) > 1:
            dist.all_reduce(squares, group=self.embedding.shards)
        norm = (norm.double().square() + squares).sqrt().to(rows.dtype)
        nn.utils.clip_grads_with_norm_(others, max_norm, norm)
        rows.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def _step(self) -> None:
        """AdamW's step for the rows of the batch, right after that of all other parameters."""
        if self.embedding.weight.grad is not None:  # torch's checkpoint code steps with gradients of 0 to make the state it loads into
            self._restart()
            return
        if self.left_out:
            self._gradient, self.embedding.uses, self.left_out = None, [], False
            return
        touched, gradient = self.gradient()
        self.num_rows = len(touched)
        places, weight, m, v = self._up_to_date(touched)
        gradient = gradient[torch.searchsorted(touched, places)]
        group, (beta1, beta2) = self.group, self.group["betas"]
        lr, weight_decay = float(group["lr"]), group["weight_decay"]
        self.history.append(lr, weight_decay)
        step = self.history.last_step
        m.lerp_(gradient, 1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        divisor = (v.sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
        weight.mul_(1 - lr * weight_decay).addcdiv_(m, divisor, value=-lr / (1 - beta1**step))
        self._write(places, weight, m, v)
        self.state["step"].fill_(step)
        self._gradient, self.embedding.uses = None, []
