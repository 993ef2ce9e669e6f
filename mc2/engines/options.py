"""The engine options that all commands share: one signature, read by every command line and YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mc2.engines.engine import Engine
from mc2.engines.ray import RaySettings
from mc2.engines.slurm import SlurmSettings

EngineName = Literal["local", "ray", "slurm"]

_RAY, _SLURM = RaySettings(), SlurmSettings()


def make_engine(
    logs: Path,
    engine: EngineName = "local",
    workers: int | None = None,
    attempts: int = 3,
    progress: bool = True,
    ray: RaySettings = _RAY,
    slurm: SlurmSettings = _SLURM,
) -> Engine:
    """The engine that a command's options describe. A command takes `**engine_options: Any` and calls `make_engine(out / ".logs", **engine_options)`:
    jsonargparse finds the options here.

    Args:
        logs: Folder for the logs of tasks that run elsewhere.
        engine: Where the work runs: processes of this machine, a Ray cluster, or job arrays of SLURM. The outcome is the same to the byte.
        workers: How many run at once. local: processes, one per core by default. ray: items, one per CPU. slurm: tasks, all by default.
        attempts: How often an item is tried whose process dies (killed, out of memory, out of time).
        progress: Show progress bars.
        ray: How Ray is reached.
        slurm: What is asked of SLURM.

    Errors: ValueError for numbers out of range or settings of an engine that is not chosen, ImportError for a package that is not installed.
    """
    for other, settings, default in (("ray", ray, _RAY), ("slurm", slurm, _SLURM)):
        if settings != default and engine != other:
            raise ValueError(
                f"engine: found settings of {other} for engine {engine!r}, where they have no effect; add --engine {other} or leave them out"
            )
    for what, number in (("workers", 1 if workers is None else workers), ("attempts", attempts)):
        if number < 1:
            raise ValueError(f"engine: found {number} {what}, need at least 1")
    if engine == "ray":
        from mc2.engines.ray import RayEngine

        return RayEngine(ray, workers, attempts, progress)
    if engine == "slurm":
        from mc2.engines.slurm import SlurmEngine

        return SlurmEngine(logs / "slurm", slurm, workers, attempts, progress)
    from mc2.engines.local import LocalEngine

    return LocalEngine(workers, progress, attempts)
