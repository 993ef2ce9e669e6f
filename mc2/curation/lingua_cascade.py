"""The slow second opinion: lingua's n-gram models of 75 languages, for captions that the fast way is not sure of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mc2 import languages

_LEAST = 1e-3  # lingua's confidence may be zero


class LinguaCascade:
    """Multiplies posteriors by lingua's confidence. Errors: ValueError if lingua is not installed or knows fewer than two of the candidates."""

    def __init__(self, candidates: Sequence[str], num_languages: int) -> None:
        try:
            from lingua import Language, LanguageDetectorBuilder
        except ImportError as error:
            raise ValueError("language id: the cascade needs lingua-language-detector; pip install 'mc2[lingua]'") from error
        known = {languages.canonical(language.iso_code_639_1.name.lower()): language for language in Language.all()}
        self._column_of = {known[code]: column for column, code in enumerate(candidates) if code in known}
        if len(self._column_of) < 2:
            raise ValueError(
                f"language id: lingua knows {len(self._column_of)} of the languages of the metadata, need at least 2; leave out the cascade"
            )
        self._detector = LanguageDetectorBuilder.from_languages(*self._column_of).build()
        self._num_candidates, self._num_languages = len(candidates), num_languages

    def judge(self, captions: Sequence[str], posterior: NDArray[np.float32]) -> NDArray[np.float32]:
        """The posteriors (n x languages) times lingua's confidence, with the same sums. A candidate that lingua does not know counts as a tenth of the best, a
        language that is no candidate as the best."""
        factors = np.empty_like(posterior)
        for row, caption in enumerate(captions):
            values = {self._column_of[v.language]: v.value for v in self._detector.compute_language_confidence_values(caption)}
            best = max(values.values())
            factors[row, : self._num_candidates], factors[row, self._num_candidates :] = best / 10, best
            factors[row, list(values)] = list(values.values())
        judged = posterior * np.maximum(factors, np.float32(_LEAST))
        total = judged.sum(axis=1, keepdims=True)
        return np.asarray(judged / np.where(total > 0, total, 1), np.float32)
