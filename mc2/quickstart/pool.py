"""The embedded pool: the drawings as a crawl would bring them. img2dataset tars, many captions in many languages, no labels, and a crawl's dirt.

The truth (which language a caption is in, and what is dirt) is kept aside; the pipeline never sees it.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mc2 import storage
from mc2.curation.pack_stage import add_member
from mc2.quickstart.drawings import Drawing, Kind, Split, load_drawings

IMAGE_SIZE = 96
JPEG_QUALITY = 90
CAPTIONS_PER_IMAGE = 8
IMAGES_PER_DRAWING = 2  # at least; a drawing with many names (a flag) gets as many images as its names fill
PAIRS_PER_SHARD = 1000

# Share of the pool, times the setting `dirt`. Of images: duplicates, broken. Of captions: the others.
DIRT = {
    "duplicate": 0.03,
    "broken_image": 0.01,
    "wrong_image": 0.02,
    "boilerplate": 0.04,
    "over_frequent": 0.06,
    "empty": 0.005,
    "not_utf8": 0.002,
}
BOILERPLATE = ("image", "photo{n}.jpg", "IMG_{n}.JPG", "untitled", "DSC0{n}", "click to enlarge", "{n}", "thumbnail")
OVER_FREQUENT = ("{name} emoji sticker free download", "free png image of {name}", "{name} - buy the best price online", "emoji: {name}")
PAPERS = ((255, 255, 255),) * 4 + ((255, 250, 240), (240, 248, 255), (245, 245, 245))  # mostly white, as the web is

TRUTH_SCHEMA = pa.schema([("key", pa.string()), ("caption_index", pa.int32()), ("language", pa.string()), ("kind", pa.string())])


@dataclass(frozen=True)
class TrueCaption:
    """A caption with what only the truth knows: its language, and whether it is a name or dirt."""

    text: str
    language: str
    kind: str = "name"


@dataclass(frozen=True)
class Draft:
    """A pair before it is rendered."""

    key: str
    drawing: Drawing
    captions: tuple[TrueCaption, ...]
    paper: tuple[int, int, int] = PAPERS[0]
    broken: bool = False


def build_pool(
    out: Path, truth: Path, split: Split, seed: int, dirt: float, progress: Any, english_share: float | None = None, every: int = 1
) -> dict[str, int]:
    """Write the tars of the pool and `truth`, byte for byte the same for the same arguments. Returns counts for the stage's mark."""
    drafts = draft_pairs(split, seed, dirt, english_share, every)
    names = {drawing.key: drawing for drawing in load_drawings()}
    rendered = {key: render(names[key].svg) for key in progress(sorted({draft.drawing.key for draft in drafts}), "render drawings")}
    shards = [drafts[i : i + PAIRS_PER_SHARD] for i in range(0, len(drafts), PAIRS_PER_SHARD)]
    for number, shard in enumerate(progress(shards, "write pool")):
        write_shard(out / f"{number:05d}.tar", shard, rendered)
    rows = [row for draft in drafts for row in truth_rows(draft)]
    with storage.atomic_write(truth) as file:
        pq.write_table(pa.Table.from_pylist(rows, TRUTH_SCHEMA), file)
    return {"pairs": len(drafts), "captions": len(rows), "shards": len(shards)}


# --- captions and dirt --------------------------------------------------------------------------------------------------


def draft_pairs(split: Split, seed: int, dirt: float, english_share: float | None = None, every: int = 1) -> list[Draft]:
    """All pairs in the order of the tars. `dirt` scales the shares in DIRT; 0 is a clean pool. `english_share`: see `names_of`. Only `every` n-th drawing."""
    if not 0 <= dirt <= 10:
        raise ValueError(f"quickstart: found dirt {dirt}, need a factor between 0 (clean) and 10")
    if english_share is not None and not 0 < english_share < 1:
        raise ValueError(f"quickstart: found english_share {english_share}, need a share between 0 and 1, without these")
    rng = random.Random(f"{seed}|quickstart/pool")
    drawings = [drawing for drawing in load_drawings()[::every] if drawing.key not in split.held_out_drawings]
    shares = {name: share * dirt for name, share in DIRT.items()}
    drafts = [draft for drawing in drawings for draft in clean_drafts(drawing, split, rng, english_share)]
    alike = {kind: [drawing for drawing in drawings if drawing.kind == kind] for kind in get_args(Kind)}
    drafts = [
        replace(
            draft,
            captions=tuple(soil(draft.captions, alike[draft.drawing.kind], shares, rng)),
            broken=rng.random() < shares["broken_image"],
        )
        for draft in drafts
    ]
    drafts += [replace(draft, captions=as_duplicates(draft.captions)) for draft in drafts if rng.random() < shares["duplicate"]]
    rng.shuffle(drafts)
    return [replace(draft, key=f"{number:09d}") for number, draft in enumerate(drafts)]


def names_of(drawing: Drawing, split: Split, english_share: float | None) -> list[TrueCaption]:
    """The names of a drawing, one of each language that is not left out; English so often that it makes `english_share` of them, as it does of the web."""
    names = [TrueCaption(name, code) for code, name in sorted(drawing.names.items()) if code not in split.held_out_languages]
    if english_share is None:
        return names
    others = [name for name in names if name.language != "en"]
    copies = max(1, round(len(others) * english_share / (1 - english_share)))
    return others + [name for name in names if name.language == "en"] * copies


def clean_drafts(drawing: Drawing, split: Split, rng: random.Random, english_share: float | None) -> Iterator[Draft]:
    """The names of a drawing, dealt to as many images as they fill."""
    names = names_of(drawing, split, english_share)
    rng.shuffle(names)
    images = min(len(names), max(IMAGES_PER_DRAWING, -(-len(names) // CAPTIONS_PER_IMAGE)))
    for i in range(images):
        yield Draft("", drawing, tuple(names[i::images]), paper=rng.choice(PAPERS))


def soil(
    captions: Sequence[TrueCaption], drawings: Sequence[Drawing], shares: Mapping[str, float], rng: random.Random
) -> Iterator[TrueCaption]:
    """The captions with a crawl's dirt: some replaced (by names of `drawings`, say), some followed by one that says nothing."""
    for caption in captions:
        draw = rng.random()
        if draw < shares["wrong_image"]:
            name = rng.choice(drawings).names.get(caption.language, caption.text)
            yield replace(caption, text=name, kind="wrong_image")
        elif draw < shares["wrong_image"] + shares["empty"]:
            yield TrueCaption(" ", caption.language, "empty")
        elif draw < shares["wrong_image"] + shares["empty"] + shares["not_utf8"]:
            yield replace(caption, text=f"{caption.text} ©", kind="not_utf8")
        else:
            yield caption
        if rng.random() < shares["boilerplate"]:
            yield TrueCaption(rng.choice(BOILERPLATE).format(n=rng.randrange(100, 10000)), "", "boilerplate")
        if rng.random() < shares["over_frequent"]:
            name = next((c.text for c in captions if c.language == "en"), "smile")
            yield TrueCaption(rng.choice(OVER_FREQUENT).format(name=name), "en", "over_frequent")


def as_duplicates(captions: Sequence[TrueCaption]) -> tuple[TrueCaption, ...]:
    """The same captions; the truth calls them duplicates."""
    return tuple(replace(caption, kind="duplicate" if caption.kind == "name" else caption.kind) for caption in captions)


def truth_rows(draft: Draft) -> Iterator[dict[str, Any]]:
    """Rows of TRUTH_SCHEMA."""
    for i, caption in enumerate(draft.captions):
        yield {"key": draft.key, "caption_index": i, "language": caption.language, "kind": caption.kind}


# --- images and files ---------------------------------------------------------------------------------------------------


def render(svg: Path) -> Image.Image:
    """A drawing of IMAGE_SIZE pixels with a transparent ground."""
    import resvg_py

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(svg), width=IMAGE_SIZE, height=IMAGE_SIZE)))).convert("RGBA")


def jpeg(drawing: Image.Image, paper: tuple[int, int, int] = PAPERS[0]) -> bytes:
    """The drawing on a sheet of paper, as a JPEG file."""
    image = Image.new("RGB", drawing.size, paper)
    image.paste(drawing, mask=drawing.getchannel("A"))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def write_shard(path: Path, drafts: Sequence[Draft], rendered: Mapping[str, Image.Image]) -> None:
    """One tar as img2dataset writes it: <key>.jpg, <key>.json, <key>.txt."""
    with storage.atomic_write(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for draft in drafts:
            image = jpeg(rendered[draft.drawing.key], draft.paper)
            add_member(tar, f"{draft.key}.jpg", image[: len(image) // 2] if draft.broken else image)
            add_member(tar, f"{draft.key}.json", img2dataset_json(draft))
            add_member(tar, f"{draft.key}.txt", encoded(draft.captions[0].text, draft.captions[0].kind))


def img2dataset_json(draft: Draft) -> bytes:
    """The metadata that img2dataset keeps beside an image, with all captions. Those in another encoding go in as they are, as a careless writer leaves them."""
    fields = {"key": draft.key, "status": "success", "error_message": None, "width": IMAGE_SIZE, "height": IMAGE_SIZE}
    captions = b", ".join(encoded(json.dumps(caption.text, ensure_ascii=False), caption.kind) for caption in draft.captions)
    return json.dumps(fields).encode()[:-1] + b', "captions": [' + captions + b"]}"


def encoded(text: str, kind: str) -> bytes:
    """UTF-8, but for the captions that are dirty in this way."""
    return text.encode("latin-1", "replace") if kind == "not_utf8" else text.encode()
