"""The filter hook: what a filter may say, and what becomes of it in the packed shards."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from mc2.curation.balance_stage import run_balance
from mc2.curation.filters import KEEP, PairFilter, Verdict, filter_pair
from mc2.curation.match_stage import run_match
from mc2.curation.pack_stage import run_pack
from mc2.curation.verify import verify_shards
from mc2.engines.engine import ShardErrors
from mc2.engines.local import LocalEngine
from mc2.records import Pair, ShardManifest
from tests.curation.pools import folder_bytes
from tests.curation.test_stages import packed

HERE = LocalEngine(1, progress=False)


class CountingFilter(PairFilter):
    """Drops pairs with a caption that contains `word`, turns the images of others grey, and writes a line to `diary` when it is built."""

    def __init__(self, word: str, diary: Path | None = None, grey: str = "", fails_on: str = "") -> None:
        self.word, self.grey, self.fails_on = word, grey, fails_on
        if diary is not None:
            with open(diary, "a") as file:
                file.write("built\n")

    @property
    def identity(self) -> str:
        return f"counting {self.word} {self.grey}"

    def __call__(self, pair: Pair) -> Verdict:
        if pair.key == self.fails_on:
            raise RuntimeError("no such layer")
        if any(self.word in caption for caption in pair.captions):
            return Verdict(drop="word")
        if any(self.grey and self.grey in caption for caption in pair.captions):
            return Verdict(image=grey(pair.image or b""))
        return KEEP


class Breaking(CountingFilter):
    def __call__(self, pair: Pair) -> Verdict:
        return Verdict(image=b"GIF89a" + (pair.image or b"")[:5])


def grey(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("L").save(file, "PNG")
    return file.getvalue()


def test_verdicts_that_contradict_themselves() -> None:
    with pytest.raises(ValueError, match=r"found the reason 'Not safe', need small letters"):
        Verdict(drop="Not safe")
    with pytest.raises(ValueError, match=r"found an image for a pair that leaves \(nsfw\)"):
        Verdict(drop="nsfw", image=b"")


def test_filters_see_what_the_ones_before_them_left() -> None:
    class Append(CountingFilter):
        def __call__(self, pair: Pair) -> Verdict:
            return Verdict(image=(pair.image or b"") + self.word.encode())

    pair = Pair("a", ("a fox",), b"0")
    assert filter_pair(pair, [Append("1"), Append("2")]) == Pair("a", ("a fox",), b"012")
    assert filter_pair(pair, [Append("1"), CountingFilter("fox"), Append("2")]) == "filter:word"
    assert filter_pair(pair, []) is pair


@pytest.fixture(scope="module")
def balanced(pool: Path, metadata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("filters")
    run_match(pool, metadata, out / "matched", engine=HERE)
    run_balance(out / "matched", metadata, out / "balance", english_threshold=4, engine=HERE)
    return out


def pack(pool: Path, balanced: Path, out: Path, *filters: Callable[[], PairFilter], workers: int = 1) -> ShardManifest:
    return run_pack(pool, balanced / "matched", balanced / "balance", out, engine=LocalEngine(workers, progress=False), filters=filters)


def test_drops_and_new_images_are_counted(pool: Path, balanced: Path, tmp_path: Path) -> None:
    judge = partial(CountingFilter, "sleep", tmp_path / "diary", grey="fox")
    manifest = pack(pool, balanced, tmp_path / "shards", judge)
    assert manifest.drops["filter:word"] == 3
    assert (manifest.num_pairs, manifest.replaced) == (9, 3)
    assert [key for key in packed(tmp_path / "shards") if key.endswith("2")] == []
    assert (tmp_path / "diary").read_text() == "built\n" * 2  # once for its identity, once for all shards
    assert verify_shards(tmp_path / "shards", engine=HERE)[0] == []
    data = (tmp_path / "shards" / "00000.tar").read_bytes()
    assert data.count(b"0.png") == 3
    pack(pool, balanced, tmp_path / "two", partial(CountingFilter, "sleep", grey="fox"), workers=2)
    assert folder_bytes(tmp_path / "two") == folder_bytes(tmp_path / "shards")
    with pytest.raises(ValueError, match=r"belongs to another run \(filters: found \['counting sleep fox'\], need \[\]\)"):
        pack(pool, balanced, tmp_path / "shards")


def test_a_caption_that_is_not_packed_is_not_shown(pool: Path, balanced: Path, tmp_path: Path) -> None:
    """The caption "image" has no entry."""
    assert "filter:word" not in pack(pool, balanced, tmp_path / "shards", partial(CountingFilter, "image")).drops


class Forgetful(CountingFilter):
    def __call__(self, pair: Pair) -> Verdict:
        return super().__call__(pair) and None  # type: ignore[return-value]


def test_a_filter_that_fails_names_the_pair(pool: Path, balanced: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardErrors, match=r"filter 'counting q ' failed on pair 000000000: TypeError: gave None, need a Verdict"):
        pack(pool, balanced, tmp_path / "forgetful", partial(Forgetful, "q"))
    with pytest.raises(
        ShardErrors, match=r"pack: 1 of 1 failed .*filter 'counting q ' failed on pair 000010002: RuntimeError: no such layer"
    ):
        pack(pool, balanced, tmp_path / "shards", partial(CountingFilter, "q", fails_on="000010002"))
    with pytest.raises(ShardErrors, match=r"pair 000000000: the image that the filters leave is a broken_image, need a JPEG"):
        pack(pool, balanced, tmp_path / "broken", partial(Breaking, "q"))
