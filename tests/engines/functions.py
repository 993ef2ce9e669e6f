"""What the engines apply in the tests: importable by workers in every kind of process."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from mc2 import storage


def square(item: str) -> int:
    return int(item) ** 2


def process(_item: str) -> int:
    time.sleep(0.02)  # time for the other worker to take part
    return os.getpid()


def fail_on_odd(item: Path) -> str:
    if int(item.stem) % 2:
        raise ValueError(f"{item} is poisoned")
    return item.name


def fill_the_disk(item: Path) -> None:
    """Room for twenty files."""
    with storage.atomic_write(item) as file:
        file.write(b"x")
        if int(item.name) >= 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class OddError(Exception):
    """Cannot be pickled: its arguments are not its message."""

    def __init__(self, number: int, place: str) -> None:
        super().__init__(f"{place} {number}")


def raise_odd(item: str) -> None:
    raise OddError(7, item)


def give_what_cannot_travel(_item: str) -> object:
    return threading.Lock()


@dataclass(frozen=True)
class CountedWork:
    """Writes a line for each time an item is run; kills its process the first `deaths` times that `victim` is run."""

    folder: Path
    victim: str = ""
    deaths: int = 0

    def __call__(self, item: str) -> str:
        with open(self.folder / item, "a") as file:
            file.write("run\n")
        if item == self.victim and self.runs(item) <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return item * 2

    def runs(self, item: str) -> int:
        """How often the item was run."""
        return len((self.folder / item).read_text().splitlines())


@dataclass(frozen=True)
class EndTheTask:
    """Adds a line to a file for each run of an item; the first `deaths` runs of the victim kill the process that started this one: the whole task."""

    log: Path
    victim: str
    deaths: int

    def __call__(self, item: str) -> str:
        with open(self.log, "a") as file:
            file.write(f"{item}\n")
        if item == self.victim and self.runs().count(item) <= self.deaths:
            caller = multiprocessing.parent_process()
            assert caller is not None
            time.sleep(0.5)  # so that what was finished before is on the disk
            os.kill(caller.pid or 0, signal.SIGKILL)
            time.sleep(60)
        return item * 2

    def runs(self) -> list[str]:
        """The items in the order of their runs."""
        return self.log.read_text().split()


@dataclass(frozen=True)
class Sleep:
    """Writes the number of its process into a file and sleeps, without the interpreter's lock."""

    folder: Path
    seconds: float = 60.0

    def __call__(self, item: str) -> None:
        (self.folder / f"{item}.pid").write_text(str(os.getpid()))
        time.sleep(self.seconds)
