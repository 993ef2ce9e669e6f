"""How often the language of short names is found, on truth that is embedded in packages and was not tuned on.

Texts: the names of emoji in the 14 languages of the package `emoji` (the half that was not tuned on: `storage.keyed_hash` of the emoji says which), and names
of territories in 40 languages of the package `babel`. Both are hard: a name has two or three words.

    mc2 bench language-id
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mc2 import languages, storage
from mc2.curation.language_id import LanguageIdentifier, LanguageSettings

# 32 that have a list of common words (wordfreq), and eu, gl, hy, ka, kk, mn, sw, th, which have none.
TERRITORY_LANGUAGES = """
    ar bg bn ca cs da de el en es eu fa fi fr gl he hi hr hu hy id it ja ka kk ko lt lv mn ms nl pl pt ro ru sv sw th tr zh
""".split()  # noqa: SIM905

Truth = tuple[Sequence[str], Sequence[str]]  # texts, and the language of each


def emoji_names(tuned_on: bool) -> Truth:
    """Names of emoji in 14 languages: one half of the emoji, or the other."""
    import emoji

    emoji.config.load_language()
    texts, codes = [], []
    for sequence, names in emoji.EMOJI_DATA.items():
        complete = names["status"] == emoji.STATUS["fully_qualified"] and all(code in names for code in emoji.LANGUAGES)
        if complete and (storage.keyed_hash(0, "language-id/half", 0, sequence) % 2 == 0) is tuned_on:
            texts += [unicodedata.normalize("NFC", names[code].strip(":").replace("_", " ")) for code in emoji.LANGUAGES]
            codes += [languages.canonical(code) for code in emoji.LANGUAGES]
    return texts, codes


def territory_names() -> Truth:
    """Names of the territories with two letters ("CH") in `TERRITORY_LANGUAGES`."""
    from babel import Locale

    texts, codes = [], []
    for code in TERRITORY_LANGUAGES:
        names = [name for territory, name in sorted(Locale.parse(code).territories.items()) if len(territory) == 2]
        texts += [unicodedata.normalize("NFC", name) for name in names]
        codes += [code] * len(names)
    return texts, codes


def accuracies(identifier: LanguageIdentifier, truth: Truth, shared: bool) -> tuple[dict[str, float], float]:
    """Share of the texts whose language is found and not dropped, by language; and processor time in microseconds a text.

    shared: a name that several languages have ("Angola") may be found to be in any of them.
    """
    texts, codes = pa.array(truth[0], pa.string()), np.array(truth[1])
    named = {*zip(*truth, strict=True)}
    identifier.identify(texts[:10])  # compiled code is loaded
    start = time.process_time()
    found = identifier.identify(texts)
    spent = time.process_time() - start
    answers = [identifier.languages[i] if i >= 0 else "" for i in found.language]
    right = np.array([answer in named for answer in zip(truth[0], answers, strict=True)]) if shared else np.array(answers) == codes
    right &= found.drop == 0
    return {str(code): float(right[codes == code].mean()) for code in sorted(set(codes))}, 1e6 * spent / len(texts)


def settings_of(cascade: bool) -> Mapping[str, tuple[bool, LanguageSettings]]:
    """Name -> (restricted to the languages of the texts, settings)."""
    plain = LanguageSettings(scripts=False, words=False)
    rows = {
        "plain": (False, plain),
        "restricted": (True, plain),
        "letters": (True, replace(plain, scripts=True)),
        "default": (True, LanguageSettings()),
        "default, 176": (False, LanguageSettings()),
    }
    return rows | ({"cascade": (True, LanguageSettings(cascade="lingua"))} if cascade else {})


def measure(truth: Truth, shared: bool, cascade: bool) -> dict[str, dict[str, object]]:
    """Row name -> {"macro", "microseconds", "languages"}."""
    rows: dict[str, dict[str, object]] = {}
    for name, (restricted, settings) in settings_of(cascade).items():
        shares, microseconds = accuracies(LanguageIdentifier(set(truth[1]) if restricted else languages.LID176, settings), truth, shared)
        rows[name] = {"macro": float(np.mean(list(shares.values()))), "microseconds": microseconds, "languages": shares}
    return rows


def language_id(cascade: bool = True, json: Path | None = None) -> None:
    """Accuracy of the language identification on names of emoji and of territories, in percent.

    Args:
        cascade: Also with lingua behind it (some minutes).
        json: File to write the figures to.
    """
    from rich.console import Console
    from rich.table import Table

    truths = {"emoji, the half not tuned on": (emoji_names(tuned_on=False), False), "territories": (territory_names(), True)}
    figures = {title: {"texts": len(truth[0]), "rows": measure(truth, shared, cascade)} for title, (truth, shared) in truths.items()}
    console = Console(width=200)
    for title, value in figures.items():
        rows = value["rows"]
        assert isinstance(rows, dict)
        table = Table(title=f"{title}: {value['texts']:,} texts", show_lines=False)
        for heading in ("", *rows):
            table.add_column(heading, justify="left" if not heading else "right")
        table.add_row("macro accuracy", *(f"{100 * row['macro']:.1f}" for row in rows.values()), style="bold")
        for code in next(iter(rows.values()))["languages"]:
            table.add_row(code, *(f"{100 * row['languages'][code]:.0f}" for row in rows.values()))
        table.add_row("µs a text", *(f"{row['microseconds']:.1f}" for row in rows.values()))
        console.print(table)
    if json is not None:
        storage.write_json(json, figures)
