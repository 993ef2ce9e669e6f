"""Real processes for the tests of collectives: forked, joined by gloo, with a time limit, all killed at the first failure."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT_SECONDS = 240  # a hang, not a machine that has more to do


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun would set: Lightning then joins the processes that are there instead of starting its own."""
    numbers = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "GROUP_RANK": 0,
        "MASTER_PORT": port,
    }
    return {**{name: str(number) for name, number in numbers.items()}, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "tests"}


def run_rank(
    pipe: Connection, rank: int, world_size: int, port: int, join: bool, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """The body of one process: the function's result, or its trace, goes through the pipe."""
    os.environ.update(environment(rank, world_size, port))
    torch.set_num_threads(1)
    try:
        if join:
            dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT_SECONDS / 2))
        pipe.send((True, function(*arguments)))
    except BaseException:  # noqa: BLE001  (whatever it is, the parent shows it)
        pipe.send((False, traceback.format_exc()))
    pipe.close()
    sys.stdout.flush()
    os._exit(0)  # no clean-up of what was inherited from the parent


def start(
    rank: int, world_size: int, port: int, join: bool, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[BaseProcess, Connection]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: forking with threads; a fresh interpreter costs 10 s each
        process = multiprocessing.get_context("fork").Process(
            target=run_rank, args=(sender, rank, world_size, port, join, function, arguments), daemon=True
        )
        process.start()
    sender.close()
    return process, receiver


def collect(pipes: Sequence[Connection], deadline: float) -> list[Any]:
    """One result for each pipe. Errors: AssertionError with the trace of the first rank that fails, or at the deadline."""
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        pending = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(pending, timeout=max(0.0, deadline - time.monotonic()))
        assert ready, f"ranks {[pipes.index(pipe) for pipe in pending]} did not answer in time"
        for pipe in pending:
            if pipe not in ready:
                continue
            rank = pipes.index(pipe)
            try:
                succeeded, value = pipes[rank].recv()
            except EOFError:
                succeeded, value = False, "the process died"
            assert succeeded, f"rank {rank}:\n{value}"
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def run_processes(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], join: bool = True, timeout: float = TIMEOUT_SECONDS
) -> list[Any]:
    """Call `function(*arguments[rank])` in one process per rank and return the results in the order of ranks.

    `join` makes the gloo group; without it a Lightning Trainer inside the function does. Results travel by pickle: return numbers and lists.
    """
    port = free_port()
    started = [start(rank, len(arguments), port, join, function, each) for rank, each in enumerate(arguments)]
    try:
        return collect([pipe for _, pipe in started], time.monotonic() + timeout)
    finally:
        for process, pipe in started:
            process.kill()
            process.join()
            pipe.close()
