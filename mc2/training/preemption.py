"""Stopping between two steps: the signal handler only sets a flag, all ranks agree after the step, the checkpoint is written, the run ends.

Lightning's own handlers save or broadcast inside the handler, which hangs when ranks get the signal a few milliseconds apart (its issue 20806), and ask all ranks for
signals before every step, for which the device waits; both are taken out.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from mc2.model.ranks import HostCopy
from mc2.training.early_signals import kept

# Weakest first: where several came, on one rank or on different ones, the last of them says how the run ends.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
ORDER = (0, *SIGNALS)


class Preemption(Callback):
    """Ends training after the current step on Ctrl-C, SIGTERM or SIGUSR1 on any rank; `Checkpoints`, which runs after it, saves that step.

    A signal before the first step ends the run without a step. Any number of them during the save does no harm, but a Ctrl-C after another signal interrupts
    at once and leaves the checkpoint before. On a GPU ranks agree one step later, so that the device never waits. `agreed`: number of the signal that ended the
    run, the same on all ranks; 0 for none.
    """

    def __init__(self) -> None:
        self.agreed = self._received = 0
        self._previous: dict[signal.Signals, Any] = {}
        self._asked: HostCopy | None = None  # what came up to the step before, by all ranks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Install the handlers, as early as Lightning lets a callback."""
        if stage != "fit":
            return
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            before = kept()
            self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}
            for number in before:
                self._remember(number, None)

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if number == signal.SIGINT and self._received:
            raise KeyboardInterrupt
        self._received = max(self._received, number, key=ORDER.index)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agree(trainer, self._ask(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """All ranks stop after the same step, or none."""
        asked, before = self._ask(pl_module), self._asked
        self._asked = asked if pl_module.device.type == "cuda" else None
        self._agree(trainer, before if self._asked else asked)

    def _ask(self, pl_module: LightningModule) -> HostCopy:
        strongest = torch.full((1,), ORDER.index(self._received), device=pl_module.device)  # filled there: a copy from the host would wait
        if dist.is_initialized():
            dist.all_reduce(strongest, op=dist.ReduceOp.MAX)
        return HostCopy(strongest)

    def _agree(self, trainer: Trainer, asked: HostCopy | None) -> None:
        self.agreed = ORDER[int(asked.tolist()[0])] if asked is not None else 0
        if self.agreed:
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate before it stops: there is no time

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
