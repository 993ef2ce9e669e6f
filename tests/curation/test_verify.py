"""`mc2 curate verify` on whole shards, and on shards damaged in every way there is; the cures that it names are tried."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mc2 import storage
from mc2.cli import main
from mc2.curation.balance_stage import run_balance
from mc2.curation.match_stage import run_match
from mc2.curation.pack_plan import PackSettings
from mc2.curation.pack_stage import run_pack
from mc2.curation.verify import verify_shards
from mc2.curation.verify_shard import record_languages
from mc2.engines.local import LocalEngine
from tests.curation.pools import folder_bytes, image_file, record, tar_bytes

HERE = LocalEngine(1, progress=False)
SETTINGS = PackSettings(shard_pairs=4)
IMAGE = image_file()


@pytest.fixture(scope="module")
def run(pool: Path, metadata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify")
    run_match(pool, metadata, out / "matched", engine=HERE)
    run_balance(out / "matched", metadata, out / "balance", 4, engine=HERE)
    run_pack(pool, out / "matched", out / "balance", out / "shards", SETTINGS, HERE)
    return out


@pytest.fixture
def shards(run: Path, tmp_path: Path) -> Path:
    """Four shards of 4, 3, 3 and 2 pairs to damage."""
    return Path(shutil.copytree(run / "shards", tmp_path / "shards"))


def lines(folder: Path, images: bool = False, workers: int = 1) -> list[str]:
    return [str(problem) for problem in verify_shards(folder, images, LocalEngine(workers, progress=False))[0]]


@pytest.mark.parametrize("images", [False, True])
def test_what_was_packed_is_all_right(run: Path, images: bool) -> None:
    before = folder_bytes(run / "shards")
    problems, summary = verify_shards(run / "shards", images, HERE)
    assert problems == []
    assert summary.startswith(f"{run / 'shards'}: 4 shards, 12 pairs, 30 captions in 3 languages, 0.00 GB")
    assert ("images not decoded" in summary) == (not images)
    assert folder_bytes(run / "shards") == before


# --- damage to files ----------------------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def flip_bit(folder: Path) -> None:
    """In the middle of an image: sizes stay."""
    edit(folder / "00001.tar", lambda data: data[:800] + bytes([data[800] ^ 1]) + data[801:])


def cut_off(folder: Path) -> None:
    edit(folder / "00001.tar", lambda data: data[: len(data) // 2])


def shift_index(folder: Path) -> None:
    path = folder / "00002.index.parquet"
    table = pq.read_table(path)
    offsets = [offset + 512 for offset in table["offset"].to_pylist()]
    pq.write_table(table.set_column(1, "offset", [offsets]).replace_schema_metadata(table.schema.metadata), path)


def index_of_another(folder: Path) -> None:
    shutil.copy(folder / "00001.index.parquet", folder / "00002.index.parquet")


def drop_from_manifest(folder: Path) -> None:
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    edit_json(folder / "manifest.json", shards=shards[:3])


def twice_in_manifest(folder: Path) -> None:
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    edit_json(folder / "manifest.json", shards=[*shards, shards[0]])


def other_languages(folder: Path, field: str) -> None:
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    edit_json(folder / "manifest.json", shards=[{**shards[0], field: {"en": 1}}, *shards[1:]])


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "bit": (flip_bit, ["00001.tar: is not as manifest.json says: SHA-256: found"]),
    "cut": (cut_off, ["00001.index.parquet: ", "00001.tar: cut off or damaged after", "00001.tar: is not as manifest.json says: bytes: found"]),
    "no tar": (lambda f: (f / "00002.tar").write_bytes(b"hello" * 300), ["00002.index.parquet: 3 records", "00002.tar: not a tar", "00002.tar: no record", "00002.tar: is not as"]),
    "empty": (lambda f: (f / "00002.tar").write_bytes(b""), ["00002.index.parquet: 3 records", "00002.tar: not a tar", "00002.tar: no record", "00002.tar: is not as"]),
    "missing": (lambda f: (f / "00003.tar").unlink(), ["00003.tar: is missing; copy it again, or delete 00003.index.parquet and done.json"]),
    "strange": (lambda f: (f / "x.tar").write_bytes(tar_bytes(record("a", ["b"], IMAGE))), ["x.index.parquet: is missing", "x.tar: 1 records with a caption that is not {text", "x.tar: is not in manifest.json; take it away"]),
    "twin": (lambda f: shutil.copy(f / "00000.tar", f / "copy.tar"), ["copy.index.parquet: is missing", "copy.tar: is not in manifest.json", "copy.tar: is the same file as 00000.tar"]),
    "no index": (lambda f: (f / "00001.index.parquet").unlink(), ["00001.index.parquet: is missing; copy it, or delete done.json"]),
    "broken index": (lambda f: (f / "00001.index.parquet").write_bytes(b"PAR1"), ["00001.index.parquet: cannot be read as an index"]),
    "index of other columns": (lambda f: shutil.copy(f / "plan.parquet", f / "00001.index.parquet"), ["00001.index.parquet: cannot be read as an index (KeyError)"]),
    "shifted index": (shift_index, ["00002.index.parquet: 3 records are not where it says (000010003, 000020000, 000020001)"]),
    "index of another": (index_of_another, ["00002.index.parquet: 6 records are not where it says", "00002.index.parquet: is not as manifest.json says"]),
    "strange index": (lambda f: shutil.copy(f / "00001.index.parquet", f / "x.index.parquet"), ["x.index.parquet: is not in manifest.json"]),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), ["manifest.json: is missing; copy it again, or delete done.json and run"]),
    "broken manifest": (lambda f: (f / "manifest.json").write_text("{"), ["manifest.json: cannot be read as a manifest (ValueError)"]),
    "other manifest": (lambda f: (f / "manifest.json").write_text("{}"), ["manifest.json: cannot be read as a manifest (KeyError)"]),
    "totals": (drop_from_manifest, ["00003.index.parquet: is not in manifest.json", "00003.tar: is not in manifest.json", "manifest.json: adds up to 10 pairs, done.json says 12"]),
    "twice": (twice_in_manifest, ["manifest.json: adds up to 16 pairs", "manifest.json: names shards twice: 00000"]),
    "pairs of languages": (lambda f: other_languages(f, "pairs"), ["00000.index.parquet: is not as manifest.json says: pairs by language", "00000.tar: is not as manifest.json says: pairs by language: found {"]),
    "languages": (lambda f: other_languages(f, "captions"), ["00000.index.parquet: is not as manifest.json says: captions by language", "00000.tar: is not as manifest.json says: captions by language: found {"]),
    "drops": (lambda f: edit_json(f / "manifest.json", drops={"broken_image": -1, "eaten": 3}), ["manifest.json: has drops that cannot be: broken_image, eaten"]),
    "unfinished": (lambda f: (f / "done.json").unlink(), ["done.json: is missing: packing has not finished; run the same `mc2 curate pack` line again"]),
    "left over": (lambda f: (f / ".00009.tar.123.tmp").write_bytes(b"half"), [".00009.tar.123.tmp: left over from a job that was killed; delete it"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(shards: Path, name: str) -> None:
    damage, expected = DAMAGE[name]
    damage(shards)
    found = sorted(lines(shards))
    assert len(found) == len(expected), found
    for line, start in zip(found, sorted(expected), strict=True):
        assert line.startswith(start), found
        assert "\n" not in line
        assert "; " in line


def test_the_cures_work(run: Path, pool: Path, shards: Path) -> None:
    """Delete what the line says, run pack again: the same bytes as before the damage."""
    before = folder_bytes(shards)
    flip_bit(shards)
    (shards / "00003.tar").unlink()
    shift_index(shards)
    assert len(lines(shards)) == 3
    for name in ("00001.index.parquet", "00003.index.parquet", "00002.index.parquet", "done.json"):
        (shards / name).unlink()
    run_pack(pool, run / "matched", run / "balance", shards, SETTINGS, HERE)
    assert folder_bytes(shards) == before
    assert lines(shards, images=True) == []


def test_the_same_lines_with_two_processes(shards: Path) -> None:
    cut_off(shards)
    shift_index(shards)
    assert lines(shards, workers=2) == lines(shards) != []


# --- records ------------------------------------------------------------------------------------------------------------


def captions(*rows: Mapping[str, Any]) -> bytes:
    return json.dumps({"captions": list(rows)}).encode()


GOOD = {"text": "a fox", "language": "en", "entries": [1, 5]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"json": captions(GOOD)}, "without exactly one image"),
        ({"jpg": b"x", "png": b"x", "json": captions(GOOD)}, "without exactly one image"),
        ({"jpg": b"", "json": captions(GOOD)}, "with an empty image"),
        ({"jpg": b"x"}, "without a JSON"),
        ({"jpg": b"x", "json": b"{"}, "with a JSON that cannot be read"),
        ({"jpg": b"x", "json": b"\xff"}, "with a JSON that cannot be read"),
        ({"jpg": b"x", "json": b"[" * 100_000}, "with a JSON that cannot be read"),
        ({"jpg": b"x", "json": b"[]"}, "without captions"),
        ({"jpg": b"x", "json": b'{"captions": []}'}, "without captions"),
        ({"jpg": b"x", "json": b'{"captions": ["a fox"]}'}, "with a caption that is not {text, language, entries}"),
        ({"jpg": b"x", "json": captions({"text": "a"})}, "with a caption that is not {text, language, entries}"),
        ({"jpg": b"x", "json": captions(GOOD, {**GOOD, "text": " "})}, "with a caption that is empty or not UTF-8"),
        ({"jpg": b"x", "json": captions({**GOOD, "text": "\udc80"})}, "with a caption that is empty or not UTF-8"),
        ({"jpg": b"x", "json": captions({**GOOD, "entries": [-1]})}, "with entries that are not numbers of entries"),
        ({"jpg": b"x", "json": captions({**GOOD, "entries": [True]})}, "with entries that are not numbers of entries"),
        ({"jpg": b"x", "json": captions({**GOOD, "entries": [5, 1]})}, "with entries that are not ascending"),
        ({"jpg": b"x", "json": captions({**GOOD, "entries": []})}, "with entries that are not ascending"),
    ],
)
def test_records_that_are_not_as_packed(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record_languages(files, packed=True)


def test_records_that_are() -> None:
    assert record_languages({"jpg": b"x", "json": captions(GOOD, {**GOOD, "language": "de"})}, packed=True) == ["en", "de"]
    assert record_languages({"jpg": b"x", "txt": b"a fox"}, packed=False) == [""]
    assert record_languages({"jpg": b"x", "txt": b"a fox", "json": b'{"captions": ["a", "b"], "url": "x"}'}, packed=False) == ["", ""]
    assert record_languages({"jpg": b"x", "json": captions(GOOD)}, packed=False) == ["en"]


def test_plain_tars(tmp_path: Path) -> None:
    good = [*record("a", ["a fox"], IMAGE), *record("b", ["ein Fuchs"], IMAGE)]
    (tmp_path / "00000.tar").write_bytes(tar_bytes(good))
    problems, summary = verify_shards(tmp_path, True, HERE)
    assert problems == []
    assert "1 shards, 2 pairs, 2 captions, 0.00 GB (no manifest)" in summary
    bad = [
        *good,
        *record("a", ["again"], IMAGE),
        *record("c", ["half an image"], IMAGE[: len(IMAGE) // 2]),
        ("d.jpg", IMAGE), ("d.txt", b"caf\xe9"),
        ("e.jpg", IMAGE),
        ("f.txt", b"alone"),
        ("g.jpg", IMAGE), ("g.jpg", IMAGE), ("g.txt", b"twice"),
    ]  # fmt: skip
    (tmp_path / "00001.tar").write_bytes(tar_bytes(bad))
    again = "; get it again, or take it away"
    expected = [
        f"00001.tar: 1 records with a caption that is not UTF-8 (d){again}",
        f"00001.tar: 1 records with the key of an earlier one (a){again}",
        f"00001.tar: 1 records with the same file twice (g){again}",
        f"00001.tar: 1 records without a caption (e){again}",
        f"00001.tar: 1 records without exactly one image (f){again}",
    ]
    assert sorted(lines(tmp_path)) == expected
    assert sorted(lines(tmp_path, images=True)) == sorted(
        [*expected, f"00001.tar: 1 records with an image that cannot be decoded (c){again}"]
    )


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command(run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--workers", "1", "--progress", "false"]
    assert main(["curate", "verify", "--shards", str(run / "shards"), "--images", "true", *options]) == 0
    assert capsys.readouterr().out.endswith("nothing wrong\n")
    cut_off(shards)
    assert main(["curate", "verify", "--shards", str(shards), *options]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert printed[-1].endswith(": 3 problems")
    assert main(["curate", "verify", "--shards", str(tmp_path / "nowhere"), *options]) == 1
    assert "no folder of shards here" in capsys.readouterr().err


def test_folders_that_cannot_be_verified(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: found no \.tar file"):
        verify_shards(tmp_path / "empty", engine=HERE)
    with open(shards / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="a job is writing here; wait for it"):
            verify_shards(shards, engine=HERE)


def test_a_tar_that_cannot_be_opened_is_a_problem_like_others(shards: Path) -> None:
    (shards / "00001.tar").unlink()
    (shards / "00001.tar").mkdir()
    found = lines(shards)
    assert any(line.startswith("00001.tar: cannot be read (Is a directory)") for line in found)
    assert storage.read_json(shards / "done.json")["results"] == {"pairs": 12}
