"""report.html: what a quickstart run did and can do, in one file without references to others. It is made from the files of the run alone."""

from __future__ import annotations

import html
import io
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from mc2 import storage
from mc2.benchmarks.html_parts import data_url, marked
from mc2.benchmarks.results import GROUP_MEAN, MEAN, Result, read_results
from mc2.benchmarks.table import kind_of, results_table
from mc2.interchange.model_directory import load
from mc2.quickstart.drawings import emoji_languages
from mc2.quickstart.figures import TASK_TITLES, draw_learning_curves

SHOWN_LANGUAGES = ("en", "ar", "ja", "ru", "zh", "tr")  # of the picture grid: several scripts
TASKS = ("emoji_held_out", "emoji_plain", "flags")
GRID_IMAGES, NUM_NAMES, NEAREST = 24, 3, 6

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mc2 quickstart</title><meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; color: #1c1c1e }
h1 { font-size: 1.7rem } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } td, th { padding: .15rem .7rem; text-align: right } th:first-child { text-align: left }
thead th { border-bottom: 2px solid #888; vertical-align: bottom } tr.mean { font-weight: 600; background: #f4f6fa } tbody th { font-weight: inherit }
figure { margin: 0 } img.wide { max-width: 100% } .grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); gap: 1rem }
.card { display: flex; gap: .8rem; border: 1px solid #e2e2e2; border-radius: 8px; padding: .6rem } .card img { width: 96px; height: 96px }
.card p { margin: 0; font-size: .84rem } .card .code { color: #777; font-size: .75rem; margin-right: .3rem } .right { color: #0a7d32; font-weight: 600 }
.big { display: flex; gap: 2rem; flex-wrap: wrap } .big div { background: #f4f6fa; border-radius: 8px; padding: .6rem 1.2rem } .big b { display: block; font-size: 1.8rem }
.query { display: flex; align-items: center; gap: .5rem; margin: .3rem 0 } .query span { width: 13rem } .query img { width: 72px; height: 72px }
details { margin: 1rem 0 } code { background: #f3f3f3; padding: .1rem .3rem; border-radius: 4px } .scroll { overflow-x: auto }
</style></head><body>
<h1>From a raw pool to a multilingual zero-shot table</h1>
<p>$summary</p>
<div class="big">$numbers</div>
<h2>Zero-shot, per language</h2>
<p>Percent. <b>emoji_held_out</b>: drawings that training never saw, each among $num_classes names. <b>emoji_plain</b>: drawings that training did see.
<b>flags</b>: about 260 flags in every language that names them, also in languages of which training saw no caption.</p>
<div class="scroll">$table</div>
<details><summary>All languages</summary><div class="scroll">$all_languages</div></details>
<h2>Learning</h2><img class="wide" alt="learning curves" src="$curves">
<h2>Held-out drawings and their three best names</h2>
<p>Green is right. The model chose among $num_classes names in each language.</p><div class="grid">$grid</div>
<h2>Nearest drawings for a text</h2><p>Among all drawings and flags, held-out ones too.</p>$nearest
<h2>Curation</h2><p>$curation</p><img class="wide" alt="curation report" src="$curation_image">
<h2>Go on</h2>$commands
<p><small>Drawings: OpenMoji, CC BY-SA 4.0. Names: Unicode CLDR. Language identification: fastText lid.176, CC BY-SA 3.0.</small></p>
</body></html>
""")


def write_html(out: Path, queries: Sequence[str]) -> None:
    """Write OUT/report.html from the folders of a finished run."""
    results = read_results(out / "results.csv")
    held_out = [row for row in results if row.task == "emoji_held_out"]
    num_classes = next(row.num_candidates for row in held_out if row.metric == "top1")
    curation = storage.read_json(out / "curation/report.json")
    page = PAGE.substitute(
        summary=summary(curation),
        numbers="".join(f"<div><b>{100 * value:.1f} %</b>{html.escape(label)}</div>" for label, value in headline_numbers(results)),
        num_classes=num_classes,
        table=results_table(results, len(emoji_languages()), groups=False).to_html(),
        all_languages=results_table(results).to_html(),
        curves=data_url(draw_learning_curves(out / "train"), "image/png"),
        grid=picture_grid(out / "benchmarks/emoji_held_out", out / "train/predictions.parquet"),
        nearest=nearest_images(out / "model", [out / "benchmarks" / task for task in TASKS], queries),
        curation=curation_text(curation),
        curation_image=data_url((out / "curation/report.png").read_bytes(), "image/png"),
        commands=commands(out),
    )
    storage.write_bytes(out / "report.html", page.encode())


def summary(curation: Mapping[str, Any]) -> str:
    """What went in."""
    total = curation["total"]
    return (
        f"A pool of {total['captions']:,} captions without language labels was identified, matched with metadata, balanced and packed into "
        f"{total['packed_pairs']:,} pairs; two towers were trained on them from random weights."
    )


def headline_numbers(results: Iterable[Result]) -> list[tuple[str, float]]:
    """Mean top-1 of each task; of the flags by what training saw of the languages, best first."""
    means = {(row.task, row.language): row.value for row in results if row.metric == "top1" and row.is_mean}
    plain = [(TASK_TITLES[task], means[task, MEAN]) for task in TASKS if task != "flags"]
    flags = [
        (f"flags: languages {label.removeprefix(GROUP_MEAN)}", value)
        for (task, label), value in means.items()
        if task == "flags" and label != MEAN and not kind_of(label)
    ]
    return plain + sorted(flags, key=lambda row: -row[1])


def picture_grid(task: Path, predictions: Path) -> str:
    """Cards: a held-out drawing and its best names in several scripts."""
    shown = (pc.field("task") == task.name) & pc.field("language").isin(SHOWN_LANGUAGES) & (pc.field("rank") < NUM_NAMES)
    names: dict[tuple[str, str], list[tuple[str, bool]]] = {}
    for row in pq.read_table(predictions, filters=shown).sort_by("rank").to_pylist():
        names.setdefault((row["key"], row["language"]), []).append((row["name"], row["correct"]))
    images = pq.read_table(task / "images.parquet").to_pylist()
    chosen = storage.keyed_order(0, "quickstart/grid", 0, [row["key"] for row in images])[:GRID_IMAGES]
    file_of = {row["key"]: row["image"] for row in images}
    return "".join(card(file_of[key], {code: names[key, code] for code in SHOWN_LANGUAGES}) for key in chosen)


def card(image: bytes, names: Mapping[str, Sequence[tuple[str, bool]]]) -> str:
    """One drawing with its names, right-to-left scripts from the right."""
    lines = []
    for code, answers in names.items():
        shown = " · ".join(f'<span class="right">{html.escape(name)}</span>' if correct else html.escape(name) for name, correct in answers)
        lines.append(f'<p><span class="code">{code}</span>{marked(code, shown)}</p>')
    return f'<div class="card"><img alt="" src="{data_url(image, "image/jpeg")}"><div>{"".join(lines)}</div></div>'


def nearest_images(model: Path, tasks: Sequence[Path], queries: Sequence[str]) -> str:
    """For each text the images of all tasks that the model finds nearest."""
    clip = load(model)
    files = [file for task in tasks for file in pq.read_table(task / "images.parquet")["image"].to_pylist()]
    image_ND = clip.encode_image([Image.open(io.BytesIO(file)) for file in files])
    rows = []
    for query, scores in zip(queries, clip.encode_text(queries) @ image_ND.T, strict=True):
        pictures = "".join(f'<img alt="" src="{data_url(files[i], "image/jpeg")}">' for i in scores.topk(NEAREST).indices.tolist())
        rows.append(f'<div class="query"><span><bdi>{html.escape(query)}</bdi></span>{pictures}</div>')
    return "".join(rows)


def curation_text(curation: Mapping[str, Any]) -> str:
    """The balance in a sentence, and what was dropped."""
    drops = ", ".join(f"{reason} {number:,}" for reason, number in curation["drops"].items())
    return (
        f"Tail share p = {curation['tail_share']:.1%} at an English threshold of {curation['english_threshold']}; "
        f"{curation['total']['matched']:,} captions matched. Dropped: {html.escape(drops)}."
    )


def commands(out: Path) -> str:
    """Lines to try next."""
    run = shlex.quote(str(out))
    lines = [
        f"tensorboard --logdir {run}/train",
        f'mc2 predict --config {run}/train/config.yaml --ckpt_path last --images \'[photo.jpg]\' --texts \'["a fox", "ein Hund", "猫"]\'',
        f"mc2 test --config {run}/train/config.yaml --ckpt_path last",
        f"python -c \"import mc2; print(mc2.load('{out}/model').encode_text(['ein Fuchs', 'キツネ']).shape)\"",
        "mc2 fit --config experiments/quickstart_english.yaml   # the same steps on English captions only",
    ]
    return "".join(f"<p><code>{html.escape(line)}</code></p>" for line in lines)
