"""What a pool is: a folder of shards of one kind, and one reader for all kinds. Nothing is unpacked, and nothing is ever downloaded.

*.tar        img2dataset's tars: images and captions (`pool_tar`)
*.parquet    rows of URL or key, captions, perhaps images (`pool_parquet`)
*.wat.gz     Common Crawl's WAT: the links of web pages, text only (`pool_wat`)

Every reader gives `records.Pair` in the order of the file. What cannot be used is counted under a name of `records.DROP_REASONS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Literal

from mc2 import storage
from mc2.curation.pool_columns import BY_NAME, PoolColumns
from mc2.curation.pool_parquet import parquet_has_images, read_parquet
from mc2.curation.pool_tar import read_tar
from mc2.curation.pool_wat import read_wat
from mc2.records import Pair

PoolKind = Literal["tar", "parquet", "wat"]
SUFFIXES: dict[PoolKind, str] = {"tar": ".tar", "parquet": ".parquet", "wat": ".wat.gz"}
NEED = "img2dataset tars (00000.tar ...), parquet files or Common Crawl's *.warc.wat.gz"


def shard_kind(path: Path) -> PoolKind | None:
    """What the name says the file is; None for hidden and other files."""
    if path.name.startswith("."):
        return None
    return next((kind for kind, suffix in SUFFIXES.items() if path.name.lower().endswith(suffix)), None)


def pool_shards(pool: str | Path) -> list[Path]:
    """The shards of a pool, by name. Errors: ValueError if the folder is missing, has none, or has several kinds.

    `00000.parquet` beside `00000.tar` is img2dataset's account of its downloads, and no shard.
    """
    folder = Path(pool)
    if not folder.is_dir():
        raise ValueError(f"{folder}: the pool is not there; give a folder with {NEED}")
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    shards = {kind: [path for path in names if shard_kind(path) == kind] for kind in SUFFIXES}
    tars = {path.stem for path in shards["tar"]}
    shards["parquet"] = [path for path in shards["parquet"] if path.stem not in tars]
    kinds = [kind for kind, paths in shards.items() if paths]
    if not kinds:
        found = ", ".join(path.name + "/" * path.is_dir() for path in names[:3]) + (" ..." if len(names) > 3 else "")
        raise ValueError(f"{folder}: found no shard in the pool ({found or 'it is empty'}), need {NEED} in this folder itself")
    if len(kinds) > 1:
        found = ", ".join(f"{len(shards[kind])} *{SUFFIXES[kind]}" for kind in kinds)
        raise ValueError(f"{folder}: found several kinds of shards ({found}), need one; move each kind into a folder of its own")
    twice = [stem for stem, number in Counter(path.stem for path in shards[kinds[0]]).items() if number > 1]
    if twice:
        found = ", ".join(path.name for path in shards[kinds[0]] if path.stem == twice[0])
        raise ValueError(f"{folder}: found shards of one name ({found}), need a name for each; rename them")
    if lost := next((path for path in shards[kinds[0]] if not path.exists()), None):
        raise ValueError(f"{lost}: is a link that leads nowhere; take it out of the pool")
    return shards[kinds[0]]


def pool_fingerprint(shards: Sequence[Path]) -> str:
    """Stands for the pool: names and sizes of its shards. Contents are not read, because a pool has terabytes."""
    return storage.fingerprint([[shard.name, shard.stat().st_size] for shard in shards])


def pool_has_images(shards: Sequence[Path], columns: PoolColumns = BY_NAME) -> bool:
    """False for a pool of text, whose images must be downloaded first. Errors: ValueError for columns that the pool has not, or that it cannot have."""
    if shard_kind(shards[0]) != "parquet":
        if columns != BY_NAME:
            raise ValueError(f"{shards[0].parent}: found names of columns, but only a pool of parquet files has columns; leave them out")
        return shard_kind(shards[0]) == "tar"
    return bool(next((found for shard in shards if (found := parquet_has_images(shard, columns)) is not None), False))


def read_pairs(path: Path, drops: Counter[str], images: bool | Container[str] = True, columns: PoolColumns = BY_NAME) -> Iterator[Pair]:
    """The pairs of a shard in its order, each key once, each with captions; what is dropped is added to `drops`.

    `images=False` skips over the bytes of the images (`Pair.image` is None then), but not over pairs of a tar without one; a set of keys is for reading
    only theirs. Bytes of captions that are not UTF-8 come as surrogate escapes (U+DC80-DCFF), so that the caption can be dropped by itself.
    Errors: OSError if the file cannot be opened, ValueError for columns that a parquet file has not.
    """
    match shard_kind(path):
        case "parquet":
            return read_parquet(path, drops, images, columns)
        case "wat":
            return read_wat(path, drops)
        case _:
            return read_tar(path, drops, images)
