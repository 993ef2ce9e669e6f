"""The id layouts of the released models (RECIPE 2.3) and of the published ablation: what stands around the pieces of a SentencePiece file. A file says by its first
pieces which is its own."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """How ids are made of pieces.

    first_pieces: those of the file, from piece 0 on, which no text produces. offset: id of a piece - its number in the file. bos: ids before a caption.
    num_extra: ids beyond the file's pieces. clean: what happens to a caption before it is cut into pieces.
    """

    name: str
    first_pieces: tuple[str, ...]
    offset: int
    bos: tuple[int, ...]
    eos_id: int
    pad_id: int
    unk_id: int
    num_extra: int
    clean: Callable[[str], str]


def as_it_is(text: str) -> str:
    """The text itself."""
    return text


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonical_text(text: str) -> str:
    """Lower case, without ASCII punctuation, runs of white space made one space, as SigLIP was trained."""
    return " ".join(text.translate(_NO_PUNCTUATION).lower().split())


# fairseq's order: pad comes in between, every piece moves by one, and a mask comes last (no text produces it).
XLM_V = Form("xlm-v", ("<unk>", "<s>", "</s>"), 1, bos=(0,), eos_id=2, pad_id=1, unk_id=3, num_extra=2, clean=as_it_is)
# SigLIP-i18n, the pieces of mT5: captions end and are padded with the same id.
MT5 = Form("mt5", ("<pad>", "</s>", "<unk>"), 0, bos=(), eos_id=1, pad_id=1, unk_id=2, num_extra=0, clean=canonical_text)
# Gemma, a row of the paper's ablation, which does not say how captions were framed: as transformers' class does it, and with the end that the text tower pools.
GEMMA = Form("gemma", ("<pad>", "<eos>", "<bos>", "<unk>"), 0, bos=(2,), eos_id=1, pad_id=0, unk_id=3, num_extra=0, clean=as_it_is)
FORMS = (XLM_V, MT5, GEMMA)


def form_of(first_pieces: Sequence[str]) -> Form:
    """The form of a file by its first pieces, four or more. Errors: ValueError for another one."""
    for form in FORMS:
        if tuple(first_pieces[: len(form.first_pieces)]) == form.first_pieces:
            return form
    known = " or ".join(f"{list(form.first_pieces)} ({form.name})" for form in FORMS)
    raise ValueError(f"begins with pieces {list(first_pieces)}, need {known}; train one with `mc2 tokenizer train`")
