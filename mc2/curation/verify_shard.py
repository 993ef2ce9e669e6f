"""What is wrong with one training shard: its tar, the records in it, its index."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mc2 import storage
from mc2.curation.pack_stage import LanguageCounts, image_extension
from mc2.curation.pool_tar import IMAGE_EXTENSIONS, Member, NotATarError, tar_members
from mc2.records import ShardInfo

AGAIN = "run the same `mc2 curate pack` line again"
NO_LIMIT = 1 << 62  # pixels


@dataclass(frozen=True)
class Problem:
    """A line of the report."""

    file: str
    found: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file}: {self.found}; {self.cure}"


@dataclass(frozen=True)
class ShardCheck:
    """What is in a shard, and what is wrong with it by itself. `index`: what its index says of it; None if there is none or it cannot be read."""

    info: ShardInfo
    problems: tuple[Problem, ...]
    index: ShardInfo | None = None


# --- one record ---------------------------------------------------------------------------------------------------------


def record_languages(files: Mapping[str, bytes], packed: bool) -> list[str]:
    """The languages of a record's captions ("" where it says none). `packed`: each must have text, language and entries.

    Errors: ValueError that says what is wrong with the record.
    """
    if sum(extension in files for extension in IMAGE_EXTENSIONS) != 1:
        raise ValueError("without exactly one image")
    if not any(files.get(extension) for extension in IMAGE_EXTENSIONS):
        raise ValueError("with an empty image")
    if "json" not in files and (packed or "txt" not in files):
        raise ValueError("without a JSON" if packed else "without a caption")
    try:
        record = json.loads(files.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError("with a JSON that cannot be read") from error
    captions = record.get("captions") if isinstance(record, dict) else None
    if captions is None and not packed:
        captions = [_text(files["txt"])] if "txt" in files else []
    if not isinstance(captions, list) or not captions:
        raise ValueError("without captions")
    return [_language(caption, packed) for caption in captions]


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError("with a caption that is not UTF-8") from error


def _language(caption: Any, packed: bool) -> str:
    if isinstance(caption, str) and not packed:
        caption = {"text": caption, "language": "", "entries": []}
    if not isinstance(caption, dict) or not isinstance(caption.get("text"), str) or not isinstance(caption.get("language"), str):
        raise ValueError("with a caption that is not {text, language, entries}")
    if not caption["text"].strip() or any("\ud800" <= c <= "\udfff" for c in caption["text"]):
        raise ValueError("with a caption that is empty or not UTF-8")
    entries = caption.get("entries")
    if not isinstance(entries, list) or not all(type(entry) is int and entry >= 0 for entry in entries):
        raise ValueError("with entries that are not numbers of entries")
    if packed and (not entries or any(a >= b for a, b in pairwise(entries))):
        raise ValueError("with entries that are not ascending")
    return str(caption["language"])


# --- one shard ----------------------------------------------------------------------------------------------------------


@dataclass
class _Findings:
    """What comes up while a shard is read; examples of keys by what is wrong with their records."""

    languages: LanguageCounts = field(default_factory=LanguageCounts)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def add(self, wrong: str, key: str) -> None:
        self.wrong.setdefault(wrong, []).append(key)

    def lines(self) -> Iterator[str]:
        for wrong, keys in sorted(self.wrong.items()):
            yield f"{len(keys):,} records {wrong} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"


@dataclass(frozen=True)
class CheckShard:
    """Reads a tar from end to end and its index. `packed`: the folder is one of `mc2 curate pack`. `images`: decode them."""

    packed: bool
    images: bool

    def __call__(self, path: Path) -> ShardCheck:
        findings, problems = _Findings(), []
        cure = (
            f"copy it again, or delete {path.stem}.index.parquet and done.json and {AGAIN}"
            if self.packed
            else "get it again, or take it away"
        )
        try:
            self._read(path, findings)
        except NotATarError as error:
            problems.append(f"not a tar ({error})")
        except (tarfile.TarError, ValueError, OverflowError) as error:
            problems.append(f"cut off or damaged after {len(findings.places):,} records ({error})")
        except OSError as error:
            return ShardCheck(ShardInfo(path.stem, 0, 0, ""), (Problem(path.name, f"cannot be read ({error.strerror})", cure),))
        problems += findings.lines()
        if not findings.places:
            problems.append("no record in it")
        info = ShardInfo(path.stem, len(findings.places), path.stat().st_size, storage.sha256_file(path), *findings.languages.by_language())
        lines = [Problem(path.name, problem, cure) for problem in problems]
        index = None
        if self.packed:
            index, wrong = _check_index(path.with_name(f"{path.stem}.index.parquet"), findings.places)
            lines += wrong
        return ShardCheck(info, tuple(lines), index)

    def _read(self, path: Path, findings: _Findings) -> None:
        """Errors: tarfile.TarError, ValueError, OverflowError for a damaged tar."""
        for key, group in groupby(tar_members(path), lambda member: member.key):
            members = list(group)
            if key in findings.places:
                findings.add("with the key of an earlier one", key)
            findings.places[key] = members[0].offset, members[-1].end - members[0].offset
            self._check_record(key, members, findings)

    def _check_record(self, key: str, members: Sequence[Member], findings: _Findings) -> None:
        files = {member.extension: member.data for member in members}
        if len(files) < len(members):
            findings.add("with the same file twice", key)
        try:
            findings.languages.add(record_languages(files, self.packed))
        except ValueError as error:
            findings.add(str(error), key)
        if self.images:
            image = next((files[extension] for extension in IMAGE_EXTENSIONS if extension in files), None)
            if image and image_extension(image, NO_LIMIT)[1] is not None:
                findings.add("with an image that cannot be decoded", key)


def _check_index(path: Path, places: Mapping[str, tuple[int, int]]) -> tuple[ShardInfo | None, list[Problem]]:
    """What the index says of the shard, and whether it points at the records that are really there."""
    cure = f"delete it and done.json and {AGAIN}"
    try:
        table = pq.read_table(path)
        rows = dict(zip(table["key"].to_pylist(), zip(table["offset"].to_pylist(), table["size"].to_pylist(), strict=True), strict=True))
        info = ShardInfo(**json.loads(table.schema.metadata[b"info"]))
    except FileNotFoundError:
        return None, [Problem(path.name, "is missing", f"copy it, or delete done.json and {AGAIN}")]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        return None, [Problem(path.name, f"cannot be read as an index ({type(error).__name__})", cure)]
    wrong = [key for key in places if rows.get(key) != places[key]] + sorted(rows.keys() - places.keys())
    if wrong or len(rows) != len(table):
        return info, [Problem(path.name, f"{len(wrong):,} records are not where it says ({', '.join(wrong[:3])})", cure)]
    return info, []
