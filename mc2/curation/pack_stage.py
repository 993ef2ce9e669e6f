"""The stage `pack`: pool shard + matched shard -> training shard, with everything decided that need not be decided again in the loader.

<shard>.tar             `<key>.jpg` (or png, webp) + `<key>.json` {"captions": [{"text", "language", "entries"}]}, in the order of the pool
<shard>.index.parquet   key, offset, size: the bytes of the pair's members in the tar, headers included; written last, with what the manifest needs
manifest.json           `records.ShardManifest`
"""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from mc2 import storage
from mc2.curation.balance import FloatArray, draw_caption
from mc2.curation.balance_stage import probabilities_once
from mc2.curation.match_stage import sum_drops
from mc2.curation.pool import pool_fingerprint, pool_shards, read_pairs
from mc2.engines.engine import Engine
from mc2.engines.local import LocalEngine
from mc2.records import PackedCaption, Pair, ShardInfo, ShardManifest

# "online": all matched captions are packed, the loader draws afresh each epoch. "offline": one draw now, for good; shards are smaller.
Balancing = Literal["online", "offline"]

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class PackSettings:
    """How shards are packed. `seed` and `epoch` key the draws of offline balancing. `max_pixels`: an image whose header says more is dropped undecoded."""

    balanced: Balancing = "online"
    seed: int = 0
    epoch: int = 0
    max_pixels: int = 64_000_000


# --- one pair -----------------------------------------------------------------------------------------------------------


def image_extension(data: bytes | None, max_pixels: int) -> tuple[str, str | None]:
    """(extension, reason of a drop or None) of an encoded image. It is decoded, a JPEG at an eighth of its size: that still reads all of its bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images and of odd EXIF data; both are judged here
            with Image.open(io.BytesIO(data or b""), formats=tuple(_EXTENSIONS)) as image:
                if image.width * image.height > max_pixels:
                    return "", "huge_image"
                extension = _EXTENSIONS[str(image.format)]
                image.draft("RGB", (1, 1))
                image.load()
    except Image.DecompressionBombError:
        return "", "huge_image"
    except Exception:  # noqa: BLE001  (Pillow's decoders raise nearly everything on broken data: SyntaxError, struct.error, ...)
        return "", "broken_image"
    return extension, None


def packed_pair(
    pair: Pair, captions: list[PackedCaption], probabilities: Mapping[str, FloatArray] | None, settings: PackSettings
) -> tuple[list[PackedCaption], str, str | None]:
    """(captions to pack, extension of the image, reason of a drop or None). Probabilities are given for offline balancing."""
    if not captions:
        return [], "", "no_captions"
    if probabilities is not None:
        drawn = draw_caption(pair.key, captions, probabilities, settings.seed, settings.epoch)
        if drawn is None:
            return [], "", "balanced_away"
        captions = [captions[drawn]]
    return captions, *image_extension(pair.image, settings.max_pixels)


# --- one shard ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackShard:
    """Writes the training shard of a pool shard, unless it is there. Returns what the manifest says of it, and the drops of packing."""

    matched: Path
    balance: Path
    fingerprint: str
    out: Path
    settings: PackSettings

    def __call__(self, shard: Path) -> tuple[ShardInfo, dict[str, int]]:
        index = self.out / f"{shard.stem}.index.parquet"
        if not index.exists():
            self._write(shard, index)
        metadata = pq.read_metadata(index).metadata
        return ShardInfo(**json.loads(metadata[b"info"])), json.loads(metadata[b"drops"])

    def _write(self, shard: Path, index: Path) -> None:
        drops: Counter[str] = Counter()
        path = self.out / f"{shard.stem}.tar"
        languages: Counter[str] = Counter()
        rows: list[tuple[str, int, int]] = []
        with storage.atomic_write(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for pair, captions, extension in self._pairs(shard, drops):
                offset = tar.offset
                add_member(tar, f"{pair.key}.{extension}", pair.image or b"")
                add_member(tar, f"{pair.key}.json", packed_json(captions))
                rows.append((pair.key, offset, tar.offset - offset))
                languages.update(caption.language for caption in captions)
        info = ShardInfo(shard.stem, len(rows), path.stat().st_size, storage.sha256_file(path), dict(sorted(languages.items())))
        if not rows:
            path.unlink()  # loaders stumble over a shard without pairs
        keys, offsets, sizes = zip(*rows, strict=True) if rows else ((), (), ())
        columns = {"key": pa.array(keys, pa.string()), "offset": pa.array(offsets, pa.int64()), "size": pa.array(sizes, pa.int64())}
        table = pa.table(columns).replace_schema_metadata({"info": json.dumps(asdict(info)), "drops": json.dumps(sum_drops([drops]))})
        with storage.atomic_write(index) as file:
            pq.write_table(table, file, compression="zstd")

    def _pairs(self, shard: Path, drops: Counter[str]) -> Iterator[tuple[Pair, list[PackedCaption], str]]:
        """The pairs that stay, with the captions to pack and the extension of the image."""
        matched = _matched_by_key(self.matched / f"{shard.stem}.parquet")
        probabilities = probabilities_once(self.balance, self.fingerprint) if self.settings.balanced == "offline" else None
        counted_by_match: Counter[str] = Counter()
        for pair in read_pairs(shard, counted_by_match):
            captions = [PackedCaption(pair.captions[index], language, entries) for index, language, entries in matched.get(pair.key, ())]
            captions, extension, drop = packed_pair(pair, captions, probabilities, self.settings)
            if drop is None:
                yield pair, captions, extension
            else:
                drops[drop] += 1


def _matched_by_key(path: Path) -> dict[str, list[tuple[int, str, tuple[int, ...]]]]:
    """key -> (caption index, language, entries) of the captions that stay."""
    table = pq.read_table(path, columns=["key", "caption_index", "language", "entries", "drop"])
    table = table.filter(pc.is_null(table["drop"]))
    by_key: dict[str, list[tuple[int, str, tuple[int, ...]]]] = {}
    for key, index, language, entries in zip(*(table[name].to_pylist() for name in table.column_names[:4]), strict=True):
        by_key.setdefault(key, []).append((index, language, tuple(entries)))
    return by_key


def packed_json(captions: list[PackedCaption]) -> bytes:
    """The record of a pair in a training shard."""
    rows = [
        {"text": caption.text, "language": caption.language, "entries": caption.entries} for caption in captions
    ]  # asdict would copy every number
    return json.dumps({"captions": rows}, ensure_ascii=False, separators=(",", ":")).encode()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a file with a header that depends on nothing but name and size (no time, no owner)."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


# --- all shards ---------------------------------------------------------------------------------------------------------


def run_pack(
    pool: str | Path,
    matched: str | Path,
    balance: str | Path,
    out: str | Path,
    settings: PackSettings | None = None,
    engine: Engine | None = None,
) -> ShardManifest:
    """Pack a matched pool. Returns the manifest, with the drops of match and pack summed. Errors: ValueError for folders that do not belong together."""
    settings, engine = settings or PackSettings(), engine or LocalEngine()
    matched, balance, out = Path(matched), Path(balance), Path(out)
    shards = pool_shards(pool)
    match_done, balance_done = (
        storage.finished(matched, "match", "mc2 curate match"),
        storage.finished(balance, "balance", "mc2 curate balance"),
    )
    _check_chain(matched, balance, shards, match_done["fingerprint"])
    inputs = {"matched": match_done["fingerprint"], "balance": balance_done["fingerprint"], **vars(settings)}
    with storage.Stage(out, "pack", inputs) as stage:
        if not stage.done:
            packed = engine.map("pack", PackShard(matched, balance, balance_done["fingerprint"], out, settings), shards)
            drops = sum_drops([match_done["results"]["drops"], *(part for _, part in packed)])
            fingerprints = {"metadata": storage.read_json(matched / "inputs.json")["metadata"], "balance": balance_done["fingerprint"]}
            manifest = ShardManifest(tuple(info for info, _ in packed if info.num_pairs), drops, fingerprints)
            if not manifest.shards:
                raise ValueError(f"{out}: no pair is left (drops: {drops}); check the pool, or loosen the settings of match and balance")
            storage.write_json(out / "manifest.json", manifest.to_json())
            stage.finish({"pairs": manifest.num_pairs})
    return ShardManifest.from_json(storage.read_json(out / "manifest.json"))


def _check_chain(matched: Path, balance: Path, shards: list[Path], fingerprint: str) -> None:
    if storage.read_json(matched / "inputs.json")["pool"] != pool_fingerprint(shards):
        raise ValueError(
            f"{shards[0].parent}: is not the pool that {matched} was matched from (names or sizes differ); run `mc2 curate match` again"
        )
    if storage.read_json(balance / "inputs.json")["matched"] != fingerprint:
        raise ValueError(f"{balance}: was balanced over another match than {matched}; run `mc2 curate balance` again")
