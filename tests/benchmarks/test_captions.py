"""XM3600, XTD-10, XTD-200 and Flickr30k-200 in their official layouts: what they read, and their recalls against loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mc2.benchmarks import tasks
from mc2.benchmarks.tasks.captions import XM3600_LOCALES, XTD_LOCALES
from tests.benchmarks import layouts
from tests.benchmarks.slow_scores import counts, owners, retrieval_counts, scored, slow_recalls, values
from tests.benchmarks.toys import square


@pytest.mark.parametrize("locale", layouts.XM_LOCALES)
def test_xm3600_with_all_captions_and_with_the_first(tmp_path: Path, locale: str) -> None:
    task = tasks.XM3600(str(layouts.xm3600(tmp_path)), locales=list(layouts.XM_LOCALES))
    assert task.languages == ("de", "en", "tl", "qu")
    assert list(task.image_set.read(1, 3)) == [square(1), square(2)]
    code = {"fil": "tl", "quz": "qu"}.get(locale, locale)
    found, image, vector = scored(task, code)
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    captions = [line[locale]["caption"] if locale in line else [] for line in lines]
    for protocol, counted in (("all-captions", captions), ("first-caption", [own[:1] for own in captions])):
        assert values(found, protocol) == pytest.approx(slow_recalls(image, counted, vector))
        assert counts(found, protocol) == retrieval_counts(counted)
        clusters = found[protocol, "t2i_r1"].clusters
        assert clusters is not None
        assert clusters.tolist() == owners(counted)  # captions of one image are drawn together


def test_xm3600_has_36_locales() -> None:
    assert len(XM3600_LOCALES) == 36
    assert len(XTD_LOCALES) == 11


@pytest.mark.parametrize("as_in_repository", [False, True])
def test_xtd10_reads_both_layouts(tmp_path: Path, as_in_repository: bool) -> None:
    place = {"de": "MIC/", "fr": "MIC/", "jp": "STAIR/"} if as_in_repository else {}
    files = {key: f"{place.get(key, 'XTD10/' if as_in_repository else '')}test_1kcaptions_{key}.txt" for key in XTD_LOCALES}
    folder = layouts.xtd(tmp_path, files, "XTD10/test_image_names.txt" if as_in_repository else "test_image_names.txt")
    task = tasks.XTD10(str(folder))
    assert set(task.languages) == {"de", "en", "es", "fr", "it", "ja", "ko", "pl", "ru", "tr", "zh"}
    found, image, vector = scored(task, "ja")
    captions = [["jp 0"], ["jp 0"], ["jp 1"], ["jp 1"], ["jp 4"], ["jp 5"]]  # equal captions: the first is nearer
    assert values(found, "retrieval") == pytest.approx(slow_recalls(image, captions, vector))
    assert counts(found, "retrieval") == retrieval_counts(captions)


@pytest.mark.parametrize(("kind", "index_file"), [(tasks.XTD200, "test_image_names.txt"), (tasks.Flickr30k200, "filenames.txt")])
def test_201_languages_of_flores_have_codes_of_their_own(tmp_path: Path, kind: Any, index_file: str) -> None:
    flores = pytest.importorskip("clip_benchmark.datasets.flores_langs").flores_languages
    task = kind(str(layouts.xtd(tmp_path, {code: f"{code}.txt" for code in flores}, index_file)))
    assert len(set(task.languages)) == 201
    assert {"zh-Hans", "zh-Hant", "sw", "ar", "fa-AF", "acm"} <= set(task.languages)
    assert task.texts("zh-Hant") == tuple(f"zho_Hant {index}" for index in (0, 1, 4, 5))
    assert task.name == {tasks.XTD200: "xtd200", tasks.Flickr30k200: "flickr30k_200"}[kind]
    found, image, vector = scored(task, "sw")
    captions = [[f"swh_Latn {index // 2 if index < 4 else index}"] for index in range(6)]
    assert values(found, "retrieval") == pytest.approx(slow_recalls(image, captions, vector))
