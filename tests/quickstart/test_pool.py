"""The embedded pool: what a crawl looks like, repeatable, with nothing of what was held out."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mc2.curation.pool import pool_shards, read_pairs
from mc2.quickstart import drawings
from mc2.quickstart import pool as pool_module
from mc2.quickstart.drawings import Split, load_drawings, split
from mc2.quickstart.pool import build_pool, draft_pairs


def silent(items: Iterable[Any], _: str) -> Iterable[Any]:
    return items


@pytest.fixture
def few_drawings(monkeypatch: pytest.MonkeyPatch) -> list[drawings.Drawing]:
    """60 drawings of all kinds; the pool of all of them takes half a minute."""
    some = load_drawings()[::65]
    monkeypatch.setattr(pool_module, "load_drawings", lambda: some)
    return list(some)


def build(folder: Path, seed: int = 0, dirt: float = 1.0) -> dict[str, bytes]:
    build_pool(folder / "pool", folder / "truth.parquet", split(450, 0.25), seed, dirt, silent)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()}


def test_drawings_have_the_published_names() -> None:
    named = {drawing.emoji: drawing for drawing in load_drawings()}
    assert named["🦊"].names["de"] == "fuchs"
    assert named["🦊"].kind == "plain"
    assert named["👩🏽‍🌾"].names["en"] == "woman farmer medium skin tone"
    assert named["👩🏽‍🌾"].kind == "variant"
    assert named["🇩🇪"].names["sw"] == "Ujerumani"
    assert named["🇩🇪"].kind == "flag"
    assert Counter(drawing.kind for drawing in load_drawings())["flag"] > 250
    assert len(drawings.territory_names()) >= 210
    assert len(drawings.emoji_languages()) == 14


def test_split_is_large_enough_and_spares_the_languages_of_the_emoji() -> None:
    held_out = split(450, 0.25)
    kinds = {drawing.key: drawing.kind for drawing in load_drawings()}
    assert len(held_out.held_out_drawings) == 450
    assert {kinds[key] for key in held_out.held_out_drawings} == {"variant"}
    assert len(held_out.held_out_languages) >= 40
    assert not held_out.held_out_languages & set(drawings.emoji_languages())


def test_pool_shows_nothing_that_is_held_out() -> None:
    held_out = split(450, 0.25)
    drafts = draft_pairs(held_out, seed=0, dirt=1.0)
    assert not {draft.drawing.key for draft in drafts} & held_out.held_out_drawings
    assert not {caption.language for draft in drafts for caption in draft.captions} & held_out.held_out_languages


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path, few_drawings: list[drawings.Drawing]) -> None:
    assert few_drawings
    first, again, other = (build(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first == again
    assert first["pool/00000.tar"] != other["pool/00000.tar"]


def test_tars_are_what_img2dataset_writes_and_carry_no_label(tmp_path: Path, few_drawings: list[drawings.Drawing]) -> None:
    build(tmp_path, dirt=0.0)
    with tarfile.open(tmp_path / "pool/00000.tar") as tar:
        names = tar.getnames()
        fields = [json.loads(tar.extractfile(name).read()) for name in names if name.endswith(".json")]  # type: ignore[union-attr]
    assert [name.rpartition(".")[2] for name in names[:3]] == ["jpg", "json", "txt"]
    assert all(set(row) == {"key", "status", "error_message", "width", "height", "captions"} for row in fields)
    truth = pq.read_table(tmp_path / "truth.parquet")
    assert len(truth) == sum(len(row["captions"]) for row in fields)
    assert set(truth["kind"].to_pylist()) == {"name"}
    by_name = {(drawing.names[code], code) for drawing in few_drawings for code in drawing.names}
    captions = {(row["key"], i): text for row in fields for i, text in enumerate(row["captions"])}
    assert all((captions[row["key"], row["caption_index"]], row["language"]) in by_name for row in truth.to_pylist())


def test_dirt_comes_in_the_shares_that_are_asked_for() -> None:
    clean, dirty = draft_pairs(Split(frozenset(), frozenset()), 0, 0.0), draft_pairs(Split(frozenset(), frozenset()), 0, 2.0)
    kinds = Counter(caption.kind for draft in dirty for caption in draft.captions)
    captions, images = sum(len(draft.captions) for draft in clean), len(clean)
    assert not any(draft.broken for draft in clean)
    assert abs(kinds["boilerplate"] / captions - 0.08) < 0.01
    assert abs(kinds["over_frequent"] / captions - 0.12) < 0.012
    assert abs(kinds["wrong_image"] / captions - 0.04) < 0.005
    assert abs(sum(draft.broken for draft in dirty) / images - 0.02) < 0.005
    assert abs(len(dirty) / images - 1.06) < 0.01
    with pytest.raises(ValueError, match=r"found dirt -1, need a factor"):
        draft_pairs(Split(frozenset(), frozenset()), 0, -1)


def test_the_pool_reader_counts_the_dirt(tmp_path: Path, few_drawings: list[drawings.Drawing]) -> None:
    assert few_drawings
    build(tmp_path, dirt=10.0)
    drops: Counter[str] = Counter()
    pairs = [pair for shard in pool_shards(tmp_path / "pool") for pair in read_pairs(shard, drops)]
    truth = Counter(pq.read_table(tmp_path / "truth.parquet")["kind"].to_pylist())
    assert not drops
    assert sum(any("\udc80" <= letter <= "\udcff" for letter in text) for pair in pairs for text in pair.captions) == truth["not_utf8"] > 0
