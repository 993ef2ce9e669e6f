"""Which files belong to which Wikipedia, and the articles of all layouts; damage is never a smaller Wikipedia."""

from __future__ import annotations

import bz2
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mc2.metadata.articles import articles
from mc2.metadata.wikipedia import find_parts, stream_bounds
from tests.metadata.dumps import head, page, write_dump

TEXTS = {f"T{i}": [f"Das Haus {i} & mehr", "zweiter Satz"] for i in range(20)}


def read(path: str | Path, part_bytes: int = 1 << 26) -> dict[str, list[str]]:
    return {article.title: article.text.split() for part in find_parts([path], part_bytes) for article in articles(part)}


EXPECTED = {title: " ".join(sentences).split() for title, sentences in TEXTS.items()}


@pytest.mark.parametrize(
    ("name", "pages_per_stream"),
    [
        ("dewiki-20240501-pages-articles.xml.bz2", 0),
        ("dewiki-20240501-pages-articles.xml", 0),
        ("dewiki-latest-pages-articles-multistream.xml.bz2", 3),
        ("dewiki-20240501-pages-articles3.xml-p1p900.bz2", 0),
    ],
)
def test_dumps(tmp_path: Path, name: str, pages_per_stream: int) -> None:
    path = write_dump(tmp_path / name, "de", TEXTS, pages_per_stream)
    assert read(path) == read(tmp_path) == EXPECTED


def test_a_multistream_dump_is_read_in_parts(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "dewiki-20240501-pages-articles-multistream.xml.bz2", "de", TEXTS, 2)
    parts = find_parts([path], part_bytes=1000)
    assert len(parts) > 3
    assert [part.end for part in parts[:-1]] == [part.start for part in parts[1:]]
    assert (parts[0].start, parts[-1].end) == (0, path.stat().st_size)
    assert parts[1].name == f"de: {path.name} (2 of {len(parts)})"
    titles = [article.title for part in parts for article in articles(part)]
    assert titles == list(TEXTS)
    assert read(path, part_bytes=1000) == EXPECTED


def test_streams_that_do_not_begin_with_a_page_are_not_cut(tmp_path: Path) -> None:
    """pbzip2 writes streams of 900 kB, whatever is inside."""
    path = tmp_path / "dewiki-20240501-pages-articles.xml.bz2"
    text = (head("de") + "".join(page(i, f"T{i}", "x" * 100) for i in range(30)) + "</mediawiki>").encode()
    path.write_bytes(b"".join(bz2.compress(text[start : start + 1000]) for start in range(0, len(text), 1000)))
    assert stream_bounds(path, 100) == [0, path.stat().st_size]
    assert len(read(path)) == 30


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("form", ["doc", "json"])
def test_wikiextractor(tmp_path: Path, form: str, compressed: bool) -> None:
    for number, titles in enumerate((list(TEXTS)[:12], list(TEXTS)[12:])):
        lines = ""
        for i, title in enumerate(titles):
            text = "\n".join(TEXTS[title]).replace("&", "&amp;")
            if form == "doc":
                lines += f'<doc id="{i}" url="https://de.wikipedia.org/wiki?curid={i}" title="{title}">\n{title}\n\n{text}\n</doc>\n'
            else:
                lines += json.dumps({"id": str(i), "url": "", "title": title, "text": text}) + "\n"
        folder = tmp_path / "dewiki-20240501" / f"A{'AB'[number]}"
        folder.mkdir(parents=True)
        data = lines.encode()
        (folder / f"wiki_00{'.bz2' if compressed else ''}").write_bytes(bz2.compress(data) if compressed else data)
    assert len(find_parts([tmp_path])) == 2
    assert read(tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("folder", "code"), [("20231101.de", "de"), ("20231101.zh-min-nan", "zh_min_nan"), ("dewiki", "de"), ("simple", "simple")]
)
def test_parquet(tmp_path: Path, folder: str, code: str) -> None:
    (tmp_path / folder).mkdir()
    for number, titles in enumerate((list(TEXTS)[:7], list(TEXTS)[7:])):
        table = pa.table({"id": ["1"] * len(titles), "title": titles, "text": ["\n".join(TEXTS[title]) for title in titles]})
        pq.write_table(table, tmp_path / folder / f"train-0000{number}-of-00002.parquet")
    assert [part.code for part in find_parts([tmp_path])] == [code] * 2
    assert [part.code for part in find_parts([tmp_path / folder])] == [code] * 2
    assert read(tmp_path) == EXPECTED


def test_no_two_parts_have_the_same_name(tmp_path: Path) -> None:
    """Files of the same name in folders of the same name: a part is known by its name."""
    for folder in ("20231101.de/a/x", "20231101.de/b/x", "c/x", "d/x"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"text": [folder]}), tmp_path / folder / "0.parquet")
    parts = find_parts([tmp_path / "20231101.de", f"fr={tmp_path}/c/x", f"it={tmp_path}/d/x"])
    assert [part.name for part in parts] == [
        "de: 20231101.de/a/x/0.parquet",
        "de: 20231101.de/b/x/0.parquet",
        "fr: x/0.parquet",
        "it: x/0.parquet",
    ]


def test_a_build_inside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "dewiki-20240501-pages-articles.xml.bz2", "de", TEXTS)
    (tmp_path / "out" / "counts").mkdir(parents=True)
    (tmp_path / "out" / "inputs.json").write_text("{}")
    pq.write_table(pa.table({"word": ["a"]}), tmp_path / "out" / "counts" / "de.parquet")
    assert [part.paths for part in find_parts([tmp_path])] == [(path,)]


def test_the_language_may_be_given(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "my.xml.bz2", "de", TEXTS)
    assert read(f"de={path}") == EXPECTED
    pq.write_table(pa.table({"text": ["a b"]}), tmp_path / "x.parquet")
    assert read(f"zh-yue={tmp_path / 'x.parquet'}") == {"": ["a", "b"]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xxwiki-20240501-pages-articles.xml.bz2", "found the wiki 'xx', which is no Wikipedia that we know; need dumps named"),
        ("commonswiki-20240501-pages-articles.xml.bz2", "found the wiki 'commons', which is no Wikipedia"),
        ("dewiktionary-20240501-pages-articles.xml.bz2", "found the wiki 'dewiktionary', which is no Wikipedia"),
        ("train/a.parquet", r"train/a\.parquet: its language is not in its name .*de=PATH"),
        ("AA/wiki_00", r"AA/wiki_00: its language is not in its name"),
        ("notes.txt", "holds no text of a Wikipedia"),
    ],
)
def test_unknown_names(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=message):
            find_parts([path])


def test_what_would_count_twice_is_refused(tmp_path: Path) -> None:
    first = write_dump(tmp_path / "dewiki-20240501-pages-articles.xml.bz2", "de", TEXTS)
    with pytest.raises(ValueError, match="the same file twice"):
        find_parts([first, tmp_path])
    write_dump(tmp_path / "dewiki-20240501-pages-articles-multistream.xml.bz2", "de", TEXTS, 5)
    with pytest.raises(
        ValueError, match=r"found 'de' twice, .*pages-articles-multistream\.xml\.bz2 and .*pages-articles\.xml\.bz2; give one of them"
    ):
        find_parts([tmp_path])
    with pytest.raises(ValueError, match="missing: not found"):
        find_parts([tmp_path / "missing"])
    with pytest.raises(ValueError, match="found the wiki 'xx'"):
        find_parts(["xx=somewhere"])


def damaged(path: Path, part_bytes: int = 1 << 26) -> None:
    with pytest.raises(ValueError, match=rf"{path.name}: is damaged or cut off after .* articles .*nothing of it was counted"):
        read(path, part_bytes)


@pytest.mark.parametrize("pages_per_stream", [0, 2])
@pytest.mark.parametrize("part_bytes", [1000, 1 << 26])
def test_a_dump_that_is_cut_off_anywhere(tmp_path: Path, pages_per_stream: int, part_bytes: int) -> None:
    """Also between two streams, where bz2 sees nothing wrong."""
    path = write_dump(tmp_path / "dewiki-20240501-pages-articles-multistream.xml.bz2", "de", TEXTS, pages_per_stream)
    whole = path.read_bytes()
    starts = [i for i in range(1, len(whole)) if whole.startswith(b"BZh9", i)]
    for cut in (*starts, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        damaged(path, part_bytes)


def test_damage_in_the_middle(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "dewiki-20240501-pages-articles.xml.bz2", "de", TEXTS)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    damaged(path)
    for content in (b"", b"BZh9", b"<html>404</html>"):
        path.write_bytes(content)
        damaged(path)
    plain = write_dump(tmp_path / "frwiki-20240501-pages-articles.xml", "fr", TEXTS)
    plain.write_bytes(plain.read_bytes().replace(b"zweiter", b"\xff\xfe", 1))
    damaged(plain)


@pytest.mark.parametrize("content", [b'<doc id="1" url="" title="a">\nx\n', b"x\n", b'{"text": 1}\n', b'{"text": "a', b"\xff\xfe\n"])
def test_damaged_output_of_wikiextractor(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "de" / "AA").mkdir(parents=True)
    (tmp_path / "de" / "AA" / "wiki_00").write_bytes(content)
    with pytest.raises(ValueError, match=r"AA/wiki_00: is damaged or cut off after 0 articles"):
        read(tmp_path / "de")


def test_half_a_character_costs_no_article(tmp_path: Path) -> None:
    (tmp_path / "de" / "AA").mkdir(parents=True)
    (tmp_path / "de" / "AA" / "wiki_00").write_text('{"title": "x\\ud83d", "text": "Der Hund \\ud83d bellt."}\n')
    assert [tuple(article) for part in find_parts([tmp_path]) for article in articles(part)] == [("x?", "Der Hund ? bellt.")]


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "de.parquet"
    pq.write_table(pa.table({"text": [b"a"]}), path)
    with pytest.raises(ValueError, match=r"de\.parquet: found binary in the column text, need strings; write it again as text"):
        read(path)
    pq.write_table(pa.table({"text": pa.array(["a"]).dictionary_encode(), "title": pa.nulls(1)}), path)
    assert len(list(articles(find_parts([path])[0]))) == 1
    pq.write_table(pa.table({"words": ["a"]}), path)
    with pytest.raises(ValueError, match=r"de\.parquet: found the columns words, need one named text"):
        read(path)
    pq.write_table(pa.table({"text": ["abc"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-10])
    damaged(path)
