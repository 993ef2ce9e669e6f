"""The stage `urls`: the URLs of the pairs that have a matched caption, as the list that img2dataset downloads. Text is curated before anybody fetches an image.

<pool shard>.parquet   `URLS_SCHEMA`, a row for each pair, in the order of the pool; what was dropped is in the file's metadata under "drops"

The tars that img2dataset makes of the list (see `img2dataset_command`) are a pool again, with all captions and the hint, so that `mc2 curate match` finds the
same languages and entries. Their keys are img2dataset's; it keeps ours beside them as `pair_key`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from mc2 import storage
from mc2.curation.match_stage import matched_columns, sum_drops
from mc2.curation.pack_plan import Balancing, ChoosePairs, PackSettings
from mc2.curation.pack_stage import check_chain
from mc2.curation.pool import pool_shards, read_pairs
from mc2.engines.engine import Engine
from mc2.engines.local import LocalEngine

# caption: the first of the captions that matched; captions, languages: all of them
URLS_SCHEMA = pa.schema(
    [
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("languages", pa.list_(pa.string()), nullable=False),
        pa.field("hint", pa.string(), nullable=False),
        pa.field("pair_key", pa.string(), nullable=False),
    ]
)
ROWS_AT_A_TIME = 10_000
_FETCHABLE = re.compile(r"[!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]+")


def img2dataset_command(urls: Path, tars: Path) -> str:
    """The command line that downloads the images of a list. Image size and quality are the user's to choose."""
    return (
        f"img2dataset --url_list {urls} --input_format parquet --url_col url --caption_col caption "
        """--save_additional_columns '["captions","hint","pair_key"]' """
        f"--output_format webdataset --output_folder {tars} --image_size 512 --resize_mode keep_ratio --resize_only_if_bigger True"
    )


def fetchable_url(url: str) -> str:
    """The URL in ASCII, as it goes over the wire. Errors: ValueError if it cannot be written so, or is none of http or https."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"found no host to ask by http in the URL {url!r}")
    if _FETCHABLE.fullmatch(url):
        return url
    rest = url.replace(parts.netloc, "\0", 1)
    return quote(rest, safe="%!#$&'()*+,/:;=?@[]~\0").replace("\0", parts.netloc.encode("idna").decode(), 1)


@dataclass(frozen=True)
class WriteUrls:
    """Writes the list of a pool shard, unless it is there. Returns (pairs, captions, drops)."""

    choose: ChoosePairs
    out: Path

    def __call__(self, shard: Path) -> tuple[int, int, dict[str, int]]:
        path = self.out / f"{shard.stem}.parquet"
        if not path.exists():
            self._write(shard, path)
        metadata = pq.read_metadata(path)
        return metadata.num_rows, int(metadata.metadata[b"captions"]), json.loads(metadata.metadata[b"drops"])

    def _write(self, shard: Path, path: Path) -> None:
        chosen, drops = self.choose.choose(shard)
        rows = self._rows(shard, chosen, drops)
        num_captions = 0
        with storage.atomic_write(path) as file, pq.ParquetWriter(file, URLS_SCHEMA, compression="zstd") as writer:
            while batch := list(islice(rows, ROWS_AT_A_TIME)):
                writer.write_table(pa.Table.from_pylist(batch, URLS_SCHEMA))
                num_captions += sum(len(row["captions"]) for row in batch)
            writer.add_key_value_metadata({"captions": str(num_captions), "drops": json.dumps(sum_drops([drops]))})

    def _rows(self, shard: Path, chosen: dict[str, Any], drops: Counter[str]) -> Iterator[dict[str, Any]]:
        counted_by_match: Counter[str] = Counter()
        for pair in read_pairs(shard, counted_by_match, False, matched_columns(self.choose.matched)):
            captions = chosen.pop(pair.key, ())
            if not captions:
                continue
            if any(index >= len(pair.captions) for index, _, _ in captions):
                raise ValueError(
                    f"pair {pair.key} has other captions than when it was matched; run `mc2 curate match` again into an empty folder"
                )
            texts = [pair.captions[index] for index, _, _ in captions]
            try:
                url = fetchable_url(pair.url)
            except ValueError:
                drops["no_url"] += 1
                continue
            languages = [language for _, language, _ in captions]
            yield {"url": url, "caption": texts[0], "captions": texts, "languages": languages, "hint": pair.hint, "pair_key": pair.key}
        if chosen:
            raise ValueError(
                f"{shard}: {len(chosen)} pairs that were matched are not there any more; copy the shard again, or run all stages again"
            )


def run_urls(
    pool: str | Path,
    matched: str | Path,
    balance: str | Path,
    out: str | Path,
    balanced: Balancing = "online",
    seed: int = 0,
    epoch: int = 0,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Write the URLs of a matched pool. Returns {"pairs", "captions", "drops"}. Errors: ValueError for folders that do not belong together."""
    matched, balance, out, engine = Path(matched), Path(balance), Path(out), engine or LocalEngine()
    shards = pool_shards(pool)
    match_done = storage.finished(matched, "match", "mc2 curate match")
    balance_done = storage.finished(balance, "balance", "mc2 curate balance")
    check_chain(matched, balance, shards, match_done["fingerprint"])
    inputs = {
        "matched": match_done["fingerprint"],
        "balance": balance_done["fingerprint"],
        "balanced": balanced,
        "seed": seed,
        "epoch": epoch,
    }
    with storage.Stage(out, "urls", inputs) as stage:
        if not stage.done:
            choose = ChoosePairs(matched, balance, balance_done["fingerprint"], PackSettings(balanced, seed, epoch))
            written = engine.map("urls", WriteUrls(choose, out), shards)
            pairs, captions = sum(row[0] for row in written), sum(row[1] for row in written)
            drops = sum_drops([match_done["results"]["drops"], *(row[2] for row in written)])
            if not pairs:
                raise ValueError(f"{out}: no pair is left (drops: {drops}); check the pool, or loosen the settings of match and balance")
            stage.finish({"pairs": pairs, "captions": captions, "drops": drops})
        return stage.results
