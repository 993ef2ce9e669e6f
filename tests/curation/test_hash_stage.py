"""Hashes of images: what the default encoder tells apart, the stage on pools and folders, its errors, and its way to `duplicates`."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mc2.cli import main
from mc2.curation.duplicates_stage import run_duplicates
from mc2.curation.hash_stage import HashSettings, run_hash
from mc2.curation.image_hash import DctEncoder, FloatArray, ImageEncoder, directions, hash_embeddings
from mc2.curation.match_stage import run_match
from mc2.engines.engine import ShardErrors
from mc2.engines.local import LocalEngine
from mc2.records import DUPLICATES_SCHEMA, HASHED_SCHEMA
from tests.curation.pools import folder_bytes, image_file, picture, record, tar_bytes

HERE = LocalEngine(1, progress=False)


def distances(images: Sequence[Image.Image], others: Sequence[Image.Image]) -> list[int]:
    one, other = (hash_embeddings(DctEncoder()(part), directions(95, 0)) for part in (images, others))
    return [int(bits) for bits in np.bitwise_count(one ^ other)]


# --- pure rules ---------------------------------------------------------------------------------------------------------


def test_signs_of_the_products_one_by_one() -> None:
    rng = np.random.default_rng(0)
    embedding, planes = rng.normal(size=(20, 7)), directions(7, seed=3)
    by_hand = [
        sum(1 << bit for bit in range(64) if sum(map(float.__mul__, row, planes[:, bit].tolist())) >= 0) for row in embedding.tolist()
    ]
    assert hash_embeddings(embedding, planes).tolist() == by_hand
    assert hash_embeddings(embedding * 1e-30, planes).tolist() == by_hand
    assert hash_embeddings(np.zeros((1, 7)), planes).tolist() == [2**64 - 1]


def splitmix64(key: int, number: int) -> int:
    z = key + (number + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    z = (z ^ z >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return z ^ z >> 31


def test_directions_are_fixed_for_good() -> None:
    """Hashes of years ago must stay comparable: blake2b and splitmix64 again in plain Python, and the numbers of today."""
    planes = directions(300, seed=0)
    key = int.from_bytes(hashlib.blake2b(b"0|image hash|0|300", digest_size=8).digest(), "big")
    for row, bit in ((0, 0), (7, 63), (299, 5)):
        ones = sum((splitmix64(key, (row * 64 + bit) * 5 + word) >> 11).bit_count() for word in range(5))
        assert planes[row, bit] == 2 * ones - 265
    assert planes[:2, :6].tolist() == [[-1, 27, 3, -17, -23, 1], [5, -11, -27, 9, -21, 17]]
    assert abs(planes.mean()) < 1
    assert planes.std() == pytest.approx(np.sqrt(265), rel=0.02)
    assert np.abs(np.corrcoef(planes.T) - np.eye(64)).max() < 0.3
    assert not np.array_equal(planes, directions(300, seed=1))


def test_bits_that_differ_follow_the_angle() -> None:
    """E[differing bits] = 64 angle / pi."""
    rng = np.random.default_rng(0)
    one, noise = rng.normal(size=(2, 500, 256))
    for angle in (0.1, 0.5, 1.5):
        across = noise - one * (noise * one).sum(1, keepdims=True) / (one * one).sum(1, keepdims=True)
        across *= np.linalg.norm(one, axis=1, keepdims=True) / np.linalg.norm(across, axis=1, keepdims=True)
        other = one * np.cos(angle) + across * np.sin(angle)
        planes = directions(256, 0)
        bits = np.bitwise_count(hash_embeddings(one, planes) ^ hash_embeddings(other, planes))
        assert bits.mean() == pytest.approx(64 * angle / np.pi, abs=0.5)


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (np.full((1, 3), np.nan), "nan or infinity"),
        (np.zeros((2, 4)), r"shape \(2, 4\), need \(images, 3\)"),
        (np.zeros(3), r"shape \(3,\)"),
    ],
)
def test_embeddings_that_cannot_be_hashed(embedding: FloatArray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hash_embeddings(embedding, directions(3, 0))


def test_copies_are_close_and_other_pictures_are_not() -> None:
    pictures = [picture(seed) for seed in range(12)]
    copies = [Image.open(io.BytesIO(image_bytes(image.resize((300, 200)), quality=40))) for image in pictures]
    assert max(distances(pictures, copies)) <= 3
    assert min(distances(pictures[:-1], pictures[1:])) > 8
    assert max(distances(pictures, [image.convert("RGBA") for image in pictures])) == 0


def image_bytes(image: Image.Image, kind: str = "JPEG", quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return file.getvalue()


def rows(folder: Path) -> list[dict[str, Any]]:
    """Of all shards of a stage's folder."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


# --- the stage ----------------------------------------------------------------------------------------------------------


class MeanColour(ImageEncoder):
    """The mean colour: cheap, and easy to do by hand."""

    def __init__(self, sign: int = 1) -> None:
        self.sign = sign

    @property
    def identity(self) -> str:
        return f"mean colour {self.sign}"

    def __call__(self, images: Sequence[Image.Image]) -> FloatArray:
        return np.array([np.asarray(image, np.float64).mean((0, 1)) - 128 for image in images]) * self.sign


class OneTooFew(MeanColour):
    def __call__(self, images: Sequence[Image.Image]) -> FloatArray:
        return super().__call__(images[1:])


def test_the_hashes_of_a_pool(pool: Path, tmp_path: Path) -> None:
    results = run_hash(pool, tmp_path / "hashes", MeanColour, HashSettings(seed=5), HERE)
    assert results == {"shards": ["00000.tar", "00001.tar", "00002.tar"], "images": 15, "drops": {"broken_image": 3}}
    table = pq.read_table(tmp_path / "hashes" / "00001.parquet")
    assert table.schema.equals(HASHED_SCHEMA)
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == [f"00001{number:04d}" for number in range(5)]
    files = [image_file(10 + number) for number in range(5)]
    files[4] = files[4][: len(files[4]) // 2]
    assert [row["sha256"] for row in rows] == [hashlib.sha256(data).digest() for data in files]
    embedding = MeanColour()([Image.open(io.BytesIO(data)) for data in files[:4]])
    assert [row["hash"] for row in rows] == [*hash_embeddings(embedding, directions(3, 5)).tolist(), None]


def test_two_processes_and_a_run_that_was_broken_off_give_the_same_bytes(pool: Path, tmp_path: Path) -> None:
    for name, engine in (("one", HERE), ("two", LocalEngine(2, progress=False))):
        run_hash(pool, tmp_path / name, engine=engine)
    shutil.copytree(tmp_path / "one", tmp_path / "again")
    for name in ("done.json", "00001.parquet"):
        (tmp_path / "again" / name).unlink()
    run_hash(pool, tmp_path / "again", engine=HERE)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two") == folder_bytes(tmp_path / "again")


def test_without_an_encoder_nothing_is_decoded(pool: Path, tmp_path: Path) -> None:
    assert run_hash(pool, tmp_path / "hashes", None, engine=HERE)["drops"] == {}
    assert pq.read_table(tmp_path / "hashes" / "00000.parquet")["hash"].null_count == 5
    with pytest.raises(ValueError, match=r"belongs to another run \(encoder: found None, need 'mc2 dct 2'\)"):
        run_hash(pool, tmp_path / "hashes", engine=HERE)


def alpha_icon(seed: int) -> Image.Image:
    """Black, drawn by transparency alone."""
    alpha = picture(seed).convert("L").resize((64, 64))
    return Image.merge("RGBA", [Image.new("L", (64, 64))] * 3 + [alpha])


def deep_grey(seed: int) -> Image.Image:
    """16 bits, in the middle of their range."""
    return Image.fromarray((np.asarray(picture(seed).convert("L"), np.uint16) + 100) * 90)


@pytest.mark.parametrize("kind", [alpha_icon, deep_grey])
def test_images_are_told_apart_as_people_see_them(kind: Callable[[int], Image.Image], tmp_path: Path) -> None:
    (tmp_path / "icons").mkdir()
    for seed in range(3):
        kind(seed).save(tmp_path / "icons" / f"{seed}.png")
        assert len(set(np.asarray(Image.open(tmp_path / "icons" / f"{seed}.png").convert("RGB")).flat)) == 1  # all the same otherwise
    run_hash(tmp_path / "icons", tmp_path / "hashes", engine=HERE)
    hashes = pq.read_table(tmp_path / "hashes" / "00000.parquet")["hash"].to_numpy()
    assert min(int(np.bitwise_count(hashes[i] ^ hashes[j])) for i in range(3) for j in range(i)) > 10


def test_even_pictures_have_one_hash_and_sums_are_whole() -> None:
    """A float sum of them is noise, another on another processor."""
    greys = [Image.new("RGB", (50, 40), (level,) * 3) for level in range(0, 256, 5)]
    assert not DctEncoder()(greys).any()
    assert distances(greys, greys[:1] * len(greys)) == [0] * len(greys)
    embedding = DctEncoder()([picture(seed) for seed in range(4)])
    luma = embedding[:, 0]  # of frequency 1: its weight is 1
    assert (luma == np.rint(luma)).all()
    assert luma.any()


def test_what_cannot_be_packed_keeps_no_copy_out(tmp_path: Path) -> None:
    """A GIF comes first, its JPEG copy stays; in a benchmark it is a picture like any other."""
    columns: dict[str, list[Any]] = {"key": [], "caption": [], "image": []}
    for seed in range(2):
        for kind in ("GIF", "JPEG"):
            file = io.BytesIO()
            picture(seed).save(file, kind)
            for name, value in (("key", f"{seed}{kind}"), ("caption", "a fox"), ("image", file.getvalue())):
                columns[name].append(value)
    (tmp_path / "pool").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "pool" / "0.parquet")
    (tmp_path / "test").mkdir()
    picture(1).save(tmp_path / "test" / "1.gif")
    for name in ("pool", "test"):
        run_hash(tmp_path / name, tmp_path / f"{name}_hashes", engine=HERE)
    run_duplicates(tmp_path / "pool_hashes", tmp_path / "alone")
    assert drops(tmp_path / "alone") == []
    run_duplicates(tmp_path / "pool_hashes", tmp_path / "both", [tmp_path / "test_hashes"])
    assert [key for key, reason, _ in drops(tmp_path / "both") if reason == "benchmark_overlap"] == ["1JPEG"]


def test_a_folder_with_shards_and_pictures_and_a_benchmark_without(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "test" / "val").mkdir(parents=True)
    picture(0).save(tmp_path / "test" / "val" / "0.png")
    (tmp_path / "test" / "devkit.tar").write_bytes(tar_bytes([("readme.txt", b"")]))
    with pytest.raises(
        ValueError, match=r"test: found devkit.tar and 1 image files, val/0.png first, need shards or files; move one kind away"
    ):
        run_hash(tmp_path / "test", tmp_path / "hashes", engine=HERE)
    shutil.rmtree(tmp_path / "test" / "val")
    run_hash(tmp_path / "test", tmp_path / "hashes", engine=HERE)
    run_hash(pool, tmp_path / "pool_hashes", engine=HERE)
    with pytest.raises(ValueError, match="hashes: found no image of the benchmark"):
        run_duplicates(tmp_path / "pool_hashes", tmp_path / "duplicates", [tmp_path / "hashes"])


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "test") + b"/stra\xdfe.jpg")).write_bytes(image_file())
    run_hash(tmp_path / "test", tmp_path / "hashes", engine=HERE)
    assert pq.read_table(tmp_path / "hashes" / "00000.parquet")["key"].to_pylist() == [r"stra\xdfe.jpg"]


def test_huge_images_are_not_decoded(pool: Path, tmp_path: Path) -> None:
    assert run_hash(pool, tmp_path / "hashes", MeanColour, HashSettings(max_pixels=100), HERE)["drops"] == {
        "broken_image": 3,
        "huge_image": 12,
    }


def test_image_files_and_tars_of_a_benchmark(tmp_path: Path) -> None:
    (tmp_path / "files" / "cat").mkdir(parents=True)
    (tmp_path / "files" / "cat" / "1.JPEG").write_bytes(image_file(1))
    (tmp_path / "files" / "2.png").write_bytes(image_file(2, kind="PNG"))
    (tmp_path / "files" / "labels.txt").write_text("cat")
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "test.tar").write_bytes(tar_bytes([("a.jpg", image_file(1)), ("a.cls", b"3"), ("b.cls", b"4")]))
    for name in ("files", "tars"):
        run_hash(tmp_path / name, tmp_path / f"{name}.hashes", MeanColour, engine=HERE)
    files, tars = (rows(tmp_path / f"{name}.hashes") for name in ("files", "tars"))
    assert [row["key"] for row in files] == ["2.png", "cat/1.JPEG"]
    assert tars == [{**files[1], "key": "a"}]


def test_images_that_come_later_are_another_run(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "1.jpg").write_bytes(image_file(1))
    assert run_hash(tmp_path / "files", tmp_path / "out", MeanColour, engine=HERE)["images"] == 1
    (tmp_path / "files" / "2.jpg").write_bytes(image_file(2))
    with pytest.raises(ValueError, match=r"belongs to another run \(pool: found"):
        run_hash(tmp_path / "files", tmp_path / "out", MeanColour, engine=HERE)


def test_a_pool_of_text_and_no_pool(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    pq.write_table(pa.table({"url": ["https://example.org/a.jpg"], "caption": ["a fox"]}), tmp_path / "text" / "0.parquet")
    with pytest.raises(ValueError, match=r"found a pool of text and URLs, need one with images; download them with img2dataset"):
        run_hash(tmp_path / "text", tmp_path / "out", engine=HERE)
    with pytest.raises(ValueError, match="not found; need a folder of images, or a pool with images"):
        run_hash(tmp_path / "nowhere", tmp_path / "out", engine=HERE)
    assert not (tmp_path / "out").exists()


def test_encoders_that_do_not_work(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardErrors, match=r"hash: 3 of 3 failed .*found 3 embeddings of 4 images; mend OneTooFew"):
        run_hash(pool, tmp_path / "few", OneTooFew, engine=HERE)
    with pytest.raises(ValueError, match=r"encoder: .*cannot be sent to worker processes"):
        run_hash(pool, tmp_path / "lambda", lambda: MeanColour(), engine=HERE)


# --- duplicates -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """A pool of two shards with copies of its pictures, and a benchmark."""
    pictures = [image_bytes(picture(seed)) for seed in range(5)]
    small = image_bytes(picture(1).resize((150, 100)), quality=50)
    shards = [
        record("a", ["qqq"], pictures[0]) + record("b", ["a fox in the snow"], pictures[1]) + record("c", ["the dog"], pictures[2]),
        record("a", ["the fox"], pictures[0]) + record("d", ["the snow"], small) + record("e", ["the garden"], pictures[3])
        + record("broken", ["the house"], pictures[4][:99]) + record("broken2", ["the sea"], pictures[4][:99]),
    ]  # fmt: skip
    (tmp_path / "pool").mkdir()
    for number, members in enumerate(shards):
        (tmp_path / "pool" / f"{number:05d}.tar").write_bytes(tar_bytes(members))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "three.png").write_bytes(image_bytes(picture(3), "PNG"))
    for name in ("pool", "test"):
        run_hash(tmp_path / name, tmp_path / f"{name}_hashes", engine=HERE)
    return tmp_path


def drops(folder: Path) -> list[tuple[str, str, str]]:
    return [(row["key"], row["reason"], row["duplicate_of"]) for row in rows(folder)]


def test_copies_leave(copies: Path) -> None:
    found = run_duplicates(copies / "pool_hashes", copies / "duplicates", [copies / "test_hashes"])
    assert drops(copies / "duplicates") == [
        ("a", "exact_duplicate", "00000/a"),
        ("d", "near_duplicate", "00000/b"),
        ("e", "benchmark_overlap", "test_hashes/00000/three.png"),
        ("broken2", "exact_duplicate", "00001/broken"),
    ]
    assert found == {
        "images": 8,
        "drops": {"exact_duplicate": 2, "near_duplicate": 1, "benchmark_overlap": 1},
        "benchmark_overlap": {"test_hashes": 1},
    }
    tables = [pq.read_table(copies / "duplicates" / f"0000{shard}.parquet") for shard in (0, 1)]
    assert [table.schema for table in tables] == [DUPLICATES_SCHEMA] * 2
    assert [len(table) for table in tables] == [0, 4]


def test_a_pair_without_a_matched_caption_cannot_be_the_one_that_stays(copies: Path, metadata: Path) -> None:
    run_match(copies / "pool", metadata, copies / "matched", engine=HERE)
    run_duplicates(copies / "pool_hashes", copies / "duplicates", matched=copies / "matched")
    assert ("a", "exact_duplicate", "00000/a") not in drops(copies / "duplicates")  # its only caption has no entry


def test_folders_that_do_not_belong_together(copies: Path, pool: Path, metadata: Path) -> None:
    run_hash(copies / "test", copies / "seed", settings=HashSettings(seed=1), engine=HERE)
    run_hash(copies / "test", copies / "colour", partial(MeanColour, sign=-1), engine=HERE)
    run_match(pool, metadata, copies / "other", engine=HERE)
    for benchmarks, matched, message in [
        (["seed"], None, r"seed: was hashed with seed 1, need 0 as in .*pool_hashes"),
        (["colour"], None, r"was hashed with encoder 'mean colour -1', need 'mc2 dct 2'"),
        (["test"], None, r"has no finished stage 'hash'; run `mc2 curate hash`"),
        (["test_hashes", "test_hashes"], None, "need folders with different names"),
        ([], "other", r"other: was matched from another pool"),
    ]:
        with pytest.raises(ValueError, match=message):
            run_duplicates(copies / "pool_hashes", copies / "out", [copies / name for name in benchmarks], 3, matched and copies / matched)
    with pytest.raises(ValueError, match="found a radius of 9 bits"):
        run_duplicates(copies / "pool_hashes", copies / "out", radius=9)
    assert not (copies / "out").exists()


def test_the_commands(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hashing = ["curate", "hash", "--pool", str(copies / "pool"), "--progress", "false", "--workers", "1"]
    assert main([*hashing, "--out", str(copies / "dct")]) == 0
    assert folder_bytes(copies / "dct") == folder_bytes(copies / "pool_hashes")
    colour = ["--encoder", "tests.curation.test_hash_stage.MeanColour", "--encoder.sign", "-1"]
    assert main([*hashing, "--out", str(copies / "colour"), *colour]) == 0
    assert "hashed 8 images; not decoded: {'broken_image': 2}" in capsys.readouterr().out
    assert (
        main(
            [
                "curate",
                "duplicates",
                "--hashes",
                str(copies / "dct"),
                "--out",
                str(copies / "out"),
                "--benchmarks",
                f"[{copies / 'test_hashes'}]",
            ]
        )
        == 0
    )
    assert "of 8 images leave: {'exact_duplicate': 2, 'near_duplicate': 1, 'benchmark_overlap': 1}" in capsys.readouterr().out
    assert main([*hashing, "--out", str(copies / "x"), "--encoder", "pathlib.Path"]) == 2
    assert "to be a subclass of" in capsys.readouterr().err
