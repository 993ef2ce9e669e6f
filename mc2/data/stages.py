"""Where the time of a batch goes, in the process that makes it."""

from __future__ import annotations

from collections import Counter
from time import perf_counter

# The stages of a batch: shards read and captions drawn; images decoded; cropped and resized; captions cut into pieces; rows put together.
STAGES = ("read", "decode", "transform", "tokenize", "collate")


class Laps:
    """Seconds by stage: all that passed since the lap before belongs to the stage that ends now, so that the stages add up to the whole."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._last = perf_counter()

    def __call__(self, stage: str) -> None:
        now = perf_counter()
        self.seconds[stage] += now - self._last  # type: ignore[assignment]  # Counter of seconds
        self._last = now
