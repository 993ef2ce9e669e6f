"""The embedded benchmarks: what they hold, and how languages are grouped."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mc2 import storage
from mc2.benchmarks.tasks import TaskFolder
from mc2.quickstart.drawings import load_drawings, split, territory_names
from mc2.quickstart.pool import TRUTH_SCHEMA
from mc2.quickstart.tasks import flag_groups, script_of, used_captions, write_task
from mc2.records import MATCHED_SCHEMA


def test_task_folder_has_one_image_and_all_names_of_each_drawing(tmp_path: Path) -> None:
    shown = [drawing for drawing in load_drawings() if drawing.kind == "plain"][:5]
    write_task(tmp_path, "some", shown, {})
    task = TaskFolder(str(tmp_path))
    assert task.image_set.keys == [drawing.key for drawing in shown]
    assert set(task.languages) == set(shown[0].names)
    assert set(task.texts("de")) == {drawing.names["de"] for drawing in shown}


def test_script_is_that_of_most_letters() -> None:
    assert script_of(["Deutschland", "USA"]) == "LATIN"
    assert script_of(["Россия", "USA"]) == "CYRILLIC"
    assert script_of(["ドイツ", "日本"]) == script_of(["德国"]) == "CJK"
    assert script_of(["123"]) == "UNKNOWN"


def test_flags_are_grouped_by_what_training_saw() -> None:
    held_out = split(450, 0.25)
    in_pool = sorted(set(territory_names()) - held_out.held_out_languages)
    used = {code: 200 for code in in_pool if code != "th"}
    groups = flag_groups(used, held_out)
    assert set(groups) == set(territory_names())
    assert groups["de"] == "seen"
    assert groups["th"] == "dropped by curation"
    assert groups["nl"] == "left out - script seen"
    assert groups["am"] == "left out - script unseen"  # Ethiopic: both languages that write it were left out
    assert flag_groups({"de": 99}, held_out)["nl"] == "left out - script unseen"


def test_only_captions_that_matched_count_as_used(tmp_path: Path) -> None:
    rows = [("a", 0, None), ("a", 1, "no_entry"), ("b", 0, None)]
    matched: list[dict[str, object]] = [
        {"key": k, "caption_index": i, "language": "xx", "score": 1.0, "entries": [], "drop": drop} for k, i, drop in rows
    ]
    with storage.Stage(tmp_path / "matched", "match", {}) as stage:
        pq.write_table(pa.Table.from_pylist(matched, MATCHED_SCHEMA), tmp_path / "matched/00000.parquet")
        stage.finish({"shards": 1})
    true = [
        {"key": k, "caption_index": i, "language": code, "kind": "name"} for (k, i, _), code in zip(rows, ("de", "fr", "de"), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(true, TRUTH_SCHEMA), tmp_path / "truth.parquet")
    assert used_captions(tmp_path / "matched", tmp_path / "truth.parquet") == {"de": 2}
