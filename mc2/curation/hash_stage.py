"""The stage `hash`: what tells equal and similar images apart, one parquet for each shard of a pool, or for each thousand files of a folder of images.

<shard>.parquet   `records.HASHED_SCHEMA`, in the order of the pool; images that cannot be decoded have no `hash` and are counted in the file's metadata
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from mc2 import storage
from mc2.curation.image_hash import DctEncoder, HashArray, ImageEncoder, directions, hash_embeddings
from mc2.curation.images import check_max_pixels, image_format
from mc2.curation.match_stage import sum_drops
from mc2.curation.pair_keys import printable
from mc2.curation.plugin import built_once, pickled
from mc2.curation.pool import pool_fingerprint, pool_has_images, pool_shards, read_pairs, shard_kind
from mc2.curation.pool_columns import BY_NAME, PoolColumns
from mc2.curation.pool_tar import read_tar_images
from mc2.engines.engine import Engine
from mc2.engines.local import LocalEngine
from mc2.records import HASHED_SCHEMA

FORMATS = {"JPEG": "jpg jpeg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif tiff"}
_BATCH, _FILES = 64, 1000

ImageBytes = tuple[str, bytes]  # key, encoded file


# --- where images come from ---------------------------------------------------------------------------------------------


class ImageSource(Protocol):
    """Named shards of keyed image files. `fingerprint` stands for what is in them."""

    shards: tuple[str, ...]
    fingerprint: str

    def images(self, shard: str) -> Iterator[ImageBytes]: ...


class PoolImages:
    """The images of a pool, by its shards. Errors: ValueError if the folder is no pool, or one of text."""

    def __init__(self, folder: Path, columns: PoolColumns) -> None:
        shards = pool_shards(folder)
        if not pool_has_images(shards, columns):
            raise ValueError(
                f"{folder}: found a pool of text and URLs, need one with images; download them with img2dataset and give its folder"
            )
        self.folder, self.columns, self.fingerprint = folder, columns, pool_fingerprint(shards)
        self.shards = tuple(shard.name for shard in shards)

    def images(self, shard: str) -> Iterator[ImageBytes]:
        path = self.folder / shard
        if shard_kind(path) == "tar":
            return read_tar_images(path)
        return ((pair.key, pair.image or b"") for pair in read_pairs(path, Counter(), columns=self.columns))


class LooseImages:
    """The image files under a folder, at any depth, a thousand to a shard; their keys are their names inside the folder."""

    def __init__(self, folder: Path) -> None:
        extensions = {f".{extension}" for names in FORMATS.values() for extension in names.split()}
        self.files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in extensions and path.is_file())
        self.folder = folder
        self.fingerprint = storage.fingerprint([[self._key(path), path.stat().st_size] for path in self.files])
        self.shards = tuple(f"{start // _FILES:05d}" for start in range(0, len(self.files), _FILES))

    def images(self, shard: str) -> Iterator[ImageBytes]:
        start = int(shard) * _FILES
        return ((self._key(path), path.read_bytes()) for path in self.files[start : start + _FILES])

    def _key(self, path: Path) -> str:
        return printable(path.relative_to(self.folder).as_posix())


def open_images(folder: Path, columns: PoolColumns) -> ImageSource:
    """The pool in a folder, or else the image files under it. Errors: ValueError if there is neither or both, and for a pool of text."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: not found; need a folder of images, or a pool with images")
    shard, loose = next((path for path in sorted(folder.iterdir()) if shard_kind(path)), None), LooseImages(folder)
    if shard is not None and loose.shards:
        raise ValueError(
            f"{folder}: found {shard.name} and {len(loose.files)} image files, {loose.files[0].relative_to(folder)} first, need shards or files; move one kind away"
        )
    return loose if loose.shards else PoolImages(folder, columns)


@lru_cache(maxsize=1)  # a folder is listed once per process
def _images_once(folder: Path, columns: PoolColumns, fingerprint: str) -> ImageSource:
    source = open_images(folder, columns)
    if source.fingerprint != fingerprint:
        raise ValueError(f"{folder}: has changed under the running job; run `mc2 curate hash` again into an empty folder")
    return source


def decode(data: bytes, edge: int, max_pixels: int) -> tuple[Image.Image, str] | str:
    """The decoded image in RGB with the name of its format, or the reason why there is none.

    A JPEG is decoded at the smallest scale that keeps `edge` pixels on both sides (0: at its size).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images and of odd EXIF data; both are judged here
            image = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
            if image.width * image.height > max_pixels:
                return "huge_image"
            if edge:
                image.draft("RGB", (edge, edge))
            return _seen(image), image_format(image)
    except Image.DecompressionBombError:
        return "huge_image"
    except Exception:  # noqa: BLE001  (Pillow's decoders raise nearly everything on broken data: SyntaxError, struct.error, ...)
        return "broken_image"


def _seen(image: Image.Image) -> Image.Image:
    """In RGB as people see it: what is transparent is white, and the largest value of a grey image of more than 8 bits too."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith(("I", "F")):
        pixels = np.maximum(np.nan_to_num(np.asarray(image, np.float64)), 0)
        image = Image.fromarray(np.rint(pixels * (255 / max(pixels.max(), 1e-300))).astype(np.uint8))
    return image.convert("RGB")


# --- one shard ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HashSettings:
    """How images are hashed. `seed` draws the directions. `max_pixels`: an image whose header says more is not decoded."""

    seed: int = 0
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)


@lru_cache(maxsize=4)
def _directions_once(dim: int, seed: int) -> NDArray[np.float64]:
    return directions(dim, seed)


@dataclass(frozen=True)
class HashShard:
    """Writes `<shard>.parquet` of a shard, unless it is there. Returns the number of images, and of those that cannot be decoded by reason."""

    folder: Path
    out: Path
    encoder: bytes | None  # pickled factory; without one nothing is decoded
    settings: HashSettings
    columns: PoolColumns
    fingerprint: str  # of the images

    def __call__(self, shard: str) -> dict[str, int]:
        path = hashed_path(self.out, shard)
        if not path.exists():
            counts: Counter[str] = Counter(images=0)
            images = _images_once(self.folder, self.columns, self.fingerprint).images(shard)
            parts = list(iter(lambda: self._table(list(islice(images, _BATCH)), counts), None))
            table = pa.concat_tables([HASHED_SCHEMA.empty_table(), *parts]).replace_schema_metadata({"counts": json.dumps(counts)})
            with storage.atomic_write(path) as file:
                pq.write_table(table, file, compression="zstd")
        counted: dict[str, int] = json.loads(pq.read_metadata(path).metadata[b"counts"])
        return counted

    def _table(self, images: list[ImageBytes], counts: Counter[str]) -> pa.Table | None:
        """The rows of a batch; None for an empty one."""
        if not images:
            return None
        counts["images"] += len(images)
        digests = [hashlib.sha256(data).digest() for _, data in images]
        hashes, decoded, formats = np.zeros(len(images), np.uint64), np.zeros(len(images), bool), pa.nulls(len(images), pa.string())
        if self.encoder is not None:
            encoder: ImageEncoder = built_once(self.encoder)
            found = [decode(data, encoder.edge, self.settings.max_pixels) for _, data in images]
            counts.update(drop for drop in found if isinstance(drop, str))
            decoded = np.array([not isinstance(image, str) for image in found])
            hashes[decoded] = self._hashes(encoder, [image[0] for image in found if not isinstance(image, str)])
            formats = pa.array([None if isinstance(image, str) else image[1] for image in found], pa.string())
        columns = [pa.array([key for key, _ in images]), pa.array(digests, pa.binary(32)), pa.array(hashes, mask=~decoded), formats]
        return pa.table(columns, schema=HASHED_SCHEMA)

    def _hashes(self, encoder: ImageEncoder, images: list[Image.Image]) -> HashArray:
        if not images:
            return np.zeros(0, np.uint64)
        embedding_ND = np.asarray(encoder(images))
        if len(embedding_ND) != len(images):
            raise ValueError(f"image hash: found {len(embedding_ND)} embeddings of {len(images)} images; mend {type(encoder).__name__}")
        return hash_embeddings(embedding_ND, _directions_once(embedding_ND.shape[-1], self.settings.seed))


def hashed_path(folder: Path, shard: str) -> Path:
    """The file of a pool shard in a folder of `hash` or `duplicates`."""
    return folder / f"{Path(shard).stem}.parquet"


# --- all shards ---------------------------------------------------------------------------------------------------------


def run_hash(
    pool: str | Path,
    out: str | Path,
    encoder: Callable[[], ImageEncoder] | None = DctEncoder,
    settings: HashSettings | None = None,
    engine: Engine | None = None,
    columns: PoolColumns = BY_NAME,
) -> dict[str, Any]:
    """Hash the images of a pool, or those under a folder. Without an encoder only their contents, so that nothing is decoded.

    Returns {"shards": names in order, "images", "drops"}. Errors: ValueError for a folder without images, an encoder that cannot be built, or a folder of
    another run.
    """
    settings, engine, pool, out = settings or HashSettings(), engine or LocalEngine(), Path(pool), Path(out)
    source = open_images(pool, columns)
    identity = encoder().identity if encoder is not None else None
    inputs = {"pool": source.fingerprint, "encoder": identity, **vars(settings), "columns": vars(columns)}
    with storage.Stage(out, "hash", inputs) as stage:
        if not stage.done:
            shard = HashShard(pool, out, None if encoder is None else pickled("encoder", encoder), settings, columns, source.fingerprint)
            counts = sum_drops(engine.map("hash", shard, source.shards))
            stage.finish({"shards": list(source.shards), "images": counts.pop("images"), "drops": counts})
        return stage.results
