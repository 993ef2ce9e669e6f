"""Pairs of an img2dataset tar, `<key>.jpg` + `<key>.txt` + `<key>.json` beside each other, as a crawl leaves it: with everything broken that can be.

The captions of a pair are json["captions"] (a list of strings) if that key is there, else the text of `<key>.txt` as the only one. What cannot be used is
counted under a name of `records.DROP_REASONS`. The JSON also gives the URL ("url") and the hint ("hint", "language" or "lang", in any case), as img2dataset
saves the columns of its URL list.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from mc2.curation.hints import declared_hint
from mc2.curation.pair_keys import few_captions, is_utf8
from mc2.records import Pair

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
HINT_FIELDS = ("hint", "language", "lang")
_BLOCK_BYTES = 512


def read_tar(path: Path, drops: Counter[str], images: bool | Container[str] = True) -> Iterator[Pair]:
    """The pairs of a tar in its order, see `pool.read_pairs`. Errors: OSError if the file cannot be opened."""
    seen: set[str] = set()
    for key, files in _records(path, drops, images):
        if key in seen:
            drops["duplicate_key"] += 1
            continue
        seen.add(key)
        pair = _pair(key, files, drops)
        if isinstance(pair, Pair):
            yield pair
        else:
            drops[pair] += 1


def read_tar_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """(key, encoded file) of every image of a tar that `read_tar` could give, and of those without captions too: a benchmark may have none."""
    seen: set[str] = set()
    for key, files in _records(path, Counter(), images=True):
        image = _image(files)
        if image is not None and key not in seen and is_utf8(key):
            yield key, image
        seen.add(key)


def _image(files: dict[str, bytes]) -> bytes | None:
    return next((files[extension] for extension in IMAGE_EXTENSIONS if extension in files), None)


def _pair(key: str, files: dict[str, bytes], drops: Counter[str]) -> Pair | str:
    """A pair from its files by extension, or the reason why there is none."""
    if not is_utf8(key):
        return "broken_record"
    image = _image(files)
    if image is None:
        return "no_image"
    try:
        record = _record(files)
        captions = few_captions(_captions(files, record), drops)
    except (ValueError, RecursionError):
        return "broken_record"
    return Pair(key, captions, image or None, _text(record, "url"), _hint(record)) if captions else "no_captions"


def _record(files: dict[str, bytes]) -> dict[str, Any]:
    """The JSON of a pair, its fields in lower case. Errors: ValueError if it cannot be read."""
    record = json.loads(files["json"].decode("utf-8", "surrogateescape")) if "json" in files else {}
    if not isinstance(record, dict):
        raise ValueError("the record is no JSON object")
    return {name.lower(): value for name, value in record.items()}


def _captions(files: dict[str, bytes], record: dict[str, Any]) -> tuple[str, ...]:
    """Errors: ValueError if "captions" are no list of strings."""
    captions = record.get("captions")
    if captions is not None:
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError("captions are no list of strings")
        return tuple(captions)
    if "txt" in files:
        return (files["txt"].decode("utf-8", "surrogateescape"),)
    return (record["caption"],) if isinstance(record.get("caption"), str) else ()


def _text(record: dict[str, Any], field: str) -> str:
    """The field if it is readable text, else ""."""
    value = record.get(field)
    return value if isinstance(value, str) and is_utf8(value) else ""


def _hint(record: dict[str, Any]) -> str:
    return next((hint for field in HINT_FIELDS if (hint := declared_hint(_text(record, field)))), "")


def _records(path: Path, drops: Counter[str], images: bool | Container[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Neighbouring members with the same key, as {extension: bytes}. The record in which a damaged tar breaks off is not used: nobody knows what it lacks."""
    key, files = "", dict[str, bytes]()
    try:
        for member in tar_members(path, images):
            if files and member.key != key:
                yield key, files
                files = {}
            key = member.key
            files[member.extension] = member.data
    except NotATarError:
        drops["unreadable_tar"] += 1
    except (tarfile.TarError, ValueError, OverflowError):  # the last two: numbers in a damaged header
        drops["truncated_tar"] += 1
    else:
        if files:
            yield key, files


# --- members of a tar ---------------------------------------------------------------------------------------------------


class NotATarError(tarfile.TarError):
    """Not even the first header can be read."""


class Member(NamedTuple):
    """A file in a tar: header and data, padded, are its bytes [offset, end). The key is the name up to the first dot after the last slash, as webdataset splits it."""

    key: str
    extension: str
    data: bytes
    offset: int
    end: int


def tar_members(path: Path, images: bool | Container[str] = True) -> Iterator[Member]:
    """The files in their order; images that are not wanted come without their bytes. Errors: tarfile.TarError, ValueError, OverflowError for damage."""
    num_bytes = path.stat().st_size
    with open(path, "rb") as file, _open_tar(file) as tar:
        while (member := tar.next()) is not None:
            vars(tar)["members"] = []  # tarfile keeps every member otherwise: memory that grows with the shard
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                continue
            if member.offset_data + member.size > num_bytes:
                raise tarfile.ReadError("unexpected end of data")
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            key = folder + slash + stem
            wanted = images if isinstance(images, bool) else key in images
            skip = not wanted and extension.lower() in IMAGE_EXTENSIONS
            yield Member(key, extension.lower(), b"" if skip else _read(tar, member), member.offset, tar.offset)
        file.seek(tar.offset)
        end = file.read(_BLOCK_BYTES)
        if len(end) < _BLOCK_BYTES or any(end):  # tarfile takes damage in the middle for the end
            raise tarfile.ReadError("no end mark")


def _open_tar(file: IO[bytes]) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise NotATarError(str(error)) from error


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    return file.read()
