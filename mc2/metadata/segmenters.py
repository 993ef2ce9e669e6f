"""Words of languages that are written without spaces: one maintained package for each, loaded at the first use, none of which downloads anything.

All come with `pip install 'mc2[segment]'`. A segmenter takes a piece of text without punctuation and gives its words; white space between them does not matter.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from mc2 import storage
from mc2.metadata.tokens import BREAK, MAX_WORD_CHARACTERS, TSHEG, pieces, simple_words, visible

Segmenter = Callable[[str], Iterable[str]]
SegmenterChoice = Literal["best", "icu", "simple"]

# Wikipedia code -> the packages of its best segmenter; the first is what is imported
PACKAGES = {
    "bo": ("botok",),
    "dz": ("botok",),
    "ja": ("sudachipy", "sudachidict-core"),
    "ryu": ("sudachipy", "sudachidict-core"),
    "km": ("khmer-nltk",),
    "lo": ("laonlp",),
    "my": ("icu4py",),
    "th": ("pythainlp", "nlpo3"),
    **dict.fromkeys(("zh", "zh_classical", "zh_yue", "wuu", "gan"), ("jieba",)),
}
SYLLABLES = "syllables"  # of Tibetan and Dzongkha, of which ICU has no dictionary
MAX_PIECE_CHARACTERS = 10_000  # SudachiPy takes 49,149 bytes at most; a piece without any punctuation that is longer is no prose

BOTOK_PACK = Path("Documents") / "pybo" / "dialect_packs" / "general"  # below the home folder; botok's own place


def segmenter_name(code: str, choice: SegmenterChoice = "best") -> str:
    """The packages with their versions that make the words of a Wikipedia ("jieba 0.42.1"), or "simple": counts depend on nothing else.

    Errors: ImportError that names the package if it is missing.
    """
    names = _packages(code, choice)
    try:
        versions = [name if name == SYLLABLES else f"{name} {version(name)}" for name in names]
    except PackageNotFoundError as error:
        raise ImportError(_missing(code, names)) from error
    if names == ("botok",):
        versions.append(f"dictionary {_botok_dictionary()[1]}")
    return ", ".join(versions) or "simple"


def words(text: str, code: str, choice: SegmenterChoice = "best") -> list[str]:
    """All words of a text in order, with a BREAK between words that make no bigram.

    Args:
        text: Plain text.
        code: Wikipedia code: says whether a segmenter is needed.
        choice: "best" is the package of `PACKAGES`, "icu" one fast dictionary for all of them (syllables in Tibetan), "simple" every character by itself.
    """
    packages = _packages(code, choice)
    found = _segmented(_load(packages[0], code), visible(text)) if packages else simple_words(visible(text))
    if max(map(len, found), default=0) > MAX_WORD_CHARACTERS:
        found = [word if len(word) <= MAX_WORD_CHARACTERS else BREAK for word in found]
    return found


def _segmented(segment: Segmenter, text: str) -> list[str]:
    found: list[str] = []
    for piece in pieces(text):
        for start in range(0, len(piece), MAX_PIECE_CHARACTERS):
            for word in segment(piece[start : start + MAX_PIECE_CHARACTERS]):
                found += word.split()  # "New York" is two words, " " is none
        found.append(BREAK)
    return found


def _packages(code: str, choice: SegmenterChoice) -> tuple[str, ...]:
    if choice == "simple" or code not in PACKAGES:
        return ()
    if choice == "best":
        return PACKAGES[code]
    return (SYLLABLES,) if code in ("bo", "dz") else ("icu4py",)


def _missing(code: str, names: Iterable[str]) -> str:
    return (
        f"metadata: the words of Wikipedia {code!r} need the package {' and '.join(names)}; run `pip install 'mc2[segment]'`, or give --segmenter simple "
        "(every character is a word)"
    )


@lru_cache(maxsize=4)
def _load(package: str, code: str) -> Segmenter:
    try:
        with warnings.catch_warnings():  # old escape sequences, unclosed files
            warnings.simplefilter("ignore")
            return _LOADERS[package](code)
    except ImportError as error:
        raise ImportError(_missing(code, PACKAGES[code])) from error


def _jieba(_code: str) -> Segmenter:
    jieba = importlib.import_module("jieba")
    tokenizer: Any = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(
        tokenizer.get_dict_file()
    )  # not from a cache that anybody may have put into /tmp
    tokenizer.initialized = True
    return lambda piece: tokenizer.cut(piece)


def _sudachi(_code: str) -> Segmenter:
    sudachipy = importlib.import_module("sudachipy")
    tokenizer = sudachipy.Dictionary(dict="core").tokenizer(mode=sudachipy.SplitMode.A)
    return lambda piece: (morpheme.surface() for morpheme in tokenizer.tokenize(piece))


def _thai(_code: str) -> Segmenter:
    nlpo3 = importlib.import_module("pythainlp.tokenize.nlpo3")
    return lambda piece: nlpo3.segment(piece)


def _lao(_code: str) -> Segmenter:
    laonlp = importlib.import_module("laonlp.tokenize")
    return lambda piece: laonlp.word_tokenize(piece)


def _khmer(_code: str) -> Segmenter:
    logging.getLogger("khmer-nltk").setLevel(logging.ERROR)
    khmernltk = importlib.import_module("khmernltk")
    logging.getLogger("khmer-nltk").setLevel(logging.ERROR)
    return lambda piece: khmernltk.word_tokenize(piece)


def _icu(code: str) -> Segmenter:
    breakers = importlib.import_module("icu4py.breakers")
    locale = {"zh_classical": "zh", "zh_yue": "zh", "wuu": "zh", "gan": "zh", "ryu": "ja"}.get(code, code)
    return lambda piece: breakers.WordBreaker(piece, locale)


def _botok(_code: str) -> Segmenter:
    botok = importlib.import_module("botok")
    pack, _ = _botok_dictionary()
    tokenizer = botok.WordTokenizer(importlib.import_module("botok.config").Config.from_path(pack))
    return lambda piece: (token.text for token in tokenizer.tokenize(piece, split_affixes=False))


def _botok_dictionary() -> tuple[Path, str]:
    """The folder of botok's dictionary and a mark of its bytes. botok would download it at the first use, and we never do (DESIGN decision 9)."""
    pack = Path.home() / BOTOK_PACK
    files = sorted(pack.rglob("*.tsv"))
    if not files:
        raise ValueError(
            f"metadata: botok has no dictionary in {pack}; fetch it once where there is a network with `python -c 'import botok; botok.WordTokenizer()'`, "
            "or give --segmenter icu (syllables)"
        )
    return pack, storage.fingerprint([[str(file.relative_to(pack)), storage.sha256_file(file)] for file in files])


_LOADERS: dict[str, Callable[[str], Segmenter]] = {
    "botok": _botok,
    "sudachipy": _sudachi,
    "khmer-nltk": _khmer,
    "laonlp": _lao,
    "icu4py": _icu,
    SYLLABLES: lambda _code: re.compile(f"[^{TSHEG}]+[{TSHEG}]*").findall,
    "pythainlp": _thai,
    "jieba": _jieba,
}
