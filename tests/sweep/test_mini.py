"""The miniatures of experiments/mini: each overlay holds what it ablates and nothing else, English pairs are held equal, and the file's rows train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mc2.quickstart.drawings import load_drawings, split
from mc2.quickstart.pool import draft_pairs
from mc2.sweep.commands import planned
from mc2.sweep.settings import read_sweep
from mc2.training.commands import main
from tests.data.shards import small_tokenizer, write_folder
from tests.training.test_recipe import flat, merged

MINI = Path(__file__).parents[2] / "experiments/mini"
SWEEP = read_sweep(MINI / "sweep.yaml")
SIZE = {"model.init_args.towers"}
CURATED = {"data.init_args.shards", "data.init_args.balance"}
DIFFERENCES = {  # what an overlay changes of the base
    "english.yaml": {"data.init_args.languages"},
    "non_english.yaml": {"data.init_args.without_languages"},
    "pairs_1x.yaml": {"data.init_args.batch_size"},
    "pairs_1.3x.yaml": {"data.init_args.batch_size"},
    "long.yaml": {"trainer.max_steps"},
    "small.yaml": SIZE,
    "english_metadata.yaml": CURATED,
    "one_set.yaml": CURATED,
    "one_threshold.yaml": CURATED,
    "tokenizer_3000.yaml": {"data.init_args.tokenizer"},
    "distilled.yaml": {"model.init_args.teacher"},
}


@pytest.mark.parametrize("overlay", DIFFERENCES)
def test_an_overlay_changes_what_it_ablates(overlay: str) -> None:
    parent, child = flat(merged([MINI / "worldwide.yaml"])), flat(merged([MINI / "worldwide.yaml", MINI / overlay]))
    different = {key for key in child if child[key] != parent.get(key)}
    written = {key for key in flat(yaml.safe_load((MINI / overlay).read_text())) if not key.endswith("class_path")}
    assert written == different
    for key in different:
        assert any(key == allowed or key.startswith(f"{allowed}.") for allowed in DIFFERENCES[overlay]), key


def test_every_file_is_in_the_sweep() -> None:
    used = {path for overlays in SWEEP.experiments.values() for path in overlays} | set(SWEEP.base)
    assert used == {path.name for path in MINI.glob("*.yaml")} - {"sweep.yaml", "curation.yaml"}
    assert used == set(DIFFERENCES) | {"worldwide.yaml"}


def settings(name: str) -> dict[str, Any]:
    run = next(run for run in planned(SWEEP, MINI, 0, ()) if run.experiment == name)
    return flat(merged(list(run.configs)))


def seen(name: str) -> int:
    return int(settings(name)["trainer.max_steps"]) * int(settings(name)["data.init_args.batch_size"])


@pytest.mark.parametrize("end", ["", "_small", "_long", "_small_long"])
def test_pairs_seen_are_the_recipes(end: str) -> None:
    """2.3 x and 1.3 x those of the English run: English pairs are then as many worldwide as in the English run (44 % of 2.3 is 1.01)."""
    english = seen(f"english{end}")
    assert seen(f"worldwide{end}") / english == pytest.approx(2.3, rel=0.01)
    assert seen(f"non_english{end}") / english == pytest.approx(1.3, rel=0.01)
    if "long" not in end:
        assert seen(f"worldwide_13b{end}") == english


def test_the_pool_has_as_much_english_as_was_asked_for() -> None:
    """Share of English among the names, before dirt; the prepared pool of the sweep draws 44 % (`runs/mini/balance/balance.json`)."""
    words = next(line for line in SWEEP.prepare if line.startswith("quickstart")).split()
    share = float(words[words.index("--english_share") + 1])
    drafts = draft_pairs(split(450, 1.0), seed=0, dirt=0, english_share=share, every=40)
    languages = [caption.language for draft in drafts for caption in draft.captions]
    assert languages.count("en") / len(languages) == pytest.approx(share, abs=0.02)
    assert len(set(languages)) == 14
    assert {draft.drawing.key for draft in drafts} <= {drawing.key for drawing in load_drawings()[::40]}
    assert all(draft.captions for draft in drafts)


@pytest.mark.parametrize("name", ["worldwide", "english_small_long", "non_english"])
def test_rows_train_for_two_steps(name: str, tmp_path: Path) -> None:
    """With three languages and without the benchmark; the other rows differ from these in folders alone."""
    run = next(run for run in planned(SWEEP, MINI, 0, ()) if run.experiment == name)
    argv = ["fit", *(word for path in run.configs for word in ("--config", str(path)))]
    argv += ["--data.init_args.shards", str(write_folder(tmp_path / "shards", [40, 40])), "--data.init_args.balance", "null"]
    argv += ["--data.init_args.tokenizer", str(small_tokenizer(tmp_path / "tokenizer")), "--trainer.callbacks", "null"]
    argv += [
        "--trainer.default_root_dir",
        str(tmp_path / "run"),
        "--trainer.max_steps",
        "2",
        "--model.init_args.optimizer.warmup_steps",
        "1",
    ]
    assert main([*argv, "--trainer.enable_progress_bar", "false"]) == 0
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
