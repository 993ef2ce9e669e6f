"""`mc2 tokenizer train | show | trim`."""

from __future__ import annotations

import json as json_
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mc2.data.commands import show, train
from mc2.records import PackedCaption

if TYPE_CHECKING:
    from rich.table import Table

    from mc2.data.trim import Change


def trim(
    out: Path,
    tokenizer: Path | None = None,
    model: Path | None = None,
    shards: Path | None = None,
    texts: list[Path] | None = None,
    min_count: int = 1,
    all_characters: bool = True,
    held_out: list[Path] | None = None,
    json: bool = False,
) -> None:
    """A smaller tokenizer with the pieces that a corpus needs; with --model also a smaller model, whose features of the corpus are the same.

    Args:
        out: Folder to write: tokenizer.model and tokenizer.json, with --model a whole model folder.
        tokenizer: Tokenizer to trim: folder with tokenizer.model, or a SentencePiece file.
        model: Model folder to trim, with its own tokenizer; instead of --tokenizer.
        shards: Captions that must stay as they are: folder of training shards or img2dataset tars.
        texts: The same as UTF-8 text files, one caption a line; a file's name without extension stands for its language.
        min_count: A piece that occurs less often goes too; captions that had it are cut into smaller pieces.
        all_characters: Keep every piece of one character, so that no other text becomes unknown; false: only those of the corpus.
        held_out: Text files of other captions, which the report is then about: what trimming does to texts that it did not see.
        json: Print what changed in each language as JSON instead of a table.
    """
    from rich.console import Console

    from mc2.data.tokenizer import Tokenizer, write_tokenizer
    from mc2.data.trim import compare, count_pieces
    from mc2.data.trim import trim as trim_tokenizer
    from mc2.interchange.model_directory import load, save
    from mc2.interchange.trim import trim_towers

    if (tokenizer is None) == (model is None):
        raise ValueError("trim: need either --tokenizer or --model, whose own tokenizer is trimmed")
    if min_count < 1:
        raise ValueError(f"trim: found min_count {min_count}, need at least 1")
    if out.exists():
        raise ValueError(f"{out}: is there already; choose a new folder")
    captions = caption_source(shards, texts)
    reported = caption_source(None, held_out) if held_out else captions
    clip = None if model is None else load(model)
    before = Tokenizer(tokenizer) if tokenizer else clip.tokenizer  # type: ignore[union-attr]
    trimmed = trim_tokenizer(before, count_pieces(captions(), before), min_count, all_characters)
    write_tokenizer(out, trimmed.model, {"trimmed_from": before.vocab_size, "min_count": min_count, "all_characters": all_characters})
    after = Tokenizer(out, before.context_length)
    if clip is not None:
        save(out, trim_towers(clip.towers, trimmed.old_ids), after, clip.preprocess)
    changes = compare(reported(), before, after, trimmed.old_ids)
    if json:
        languages = {language: change.to_json() for language, change in changes.items()}
        print(json_.dumps({"ids_before": before.vocab_size, "ids_after": after.vocab_size, "languages": languages}, indent=2))
    else:
        Console().print(changes_table(f"{out}: {after.vocab_size:,} of {before.vocab_size:,} ids", changes))


def caption_source(shards: Path | None, texts: Sequence[Path] | None) -> Callable[[], Iterator[PackedCaption]]:
    """What gives the captions anew at each call. Errors: ValueError without any, or for a file that is not there."""
    from mc2.data.fertility import captions
    from mc2.data.shard_folder import open_folder

    if (shards is None) == (not texts):
        raise ValueError("trim: need captions, either --shards FOLDER or --texts '[de.txt, sw.txt]'")
    if shards is not None:
        folder = open_folder(shards)
        return lambda: captions(folder)
    files = texts or []
    for file in files:
        if not file.is_file():
            raise ValueError(f"trim: found no file {file}, need UTF-8 text with one caption a line")

    def read() -> Iterator[PackedCaption]:
        for file in files:
            with open(file, encoding="utf-8") as lines:
                yield from (PackedCaption(line.strip(), file.stem) for line in lines if line.strip())

    return read


def changes_table(title: str, changes: Mapping[str, Change]) -> Table:
    """A row for each language."""
    from rich.table import Table

    table = Table(title=title)
    for heading in ("language", "captions", "cut as before", "pieces/caption", "after", "spelt or unknown", "after"):
        table.add_column(heading, justify="left" if heading == "language" else "right")
    for language, change in changes.items():
        sums = change.to_json()
        shares = [f"{sums[name]:.2%}" for name in ("spelt_share_before", "spelt_share_after")]
        lengths = [f"{sums[name]:.2f}" for name in ("pieces_per_caption_before", "pieces_per_caption_after")]
        table.add_row(language or "(none)", f"{change.captions:,}", f"{sums['unchanged_share']:.2%}", *lengths, *shares)
    return table


def main(argv: list[str]) -> int:
    """`argv` begins with "tokenizer"."""
    from mc2.usage import call

    call({"train": train, "show": show, "trim": trim}, argv[1:], "mc2 tokenizer", "SentencePiece tokenizers of your captions.")
    return 0
