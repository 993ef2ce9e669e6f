"""A smaller tokenizer that cuts a corpus as the larger one does: the pieces that its captions need, and which row of the embedding each one had.

The best way to cut a caption uses only pieces that are kept, and no other way becomes better by what is gone: with `min_count` 1 every caption of the corpus
keeps its pieces. SentencePiece scores an unknown character by the worst piece of the file, so the worst one stays. Above 1, rare pieces are spelt by others:
`compare` measures what that changes, in each language.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from mc2.data.tokenizer import Tokenizer
from mc2.records import PackedCaption


@dataclass(frozen=True)
class Trimmed:
    """A SentencePiece file, and for each id of its tokenizer the id that the same piece had before."""

    model: bytes
    old_ids: tuple[int, ...]


@dataclass
class Change:
    """Sums over the captions of one language. Pieces are counted without bos and eos; spelt: in bytes, or unknown."""

    captions: int = 0
    unchanged: int = 0
    pieces_before: int = 0
    pieces_after: int = 0
    spelt_before: int = 0
    spelt_after: int = 0

    def to_json(self) -> dict[str, float]:
        """The sums, and what they mean."""
        return {
            **asdict(self),
            "unchanged_share": self.unchanged / self.captions,
            "pieces_per_caption_before": self.pieces_before / self.captions,
            "pieces_per_caption_after": self.pieces_after / self.captions,
            "spelt_share_before": self.spelt_before / max(self.pieces_before, 1),
            "spelt_share_after": self.spelt_after / max(self.pieces_after, 1),
        }


def count_pieces(captions: Iterable[PackedCaption], tokenizer: Tokenizer) -> Counter[int]:
    """How often each id occurs. Errors: ValueError without captions."""
    counts: Counter[int] = Counter()
    for caption in captions:
        counts.update(tokenizer.encode([caption.text])[0])
    if not counts:
        raise ValueError("tokenizer: found no caption to keep pieces for, need at least one that is not empty")
    return counts


def trim(tokenizer: Tokenizer, counts: Mapping[int, int], min_count: int = 1, all_characters: bool = True) -> Trimmed:
    """Keep what occurs `min_count` times (by id), every piece that is no text (special, bytes), and single characters, so that what is gone can be spelt.

    all_characters: all pieces of one character stay, so that no other text becomes unknown; else only those of the corpus.
    Errors: ValueError for a tokenizer that is not of the unigram kind (other kinds build pieces from pieces).
    """
    schema: Any = import_module("sentencepiece.sentencepiece_model_pb2")
    proto, text = schema.ModelProto.FromString(tokenizer.pieces.serialized_model_proto()), schema.ModelProto.SentencePiece.NORMAL
    if proto.trainer_spec.model_type != schema.TrainerSpec.UNIGRAM:
        raise ValueError(f"{tokenizer.path}: is no unigram model, need one to trim; in other kinds each piece is built from smaller ones")
    offset, first, pieces = tokenizer.form.offset, len(tokenizer.form.first_pieces), list(proto.pieces)
    occurring = {number for number in range(len(pieces)) if counts.get(number + offset, 0)}
    characters = {character for number in occurring for character in pieces[number].piece}
    by_score = sorted((piece.score, number) for number, piece in enumerate(pieces) if piece.type == text)
    ends = {by_score[0][1], by_score[-1][1]}  # scores of unknown characters and of pieces that the user defined come from these
    kept = [
        number
        for number, piece in enumerate(pieces)
        if piece.type != text
        or number in ends
        or counts.get(number + offset, 0) >= min_count
        or (len(piece.piece) == 1 and (all_characters or piece.piece in characters))
    ]
    del proto.pieces[:]
    proto.pieces.extend(pieces[number] for number in kept)
    proto.trainer_spec.vocab_size = len(kept)
    proto.DiscardUnknownFields()  # self_test_data: samples of how the larger file cuts
    behind = range(len(pieces) + offset, tokenizer.vocab_size)  # the mask, in XLM-V's form
    old_ids = (*range(first + offset), *(number + offset for number in kept if number >= first), *behind)
    return Trimmed(proto.SerializeToString(), old_ids)


def compare(captions: Iterable[PackedCaption], before: Tokenizer, after: Tokenizer, old_ids: tuple[int, ...]) -> dict[str, Change]:
    """What trimming changed, by language code."""
    found: dict[str, Change] = {}
    for caption in captions:
        change = found.setdefault(caption.language, Change())
        old, new = (tokenizer.encode([caption.text])[0] for tokenizer in (before, after))
        change.captions += 1
        change.unchanged += old == [old_ids[piece] for piece in new]
        change.pieces_before += len(old)
        change.pieces_after += len(new)
        change.spelt_before += sum(map(before.is_spelt, old))
        change.spelt_after += sum(map(after.is_spelt, new))
    return dict(sorted(found.items()))
