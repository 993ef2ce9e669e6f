"""Metadata of the published size, made of random words: what matching needs of memory and time does not wait for 329 dumps.

The published build has about 27 M entries in some 300 languages: English 500 k, the large Wikipedias at their caps (251,465 unigrams, 100,646 bigrams, 61,235
titles), a long tail of small ones (RECIPE 1.2). Entries are words of random syllables in the script of the language, alone or two and three together, so that
they share beginnings as real entries do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mc2 import languages, storage
from mc2.metadata.entries import NUMBERS, EntryList, Metadata, write_language, write_manifest

ENGLISH_ENTRIES = 500_000
MAX_ENTRIES = 251_465 + 100_646 + 61_235 + len(NUMBERS)

# The largest Wikipedias by articles in 2024, largest first; the others follow in a random order.
LARGEST = """
    en ceb de fr sv nl ru es it pl arz zh ja uk vi war ar pt fa ca id sr ko no tr ce fi cs hu tt ro eu sh ms he hy da bg cy sk et az kk uz el be gl lt sl hr
    ka nn la ta th hi bn mk ast ur af te
""".split()  # noqa: SIM905

# Letters of a script as ranges of code points, both ends included. Latin letters stand in for scripts that are not here.
LETTERS = {
    "Latn": ((0x61, 0x7A), (0xDF, 0xF6)),
    "Arab": ((0x627, 0x64A),),
    "Armn": ((0x561, 0x586),),
    "Beng": ((0x995, 0x9B9), (0x9BE, 0x9C4)),
    "Cyrl": ((0x430, 0x45F),),
    "Deva": ((0x915, 0x939), (0x93E, 0x94C)),
    "Ethi": ((0x1200, 0x1246),),
    "Geor": ((0x10D0, 0x10F0),),
    "Grek": ((0x3B1, 0x3C9),),
    "Gujr": ((0xA95, 0xAA8),),
    "Hans": ((0x4E00, 0x5A00),),
    "Hebr": ((0x5D0, 0x5EA),),
    "Jpan": ((0x3041, 0x3093), (0x30A1, 0x30F3), (0x4E00, 0x5200)),
    "Khmr": ((0x1780, 0x17A2), (0x17B6, 0x17C5)),
    "Knda": ((0xC95, 0xCA8),),
    "Kore": ((0xAC00, 0xB400),),
    "Laoo": ((0xEA1, 0xEA3), (0xEB0, 0xEB9)),
    "Mlym": ((0xD15, 0xD28),),
    "Mymr": ((0x1000, 0x1020), (0x102B, 0x1032)),
    "Taml": ((0xBAE, 0xBB9), (0xBBE, 0xBC2)),
    "Telu": ((0xC15, 0xC28),),
    "Thai": ((0xE01, 0xE2E), (0xE30, 0xE39)),
    "Tibt": ((0xF40, 0xF47),),
}
UNSPACED = {"Hans", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt"}


def synthetic_metadata(folder: str | Path, num_entries: int = 27_000_000, num_languages: int = 300, seed: int = 0) -> Metadata:
    """Write a metadata folder of that many random entries; English comes first. The same arguments give the same bytes; a finished folder is returned.

    Errors: ValueError for more languages than Wikipedia has, or a number of entries that the languages cannot hold.
    """
    codes = _codes(num_languages)
    sizes = language_sizes(num_entries, num_languages)
    with storage.Stage(Path(folder), "metadata", {"num_entries": num_entries, "num_languages": num_languages, "seed": seed}) as stage:
        if not stage.done:
            rows = {code: write_language(stage.folder, code, _entries(code, size, seed)) for code, size in zip(codes, sizes, strict=True)}
            mark = write_manifest(stage.folder, rows, stage.inputs)
            stage.finish({"fingerprint": mark, "languages": len(rows)})
    return Metadata.open(folder)


def language_sizes(num_entries: int, num_languages: int) -> list[int]:
    """Number of entries of each language, largest first: English, then falling with the rank (exponent 1) below the published caps; they sum to `num_entries`."""
    ranks = np.arange(1, num_languages + 1)
    caps = np.where(ranks == 1, ENGLISH_ENTRIES, MAX_ENTRIES)
    if not num_languages * len(NUMBERS) <= num_entries <= caps.sum():
        raise ValueError(
            f"synthetic metadata: found {num_entries:,} entries for {num_languages} languages, need {num_languages * len(NUMBERS):,} to {caps.sum():,}"
        )
    low, high = 0.0, float(num_entries) * num_languages
    for _ in range(200):  # bisection of the constant C in C / rank
        middle = (low + high) / 2
        too_many = np.clip(middle / ranks, len(NUMBERS), caps).sum() > num_entries
        low, high = (low, middle) if too_many else (middle, high)
    sizes = np.clip(low / ranks, len(NUMBERS), caps).astype(int)
    for rank in np.flatnonzero(sizes < caps)[: num_entries - sizes.sum()]:  # what rounding down has left
        sizes[rank] += 1
    return [int(size) for size in sizes]


def _codes(num_languages: int) -> list[str]:
    others = {code for code in languages.WIKIPEDIAS if "-" not in code} - {"simple", *LARGEST}
    codes = LARGEST + storage.keyed_order(0, "synthetic rank", 0, others)
    if not 1 <= num_languages <= len(codes):
        raise ValueError(f"synthetic metadata: found {num_languages} languages, need 1 to {len(codes)}")
    return codes[:num_languages]


def _entries(code: str, size: int, seed: int) -> EntryList:
    rng = np.random.default_rng(storage.keyed_hash(seed, "synthetic", 0, code))
    size -= len(NUMBERS)
    found = np.empty(0, dtype="U1")
    while len(found) < size:
        found = np.unique(np.concatenate([found, _random_phrases(rng, languages.script(code), size // 2 + 1000)]))
    keep = np.sort(rng.permutation(len(found))[:size])  # by lot, not from the front of the alphabet
    words = found[keep].tolist()
    return EntryList(
        [*sorted(NUMBERS), *words], ["numbers"] * len(NUMBERS) + ["bigrams" if " " in word else "unigrams" for word in words], {}
    )


def _random_phrases(rng: np.random.Generator, script: str, number: int) -> NDArray[np.str_]:
    """Random entries of 12 characters in the mean (6 in scripts without spaces): one word, or two and three of the frequent ones."""
    letters = np.concatenate([np.arange(first, last + 1, dtype=np.uint32) for first, last in LETTERS.get(script, LETTERS["Latn"])])
    spaced = script not in UNSPACED
    syllables = letters[
        (len(letters) * rng.random((800, 2 if spaced else 1)) ** 2).astype(int)
    ]  # the first letters are the more frequent ones
    words = _random_words(rng, syllables, number)
    frequent = words[: max(1, number // 20)]
    phrases = [words[: number // 2]]
    for num_words, share in ((2, 0.35), (3, 0.15)):
        phrase = words[: round(share * number)]
        for _ in range(num_words - 1):
            phrase = np.strings.add(np.strings.add(rng.choice(frequent, len(phrase)), " " if spaced else ""), phrase)
        phrases.append(phrase)
    return np.concatenate(phrases)


def _random_words(rng: np.random.Generator, syllables: NDArray[np.uint32], number: int) -> NDArray[np.str_]:
    """Words of 2 to 5 syllables, the first syllables more often than the last."""
    chosen = syllables[(len(syllables) * rng.random((number, 5)) ** 2).astype(int)]
    chosen[np.arange(5) >= rng.integers(2, 6, size=(number, 1))] = 0  # the end of a string in numpy
    words: NDArray[np.str_] = chosen.reshape(number, -1).view(f"U{chosen.shape[1] * chosen.shape[2]}")[:, 0]
    return words
