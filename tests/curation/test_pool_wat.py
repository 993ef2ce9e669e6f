"""The WAT reader against warcio and plain Python over the same file; links, hints, and every kind of damage."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from warcio.archiveiterator import ArchiveIterator

from mc2.curation import pool_wat
from mc2.curation.pool import pool_has_images, pool_shards, read_pairs
from mc2.records import DROP_REASONS, Pair
from tests.curation.wats import image, page, wat_members, write_wat


def read(path: Path) -> tuple[list[Pair], dict[str, int]]:
    drops: Counter[str] = Counter()
    pairs = list(read_pairs(path, drops, images=False))
    assert set(drops) <= set(DROP_REASONS)
    assert all(drops.values())
    return pairs, dict(drops)


def sha(url: str) -> str:
    return hashlib.sha224(url.encode()).hexdigest()[:24]


def one_page(tmp_path: Path, *args: Any, **settings: Any) -> tuple[list[Pair], dict[str, int]]:
    return read(write_wat(tmp_path / "0.warc.wat.gz", [page(*args, **settings)]))


# --- links --------------------------------------------------------------------------------------------------------------


def plain_pairs(path: Path) -> tuple[dict[str, tuple[str, tuple[str, ...]]], Counter[str]]:
    """key -> (URL, captions), and the drops, by warcio and lists."""
    pairs: dict[str, tuple[str, tuple[str, ...]]] = {}
    drops: Counter[str] = Counter()
    with open(path, "rb") as file:
        for record in ArchiveIterator(file):
            if record.rec_type != "metadata":
                continue
            envelope = json.loads(record.content_stream().read())["Envelope"]
            html = envelope["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
            base = urljoin(envelope["WARC-Header-Metadata"]["WARC-Target-URI"], html["Head"].get("Base", ""))
            links = [link for link in html["Links"] if link["path"].startswith("IMG@/src")]
            texts = [[link.get(name, "").replace("\n", " ").strip() for name in ("alt", "title", "data-image-title")] for link in links]
            found: dict[str, list[str]] = {}
            for link, text in zip(links, texts, strict=True):
                found.setdefault(link["url"], []).extend(t for t in text if t)
            here: dict[str, tuple[str, list[str]]] = {}
            for link_url, captions in found.items():
                url = urljoin(base, link_url) if link_url else ""
                if not captions:
                    drops["no_captions"] += 1
                elif urlsplit(url).scheme not in ("http", "https"):
                    drops["no_url"] += 1
                else:
                    here.setdefault(sha(url.replace(" ", "").replace("\t", "")), (url, []))[1].extend(captions)
            for key, (url, captions) in here.items():
                if key in pairs:
                    drops["duplicate_key"] += 1
                else:
                    pairs[key] = url, tuple(dict.fromkeys(captions))
    return pairs, +drops


@pytest.mark.parametrize("seed", range(6))
def test_against_warcio_and_plain_python(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    texts = ["ein Fuchs", " 狐\n ", "", "  ", "a\nb", "แมว", '"quoted" {braces}', "\\ \u2028 \x7f", "👩‍🚀"]
    urls = [
        "a.jpg", "/a.jpg", "../a.jpg?x=1", "//cdn.example.org/b c.jpg", "https://ex.org/a.jpg", "HTTP://EX.org/Q", "data:image/gif;base64,AA", "", "?q", "#f",
        "mailto:x", "ä.jpg", "./x/../a.jpg",
    ]  # fmt: skip
    records: list[Any] = []
    for i in range(60):
        names = ["alt", "title", "data-image-title", "width"]
        links = [
            {
                "path": rng.choice(["IMG@/src", "IMG@/src", "IMG@/srcset", "IMG@/longdesc", "A@/href"]),
                "url": rng.choice(urls),
                **{name: rng.choice(texts) for name in rng.sample(names, rng.randrange(4))},
            }
            for _ in range(rng.randrange(12))
        ]
        base = rng.choice(["", "", "/deep/", "https://base.example.net/x/"])
        records.append(page(f"https://www.site{i % 20}.de/dir/page.html", links, base=base))
    path = write_wat(tmp_path / "0.warc.wat.gz", records)
    pairs, drops = read(path)
    expected, expected_drops = plain_pairs(path)
    assert len(expected) > 30
    assert {pair.key: (pair.url, pair.captions) for pair in pairs} == expected
    assert [pair.key for pair in pairs] == list(expected)
    assert drops == expected_drops
    assert {pair.hint for pair in pairs} == {"und-DE"}
    assert {pair.image for pair in pairs} == {None}


@pytest.mark.parametrize("seed", range(20))
def test_links_are_resolved_as_by_urljoin(seed: int) -> None:
    rng = random.Random(seed)
    parts = ["/", "/", ".", "..", "a", "b.jpg", "?", "#", ";", ":", "//", "ü", "%20", "&", "=", "@", "\\", "c d"]
    for _ in range(500):
        base, link = (
            rng.choice(["https://ex.org:8080/x/y.html", "http://u@ex.org", "https://ex.org/?q#f"]),
            "".join(rng.choices(parts, k=rng.randrange(1, 8))),
        )
        expected = urljoin(base, link.strip()) if link.strip() else ""
        assert pool_wat.resolve(base, link) == (expected if expected.startswith("http") else "")


def test_the_id_is_that_of_the_recipe(tmp_path: Path) -> None:
    pairs, _ = one_page(tmp_path, "https://ex.org/", [image("a\t b.jpg", "text")])
    assert pairs[0].key == hashlib.sha224(b"https://ex.org/ab.jpg").hexdigest()[:24]


def test_an_image_on_one_page_and_on_the_next(tmp_path: Path) -> None:
    first = page("https://ex.org/1", [image("/a.jpg", "one", title="two"), image("https://ex.org/a.jpg", "three"), image("/a.jpg", "one")])
    second = page("https://ex.org/2", [image("/a.jpg", "four"), image("/b.jpg", "five")])
    pairs, drops = read(write_wat(tmp_path / "0.warc.wat.gz", [first, second]))
    assert [(pair.url, pair.captions) for pair in pairs] == [
        ("https://ex.org/a.jpg", ("one", "two", "three")),
        ("https://ex.org/b.jpg", ("five",)),
    ]
    assert drops == {"duplicate_key": 1}


def test_a_link_that_cannot_be_resolved_is_counted(tmp_path: Path) -> None:
    assert one_page(tmp_path, "https://ex.org/", [image("//[bad/a.jpg", "text")]) == ([], {"no_url": 1})
    assert one_page(tmp_path, "", [image("a.jpg", "text")]) == ([], {"no_url": 1})


# --- hints --------------------------------------------------------------------------------------------------------------

LANG, EQUIV = {"name": "HTML@/lang", "content": "pt_br"}, {"http-equiv": "Content-Language", "content": "fr"}


@pytest.mark.parametrize(
    ("url", "metas", "headers", "hint"),
    [
        ("https://www.ex.ch/", [EQUIV, LANG], {"Content-Language": "it"}, "pt-BR"),
        ("https://www.ex.ch/", [EQUIV], {"Content-Language": "it"}, "fr"),
        ("https://www.ex.ch/", [], {"content-language": "it"}, "it"),
        ("https://www.ex.ch/", [], {"Content-Language": "it, de"}, "und-CH"),  # several languages are none
        ("https://www.ex.ch/", [], {"Content-Language": ["it", "de"]}, "und-CH"),
        ("https://www.ex.ch/", [{"name": "HTML@/lang", "content": "{{ lang }}"}], {}, "und-CH"),
        ("https://www.ex.ch:8080/", [], {}, "und-CH"),
        ("https://www.ex.co.uk/", [], {}, "und-GB"),
        ("https://xn--e1afmkfd.xn--p1ai/", [], {}, "und-RU"),
        *((f"https://ex.{domain}/", [], {}, "") for domain in ("com", "org", "io", "tv", "ai", "co", "me", "eu", "zz")),
        ("https://127.0.0.1/", [], {}, ""),
        ("https://[::1]/", [], {}, ""),
        ("https://[bad/", [], {}, ""),
        ("https://ex.com/", [{"name": "HTML@/lang", "content": "jp"}], {}, "und-JP"),  # a common mistake
        ("https://ex.com/", [{"name": "HTML@/lang", "content": "und"}], {}, ""),
        ("https://ex.com/", [{"name": "HTML@/xml:lang", "content": "zh-hant-tw"}], {}, "zh-Hant-TW"),
    ],
)
def test_the_hint(tmp_path: Path, url: str, metas: list[dict[str, str]], headers: dict[str, Any], hint: str) -> None:
    pairs, _ = one_page(tmp_path, url, [image("https://ex.org/a.jpg", "text")], metas=metas, headers=headers)
    assert [pair.hint for pair in pairs] == [hint]


# --- damage -------------------------------------------------------------------------------------------------------------


def numbered(number: int) -> dict[str, Any]:
    """A page with an image and a record of about 1.5 KB compressed."""
    noise = random.Random(number).randbytes(1000).hex()
    return page(f"https://ex.org/{number}", [image(f"https://ex.org/{number}.jpg", f"caption {number}"), {"path": "A@/href", "url": noise}])


def numbers(pairs: list[Pair]) -> list[int]:
    return [int(pair.captions[0].removeprefix("caption ")) for pair in pairs]


@pytest.mark.parametrize(
    "data",
    [
        b'{"Envelope": {"Payload-Metadata"',  # cut off
        b'{"Container": {}}',  # no envelope
        b'{"Envelope": []}',
        b'{"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": [1]}}}}}',
        b'{"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": [{"path": "IMG@/src", "url": 1}]}}}}}',
        b"not JSON at all",
        b"",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"Envelope": {"WARC-Header-Metadata": {"WARC-Target-URI": "caf\xe9"}}}',
    ],
)
def test_broken_records_are_dropped_alone(tmp_path: Path, data: bytes) -> None:
    pairs, drops = read(write_wat(tmp_path / "0.warc.wat.gz", [numbered(0), data, numbered(1)]))
    assert numbers(pairs) == [0, 1]
    assert drops == {"broken_page": 1}


@pytest.mark.parametrize("places", [[2], [1], [4], [1, 3], [2, 3], [1, 2, 3, 4]])
@pytest.mark.parametrize("how", ["header", "body", "end", "removed"])
def test_a_damaged_member_is_dropped_alone(tmp_path: Path, places: list[int], how: str) -> None:
    members = [bytearray(member) for member in wat_members([numbered(i) for i in range(5)])]
    for place in places:
        member = members[place + 1]
        start = {"header": 0, "body": 400, "end": len(member) - 8, "removed": 10}[how]
        member[start : start + 8] = b"" if how == "removed" else bytes(byte ^ 0x55 for byte in member[start : start + 8])
    path = tmp_path / "0.warc.wat.gz"
    path.write_bytes(b"".join(members))
    pairs, drops = read(path)
    assert numbers(pairs) == [i for i in range(5) if i not in places]
    assert drops == {"damaged_wat": sum(place - 1 not in places for place in places)}


@pytest.mark.parametrize("garbage", [b"garbage", b"\0" * 5000, b"\x1f\x8b\x08" * 50, gzip.compress(b"no WARC record"), b"WARC/1.0\r\n"])
def test_garbage_between_records(tmp_path: Path, garbage: bytes) -> None:
    members = wat_members([numbered(i) for i in range(4)])
    path = tmp_path / "0.warc.wat.gz"
    path.write_bytes(b"".join(members[:3]) + garbage + b"".join(members[3:]))
    pairs, drops = read(path)
    assert numbers(pairs) == [0, 1, 2, 3]
    assert drops == {"damaged_wat": 1}


def test_a_file_cut_anywhere_gives_the_whole_records_and_says_so(tmp_path: Path) -> None:
    members = wat_members([numbered(i) for i in range(3)])
    whole, path = b"".join(members), tmp_path / "0.warc.wat.gz"
    ends = [sum(map(len, members[: i + 1])) for i in range(len(members))]
    for cut in [*range(1, len(whole), 97), *(end + step for end in ends for step in (-1, 0, 1))]:
        path.write_bytes(whole[:cut])
        pairs, drops = read(path)
        certain = sum(end <= cut for end in ends[1:])
        assert numbers(pairs) in (
            [*range(certain)],
            [*range(certain + (cut + 16 > ends[min(certain + 1, 3)]))],
        )  # the JSON may be whole without the trailer
        if not pairs:
            assert drops == {"unreadable_wat": 1}
        else:
            assert drops == ({} if cut in ends or cut > len(whole) else {"damaged_wat": 1})


@pytest.mark.parametrize("data", [b"", b"no WAT", gzip.compress(b"no WAT"), b"\x1f\x8b\x08", wat_members([])[0]])
def test_what_is_no_wat(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0.warc.wat.gz").write_bytes(data)
    assert read(tmp_path / "0.warc.wat.gz") == ([], {"unreadable_wat": 1})


def test_a_record_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_wat, "MAX_RECORD_BYTES", 100_000)
    bomb = page("https://ex.org/", [image("a.jpg", "x" * 200_000)])
    pairs, drops = read(write_wat(tmp_path / "0.warc.wat.gz", [numbered(0), bomb, numbered(1)]))
    assert numbers(pairs) == [0, 1]
    assert drops == {"broken_page": 1}


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "0.warc.wat.gz")


def test_one_gzip_member_for_the_whole_file(tmp_path: Path) -> None:
    members = wat_members([numbered(i) for i in range(3)])
    path = tmp_path / "0.warc.wat.gz"
    path.write_bytes(gzip.compress(b"".join(map(gzip.decompress, members))))
    assert numbers(read(path)[0]) == [0, 1, 2]
    assert not read(path)[1]


def test_a_pool_of_wats_is_text_only_and_names_what_is_missing(tmp_path: Path) -> None:
    write_wat(tmp_path / "0.warc.wat.gz", [numbered(0)])
    assert not pool_has_images(pool_shards(tmp_path))
    code = (
        "import sys; sys.modules['fastwarc'] = None; from collections import Counter; from pathlib import Path; from mc2.curation.pool import read_pairs\n"
        f"list(read_pairs(Path({str(tmp_path / '0.warc.wat.gz')!r}), Counter()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: WAT files are read with fastwarc" in done.stderr
    assert "pip install 'mc2[wat]'" in done.stderr
