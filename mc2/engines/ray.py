"""Items as tasks of a Ray cluster, or of a Ray that is started on this machine."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import pickle
import socket
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mc2.engines.engine import Item, Outcome, Result, Schedule, attempt, encoded, gather

CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class RaySettings:
    """How Ray is reached.

    Args:
        address: Of a running cluster, as "auto" or "ray://host:10001". By default the environment's RAY_ADDRESS, else a Ray of this run alone on this machine.
        cpus_per_item: CPUs that Ray reserves for an item.
        memory_gb_per_item: Memory that Ray reserves for an item.
    """

    address: str | None = None
    cpus_per_item: float = 1.0
    memory_gb_per_item: float = 0.0


class RayEngine:
    """Items as tasks of Ray. The working folder must be the same everywhere, as must the files: paths may be relative."""

    def __init__(self, settings: RaySettings | None = None, workers: int | None = None, attempts: int = 3, progress: bool = True) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ImportError("engine: the package ray is not installed; run `pip install 'mc2[ray]'`, or choose --engine local")
        self.settings, self.workers, self.attempts, self.progress = settings or RaySettings(), workers, attempts, progress
        self._end: weakref.finalize[[], RayEngine] | None = None
        if self.settings.cpus_per_item <= 0:
            raise ValueError(f"engine: found ray.cpus_per_item {self.settings.cpus_per_item}, need more than 0")

    def map(self, name: str, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        return gather(name, items, self._outcomes(name, function, items), self.progress)

    def _outcomes(self, name: str, function: Callable[[Item], Any], items: Sequence[Item]) -> Generator[tuple[int, Outcome]]:
        if not items:
            return
        ray = self._connect()
        asked = {"num_cpus": self.settings.cpus_per_item, "memory": self.settings.memory_gb_per_item * 2**30}
        run = ray.remote(max_retries=0, **asked)(run_there)
        shared, folder = ray.put(function), os.getcwd()
        at_once = self.workers or max(1, round(2 * ray.cluster_resources().get("CPU", 1) / self.settings.cpus_per_item))
        schedule = Schedule(name, items, self.attempts)
        flying: dict[Any, int] = {}
        try:
            while True:
                while len(flying) < at_once and (position := schedule.next(len(flying))) is not None:
                    flying[run.remote(shared, items[position], folder)] = position
                if not flying:
                    return
                done, _ = ray.wait(list(flying))
                for reference in done:
                    position = flying.pop(reference)
                    outcome = _outcome(ray, reference, schedule, position)
                    if outcome is not None:
                        yield position, outcome
        finally:
            for reference in flying:  # Ctrl-C, SIGTERM, or closed before its end
                ray.cancel(reference, force=True)

    def _connect(self) -> Any:
        """The package, connected to the cluster or to a Ray that it starts; both end with this engine. A connection that was there before is used and left."""
        ray: Any = importlib.import_module("ray")  # its type information is partial
        if ray.is_initialized():
            return ray
        address = self.settings.address or os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network that nobody asked for
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a warning otherwise
        if address:
            check_reachable(address)
        own: dict[str, Any] = {} if address else {"num_cpus": self.workers, "include_dashboard": False}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(f"engine: no Ray at {address or 'this machine'} ({error}); start one, or leave out --ray.address") from error
        self._end = weakref.finalize(self, ray.shutdown)
        return ray

    def close(self) -> None:
        """End the connection, or the Ray that was started. Done by itself when nobody holds the engine any more."""
        if self._end is not None:
            self._end()


def _outcome(ray: Any, reference: Any, schedule: Schedule, position: int) -> Outcome | None:
    """What a finished task brings; None if its process died and it will be tried again."""
    try:
        outcome: Outcome = pickle.loads(ray.get(reference))
    except ray.exceptions.RayTaskError as error:  # an item's own error comes as an outcome: here the function or the item could not be read
        return Outcome(error=RuntimeError(str(error.cause)))
    except ray.exceptions.RayError as error:  # worker, node or object lost, or out of memory
        return schedule.died(position, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return outcome


def check_reachable(address: str) -> None:
    """Errors: ValueError if nobody listens at host:port, for which Ray itself would wait for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto" and other words that Ray looks up
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(f"engine: no Ray at {address} ({error.strerror or error}); start one, or leave out --ray.address") from error


def run_there(function: Callable[[Any], Any], item: Any, folder: str) -> bytes:
    """In the worker: the outcome. Paths mean what they mean to the caller."""
    return encoded(attempt(partial(_call_in, folder, function, item)))


def _call_in(folder: str, function: Callable[[Any], Any], item: Any) -> Any:
    with contextlib.chdir(folder):
        return function(item)
