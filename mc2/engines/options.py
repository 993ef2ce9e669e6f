"""The engine options that all commands share: one signature, read by every command line and YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mc2.engines.engine import Engine

EngineName = Literal["local"]


def make_engine(
    logs: Path,  # noqa: ARG001  (for the engines that run elsewhere)
    engine: EngineName = "local",  # noqa: ARG001
    workers: int | None = None,
    progress: bool = True,
) -> Engine:
    """The engine that a command's options describe. A command takes `**engine_options: Any` and calls `make_engine(out / ".logs", **engine_options)`: jsonargparse
    finds the options here.

    Args:
        logs: Folder for what an engine writes about itself.
        engine: Where the work runs: "local", processes of this machine.
        workers: How many run at once: processes, one per core by default.
        progress: Show progress bars.

    Errors: ValueError for numbers out of range.
    """
    from mc2.engines.local import LocalEngine

    return LocalEngine(workers, progress)
