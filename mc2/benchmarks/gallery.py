"""The worst confusions of each language, to be looked at by hand: images that a model is most certain of and wrong about."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, UnidentifiedImageError

from mc2 import languages
from mc2.benchmarks.html_parts import data_url, direction, marked
from mc2.benchmarks.tasks import Task

PIXELS = 112


def worst_confusions(predictions: pa.Table, num_images: int) -> pa.Table:
    """The rows of one language (PREDICTIONS_SCHEMA) of the images that are most wrong, the worst first; no two of the same confusion, if there are others.

    How wrong: the cosine of the first answer above that of the right one, or above the last answer that is known, where the right one is none of them.
    """
    if not num_images or not len(predictions):
        return predictions.schema.empty_table()
    first = predictions.filter((pc.field("rank") == 0) & ~pc.field("correct")).select(["key", "name", "truth", "score"])
    right = predictions.filter(pc.field("correct")).group_by("key").aggregate([("score", "max")])
    last = predictions.group_by("key").aggregate([("score", "min")])
    right_of = dict(zip(right["key"].to_pylist(), right["score_max"].to_pylist(), strict=True))
    last_of = dict(zip(last["key"].to_pylist(), last["score_min"].to_pylist(), strict=True))
    margins = [(row["score"] - right_of.get(row["key"], last_of[row["key"]]), row) for row in first.to_pylist()]
    margins.sort(key=lambda pair: (-pair[0], pair[1]["key"]))
    seen: set[tuple[str, str]] = set()
    fresh: list[str] = []
    again: list[str] = []
    for _, row in margins:
        (again if (row["truth"], row["name"]) in seen else fresh).append(row["key"])
        seen.add((row["truth"], row["name"]))
    chosen = pa.array((fresh + again)[:num_images], pa.string())
    place = pc.index_in(predictions["key"], value_set=chosen)
    order = np.lexsort((predictions["rank"].to_numpy(), place.fill_null(len(chosen)).to_numpy()))
    return predictions.take(order[: len(place) - place.null_count])


@dataclass(frozen=True)
class Confusion:
    """An image, what it shows, and the answers in their order: name, cosine, whether it is right."""

    key: str
    truth: str
    answers: list[tuple[str, float, bool]]


def confusions_of(table: pa.Table) -> dict[str, list[Confusion]]:
    """Language -> its confusions, in the order of the table."""
    found: dict[str, dict[str, Confusion]] = {}
    for row in table.to_pylist():
        own = found.setdefault(row["language"], {}).setdefault(row["key"], Confusion(row["key"], row["truth"], []))
        own.answers.append((row["name"], row["score"], row["correct"]))
    return {language: list(rows.values()) for language, rows in found.items()}


def gallery(task: Task, table: pa.Table, prefix: str) -> str:
    """HTML: a fold for each language of a task, cards in it; each image is in the page once, as a rule of style under `prefix`."""
    confusions = confusions_of(table)
    keys = list(dict.fromkeys(confusion.key for rows in confusions.values() for confusion in rows))
    number = {key: index for index, key in enumerate(keys)}
    styles = "\n".join(
        f".{prefix}{number[key]}{{background-image:url({data_url(thumbnail(file), 'image/jpeg')})}}" for key, file in files(task, keys)
    )
    folds = [
        f"<details{' open' if place == 0 else ''}><summary>{html.escape(code)} {html.escape(languages.name(code))}</summary>"
        f'<div class="cards">{"".join(card(code, confusion, f"{prefix}{number[confusion.key]}") for confusion in rows)}</div></details>'
        for place, (code, rows) in enumerate(confusions.items())
    ]
    return f"<style>{styles}</style>\n" + "\n".join(folds)


def files(task: Task, keys: Sequence[str]) -> Iterable[tuple[str, bytes]]:
    """The encoded files of some images of a task."""
    place = {key: index for index, key in enumerate(task.image_set.keys)}
    for key in sorted(keys, key=place.__getitem__):
        yield key, next(iter(task.image_set.read(place[key], place[key] + 1)))


def thumbnail(file: bytes) -> bytes:
    """A small JPEG, on white where the image is transparent."""
    try:
        image = Image.open(io.BytesIO(file))
        image.thumbnail((PIXELS, PIXELS))
        picture = Image.new("RGB", image.size, "white")
        picture.paste(image, mask=image.convert("RGBA").getchannel("A"))
    except (OSError, UnidentifiedImageError):  # it was decoded once, by a reader that takes more
        picture = Image.new("RGB", (PIXELS, PIXELS), "grey")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def card(code: str, confusion: Confusion, style: str) -> str:
    """An image beside what it shows and what the model said, in the direction of the language."""
    truth = marked(code, html.escape(confusion.truth or confusion.key))
    answers = "".join(
        f'<li class="{"right" if correct else "wrong"}">{marked(code, html.escape(name))} <small>{cosine:.2f}</small></li>'
        for name, cosine, correct in confusion.answers
    )
    image = f'<div class="image {style}" role="img" aria-label="{html.escape(confusion.key)}"></div>'
    return f'<div class="card">{image}<div dir="{direction(code)}"><p>{truth}</p><ol>{answers}</ol></div></div>'
