"""Keys of pairs: made of a URL where the pool has none, fit to name files, once per shard."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mc2.records import Pair

MAX_CAPTIONS = 1000  # of a pair
AHEAD_PAIRS = 1024
AHEAD_SIZE = 16 << 20  # characters of captions and bytes of images

_FILE_STEM = re.compile(r"[^\s./\\\x00-\x1f\x7f\ud800-\udfff]{1,200}")


def url_id(url: str) -> str:
    """24 hex digits of the SHA-224 of the URL without tabs and spaces (RECIPE 1.5). Errors: UnicodeEncodeError for what is not UTF-8."""
    return hashlib.sha224(url.replace("\t", "").replace(" ", "").encode()).hexdigest()[:24]


def file_key(key: str) -> str:
    """The key if `<key>.jpg` can be told apart in a tar (no dot, slash or white space), else its `url_id`. Errors: UnicodeEncodeError for what is not UTF-8."""
    return key if _FILE_STEM.fullmatch(key) else url_id(key)


def is_utf8(text: str) -> bool:
    """False if some of the text is surrogates, as bytes that are not UTF-8 come."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def printable(path: str) -> str:
    """A path of the file system in UTF-8; its bytes that are not are written as escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class SeenKeys:
    """Which keys came before, in 8 bytes a key: a shard of 20 million takes 160 MB. Two keys may be taken for one with a chance of n^2 / 2^65."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []  # each sorted, each more than twice the next

    def first(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        """True for the keys that neither came in an earlier call nor stand further ahead in this one."""
        digests = b"".join(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest() for key in keys)
        hashes, places = np.unique(np.frombuffer(digests, np.uint64), return_index=True)
        new = np.ones(len(hashes), bool)
        for run in self._runs:
            found = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            new &= run[found] != hashes
        self._add(hashes[new])
        first = np.zeros(len(keys), bool)
        first[places[new]] = True
        return first

    def _add(self, run: NDArray[np.uint64]) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)


def first_of_each_key(pairs: Iterable[Pair], drops: Counter[str]) -> Iterator[Pair]:
    """The pairs without those whose key came before. Looks at up to AHEAD_PAIRS or AHEAD_SIZE at a time."""
    seen = SeenKeys()
    for chunk in _chunks(pairs):
        first = seen.first([pair.key for pair in chunk]).tolist()
        if not all(first):
            drops["duplicate_key"] += first.count(False)
        yield from (pair for pair, is_first in zip(chunk, first, strict=True) if is_first)


def _chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    chunk: list[Pair] = []
    size = 0
    for pair in pairs:
        chunk.append(pair)
        size += sum(map(len, pair.captions)) + (len(pair.image) if pair.image else 0)
        if len(chunk) == AHEAD_PAIRS or size >= AHEAD_SIZE:
            yield chunk
            chunk, size = [], 0
    yield chunk


def few_captions(captions: tuple[str, ...], drops: Counter[str]) -> tuple[str, ...]:
    """The first MAX_CAPTIONS of them."""
    if len(captions) > MAX_CAPTIONS:
        drops["many_captions"] += len(captions) - MAX_CAPTIONS
    return captions[:MAX_CAPTIONS]


def add_captions(captions: dict[str, None], more: Iterable[str], drops: Counter[str]) -> None:
    """Add those that are not there yet, up to MAX_CAPTIONS."""
    for caption in more:
        if len(captions) < MAX_CAPTIONS or caption in captions:
            captions[caption] = None
        else:
            drops["many_captions"] += 1
