"""`mc2 tokenizer train | show`; the command line is in interchange/tokenizer_commands.py, because `trim` also writes model folders."""

from __future__ import annotations

from pathlib import Path


def train(shards: Path, out: Path, vocab_size: int = 8000, character_coverage: float = 0.9995, byte_fallback: bool = True) -> None:
    """A SentencePiece tokenizer in XLM-V form, trained on the captions of training shards.

    Args:
        shards: Folder of training shards (`mc2 curate pack`) or of img2dataset tars.
        out: Folder for tokenizer.model and tokenizer.json.
        vocab_size: Ids of the tokenizer, that is rows of the embedding table.
        character_coverage: Share of the characters that get pieces of their own; the rest is spelt in bytes.
        byte_fallback: Spell what has no piece in bytes; without it such characters become unk.
    """
    from mc2.data.fertility import captions
    from mc2.data.shard_folder import open_folder
    from mc2.data.tokenizer import train_tokenizer

    texts = (caption.text for caption in captions(open_folder(shards)))
    tokenizer = train_tokenizer(texts, out, vocab_size, character_coverage, byte_fallback)
    print(f"{out}: tokenizer of {tokenizer.vocab_size:,} ids. Next: mc2 tokenizer show --tokenizer {out} --shards {shards}")


def show(tokenizer: Path, shards: Path, context_length: int = 77) -> None:
    """Coverage and fertility of a tokenizer in each language of a folder of shards.

    Args:
        tokenizer: Folder with tokenizer.model, or a SentencePiece file.
        shards: Folder of training shards or img2dataset tars (without language labels they are one language).
        context_length: Ids a caption may have, bos and eos included; "cut" is the share of captions that have more.
    """
    from rich.console import Console
    from rich.table import Table

    from mc2.data.fertility import captions, fertility
    from mc2.data.shard_folder import open_folder
    from mc2.data.tokenizer import Tokenizer

    table = Table(title=f"{tokenizer}: pieces per language")
    for heading in ("language", "captions", "pieces/caption", "characters/piece", "coverage", "cut"):
        table.add_column(heading, justify="left" if heading == "language" else "right")
    for code, counts in fertility(captions(open_folder(shards)), Tokenizer(tokenizer, context_length)).items():
        row = (
            f"{counts.pieces_per_caption:.1f}",
            f"{counts.characters_per_piece:.2f}",
            f"{counts.coverage:.2%}",
            f"{counts.cut_share:.2%}",
        )
        table.add_row(code or "(none)", f"{counts.num_captions:,}", *row)
    Console().print(table)
