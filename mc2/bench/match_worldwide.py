"""Time and memory of the automata of all languages: built one by one in one process, then all open at once in another."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from mc2.bench.clocks import memory_bytes, peak_bytes
from mc2.bench.match_speed import in_process
from mc2.curation.match import Matcher, load_matcher
from mc2.metadata.entries import Metadata


def measure(folder: Path) -> dict[str, Any]:
    """ "build" and "load" of the metadata in `folder`/metadata; automata that are there from an earlier run are built anew."""
    for path in (folder / "automata").glob("*"):
        path.unlink()
    return {"build": in_process(build, folder), "load": in_process(load, folder)}


def build(folder: Path) -> dict[str, Any]:
    """Seconds, the most memory at any time, and the bytes of the files."""
    metadata = Metadata.open(folder / "metadata")
    start = time.perf_counter()
    for code in metadata.sha256:
        load_matcher(folder / "automata", metadata, code, "mc2")
    files = [path.stat().st_size for path in (folder / "automata").glob("*.automaton")]
    return {"seconds": time.perf_counter() - start, "peak_bytes": peak_bytes(), "automata_bytes": sum(files), "largest_bytes": max(files)}


def load(folder: Path) -> dict[str, Any]:
    """Seconds until all languages are open and have been asked once, and the memory of the process."""
    metadata = Metadata.open(folder / "metadata")
    Matcher.build(["fox"])(pa.array(["a fox"]))  # compiled code is loaded
    before, start = memory_bytes(), time.perf_counter()
    matchers = [load_matcher(folder / "automata", metadata, code, "mc2") for code in metadata.sha256]
    for matcher in matchers:
        matcher(pa.array(["a fox"]))
    seconds, now = time.perf_counter() - start, memory_bytes()
    return {"seconds": seconds, **{f"{name}_bytes": value for name, value in now.items()}, "added_own_bytes": now["own"] - before["own"]}
