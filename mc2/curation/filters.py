"""The hook for everything that judges a pair by its image: a classifier of what is not safe for work, a blurrer of faces, a check of licences.

class Bright(PairFilter):
    identity = "bright 1"

    def __call__(self, pair: Pair) -> Verdict:
        return KEEP if mean_brightness(pair.image) < 250 else Verdict(drop="blank")

`mc2 curate pack --filters+ mypackage.Bright` counts its drops as "filter:blank". Each worker process builds its own filter, once.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mc2.records import Pair

PREFIX = "filter:"  # of its drops, so that they never mix with those of records.DROP_REASONS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter says of a pair: it stays; or it leaves, under the name `drop`; or it stays with another `image`, an encoded file (JPEG, PNG or WebP).

    Errors: ValueError for a name that is not made of small letters, digits and "_", and for an image of a pair that leaves.
    """

    drop: str | None = None
    image: bytes | None = None

    def __post_init__(self) -> None:
        if self.drop is not None and not re.fullmatch(r"[a-z0-9_]+", self.drop):
            raise ValueError(f"filter: found the reason {self.drop!r}, need small letters, digits and '_'")
        if self.drop is not None and self.image is not None:
            raise ValueError(f"filter: found an image for a pair that leaves ({self.drop}), need one or the other")


KEEP = Verdict()


class PairFilter(ABC):
    """Judges pairs. Named by class_path in YAML or on the command line. What it says may depend on nothing but its settings and the pair."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Everything that its verdicts depend on besides the pair, in one line (name, settings, hash of the weights): shards of others never mix."""

    @abstractmethod
    def __call__(self, pair: Pair) -> Verdict:
        """`pair` has an image that can be decoded, and those of its captions that are to be packed."""


def filter_pair(pair: Pair, filters: Sequence[PairFilter]) -> Pair | str:
    """The pair with the image that the filters leave it, or the reason of the first that drops it. Errors: ValueError that names filter and pair."""
    for judge in filters:
        try:
            verdict = judge(pair)
            if not isinstance(verdict, Verdict):
                raise TypeError(f"gave {verdict!r}, need a Verdict")
        except Exception as error:
            raise ValueError(f"filter {judge.identity!r} failed on pair {pair.key}: {type(error).__name__}: {error}") from error
        if verdict.drop is not None:
            return PREFIX + verdict.drop
        if verdict.image is not None:
            pair = replace(pair, image=verdict.image)
    return pair
