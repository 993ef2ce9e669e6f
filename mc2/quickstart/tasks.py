"""The two embedded benchmarks as task folders: held-out (and, for comparison, plain) emoji in 14 languages, and flags in all languages that name them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from mc2.benchmarks.tasks import write_task_folder
from mc2.curation.matched import matched_files
from mc2.quickstart.drawings import Drawing, Split, load_drawings, territory_names
from mc2.quickstart.pool import jpeg, render

SCRIPT_SEEN_FROM = 100  # captions that reached the training shards, over all languages of a script
SAME_SCRIPT = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}


def build_tasks(out: Path, split: Split, used: Mapping[str, int], every: int = 1) -> dict[str, int]:
    """Write the folders emoji_held_out, emoji_plain and flags below `out`. `used`: captions in the training shards, by true language. Only `every` n-th drawing.

    Returns the number of images of each task.
    """
    drawings = load_drawings()[::every]
    tasks = {
        "emoji_held_out": [drawing for drawing in drawings if drawing.key in split.held_out_drawings],
        "emoji_plain": [drawing for drawing in drawings if drawing.kind == "plain"],
        "flags": [drawing for drawing in drawings if drawing.kind == "flag"],
    }
    for name, shown in tasks.items():
        write_task(out / name, name, shown, groups=flag_groups(used, split) if name == "flags" else {})
    return {name: len(shown) for name, shown in tasks.items()}


def write_task(folder: Path, name: str, drawings: Iterable[Drawing], groups: Mapping[str, str]) -> None:
    """One class for each drawing, and one image: the drawing on white."""
    shown = list(drawings)
    images = [(drawing.key, jpeg(render(drawing.svg)), label) for label, drawing in enumerate(shown)]
    names = [(code, label, text) for label, drawing in enumerate(shown) for code, text in sorted(drawing.names.items())]
    write_task_folder(folder, name, images, names, groups)


def flag_groups(used: Mapping[str, int], split: Split) -> dict[str, str]:
    """What the training saw of a language: captions in it; nothing, but its script; nothing at all. Captions that curation dropped were not seen."""
    scripts = {code: script_of(names.values()) for code, names in territory_names().items()}
    seen_scripts: Counter[str] = Counter()
    for code, captions in used.items():
        if code in scripts:
            seen_scripts[scripts[code]] += captions

    def group(code: str) -> str:
        if code not in split.held_out_languages:
            return "seen" if used.get(code) else "dropped by curation"
        return "left out - script seen" if seen_scripts[scripts[code]] >= SCRIPT_SEEN_FROM else "left out - script unseen"

    return {code: group(code) for code in sorted(scripts)}


def script_of(texts: Iterable[str]) -> str:
    """The script of most letters, by their Unicode names: "LATIN", "CYRILLIC", "CJK" (with kana)."""
    letters = Counter(unicodedata.name(letter, "UNKNOWN").split()[0] for text in texts for letter in text if letter.isalpha())
    script = letters.most_common(1)[0][0] if letters else "UNKNOWN"
    return SAME_SCRIPT.get(script, script)


def used_captions(matched: Path, truth: Path) -> Counter[str]:
    """Captions that matched, by their true language."""
    true = pq.read_table(truth).join(
        pq.read_table(list(matched_files(matched)), columns=["key", "caption_index", "drop"]),
        ["key", "caption_index"],
        join_type="inner",
    )
    return Counter(true.filter(pc.is_null(true["drop"]))["language"].to_pylist())
