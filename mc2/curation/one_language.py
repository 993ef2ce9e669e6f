"""No language identification: every caption counts as one language, for a pool in one language, and for the ablations that know none (RECIPE 3)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from mc2.curation.language_id import Identified, LanguageIdentifier, LanguageSettings


class OneLanguage:
    """In the place of a `LanguageIdentifier` that knows one language and is always certain. Errors: ValueError if the language has no metadata."""

    def __init__(self, candidates: Collection[str], language: str) -> None:
        if language not in candidates:
            raise ValueError(
                f"language id: found assume {language!r}, need a language of the metadata ({', '.join(sorted(candidates)[:5])} ...); "
                "`mc2 metadata show` lists them"
            )
        self.candidates = self.languages = (language,)

    def identify(self, captions: pa.StringArray | pa.LargeStringArray, _hints: pa.StringArray | None = None) -> Identified:
        """The language with score 1 for every caption."""
        count = len(captions)
        return Identified(np.zeros(count, np.int16), np.ones(count, np.float32), np.zeros(count, np.uint8))


def open_identifier(candidates: Collection[str], settings: LanguageSettings) -> LanguageIdentifier | OneLanguage:
    """Who says in which of the candidates, the languages with metadata, a caption is."""
    return LanguageIdentifier(candidates, settings) if settings.assume is None else OneLanguage(candidates, settings.assume)
