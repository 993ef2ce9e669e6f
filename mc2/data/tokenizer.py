"""Captions to ids and back: SentencePiece in XLM-V form, so that files trained here and XLM-V's own go through one class.

Form (RECIPE 2.3, the fairseq layout): bos 0, pad 1, eos 2, unk 3, every other piece has its SentencePiece id + 1, the mask comes last; rows
are `bos pieces eos pad ...`. Shapes: B captions, L ids of the longest.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from mc2 import __version__, storage

# Ids that the form fixes on top of the pieces: pad in front, mask at the end.
EXTRA_IDS = 2
FIRST_PIECES = ["<unk>", "<s>", "</s>"]


class Tokenizer:
    """Ids of captions, int32 (B, L): bos ... eos, then pad up to the longest caption; at most `context_length` ids, the last eos.

    `path` is a folder with `tokenizer.model`, or a SentencePiece file. Text goes in as it is (case kept, NFKC by the file's own rules). The
    literal text of a special token is only text: SentencePiece never produces a control piece from it. Errors: ValueError if the file is
    missing, broken or of another form.
    """

    bos_id, pad_id, eos_id, unk_id = 0, 1, 2, 3

    def __init__(self, path: str | Path, context_length: int = 77) -> None:
        if context_length < 3:
            raise ValueError(f"tokenizer: found context_length {context_length}, need at least 3 (bos, one piece, eos)")
        self.path, self.context_length = model_file(Path(path)), context_length
        self.pieces = _load(self.path)
        self.vocab_size: int = self.pieces.get_piece_size() + EXTRA_IDS
        self.mask_id = self.vocab_size - 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each caption without bos, eos and truncation."""
        # fairseq order: pieces 1 and 2 (bos, eos) cannot come out of text, so every id moves by one and unknown (piece 0) becomes 3
        return [[piece + 1 if piece else self.unk_id for piece in row] for row in self.pieces.encode(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a row of ids; special ids are left out."""
        text: str = self.pieces.decode([i - 1 for i in ids if self.unk_id < i < self.mask_id])
        return text

    def is_spelt(self, piece: int) -> bool:
        """Whether an id stands for a character without a piece of its own: one of its bytes, or unk."""
        return piece == self.unk_id or self.pieces.is_byte(piece - 1)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int32 (B, L)."""
        keep = self.context_length - 2
        rows = [[self.bos_id, *row[:keep], self.eos_id] for row in self.encode(texts)]
        longest = max(map(len, rows), default=0)
        return torch.tensor([row + [self.pad_id] * (longest - len(row)) for row in rows], dtype=torch.int32).view(len(rows), longest)

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


def _load(file: Path) -> sentencepiece.SentencePieceProcessor:
    card = file.with_name("tokenizer.json")
    if card.exists() and file.name == "tokenizer.model":
        found, need = storage.sha256_file(file), storage.read_json(card).get("sha256")
        if found != need:
            raise ValueError(
                f"{file}: found SHA-256 {found[:12]}, need {str(need)[:12]} of {card.name}; copy both files again or train the "
                "tokenizer again"
            )
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    except RuntimeError as error:
        raise ValueError(f"{file}: not a SentencePiece model; copy it again or train a new one with `mc2 tokenizer train`") from error
    first = [pieces.id_to_piece(i) for i in range(min(3, pieces.get_piece_size()))]
    if first != FIRST_PIECES:
        raise ValueError(f"{file}: begins with pieces {first}, need {FIRST_PIECES} (XLM-V form); train one with `mc2 tokenizer train`")
    return pieces


def write_tokenizer(folder: Path, model: bytes, options: dict[str, Any]) -> None:
    """Write `tokenizer.model` and, last, `tokenizer.json`: form, size, SHA-256 of the model and how it was trained."""
    storage.write_bytes(folder / "tokenizer.model", model)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size() + EXTRA_IDS
    card = {"form": "xlm-v", "vocab_size": size, "sha256": hashlib.sha256(model).hexdigest(), "options": options, "mc2": __version__}
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
            vocab_size=vocab_size - EXTRA_IDS,
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
