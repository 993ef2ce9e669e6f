"""Stopping between two steps: the signal handler only sets a flag, all ranks agree after the step, the checkpoint is written, the run ends.

Lightning's own handlers save or broadcast inside the handler and hang when ranks get the signal a few milliseconds apart (LIGHTNING-issue 20806).
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Preemption(Callback):
    """Ends training after the current step on Ctrl-C, SIGTERM or SIGUSR1 on any rank; `Checkpoints`, which runs after it, saves that step.

    A second Ctrl-C interrupts at once and leaves the checkpoint before. `received` is the signal's number, 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Install the handlers: here, because Lightning has installed its own by now and the last one counts."""
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if number == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """All ranks stop after the same step, or none."""
        if dist.is_initialized():
            flag = torch.tensor(self.received, device=pl_module.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            self.received = int(flag)
        if self.received:
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
