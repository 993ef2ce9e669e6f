"""Page views: every rule against a slow reader of one line at a time; the stage, its bytes and its errors."""

from __future__ import annotations

import bz2
import gzip
import shutil
from collections import Counter
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc2 import languages, storage
from mc2.engines.local import LocalEngine
from mc2.metadata import page_views
from mc2.metadata.page_view_files import DROPS, hourly_files, read_views
from mc2.metadata.page_views import read_titles, sum_page_views, viewed_languages

Views = dict[tuple[str, str], int]


def slow_views(data: bytes) -> tuple[Views, Counter[str]]:
    """(language, title) -> views of an hourly file, and the counts, as the text of `page_view_files` says."""
    views: Counter[tuple[str, str]] = Counter()
    counts: Counter[str] = Counter()
    for line in data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if line:
            counts["lines"] += 1
            row = slow_line(line)
            if isinstance(row, str):
                counts[row] += 1
            else:
                views[row[:2]] += row[2]
    return dict(views), counts


def slow_line(line: bytes) -> tuple[str, str, int] | str:
    fields = line.split(b" ")
    if len(fields) != 4:
        return "broken_line"
    domain = fields[0].decode(errors="replace").removesuffix(".wikipedia").removesuffix(".m").removesuffix(".zero")
    language = languages.wikipedia_language(domain)
    if language is None:
        return "other_project"
    if not fields[2].isdigit() or len(fields[2]) > 15:
        return "broken_views"
    try:
        title = unquote_to_bytes(fields[1]).decode().replace("_", " ").strip(" ")
    except UnicodeDecodeError:
        return "not_utf8"
    if title in ("", "-"):
        return "no_title"
    if ":" in title:
        return "namespace"
    return "long_title" if len(title) > 256 else (language, title, int(fields[2]))


def write_hour(folder: Path, data: bytes, hour: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"pageviews-20240501-{hour:02}0000.gz"
    path.write_bytes(gzip.compress(data))
    return path


def fast_views(path: Path) -> tuple[Views, Counter[str]]:
    views: Counter[tuple[str, str]] = Counter()
    counts: Counter[str] = Counter()
    for batch in read_views(path, languages.LID176, counts):
        for row in batch.to_pylist():
            views[row["language"], row["title"]] += row["views"]
    return dict(views), +counts


NASTY = (
    b"""en Fox 12 0
en.m Fox 3 0
en.zero Fox 4 0
en "Heroes" 7 0
en "Heroes 1 0
en Rock_'n'_Roll 2 0
en a\\"b 5 0
en Talk:Fox 1 0
en Special%3ASearch 1 0
de %C3%96sterreich 5 0
de \xc3\x96sterreich 6 0
de.m %d6sterreich 5 0
de 100% 5 0
de 100%25_Wolf 5 0
de %zz 2 0
en - 90 0
en  4 0
en _ 4 0
en __Fox_ 1 0
en NULL 1 0
en NaN 2 0
en C\xffD 3 0
en tab\there 3 0
en nul\x00here 3 0
en too many fields 4 0
en few 4
en
 en Fox 1 0
en Fox 1 0\x20
en Fox -1 0
en Fox 1.5 0
en Fox 1e3 0
en Fox x 0
en Fox  0
en Fox 999999999999999 0
en Fox 1000000000000000 0
commons.m Fox 1 0
en.d Fox 1 0
en.m.d Fox 1 0
en.wikipedia Fox 30 0
\xff\xfe Fox 1 0
EN Fox 1 0
\xef\xbb\xbfen Fox 1 0
zh-classical \xe7\x8b\x90 1 0
zh-yue.m \xe7\x8b\x90 2 0
zu Impungushe 2 0\r
simple Fox 2 0\r\ren Fox\x0b 1 0\x0c

"""
    + b"en %s 1 0\nen %s 1 0\nen %s 1 0" % (b"x" * 256, b"x" * 257, "狐".encode() * 256)
)


def test_nasty_lines_one_by_one(tmp_path: Path) -> None:
    views, counts = fast_views(write_hour(tmp_path, NASTY))
    assert (views, counts) == slow_views(NASTY)
    assert set(counts) == {"lines", *DROPS}  # every reason occurs
    assert views["en", '"Heroes"'] == 7
    assert views["en", "Fox"] == 12 + 3 + 4 + 1 + 30 + 999_999_999_999_999
    assert views["de", "Österreich"] == 11
    assert views["de", "100% Wolf"] == 5
    assert views["zh", "狐"] == 3
    assert views["other", "Fox"] == 2


FIELDS = st.one_of(
    st.sampled_from([b"en", b"en.m", b"fr", b"zu.m", b"commons", b"", b"7", b"-7", b"%", b"%41", b"%C3%A9", b"%ff", b":", b'"', b"'", b"_", b"-", b"\\", b"\r"]),
    st.text(max_size=3).map(lambda text: text.encode(errors="surrogatepass")),
    st.binary(max_size=3),
)  # fmt: skip
TITLES = st.lists(FIELDS, min_size=1, max_size=3).map(b"".join)
GOOD_LINES = st.tuples(
    st.sampled_from([b"en", b"en.m", b"de", b"ja.zero"]), TITLES, st.integers(0, 99).map(b"%d".__mod__), st.just(b"0")
).map(b" ".join)
LINES = st.one_of(GOOD_LINES, st.lists(FIELDS, max_size=6).map(b" ".join))


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, max_size=8), st.sampled_from([b"\n", b"\r\n"]))
def test_any_lines_against_the_slow_reader(lines: list[bytes], end: bytes) -> None:
    data = end.join([b"en Fox 1 0", *lines])
    with TemporaryDirectory() as folder:
        assert fast_views(write_hour(Path(folder), data)) == slow_views(data)


def test_blocks_meet_inside_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mc2.metadata.page_view_files._BLOCK_BYTES", 1 << 11)
    data = NASTY + b"\n" + b"".join(b"de Fuchs_%d %d 0\r\nen.m %%C3%%A9%d 1 0\n" % (i, i, i) for i in range(300))
    assert fast_views(write_hour(tmp_path, data)) == slow_views(data)


def test_daily_and_monthly_files(tmp_path: Path) -> None:
    first = b"en.wikipedia Fox 53 desktop 12 A5B7\nen.wikipedia Fox 53 mobile-web 3 C3\nen.wikipedia Talk:Fox null desktop 1 A1\n"
    second = b"en.wiktionary fox 53 desktop 12 A12\nde.wikipedia Fuchs null mobile-app 4 D4\nen.wikipedia Fox 53 desktop\n"
    for name in ("pageviews-20240501-user.bz2", "pageviews-202405-user.bz2"):
        (tmp_path / name).write_bytes(bz2.compress(first) + bz2.compress(second))  # several streams, as pbzip2 writes
        views, counts = fast_views(tmp_path / name)
        assert views == {("en", "Fox"): 15, ("de", "Fuchs"): 4}
        assert counts == {"lines": 6, "namespace": 1, "other_project": 1, "broken_line": 1}


# --- the stage ----------------------------------------------------------------------------------------------------------


def hours(folder: Path, number: int) -> list[Path]:
    """Hourly files with titles in common, equal views, and one nasty file."""
    files = [
        write_hour(
            folder,
            b"".join(b"%s T%d %d 0\n" % (domain, i * hour % 97, i % 5) for i in range(60) for domain in (b"de", b"en", b"ja.m")),
            hour,
        )
        for hour in range(1, number)
    ]
    return [write_hour(folder, NASTY), *files]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sums_over_files_are_those_of_the_slow_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_views, "FILES_PER_GROUP", 2)
    monkeypatch.setattr(page_views, "_ROW_GROUP", 16)
    files = hours(tmp_path / "in", 5)
    out = sum_page_views(files, tmp_path / "out", LocalEngine(1, progress=False))
    views: Counter[tuple[str, str]] = Counter()
    counts: Counter[str] = Counter()
    for file in files:
        views_of_file, counts_of_file = slow_views(gzip.decompress(file.read_bytes()))
        views.update(views_of_file)
        counts.update(counts_of_file)
    assert viewed_languages(out) == Counter(language for language, _ in views)
    for language in viewed_languages(out):
        expected = sorted(((title, n) for (code, title), n in views.items() if code == language), key=lambda row: (-row[1], row[0]))
        assert read_titles(out, language) == expected
    results = storage.read_json(out / "done.json")["results"]
    assert {"lines": results["lines"], **results["drops"]} == counts
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".parquet") == [".lock", "done.json", "inputs.json"]


def test_any_number_of_workers_and_any_order_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = hours(tmp_path / "in", 6)
    one = sum_page_views(files, tmp_path / "one", LocalEngine(1, progress=False))
    monkeypatch.setattr(page_views, "FILES_PER_GROUP", 2)
    two = sum_page_views(files[::-1], tmp_path / "two", LocalEngine(2, progress=False), memory_gb=0.5)
    assert content(one) == content(two)
    before = {path: path.stat().st_mtime_ns for path in one.glob("[!.]*")}
    sum_page_views(files, one, LocalEngine(1, progress=False))
    assert before == {path: path.stat().st_mtime_ns for path in one.glob("[!.]*")}


def test_a_damaged_file_is_named_and_the_rest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_views, "FILES_PER_GROUP", 1)
    whole = sum_page_views(hours(tmp_path / "in", 4), tmp_path / "whole", LocalEngine(1, progress=False))
    files = hours(tmp_path / "in", 4)
    data = files[2].read_bytes()
    files[2].write_bytes(data[:-8] + bytes([data[-8] ^ 1]) + data[-7:])  # of the same size: the mended file belongs to the same run
    with pytest.raises(
        ValueError, match=r"page views: 1 of 4 failed .*pageviews-20240501-020000\.gz: is damaged or cannot be read .*fetch it again"
    ):
        sum_page_views(files, tmp_path / "out", LocalEngine(1, progress=False))
    kept = sorted(path.name for path in (tmp_path / "out" / "parts").glob("*.parquet"))
    assert kept == [f"{files[i].name}.parquet" for i in (0, 1, 3)]
    for file in (files[0], files[1], files[3]):  # not read again
        file.write_bytes(b"\0" * file.stat().st_size)
    files[2].write_bytes(data)
    sum_page_views(files, tmp_path / "out", LocalEngine(1, progress=False))
    assert content(tmp_path / "out") == content(whole)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(NASTY)[:-300], "is damaged or cannot be read .*Truncated"),
        (NASTY, "is damaged or cannot be read .*incorrect header"),
        (b"", "has no page views of a Wikipedia"),
        (gzip.compress(b""), "has no page views of a Wikipedia"),
        (gzip.compress(b"<html>\n<body>404 not found\n"), "has no page views of a Wikipedia"),
        (gzip.compress(b"commons Fox 1 0\n"), "has no page views of a Wikipedia"),
        (gzip.compress(b"x" * (9 << 20)), "has no page views of a Wikipedia"),
        (gzip.compress(b"x" * (25 << 20)), "is damaged or cannot be read .*a line is longer than 16,777,216 bytes"),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = write_hour(tmp_path, b"")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"pageviews-20240501-000000\.gz: {message}"):
        fast_views(path)


def test_wrong_calls(tmp_path: Path) -> None:
    engine = LocalEngine(1, progress=False)
    hour = write_hour(tmp_path, NASTY)
    day = tmp_path / "pageviews-20240501-user.bz2"
    day.write_bytes(bz2.compress(b"en.wikipedia Fox 53 desktop 12 A5B7\n"))
    with pytest.raises(ValueError, match="found no files"):
        sum_page_views([], tmp_path / "out", engine)
    with pytest.raises(ValueError, match="found hourly files beside daily or monthly ones"):
        sum_page_views([hour, day], tmp_path / "out", engine)
    month = tmp_path / "pageviews-202405-user.bz2"
    shutil.copy(day, month)
    with pytest.raises(ValueError, match=r"found pageviews-20240501-user\.bz2 beside pageviews-202405-user\.bz2, which has that day"):
        sum_page_views([month, day], tmp_path / "out", engine)
    with pytest.raises(ValueError, match=r"found pageviews-20240501-000000\.gz twice"):
        sum_page_views([hour, write_hour(tmp_path / "other", NASTY)], tmp_path / "out", engine)
    with pytest.raises(ValueError, match=r"pageviews-20240501-user\.bz2 is no file \(1 of 2 are missing\)"):
        sum_page_views([hour, tmp_path / "other" / day.name], tmp_path / "out", engine)
    (tmp_path / "titles.txt").touch()
    with pytest.raises(ValueError, match=r"titles\.txt: is no page view file; need names as pageviews-20240501-130000\.gz"):
        sum_page_views([tmp_path / "titles.txt"], tmp_path / "out", engine)
    with pytest.raises(ValueError, match="found memory_gb 0"):
        sum_page_views([hour], tmp_path / "out", engine, memory_gb=0)
    with pytest.raises(ValueError, match="has no finished stage 'page views'"):
        read_titles(tmp_path, "en")
    sum_page_views([hour], tmp_path / "out", engine)
    with pytest.raises(ValueError, match=r"belongs to another run \(files"):
        sum_page_views([day], tmp_path / "out", engine)
    assert read_titles(tmp_path / "out", "fr") == []


def test_memory_that_is_too_small_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parts: the sums of page views failed \(.*[Mm]emory"):
        sum_page_views([write_hour(tmp_path, NASTY)], tmp_path / "out", LocalEngine(1, progress=False), memory_gb=1e-4)


def test_choice_of_titles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_views, "_ROW_GROUP", 4)
    data = b"".join(b"en T%02d %d 0\n" % (i, 100 - i) for i in range(50))
    out = sum_page_views([write_hour(tmp_path, data)], tmp_path / "out", LocalEngine(1, progress=False))
    titles = [(f"T{i:02}", 100 - i) for i in range(50)]
    assert read_titles(out, "en") == titles
    assert read_titles(out, "en", fraction=0.76) == titles[:38]
    assert read_titles(out, "en", fraction=0.76, most=7) == titles[:7]
    assert read_titles(out, "en", min_views=70) == titles[:31]
    assert read_titles(out, "en", most=0) == []


def test_drawn_days() -> None:
    files = hourly_files()
    assert len(files) == len(set(files)) == 40 * 24
    assert files == sorted(files)
    assert files[0].startswith("2018/2018-")
    assert all(file.split("/")[1] == f"{file[23:27]}-{file[27:29]}" for file in files)
    assert set(hourly_files(5)) < set(files)
    assert hourly_files(5, seed=1) != hourly_files(5)
    assert hourly_files(1, date(2024, 2, 29), date(2024, 2, 29))[23] == "2024/2024-02/pageviews-20240229-230000.gz"
    with pytest.raises(ValueError, match="found 3 days to draw from 2024-01-01 to 2024-01-02, need 1 to 2"):
        hourly_files(3, date(2024, 1, 1), date(2024, 1, 2))
