"""A folder of image files with captions as a pool: tars as img2dataset writes them, which every other stage reads.

Captions stand in a table with a row for each (CSV, TSV or JSON lines, as people keep them and as `datasets` reads them), or in text files beside the images:
cat.jpg, cat.txt with a caption a line.
"""

from __future__ import annotations

import csv
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mc2 import storage
from mc2.curation.pack_stage import add_member
from mc2.curation.pair_keys import printable
from mc2.curation.pool_tar import IMAGE_EXTENSIONS

TABLES = ("metadata.csv", "captions.csv", "metadata.tsv", "captions.tsv", "metadata.jsonl", "captions.jsonl")  # looked for in the folder
FILE_COLUMNS = ("file_name", "filename", "file", "image", "path")
CAPTION_COLUMNS = ("captions", "caption", "text", "alt", "title")
LANGUAGE_COLUMNS = ("language", "lang", "hint")
OTHER_FORMATS = ("gif", "bmp", "tif", "tiff", "heic", "heif", "avif")


@dataclass(frozen=True)
class Captions:
    """Of one image. `hint`: the language of all of them, "" where they have several or it is not known."""

    texts: tuple[str, ...]
    hint: str = ""


def run_collect(images: Path, out: Path, table: Path | None = None, shard_pairs: int = 1000) -> dict[str, Any]:
    """Write a pool of the images below a folder that have captions. Returns {"pairs", "shards", "left_out": counts by reason}.

    Errors: ValueError for a folder or table that is not there, without captions, or with columns that nobody knows.
    """
    if shard_pairs < 1:
        raise ValueError(f"collect: found shard_pairs {shard_pairs}, need at least 1")
    files = list_files(images)
    table = table or next((images / name for name in TABLES if (images / name).is_file()), None)
    sizes = {printable(name): path.stat().st_size for name, path in files.items()}
    inputs = {"files": storage.fingerprint(sizes), "shard_pairs": shard_pairs}
    inputs |= {"table": storage.sha256_file(table) if table is not None and table.is_file() else None}
    with storage.Stage(out, "collect", inputs) as stage:
        if not stage.done:
            left_out: Counter[str] = Counter()
            captions = read_table(table, files, left_out) if table is not None else read_texts(files)
            pictures = [name for name in files if extension(name) in IMAGE_EXTENSIONS]
            left_out["image in another format (need jpg, png or webp)"] = sum(extension(name) in OTHER_FORMATS for name in files)
            left_out["image without a caption"] = sum(name not in captions for name in pictures)
            named = [name for name in pictures if name in captions]
            if not named:
                where = f"in {table}" if table is not None else "in text files beside the images; name a table with --captions"
                raise ValueError(f"{images}: found {len(pictures)} images, but no caption for any of them {where}")
            shards = [named[i : i + shard_pairs] for i in range(0, len(named), shard_pairs)]
            for number, shard in enumerate(shards):
                write_shard(
                    stage.folder / f"{number:05d}.tar", number * shard_pairs, [(name, files[name], captions[name]) for name in shard]
                )
            stage.finish({"pairs": len(named), "shards": len(shards), "left_out": {why: count for why, count in left_out.items() if count}})
        return stage.results


def list_files(folder: Path) -> dict[str, Path]:
    """The files below a folder by their path in it, sorted; hidden ones are passed over. Errors: ValueError if it is not there."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: the folder of images is not there")
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def extension(name: str) -> str:
    """ "jpg" for "a/b.JPG"."""
    return PurePosixPath(name).suffix[1:].lower()


def read_texts(files: Mapping[str, Path]) -> dict[str, Captions]:
    """The captions in text files beside the images, one a line."""
    captions = {}
    for name in files:
        text = PurePosixPath(name).with_suffix(".txt").as_posix()
        if extension(name) in IMAGE_EXTENSIONS and text in files:
            lines = files[text].read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
            if texts := tuple(line.strip() for line in lines if line.strip()):
                captions[name] = Captions(texts)
    return captions


# --- tables -------------------------------------------------------------------------------------------------------------


def read_table(table: Path, files: Mapping[str, Path], left_out: Counter[str]) -> dict[str, Captions]:
    """The captions of each image, in the order of the rows; several rows may name the same image. A row names it by its path in the folder, or by its name alone."""
    rows = list(read_rows(table))
    columns = list(rows[0]) if rows else []
    file, caption, language = (column(columns, known) for known in (FILE_COLUMNS, CAPTION_COLUMNS, LANGUAGE_COLUMNS))
    if file is None or caption is None:
        need, known = ("the image file", FILE_COLUMNS) if file is None else ("the caption", CAPTION_COLUMNS)
        raise ValueError(
            f"{table}: found no column for {need} ({', '.join(columns) or 'the table is empty'}), need one of {', '.join(known)}"
        )
    by_name = unique_names(files)
    texts: dict[str, list[str]] = {}
    hints: dict[str, set[str]] = {}
    for row in rows:
        given = str(row.get(file) or "").replace("\\", "/").removeprefix("./")
        name = given if given in files else by_name.get(PurePosixPath(given).name)
        if name is None:
            left_out["row whose image is not there"] += 1
            continue
        several = row.get(caption)
        several = several if isinstance(several, list) else [several]
        texts.setdefault(name, []).extend(text.strip() for text in several if isinstance(text, str) and text.strip())
        hints.setdefault(name, set()).add(str(row.get(language) or "") if language else "")
    return {name: Captions(tuple(found), hints[name].pop() if len(hints[name]) == 1 else "") for name, found in texts.items() if found}


def read_rows(table: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table by column. Errors: ValueError with the line that cannot be read."""
    if not table.is_file():
        raise ValueError(f"{table}: the table of captions is not there")
    with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if extension(table.name) in ("jsonl", "json", "ndjson"):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield json_row(line, f"{table}:{number}")
            return
        if extension(table.name) not in ("csv", "tsv"):
            raise ValueError(f"{table}: found a table in another format, need .csv, .tsv or .jsonl")
        csv.field_size_limit(1 << 30)  # the stages after this one judge long captions
        rows = csv.DictReader(file, delimiter="\t" if extension(table.name) == "tsv" else ",", strict=True)
        try:
            yield from rows
        except csv.Error as error:
            raise ValueError(
                f"{table}:{rows.line_num + 1}: not valid {extension(table.name).upper()} ({error}); a quote inside of a quoted field is written twice"
            ) from error


def json_row(line: str, where: str) -> dict[str, Any]:
    """Errors: ValueError for what is no JSON object."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: found {type(row).__name__}, need an object with the image file and its caption")
    return row


def column(columns: Sequence[str], known: Iterable[str]) -> str | None:
    """The first known name that a column has, in any case."""
    plain = {name.strip().lower(): name for name in reversed(columns) if name is not None}
    return next((plain[name] for name in known if name in plain), None)


def unique_names(files: Iterable[str]) -> dict[str, str]:
    """Name without folders -> path, where only one file is called so."""
    names = list(files)
    count = Counter(PurePosixPath(name).name for name in names)
    return {PurePosixPath(name).name: name for name in names if count[PurePosixPath(name).name] == 1}


# --- the pool -----------------------------------------------------------------------------------------------------------


def write_shard(path: Path, first: int, pairs: Sequence[tuple[str, Path, Captions]]) -> None:
    """One tar: <key>.jpg, <key>.json. The key is the number of the pair: names of files may hold dots and other letters; "url" keeps the name."""
    with storage.atomic_write(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (name, image, captions) in enumerate(pairs, first):
            record = {"key": f"{number:09d}", "url": printable(name), "captions": list(captions.texts), "hint": captions.hint}
            add_member(tar, f"{number:09d}.{extension(name)}", image.read_bytes())
            add_member(tar, f"{number:09d}.json", json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogateescape"))
