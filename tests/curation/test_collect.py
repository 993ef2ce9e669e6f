"""Folders of photos as people have them -> a pool that the other stages read."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from mc2.cli import main
from mc2.curation.collect import run_collect
from mc2.curation.pool import pool_shards, read_pairs
from tests.curation.pools import image_file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five files at two depths; names with dots, blanks, capitals and other letters."""
    folder = tmp_path / "photos"
    (folder / "holidays/2024").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for number, name in enumerate(("a.b.jpg", "holidays/Küste am Meer.JPG", "holidays/2024/cat.png", ".cache/cat.png", "old.gif")):
        (folder / name).write_bytes(image_file(number, kind="PNG" if name.endswith("png") else "JPEG"))
    return folder


def pairs(pool: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    """Captions and hint by the name of the file, through the reader of pools."""
    drops: Counter[str] = Counter()
    found = {pair.url: (pair.captions, pair.hint) for shard in pool_shards(pool) for pair in read_pairs(shard, drops)}
    assert not drops
    return found


TABLE = [
    ("a.b.jpg", "a fox, and a dog", "en"),
    ("./holidays/Küste am Meer.JPG", "das Meer", "de"),
    ("cat.png", "猫", "ja"),
    ("cat.png", "a cat", "en"),
    ("gone.jpg", "nothing", "en"),
]
EXPECTED = {
    "a.b.jpg": (("a fox, and a dog",), "en"),
    "holidays/Küste am Meer.JPG": (("das Meer",), "de"),
    "holidays/2024/cat.png": (("猫", "a cat"), ""),
}


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_a_table(form: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if form == "jsonl":
        text = "".join(json.dumps({"file_name": file, "caption": caption, "language": code}) + "\n\n" for file, caption, code in TABLE)
    else:
        cut = "," if form == "csv" else "\t"
        text = "\ufeff" + "\r\n".join(
            cut.join(row) for row in [("Language", "File_Name", "Text"), *((c, f, f'"{t}"') for f, t, c in TABLE)]
        )
    (photos / f"captions.{form}").write_text(text, encoding="utf-8")
    assert main(["curate", "collect", "--images", str(photos), "--out", str(tmp_path / "pool"), "--shard_pairs", "2"]) == 0
    said = capsys.readouterr().out
    assert "3 pairs in 2 tars; left out: {'row whose image is not there': 1, 'image in another format (need jpg, png or webp)': 1}" in said
    assert pairs(tmp_path / "pool") == EXPECTED
    image = next(pair.image for shard in pool_shards(tmp_path / "pool") for pair in read_pairs(shard, Counter()) if pair.url == "a.b.jpg")
    assert image == (photos / "a.b.jpg").read_bytes()


def test_text_files_beside_the_images(photos: Path, tmp_path: Path) -> None:
    (photos / "a.b.txt").write_text("a fox\n\n ein Fuchs \n", encoding="utf-8-sig")
    (photos / "holidays/Küste am Meer.txt").write_bytes("die Küste".encode("latin-1"))
    results = run_collect(photos, tmp_path / "pool")
    assert results == {
        "pairs": 2,
        "shards": 1,
        "left_out": {"image in another format (need jpg, png or webp)": 1, "image without a caption": 1},
    }
    found = pairs(tmp_path / "pool")
    assert found["a.b.jpg"] == (("a fox", "ein Fuchs"), "")
    assert found["holidays/Küste am Meer.JPG"][0] == ("die K\udcfcste",)  # dropped by `match` as not_utf8, as from any pool
    (photos / "a.b.txt").write_text("another")
    with pytest.raises(ValueError, match=r"pool: belongs to another run .files: found"):
        run_collect(photos, tmp_path / "pool")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "captions.csv",
            "name,caption\na.b.jpg,fox\n",
            r"captions.csv: found no column for the image file \(name, caption\), need one of file_name",
        ),
        (
            "captions.csv",
            "file,words\na.b.jpg,fox\n",
            r"captions.csv: found no column for the caption \(file, words\), need one of captions, caption",
        ),
        ("captions.csv", "", r"captions.csv: found no column for the image file \(the table is empty\)"),
        ("captions.csv", "file,text\nb.jpg,fox\n", r"photos: found 3 images, but no caption for any of them in .*captions.csv"),
        ("captions.jsonl", '{"file": 1}\n[1]\n', r"captions.jsonl:2: found list, need an object"),
        ("captions.jsonl", "{\n", r"captions.jsonl:1: not valid JSON"),
        ("captions.csv", 'file,text\na.b.jpg,"fox\nb.jpg,dog\n', r"captions.csv:2: not valid CSV \(unexpected end of data\)"),
        (
            "notes.md",
            "",
            r"photos: found 3 images, but no caption for any of them in text files beside the images; name a table with --captions",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_cure(name: str, text: str, message: str, photos: Path, tmp_path: Path) -> None:
    (photos / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        run_collect(photos, tmp_path / "pool")


def test_rows_that_lack_something_and_long_captions(photos: Path, tmp_path: Path) -> None:
    rows = [
        {"file": "a.b.jpg", "caption": "fox", "language": "en"},
        {"file": "a.b.jpg", "caption": "x" * 200_000},
        {"file": "a.b.jpg"},
        {"caption": "cat"},
    ]
    (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run_collect(photos, tmp_path / "lines")["left_out"]["row whose image is not there"] == 1
    assert pairs(tmp_path / "lines")["a.b.jpg"] == (("fox", "x" * 200_000), "")
    (photos / "captions.jsonl").unlink()
    (photos / "captions.csv").write_text(f"file,caption\na.b.jpg,{'x' * 200_000}\na.b.jpg\n")
    run_collect(photos, tmp_path / "table")
    assert pairs(tmp_path / "table")["a.b.jpg"] == (("x" * 200_000,), "")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    image = Path(os.fsdecode(bytes(tmp_path / "photos") + b"/stra\xdfe.jpg"))
    image.write_bytes(image_file())
    image.with_suffix(".txt").write_text("a street")
    run_collect(tmp_path / "photos", tmp_path / "pool")
    assert pairs(tmp_path / "pool") == {r"stra\xdfe.jpg": (("a street",), "")}


def test_folders_and_tables_that_are_not_there(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: the folder of images is not there"):
        run_collect(tmp_path / "nowhere", tmp_path / "pool")
    with pytest.raises(ValueError, match=r"gone.csv: the table of captions is not there"):
        run_collect(photos, tmp_path / "pool", tmp_path / "gone.csv")
