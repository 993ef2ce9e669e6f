"""Where the wall time of a run folder went, over all its starts: <run>/goodput.json, written by rank 0.

step        in training steps
data        waiting for the next batch
evaluation  validation, benchmarks and whatever else callbacks do behind a step
checkpoint  in saving (an asynchronous save counts only what training waits for)
start       from the start of a process to its first batch: imports, weights, compilation of the data's workers
down        from the last sign of one process to the start of the next: queueing, a crashed node
lost        steps that were made behind the last checkpoint and had to be made again
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mc2 import storage

FILE = "goodput.json"
PARTS = ("step", "data", "evaluation", "checkpoint", "start", "down", "lost")


@dataclass
class Goodput:
    """Seconds by part; `last_step` and `last_seen` (seconds since 1970) are of the last time that it was written."""

    seconds: Counter[str] = field(default_factory=Counter)
    last_step: int = 0
    last_seen: float | None = None
    num_steps: int = 0  # made, those that were lost too

    @classmethod
    def read(cls, run: Path) -> Goodput:
        """Of a run folder; empty for a new one, or for a file that is none."""
        try:
            found = storage.read_json(run / FILE)
            seconds = Counter({part: float(found["seconds"][part]) for part in PARTS})
            return cls(seconds, int(found["last_step"]), float(found["last_seen"]), int(found["num_steps"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, run: Path, step: int, now: float) -> None:
        self.last_step, self.last_seen = step, now
        plain = {part: round(float(self.seconds[part]), 3) for part in PARTS}
        storage.write_json(run / FILE, {"seconds": plain, "last_step": step, "last_seen": now, "num_steps": self.num_steps})

    def restart(self, step: int, started: float, now: float) -> None:
        """A process that started then goes on behind this step now."""
        if step == 0:  # a new run in an old folder
            self.seconds, self.last_seen, self.num_steps = Counter(), None, 0
        if self.last_seen is not None:
            self.add("down", started - self.last_seen)
            lost = max(0, self.last_step - step) * self.seconds["step"] / max(1, self.num_steps)
            self.add("step", -lost)
            self.add("lost", lost)
        self.add("start", now - started)

    def add(self, part: str, seconds: float) -> None:
        self.seconds[part] += max(seconds, -self.seconds[part])  # type: ignore[assignment]  # Counter of seconds

    def shares(self) -> Mapping[str, float]:
        """goodput, the share of steps that were not lost, and that of every other part."""
        total = max(1e-9, sum(self.seconds.values()))
        return {("goodput" if part == "step" else part): self.seconds[part] / total for part in PARTS}
