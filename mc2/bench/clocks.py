"""What a measurement needs besides the work: stage clocks, one core, memory of a process, and the machine it ran on."""

from __future__ import annotations

import gc
import os
import platform
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path


class Clock:
    """Seconds by stage; a stage inside another counts for itself only. `timer`: time.process_time for processor time."""

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self._timer = timer
        self.seconds: Counter[str] = Counter()
        self._open: list[str] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = self._timer()
        self._open.append(stage)
        try:
            yield
        finally:
            self._open.pop()
            spent = self._timer() - start
            self.seconds[stage] += spent  # type: ignore[assignment]  # Counter of seconds
            if self._open:
                self.seconds[self._open[-1]] -= spent  # type: ignore[assignment]


def keep_to_one_core(core: int) -> None:
    """This process and its threads run on one core, by its number among those that it may use; not where the system has no such call."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})


def memory_bytes(process: str = "self") -> dict[str, int]:
    """Of a process by its id now: "own", what it has for itself; "mapped", what it has of files and shares with others. Empty where there is no /proc."""
    path = Path(f"/proc/{process}/status")
    rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line) if path.exists() else {}
    names = {"own": "RssAnon", "mapped": "RssFile"}
    return {name: 1024 * int(rows[row].split()[0]) for name, row in names.items() if row in rows}


def peak_bytes() -> int:
    """The most memory that this process has had, its own and mapped."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def extra_peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that this process has, its own and mapped, while it works, above what it has before. Where there is no /proc: above its peak before."""
    gc.collect()
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")  # the peak begins anew: proc(5)
        before = sum(memory_bytes().values())
        work()
        rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return 1024 * int(rows["VmHWM"].split()[0]) - before
    before = peak_bytes()
    work()
    return peak_bytes() - before


def circumstances(packages: Sequence[str]) -> dict[str, object]:
    """What a number must stand beside: commit, machine, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    models = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    machine = {"system": platform.platform(), "cpu": models[0] if models else platform.processor(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version()} | {package: version(package) for package in packages}
    return {"commit": _commit(), "machine": machine, "versions": versions}


def _commit() -> str:
    """The commit of the source tree, with "+" if files were changed; "" outside one."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + "+" * bool(changed)
