"""Captions to ids and back: one class for SentencePiece files trained here, XLM-V's, SigLIP-i18n's (mT5's pieces) and Gemma's.

XLM-V form: bos 0, pad 1, eos 2, unk 3, every other piece has its number + 1, the mask comes last; rows are `bos pieces eos pad ...`.
mT5 form: eos and pad 1, unk 2, pieces as they are numbered, lower-cased text without punctuation; rows are `pieces eos eos ...`.
Gemma form: pad 0, eos 1, bos 2, unk 3, pieces as they are numbered; rows are `bos pieces eos pad ...`.
Shapes: B captions, L ids of the longest.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from mc2 import __version__, storage
from mc2.data.tokenizer_forms import XLM_V, Form, form_of


class Tokenizer:
    """Ids of captions, int32 (B, L): (bos) ... eos, then pad up to the longest caption; at most `context_length` ids, the last eos.

    `path` is a folder with `tokenizer.model`, or a SentencePiece file; its form (see `tokenizer_forms`) is read from the file. Text goes in as it is, but
    for what the form and the file's own rules (NFKC) do to it. The literal text of a special token is only text: SentencePiece never produces a
    control piece from it. Errors: ValueError if the file is missing, broken or of another form.
    """

    def __init__(self, path: str | Path, context_length: int = 77) -> None:
        if context_length < 3:
            raise ValueError(f"tokenizer: found context_length {context_length}, need at least 3 (bos, one piece, eos)")
        self.path, self.context_length = model_file(Path(path)), context_length
        self.pieces, self.form = _load(self.path)
        self.vocab_size: int = self.pieces.get_piece_size() + self.form.num_extra
        self.eos_id, self.pad_id, self.unk_id = self.form.eos_id, self.form.pad_id, self.form.unk_id

    @property
    def num_special(self) -> int:
        """Ids around the pieces of a caption: bos, where the form has one, and eos."""
        return len(self.form.bos) + 1

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the ids of a text."""
        pieces = hashlib.sha256(self.pieces.serialized_model_proto()).hexdigest()
        return storage.fingerprint([pieces, self.form.name, self.context_length])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each caption without bos, eos and truncation."""
        return [self._ids(row) for row in self._pieces(texts)]

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = self.pieces.encode([self.form.clean(text) for text in texts], num_threads=1)  # workers have a core each
        return rows

    def _ids(self, pieces: Sequence[int]) -> list[int]:
        offset, unknown = self.form.offset, self.pieces.unk_id()
        return [self.unk_id if piece == unknown else piece + offset for piece in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a row of ids; special ids are left out."""
        numbers = (i - self.form.offset for i in ids if i != self.unk_id)
        num_pieces = self.pieces.get_piece_size()
        text: str = self.pieces.decode([number for number in numbers if len(self.form.first_pieces) <= number < num_pieces])
        return text

    def is_spelt(self, piece: int) -> bool:
        """Whether an id stands for a character without a piece of its own: one of its bytes, or unk."""
        return piece == self.unk_id or self.pieces.is_byte(piece - self.form.offset)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int32 (B, L)."""
        keep = self.context_length - self.num_special
        rows = [[*self.form.bos, *self._ids(row[:keep]), self.eos_id] for row in self._pieces(texts)]
        tokens_BL = np.full((len(rows), max(map(len, rows), default=0)), self.pad_id, dtype=np.int32)
        for tokens_L, row in zip(tokens_BL, rows, strict=True):
            tokens_L[: len(row)] = row
        return torch.from_numpy(tokens_BL)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.model` and `tokenizer.json`; `Tokenizer(folder, context_length)` reads them back."""
        model: bytes = self.pieces.serialized_model_proto()
        write_tokenizer(folder, model, {})


def model_file(path: Path) -> Path:
    """The SentencePiece file that a path means. Errors: ValueError if there is none."""
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{file}: no tokenizer here; give a folder with tokenizer.model or a SentencePiece file (`mc2 tokenizer train` makes one)"
        )
    return file


def _load(file: Path) -> tuple[sentencepiece.SentencePieceProcessor, Form]:
    card = file.with_name("tokenizer.json")
    if card.exists() and file.name == "tokenizer.model":
        found, need = storage.sha256_file(file), storage.read_json(card).get("sha256")
        if need is not None and found != need:  # other tools, too, put a tokenizer.json beside a tokenizer.model
            raise ValueError(
                f"{file}: found SHA-256 {found[:12]}, need {str(need)[:12]} of {card.name}; copy both files again or train the "
                "tokenizer again"
            )
    try:
        return _parse(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _parse(model: bytes) -> tuple[sentencepiece.SentencePieceProcessor, Form]:
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ValueError("not a SentencePiece model; copy it again or train a new one with `mc2 tokenizer train`") from error
    return pieces, form_of([pieces.id_to_piece(i) for i in range(min(4, pieces.get_piece_size()))])


def write_tokenizer(folder: Path, model: bytes, options: dict[str, Any]) -> None:
    """Write `tokenizer.model` and, last, `tokenizer.json`: form, size, SHA-256 of the model and how it was trained."""
    storage.write_bytes(folder / "tokenizer.model", model)
    pieces, form = _parse(model)
    card = {
        "form": form.name,
        "vocab_size": pieces.get_piece_size() + form.num_extra,
        "sha256": hashlib.sha256(model).hexdigest(),
        "options": options,
        "mc2": __version__,
    }
    storage.write_json(folder / "tokenizer.json", card)


def train_tokenizer(
    texts: Iterable[str], out: Path, vocab_size: int = 8000, character_coverage: float = 0.9995, byte_fallback: bool = True
) -> Tokenizer:
    """A unigram tokenizer trained on the captions, written to `out` as `tokenizer.model` + `tokenizer.json`.

    vocab_size: ids of the finished tokenizer, that is rows of the embedding; fewer come out if the captions do not hold that many pieces.
    character_coverage: share of the captions' characters that get a piece of their own; the rest, and every script never seen, is spelt in
    bytes (3 or 4 ids a character), so that nothing becomes unk. Without byte_fallback it does, as in XLM-V. The same captions in the same
    order give the same bytes. Errors: ValueError without captions or with a size that the characters do not fit in.
    """
    model = io.BytesIO()
    sentences = (" ".join(text.split()) for text in texts if text.strip())
    first = next(sentences, None)
    if first is None:
        raise ValueError("tokenizer: no caption to train on; give shards or texts with at least one caption that is not empty")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chain([first], sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size - XLM_V.num_extra,
            hard_vocab_limit=False,
            character_coverage=character_coverage,
            byte_fallback=byte_fallback,
            normalization_rule_name="nmt_nfkc",
            max_sentence_length=1 << 20,
            num_threads=1,  # sums of floats must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"tokenizer: cannot be trained with vocab_size {vocab_size} ({' '.join(str(error).split())}); choose a larger vocab_size"
        ) from error
    options = {"vocab_size": vocab_size, "character_coverage": character_coverage, "byte_fallback": byte_fallback}
    write_tokenizer(out, model.getvalue(), options)
    return Tokenizer(out)
