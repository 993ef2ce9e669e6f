"""Signals that come while a run is still being set up, most of which is importing torch: they are kept until all ranks can agree on them. Only the standard library.

Without it a job that is preempted in its first seconds would die as if it had failed, and not be queued again.
"""

from __future__ import annotations

import signal
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGUSR1)


class Keep:
    """A handler that does nothing but remember."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.came = True


def keep() -> None:
    """From now on signals wait for `kept`."""
    for number in NUMBERS:
        signal.signal(number, Keep())


def kept() -> list[int]:
    """What came since."""
    handlers = {number: signal.getsignal(number) for number in NUMBERS}
    return [number for number, handler in handlers.items() if isinstance(handler, Keep) and handler.came]
