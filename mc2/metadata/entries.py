"""Entry lists: the drop rules, the merge of sources where the first wins, and the folder of lists with its manifest (RECIPE 1.2).

<language>.txt               sorted UTF-8 entries, one a line; an entry's id is the number of its line
<language>.sources.parquet   the source of each entry, in the same order
<language>.json              the language's row of the manifest
manifest.json                per language the number of entries, SHA-256, sources and drops; one fingerprint for all
"""

from __future__ import annotations

import hashlib
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mc2 import storage

MERGE_ORDER = ("numbers", "wordnet", "unigrams", "bigrams", "titles")
MAX_ENTRY_CHARACTERS = 256
NUMBERS = tuple(str(number) for number in range(100))


def drop_reason(entry: str) -> str | None:
    """Why an entry is refused: "empty", "long", "punctuation" (nothing but punctuation and space), "not_utf8" (a lone surrogate); None if it stays."""
    if not entry:
        return "empty"
    if len(entry) > MAX_ENTRY_CHARACTERS:
        return "long"
    if all(c in string.punctuation or c.isspace() or unicodedata.category(c)[0] == "P" for c in entry):
        return "punctuation"
    return "not_utf8" if any("\ud800" <= c <= "\udfff" for c in entry) else None


@dataclass(frozen=True)
class EntryList:
    """The entries of one language, sorted by code point, the source of each, and how many candidates were refused by reason."""

    entries: Sequence[str]
    sources: Sequence[str]
    drops: Mapping[str, int]


def merge_entries(candidates: Mapping[str, Iterable[str]]) -> EntryList:
    """The union of the sources' candidates; an entry that several sources give belongs to the first in `MERGE_ORDER`. Case is kept.

    Line ends and tabs inside an entry become spaces. Errors: ValueError for a source that is not in `MERGE_ORDER`.
    """
    unknown = sorted(set(candidates) - set(MERGE_ORDER))
    if unknown:
        raise ValueError(f"metadata: found sources {unknown}, need some of {list(MERGE_ORDER)}")
    source_of: dict[str, str] = {}
    drops: Counter[str] = Counter()
    for source in MERGE_ORDER:
        for candidate in candidates.get(source, ()):
            if candidate.isalnum() and len(candidate) <= MAX_ENTRY_CHARACTERS:  # nearly all: no rule can refuse it
                source_of.setdefault(candidate, source)
                continue
            entry = candidate.translate(_LINE_TO_SPACE).strip()
            if reason := drop_reason(entry):
                drops[reason] += 1
            else:
                source_of.setdefault(entry, source)
    entries = sorted(source_of)
    return EntryList(entries, [source_of[entry] for entry in entries], dict(sorted(drops.items())))


_LINE_TO_SPACE = str.maketrans("\t\n\r", "   ")


# --- the folder ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metadata:
    """A folder of entry lists. `sha256` of each list by language; `fingerprint` stands for all of them."""

    folder: Path
    sha256: Mapping[str, str]
    num_entries: Mapping[str, int]
    fingerprint: str

    @classmethod
    def open(cls, folder: str | Path) -> Metadata:
        """Read the manifest. Errors: ValueError that names the folder if there is none."""
        folder = Path(folder)
        if not (folder / "manifest.json").exists():
            raise ValueError(f"{folder}: no metadata here (manifest.json is missing); run `mc2 metadata build --out {folder}`")
        value = storage.read_json(folder / "manifest.json")
        try:
            rows = value["languages"]
            return cls(
                folder,
                {code: row["sha256"] for code, row in rows.items()},
                {code: row["entries"] for code, row in rows.items()},
                value["fingerprint"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder}: manifest.json is not one of metadata ({error!r}); give a folder of `mc2 metadata build`"
            ) from error

    def entries(self, language: str) -> list[str]:
        """The entries of a language by id. Errors: ValueError if the list is missing or is not the one that the manifest names."""
        path = self.folder / f"{language}.txt"
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() != self.sha256.get(language):
            raise ValueError(f"{path}: is missing or has changed since it was built; build the metadata again into an empty folder")
        return data.decode().split("\n")[:-1]


def write_language(folder: Path, language: str, merged: EntryList) -> storage.JSON:
    """Write the list and the sources of a language; returns its row of the manifest."""
    data = "".join(f"{entry}\n" for entry in merged.entries).encode()
    storage.write_bytes(folder / f"{language}.txt", data)
    with storage.atomic_write(folder / f"{language}.sources.parquet") as file:
        pq.write_table(pa.table({"source": pa.array(merged.sources, pa.string()).dictionary_encode()}), file, compression="zstd")
    sources = Counter(merged.sources)
    return {
        "entries": len(merged.entries),
        "sha256": hashlib.sha256(data).hexdigest(),
        "sources": {source: sources[source] for source in MERGE_ORDER if sources[source]},
        "drops": merged.drops,
    }


def write_manifest(folder: Path, rows: Mapping[str, Mapping[str, object]], inputs: Mapping[str, object]) -> str:
    """Write `manifest.json`; returns the fingerprint of all lists, which depends on nothing but their bytes."""
    mark = storage.fingerprint({language: row["sha256"] for language, row in rows.items()})
    storage.write_json(folder / "manifest.json", {"fingerprint": mark, "inputs": dict(inputs), "languages": dict(sorted(rows.items()))})
    return mark
