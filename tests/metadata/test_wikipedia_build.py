"""From dumps of six Wikipedias all the way to metadata, beside an independent slow derivation; kills and reruns."""

from __future__ import annotations

import gzip
import importlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mc2 import languages
from mc2.cli import main
from mc2.engines.local import LocalEngine
from mc2.metadata.build import build_metadata
from mc2.metadata.entries import Metadata
from mc2.metadata.ngrams import count_part
from mc2.metadata.selection import Limits
from mc2.metadata.sources import wordfreq_languages
from mc2.metadata.unigrams import wordlist_codes
from mc2.metadata.wikipedia import find_parts
from tests.metadata.dumps import write_dump
from tests.metadata.test_selection import slow_bigrams

LIMITS = Limits(unigram_fraction=0.5, max_bigrams=40, english_min_count=3)
VOCABULARIES = {
    "de": "Das Haus am See ist schön und alt aber Der Fuchs läuft durch Wald Stadt Berlin München",
    "en": "The house by a lake is old and New York has many museums but few foxes",
    "fi": "Talo järven rannalla on vanha ja kaunis kettu juoksee metsän läpi",
    "th": "กรุงเทพมหานคร เมืองหลวง ประเทศไทย แม่น้ำ ภาษาไทย โรงเรียน",
    "ja": "東京 日本 首都 大学 図書館 京都",
    "zh": "北京 大学 中国 上海 学生 图书馆",
}
SPACED = {"de", "en", "fi"}


def sentences(code: str, seed: int, number: int) -> list[str]:
    rng = random.Random(f"{code} {seed}")
    vocabulary = VOCABULARIES[code].split()
    joint, end = (" ", ".") if code in SPACED else ("", {"th": " ฯลฯ ", "ja": "。", "zh": "。"}[code])
    return [joint.join(vocabulary[int(rng.random() ** 2 * len(vocabulary))] for _ in range(6)) + end for _ in range(number)]


TITLES = {"A": 40, "B": 20, "C": 18, "D": 17, "E": 1}  # views of an hour and domain: four times as many in all
TEXTS = {code: {f"T{i}": sentences(code, i, 3) for i in range(25)} for code in VOCABULARIES}


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dumps")
    for number, (code, texts) in enumerate(TEXTS.items()):
        multistream = number % 2 == 0
        name = f"{code}wiki-20240501-pages-articles{'-multistream' if multistream else ''}.xml.bz2"
        write_dump(folder / name, code, texts, 5 if multistream else 0)
    write_dump(folder / "arywiki-20240501-pages-articles.xml.bz2", "ary", {"x": ["abc"]})
    return folder


@pytest.fixture(scope="module")
def page_views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hours of views: "domain title views size"; a mobile domain counts with the desktop one, titles with ":" are dropped."""
    folder = tmp_path_factory.mktemp("views")
    lines = [
        f"{domain} {title}_{code} {views} 0"
        for code in ("de", "en", "th")
        for domain in (code, f"{code}.m")
        for title, views in TITLES.items()
    ]
    for hour in ("13", "14"):
        with gzip.open(folder / f"pageviews-20240501-{hour}0000.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join([*lines, "de Spezial:Suche 900 0", "commons.m Main_Page 900 0"]) + "\n")
    return folder


@pytest.fixture(scope="module")
def wordnets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wordnets")
    (folder / "wn-data-deu.tab").write_text("# x\n00001740-n\tlemma\tSee\n00001741-n\tdeu:lemma\tGroßer_Fuchs\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def built(dumps: Path, page_views: Path, wordnets: Path, tmp_path_factory: pytest.TempPathFactory) -> Metadata:
    out = tmp_path_factory.mktemp("whole") / "out"
    return build_metadata(
        out,
        ["is"],
        wikipedia=[dumps],
        page_views=[page_views],
        wordnet=wordnets,
        limits=LIMITS,
        engine=LocalEngine(1, False),
        progress=False,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def by_source(metadata: Metadata, code: str) -> dict[str, set[str]]:
    import pyarrow.parquet as pq

    sources = pq.read_table(metadata.folder / f"{code}.sources.parquet")["source"].to_pylist()
    found: dict[str, set[str]] = {}
    for entry, source in zip(metadata.entries(code), sources, strict=True):
        found.setdefault(source, set()).add(entry)
    return found


def slow_words(code: str) -> list[list[str]]:
    """Words of the sentences, without anything of ours: white space, or the segmenter's own function."""
    jieba: Any = importlib.import_module("jieba")

    jieba.setLogLevel(60)
    texts = [sentence.rstrip(".。") for article in TEXTS[code].values() for sentence in article]
    return [text.split() if code in SPACED else list(jieba.cut(text)) for text in texts]


@pytest.mark.parametrize("code", ["de", "en", "zh"])
def test_against_a_slow_derivation(built: Metadata, code: str) -> None:
    texts = slow_words(code)
    words = Counter(word for text in texts for word in text)
    pairs = Counter(pair for text in texts for pair in itertools.pairwise(text))
    ranked = sorted(words, key=lambda word: (-words[word], word))
    unigrams = [word for word in ranked if words[word] >= 3] if code == "en" else ranked[: round(0.5 * len(ranked))]
    bigrams = [
        pair.replace(" ", "" if code not in SPACED else " ") for pair in slow_bigrams(words, pairs, code == "en", "weighted", 30, 40)
    ]
    found = by_source(built, code)
    assert found["numbers"] == {str(number) for number in range(100)}
    lemmas = {"See", "Großer Fuchs"} if code == "de" else set()
    assert found.get("wordnet", set()) == lemmas
    assert found["unigrams"] == set(unigrams) - lemmas
    assert found.get("bigrams", set()) == set(bigrams) - set(unigrams)
    titles = {"de": ["A de", "B de", "C de", "D de"], "en": ["A en", "B en", "C en"], "zh": []}[code]  # 76 % of five; 70 views in English
    assert found.get("titles", set()) == set(titles)
    assert len(unigrams) > 5
    assert len(bigrams) > 5 or code == "en"


def test_all_languages_have_words_and_nothing_that_is_no_prose(built: Metadata) -> None:
    assert sorted(built.sha256) == sorted([*TEXTS, "is"])
    for code in TEXTS:
        assert not [entry for entry in built.entries(code) if "NOPROSE" in entry or "REDIRECT" in entry]
    assert {"เมืองหลวง", "ประเทศไทย"} <= set(built.entries("th"))
    assert {"日本", "東京"} <= set(built.entries("ja"))


def test_the_manifest_says_what_each_language_came_from(built: Metadata, dumps: Path, page_views: Path) -> None:
    from mc2 import storage

    manifest = storage.read_json(built.folder / "manifest.json")
    german = manifest["languages"]["de"]["wikipedia"]
    name = "dewiki-20240501-pages-articles-multistream.xml.bz2"
    assert german["files"] == [{"name": name, "bytes": (dumps / name).stat().st_size}]
    assert (german["articles"], german["words"]) == (25, 25 * 3 * 6)
    assert re.fullmatch(r"jieba [\d.]+", manifest["languages"]["zh"]["wikipedia"]["segmenters"]["zh"])
    assert manifest["inputs"]["skipped"] == ["ary"]
    views = [{"name": path.name, "bytes": path.stat().st_size} for path in sorted(page_views.iterdir())]
    assert manifest["inputs"]["files"]["page_views"] == views
    assert manifest["inputs"]["files"]["wordnet"][0]["name"] == "wn-data-deu.tab"
    assert "wikipedia" not in manifest["languages"]["is"]
    assert manifest["languages"]["is"]["sources"]["unigrams"] > 1000


def test_the_same_bytes_with_more_workers_and_other_parts(
    built: Metadata, dumps: Path, page_views: Path, wordnets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"wikipedia": [dumps], "page_views": [page_views], "wordnet": wordnets, "limits": LIMITS, "progress": False}
    two = build_metadata(tmp_path / "two", ["is"], engine=LocalEngine(2, False), **arguments)
    assert files(two.folder) == files(built.folder)
    monkeypatch.setattr("mc2.metadata.wikipedia.find_parts.__defaults__", (500,))
    cut = build_metadata(tmp_path / "cut", ["is"], engine=LocalEngine(1, False), **arguments)
    assert len(list((cut.folder / "counts").glob("*.words.parquet"))) > len(list((two.folder / "counts").glob("*.words.parquet")))
    assert cut.sha256 == built.sha256


def test_counts_are_used_again_with_other_limits(built: Metadata, dumps: Path, tmp_path: Path) -> None:
    counts = built.folder / "counts"
    before = {path: path.stat().st_mtime_ns for path in counts.glob("*.parquet")}
    fewer = build_metadata(
        tmp_path, [], wikipedia=[dumps], limits=Limits(max_unigrams=1), counts=counts, engine=LocalEngine(1, False), progress=False
    )
    assert {path: path.stat().st_mtime_ns for path in counts.glob("*.parquet")} == before
    assert len(by_source(fewer, "de")["unigrams"]) == 1


def test_wordfreq_serves_the_languages_without_a_wikipedia(dumps: Path, tmp_path: Path) -> None:
    with_wikipedia = ["fi", "de"]
    assert wordfreq_languages(None, "small", with_wikipedia) == sorted(set(wordlist_codes("small")) - set(with_wikipedia))
    (finnish,) = dumps.glob("fiwiki*")
    both = build_metadata(tmp_path, ["is", "fi"], wikipedia=[finnish], engine=LocalEngine(1, False), progress=False)
    assert both.num_entries["fi"] > 10_000
    assert by_source(both, "fi")["bigrams"]


def test_a_damaged_dump_is_named_and_the_others_are_counted(dumps: Path, tmp_path: Path) -> None:
    for path in dumps.glob("[df][ei]wiki*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = next(tmp_path.glob("fiwiki*"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-20])
    arguments = {"wikipedia": [tmp_path], "engine": LocalEngine(1, False), "progress": False}
    with pytest.raises(
        ValueError, match=r"count: 1 of \d+ failed \(fi: .*fiwiki.*the others are done\); first error: .*fiwiki.* is damaged or cut off"
    ):
        build_metadata(tmp_path / "out", [], **arguments)  # type: ignore[arg-type]
    assert len(list((tmp_path / "out" / "counts").glob("*.words.parquet"))) == 1
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_killed_and_run_again_gives_the_same_bytes(dumps: Path, tmp_path: Path) -> None:
    """kill -9 at several moments: while counting, while writing languages."""
    spaced = [str(path) for code in sorted(SPACED) for path in dumps.glob(f"{code}wiki*")]
    whole = build_metadata(tmp_path / "whole", ["is"], wikipedia=spaced, engine=LocalEngine(1, False), progress=False)
    command = [sys.executable, "-m", "mc2", "metadata", "build", f"--out={tmp_path}/out", f"--wikipedia={json.dumps(spaced)}"]
    command += ["--unigram_languages=[is]", "--workers=1"]
    for count in (1, 4, 8):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len(list((tmp_path / "out").rglob("*.parquet"))) < count:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out" / "done.json").exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert files(tmp_path / "out") == files(whole.folder)


def test_two_builds_count_into_one_folder_at_once(dumps: Path, tmp_path: Path) -> None:
    (dump,) = dumps.glob("fiwiki*")
    (part,) = find_parts([dump])
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(count_part, part, "mark", tmp_path, "simple") for _ in range(2)]
        assert [job.result(60) for job in jobs] == [count_part(part, "mark", tmp_path, "simple")] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "mark.json", "mark.pairs.parquet", "mark.words.parquet"]


def test_languages_that_another_model_knows(dumps: Path, tmp_path: Path) -> None:
    (dump,) = dumps.glob("arywiki*")
    arguments: dict[str, Any] = {"wikipedia": [dump], "engine": LocalEngine(1, False), "progress": False}
    with pytest.raises(
        ValueError, match=r"^metadata: found no source of entries \(Wikipedias of languages .* does not know: ary\); give Wikipedias"
    ):
        build_metadata(tmp_path / "none", [], **arguments)
    more = build_metadata(tmp_path / "more", [], more_languages=["ary"], limits=Limits(unigram_fraction=1), **arguments)
    assert by_source(more, "ary")["unigrams"] == {"abc"}
    with pytest.raises(ValueError, match=r"belongs to another run .*more_languages"):
        build_metadata(tmp_path / "more", ["is"], **arguments)


def test_a_damaged_dump_is_mended_and_the_others_are_not_counted_again(dumps: Path, tmp_path: Path) -> None:
    own, out = tmp_path / "dumps", tmp_path / "out"
    own.mkdir()
    (good,), (bad,) = dumps.glob("fiwiki*"), dumps.glob("dewiki*")
    shutil.copy(good, own)
    (own / bad.name).write_bytes(bad.read_bytes()[:300])
    arguments: dict[str, Any] = {"wikipedia": [own], "engine": LocalEngine(1, False), "progress": False}
    with pytest.raises(ValueError, match=r"dewiki.*is damaged or cut off .*mend that and run the same line again"):
        build_metadata(out, [], **arguments)
    (done,) = out.glob("counts/*.words.parquet")
    before = done.stat().st_mtime_ns
    shutil.copy(bad, own)
    mended = build_metadata(out, [], **arguments)
    assert done.stat().st_mtime_ns == before
    assert mended.fingerprint == build_metadata(tmp_path / "whole", [], **arguments).fingerprint


def test_languages_to_name_for_skipped_wikipedias() -> None:
    found = {code: languages.language_to_know(code) for code in ("ary", "bat_smg", "fiu_vro", "nrm", "map_bms", "simple")}
    assert found == {"ary": "ary", "bat_smg": "sgs", "fiu_vro": "vro", "nrm": "nrf", "map_bms": None, "simple": None}
    for code in languages.WIKIPEDIAS:
        if more := languages.language_to_know(code):
            assert languages.wikipedia_language(code, {more}) == languages.metadata_code(more), code


def test_titles_that_are_no_text(tmp_path: Path) -> None:
    for strange in ("\ud800", 3):
        with pytest.raises(ValueError, match=r"^metadata: found .* among the titles of 'de', need text$"):
            build_metadata(tmp_path, [], {"de": ["x", strange]}, progress=False)  # type: ignore[list-item]


def test_a_dump_without_an_article_is_refused(tmp_path: Path) -> None:
    write_dump(tmp_path / "fiwiki-20240501-pages-articles.xml.bz2", "fi", {})
    with pytest.raises(ValueError, match=r"^metadata: found no article in the Wikipedia of fi; need \*-pages-articles"):
        build_metadata(tmp_path / "out", [], wikipedia=[tmp_path], engine=LocalEngine(1, False), progress=False)


def test_the_command(dumps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    paths = [str(path) for path in dumps.glob("[fa][ir]*wiki*")]
    arguments = ["metadata", "build", "--out", out, "--unigram_languages=[]", "--workers=1", "--progress=false"]
    assert main([*arguments, f"--wikipedia={json.dumps(paths)}"]) == 0
    output = capsys.readouterr().out
    assert "entries in 1 languages" in output
    assert (
        "skipped Wikipedias whose language lid.176 does not know: ary\ngive those that your model knows: --more_languages '[ary]'\n"
        in output
    )
    assert main([*arguments, f"--wikipedia={tmp_path}/nothing"]) == 1
    captured = capsys.readouterr().err
    assert "nothing: not found; need dumps named as" in captured
    assert captured.count("\n") == 1
