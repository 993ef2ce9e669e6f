"""Data sets that are incomplete or wrong: one line that names what, and where people get it; never a silently different mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from mc2 import languages
from mc2.benchmarks import tasks
from mc2.benchmarks.tasks.imagenet import read_labels, read_prompts
from tests.benchmarks import layouts
from tests.benchmarks.toys import square


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def xm3600(folder: Path) -> tasks.XM3600:
    return tasks.XM3600(str(folder), locales=list(layouts.XM_LOCALES))


def without_locale(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("quz")
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))


def xtd(folder: Path) -> tasks.XTD10:
    return tasks.XTD10(str(folder))


def write_xtd(folder: Path) -> Path:
    keys = ("en", "es", "it", "ko", "pl", "ru", "tr", "zh", "de", "fr", "jp")
    return layouts.xtd(folder, {key: f"test_1kcaptions_{key}.txt" for key in keys}, "test_image_names.txt")


def relabel(folder: Path, label: int) -> None:
    path = folder / "data/test-00000-of-00002.parquet"
    table = pq.read_table(path)
    column = table.column_names.index("Label")
    pq.write_table(table.set_column(column, "Label", [[label, 1]]), path)


def datacomp(folder: Path) -> tasks.DataComp:
    return tasks.DataComp(str(folder))


def write_datacomp(folder: Path) -> Path:
    return layouts.webdataset(folder, [0, 1, 2, 0], ["cat", "dog", "owl"])


def write_synsets(folder: Path) -> Path:
    return layouts.class_folder(folder / "val", layouts.SYNSETS[:3]).parent


def imagenet(folder: Path) -> tasks.ImageNet:
    return tasks.ImageNet(str(folder / "val"))


Case = tuple[Callable[[Path], object], Callable[[Path], object], Callable[[Path], object], str]
FIRST = "0" * 16
BROKEN: dict[str, Case] = {
    "no captions file": (
        layouts.xm3600,
        lambda f: (f / "captions.jsonl").unlink(),
        xm3600,
        r"captions\.jsonl: not found; captions\.jsonl .* come from https",
    ),
    "missing image": (
        layouts.xm3600,
        lambda f: (f / f"images/{FIRST}.jpg").unlink(),
        xm3600,
        f"1 of 9 images are not there, the first is '{FIRST}.jpg'; .*https",
    ),
    "missing locale": (layouts.xm3600, without_locale, xm3600, "has no caption in locale 'quz'; leave it out of `locales`"),
    "key twice": (layouts.xm3600, lambda f: edit(f / "captions.jsonl", f"{1:016x}", FIRST), xm3600, f"image/key '{FIRST}' occurs 2 times"),
    "cut line": (layouts.xm3600, lambda f: edit(f / "captions.jsonl", "]}}\n", "\n"), xm3600, r"captions\.jsonl:1: not JSON"),
    "caption is no list": (
        layouts.xm3600,
        lambda f: edit(f / "captions.jsonl", '"caption": ["en 0 0"', '"caption": "en", "x": ["en 0 0"'),
        xm3600,
        r"captions\.jsonl:1: locale 'en' is not",
    ),
    "line too few": (
        write_xtd,
        lambda f: edit(f / "test_1kcaptions_jp.txt", "jp 0\n", ""),
        xtd,
        r"_jp\.txt: found 5 captions for 6 images",
    ),
    "empty line": (write_xtd, lambda f: edit(f / "test_1kcaptions_ko.txt", "ko 1\n", "\n"), xtd, r"_ko\.txt:3: found no caption"),
    "no language file": (
        write_xtd,
        lambda f: (f / "test_1kcaptions_de.txt").unlink(),
        xtd,
        r"_de\.txt: not found; .*github\.com/adobe-research",
    ),
    "name twice": (write_xtd, lambda f: edit(f / "test_image_names.txt", "000001", "000000"), xtd, "000000.jpg' occurs 2 times"),
    "a flores file short": (
        lambda f: layouts.xtd(f, {"deu_Latn": "deu_Latn.txt"}, "filenames.txt"),
        lambda _: None,
        lambda f: tasks.Flickr30k200(str(f)),
        "found 1 files <flores code>.txt, need 201",
    ),
    "hidden labels": (
        layouts.cvqa,
        lambda f: relabel(f, -1),
        lambda f: tasks.CVQA(str(f)),
        "'0_0' has label -1, need 0 to 3; this release hides the labels",
    ),
    "label out of range": (layouts.cvqa, lambda f: relabel(f, 4), lambda f: tasks.CVQA(str(f)), "'0_0' has label 4, need 0 to 3"),
    "no questions": (layouts.cvqa, lambda f: shutil.rmtree(f / "data"), lambda f: tasks.CVQA(str(f)), "found no parquet file"),
    "no class folder": (write_synsets, lambda _: None, imagenet, "found images of 3 of 1000 classes, none of 'n01491361'; .*image-net"),
    "strange class folder": (write_synsets, lambda f: (f / "val" / "cats").mkdir(), imagenet, "folder 'cats' is no class"),
    "no folder": (write_synsets, lambda _: None, lambda f: tasks.ImageNet(str(f / "nothing")), "nothing: not found; .*image-net.org"),
    "class of Dollar Street": (
        layouts.dollar_street,
        lambda f: edit(f / "images_v2_imagenet_train.csv", "[1]", "[1000]"),
        lambda f: tasks.DollarStreet(str(f)),
        r"imagenet_sysnet_id '\[1000\]', need a list of 0 to 999",
    ),
    "income of Dollar Street": (
        layouts.dollar_street,
        lambda f: edit(f / "images_v2_imagenet_train.csv", "61.00", "unknown"),
        lambda f: tasks.DollarStreet(str(f)),
        "an income is no number",
    ),
    "column": (
        layouts.geode,
        lambda f: edit(f / "index.csv", "ip_country", "country"),
        lambda f: tasks.GeoDE(str(f)),
        r"index\.csv: has no column 'ip_country'; .*geodiverse",
    ),
    "path twice": (
        layouts.geode,
        lambda f: edit(f / "index.csv", "1_region/1.jpg", "0_region/0.jpg"),
        lambda f: tasks.GeoDE(str(f)),
        "occurs 2 times",
    ),
    "landmark": (
        lambda f: layouts.gldv2(f, True),
        lambda f: edit(f / "index_image_to_landmark.csv", "i4,11", "i4,12"),
        lambda f: tasks.GLDv2(str(f)),
        "query 'cc03' has an index image without a landmark or category",
    ),
    "label beyond the names": (
        write_datacomp,
        lambda f: edit(f / "classnames.txt", "owl\n", ""),
        datacomp,
        "image 's0000002' has label 2, need 0 to 1: there are 2 names",
    ),
    "prompt": (
        write_datacomp,
        lambda f: edit(f / "zeroshot_classification_templates.txt", "the {c}.", "the thing."),
        datacomp,
        "prompt 'the thing.' has 0 places for the name",
    ),
    "missing tar": (write_datacomp, lambda f: (f / "test/1.tar").unlink(), datacomp, r"test/1\.tar: not found"),
    "cut tar": (
        write_datacomp,
        lambda f: (f / "test/0.tar").write_bytes((f / "test/0.tar").read_bytes()[:700]),
        datacomp,
        r"test/0\.tar: (cut off inside|not a readable tar)",
    ),
    "no image in a sample": (
        write_datacomp,
        lambda f: layouts.write_tar(f / "test/1.tar", [("s9", {"cls": b"0"})]),
        datacomp,
        "sample 's9' has no image",
    ),
    "no label in a sample": (
        write_datacomp,
        lambda f: layouts.write_tar(f / "test/1.tar", [("s9", {"jpg": square(0), "cls": b"cat"})]),
        datacomp,
        "sample 's9' has no number as label",
    ),
    "sample twice": (
        write_datacomp,
        lambda f: layouts.write_tar(f / "test/1.tar", [("s0000000", {"jpg": square(0), "cls": b"0"})]),
        datacomp,
        r"'s0000000\.cls' occurs twice",
    ),
    "another type": (
        write_datacomp,
        lambda f: layouts.write_file(f / "dataset_type.txt", "retrieval"),
        datacomp,
        "for retrieval; use DataCompRetrieval",
    ),
    "no metadata": (lambda f: write_datacomp(f / "geode"), lambda _: None, lambda f: datacomp(f / "geode"), r"has no metadata \(\.npy\)"),
    "no pair": (lambda f: layouts.write_tar(f / "0.tar", []), lambda _: None, lambda f: tasks.HeldOutPairs(str(f)), "found 0 pairs"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_data_set_is_named_in_one_line(tmp_path: Path, case: str) -> None:
    write, spoil, read, message = BROKEN[case]
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


BABEL = {
    "class out of range": ({"DE": [[0, 1000], ["a", "b"]]}, "language 'DE' has class 1000, need whole numbers from 0 to 999"),
    "empty language": ({"DE": [[], []]}, "language 'DE' has no class"),
    "class twice": ({"DE": [[5, 5], ["a", "b"]]}, "language 'DE' has class 5 twice"),
    "lengths": ({"DE": [[5, 6], ["a"]]}, "language 'DE' is not"),
    "empty name": ({"DE": [[5], [" "]]}, "language 'DE' has an empty name"),
    "English in parts": ({"EN": [[5], ["a"]]}, "'EN' has 1 classes, need all 1000"),
    "nothing": ({}, "found no languages"),
}


@pytest.mark.parametrize("case", BABEL)
def test_labels_of_babel_imagenet_are_checked(tmp_path: Path, case: str) -> None:
    value, message = BABEL[case]
    with pytest.raises(ValueError, match=message):
        read_labels(layouts.write_file(tmp_path / "labels.json", json.dumps(value)))


def test_prompts_of_babel_imagenet_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="language 'DE': prompt 'ein Foto' has 0 places for the name"):
        read_prompts(layouts.write_file(tmp_path / "prompts.json", json.dumps({"DE": ["ein {}", "ein Foto"]})))


def test_what_slip_does_not_know_is_said(tmp_path: Path) -> None:
    labels = str(layouts.write_file(tmp_path / "labels.json", json.dumps({"pets": ["cat", "dog"]})))
    templates = str(layouts.write_file(tmp_path / "templates.json", json.dumps({"pets": ["a {}"]})))
    folder = str(layouts.class_folder(tmp_path / "pets", ["a", "b", "c"]))
    with pytest.raises(ValueError, match="found 3 class folders for 2 names"):
        tasks.Slip("pets", labels, templates, folder=folder)
    with pytest.raises(ValueError, match=r"has no list for 'dtd'; labels\.json"):
        tasks.Slip("dtd", labels, templates, folder=folder)
    with pytest.raises(ValueError, match="slip26_pets: found none of folder, file_list and torchvision"):
        tasks.Slip("pets", labels, templates)
    with pytest.raises(ValueError, match="list has no 'targets'; set label_attribute"):
        tasks.Slip("pets", labels, templates, torchvision=[])


def test_an_image_without_captions_in_a_locale_shows_in_the_number_of_samples(tmp_path: Path) -> None:
    task = xm3600(layouts.xm3600(tmp_path))
    counts = {
        code: next(
            s for s in task.score(code, torch.randn(9, 4), torch.randn(len(task.texts(code)), 4)) if s.metric == "i2t_r1"
        ).num_samples
        for code in task.languages
    }
    assert counts == {"de": 9, "en": 9, "tl": 8, "qu": 9}


def test_two_codes_of_one_language_stay_apart_or_are_refused() -> None:
    assert languages.distinct(["zho_Hans", "zho_Hant", "deu_Latn"]) == {"zho_Hans": "zh-Hans", "zho_Hant": "zh-Hant", "deu_Latn": "de"}
    with pytest.raises(ValueError, match="2 of the codes de, deu stand for 'de'"):
        languages.distinct(["de", "deu"])
