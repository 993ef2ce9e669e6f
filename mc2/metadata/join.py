"""The entries of all languages as one list under one code, for the ablation that keeps languages apart nowhere (RECIPE 3, "all metadata in one set")."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from mc2 import languages, storage
from mc2.metadata.entries import MERGE_ORDER, Metadata, merge_entries, write_language, write_manifest

MULTIPLE = "mul"  # BCP 47 for several languages


def join_languages(folder: str | Path, out: str | Path, language: str = MULTIPLE) -> Metadata:
    """Metadata with one list of the entries of all languages of `folder`, each once, with the first of its sources in `MERGE_ORDER`.

    Holds all entries in memory: some gigabytes for the 27 million of 329 languages. Errors: ValueError for a folder without metadata or of another run.
    """
    metadata, code = Metadata.open(folder), languages.canonical(language)
    with storage.Stage(Path(out), "metadata", {"joined": metadata.fingerprint, "language": code}) as stage:
        if not stage.done:
            candidates: dict[str, list[str]] = {source: [] for source in MERGE_ORDER}
            for part in metadata.sha256:
                path, entries = metadata.folder / f"{part}.sources.parquet", metadata.entries(part)
                try:
                    for entry, source in zip(entries, pq.read_table(path)["source"].to_pylist(), strict=True):
                        candidates[source].append(entry)
                except (OSError, ValueError, KeyError) as error:  # Arrow's are of these kinds
                    raise ValueError(
                        f"{path}: not the sources of the {len(entries)} entries ({error}); build the metadata again"
                    ) from error
            row = write_language(stage.folder, code, merge_entries(candidates))
            mark = write_manifest(stage.folder, {code: row}, {"joined": metadata.fingerprint})
            stage.finish({"fingerprint": mark, "languages": 1, "skipped": []})
    return Metadata.open(out)
