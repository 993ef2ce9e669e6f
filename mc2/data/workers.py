"""How the processes that make batches live: signals are left to their parent, and no batch keeps them from ending with it."""

from __future__ import annotations

import os
import signal
import time
from ctypes import c_bool
from multiprocessing import parent_process
from threading import Thread

CHECK_SECONDS = 0.5
GRACE_SECONDS = 1.0  # time for DataLoader's own end: its queues and the thread that pins memory


def begin(closed: c_bool, worker: int) -> None:  # noqa: ARG001  (DataLoader gives its number)
    """In a new worker: from now on it ends with its parent, or when `closed` says so, in shared memory."""
    leave_signals_to_the_parent()
    Thread(target=_end, args=(closed,), daemon=True).start()


def leave_signals_to_the_parent() -> None:
    """SLURM and a terminal signal all processes of a run, and the rank that reads from this one needs it until its last step is made."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _end(closed: c_bool) -> None:
    """End this process. DataLoader asks between two batches only, and one can take minutes: a drought, a server that is busy."""
    parent, parent_id = parent_process(), os.getppid()
    assert parent is not None
    # either alone can miss a death: the parent's that came before this line, and one whose pipe another child holds open
    while not closed.value and parent.is_alive() and os.getppid() == parent_id:
        parent.join(CHECK_SECONDS)
    if closed.value:
        time.sleep(GRACE_SECONDS)
    os._exit(0)  # another status is an error to DataLoader; files are only whole under their names (storage.atomic_write)
