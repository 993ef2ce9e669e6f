"""ImageNet, v2 and Babel-ImageNet in their official layouts: what they read, and their scores against loops."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mc2 import languages
from mc2.benchmarks import tasks
from mc2.benchmarks.means import Drawn, task_results
from mc2.benchmarks.results import MEAN
from mc2.benchmarks.tasks import imagenet
from mc2.benchmarks.tasks.imagenet import babel_codes, english
from tests.benchmarks import layouts, published
from tests.benchmarks.slow_scores import DIM, Vector, scored, slow_classifier, slow_recall, unit


@pytest.fixture(scope="module")
def imagenet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layouts.class_folder(tmp_path_factory.mktemp("imagenet") / "val", layouts.SYNSETS)


def test_imagenet_is_scored_with_80_prompts_of_open_clip(imagenet_folder: Path) -> None:
    task = tasks.ImageNet(str(imagenet_folder))
    names, prompts = english()
    assert (len(names), len(prompts), len(task.texts("en"))) == (1000, 80, len({p.replace("{}", n) for n in names for p in prompts}))
    found, image, vector = scored(task, "en")
    classes = slow_classifier([[name] for name in names], prompts, vector)
    for k in (1, 5):
        score = found["classification", f"top{k}"]
        assert score.value == slow_recall(image, classes, [{index} for index in range(1000)], k)
        assert (score.num_samples, score.num_candidates) == (1000, 1000)


def test_imagenet_classes_are_those_of_torchvision_and_open_clip(imagenet_folder: Path) -> None:
    from torchvision.datasets import ImageFolder

    theirs = ImageFolder(str(imagenet_folder)).samples
    task = tasks.ImageNet(str(imagenet_folder))
    assert [
        (str(imagenet_folder / key), label) for key, (_, label) in zip(task.image_set.keys, task.label_pairs.tolist(), strict=True)
    ] == theirs
    templates = json.loads((clip_benchmark_data() / "en_zeroshot_classification_templates.json").read_text())["imagenet1k"]
    assert {prompt.replace("{}", "{c}") for prompt in english()[1]} == set(templates)


def test_imagenet_v2_is_in_the_order_of_numbers(tmp_path: Path) -> None:
    task = tasks.ImageNetV2(str(layouts.class_folder(tmp_path / "v2", [str(index) for index in range(1000)])))
    assert all(key.startswith(f"{label}/") for key, (_, label) in zip(task.image_set.keys, task.label_pairs.tolist(), strict=True))
    names, prompts = english()
    assert set(task.texts("en")) == {prompt.replace("{}", name) for name in names for prompt in prompts}


def clip_benchmark_data() -> Path:
    return Path(pytest.importorskip("clip_benchmark").__file__).parent / "datasets"


def test_babel_imagenet_scores_each_language_on_its_own_classes(imagenet_folder: Path) -> None:
    task = tasks.BabelImageNet(str(imagenet_folder))
    labels = json.loads((clip_benchmark_data() / "babel_imagenet.json").read_text())
    prompts = json.loads((clip_benchmark_data() / "nllb_dist13b_prompts.json").read_text())
    assert len(task.languages) == len(labels) == 93
    assert task.image_set.identity == tasks.ImageNet(str(imagenet_folder)).image_set.identity  # encoded once
    for code, key in (("sw", "SW"), ("br", "BR")):  # Breton has no prompts
        ids, names = labels[key]
        found, image, vector = scored(task, code)
        need = {"labels-93-languages": ["{}"]} | ({"prompts-90-languages": prompts[key]} if key in prompts else {})
        assert {protocol for protocol, _ in found} == set(need)
        for protocol, own in need.items():
            classes = slow_classifier([[name] for name in names], own, vector)
            score = found[protocol, "top1"]
            assert score.value == slow_recall(image[ids], classes, [{index} for index in range(len(ids))], 1)
            assert (score.num_samples, score.num_candidates) == (len(ids), len(ids))
            assert score.clusters is not None
            assert score.clusters.tolist() == ids  # so that the bootstrap draws the same images in all languages
    assert set(tasks.ImageNet(str(imagenet_folder)).texts("en")) <= set(task.texts("en"))


def test_all_298_codes_of_babel_imagenet_are_languages_and_none_twice() -> None:
    keys = published.BABEL_CODES.split()
    codes = babel_codes(keys)
    assert list(codes) == keys
    assert len(set(codes.values())) == len(keys) == 298
    known = {code for code in codes.values() if languages.canonical(code) and languages.name(code)}
    assert known == set(codes.values())
    other = {key: code for key, code in codes.items() if code != key.lower()}
    assert other == {
        "BAT_SMG": "sgs",
        "BE_X_OLD": "be-x-old",
        "FIU_VRO": "vro",
        "GMQ_BOT": "gmq-x-bot",
        "NDS_NL": "nds-x-nl",
        "NRM": "nrf",
        "ROA_RUP": "rup",
        "SIMPLE": "en-x-simple",
        "ZH_CLASSICAL": "lzh",
        "ZH_MIN_NAN": "nan",
        "ZH_YUE": "yue",
    }


def test_a_language_has_the_same_code_in_every_file() -> None:
    """clip-benchmark's file has KU alone, the authors' has KMR too: both are Kurdish, and "ku" must be the same row in both tables."""
    assert babel_codes(["KMR", "KU", "BHO", "BH", "BE_X_OLD", "BE"]) == {
        "KMR": "kmr",
        "KU": "ku",
        "BHO": "bho",
        "BH": "bh",
        "BE_X_OLD": "be-x-old",
        "BE": "be",
    }
    assert babel_codes(["KU"]) == {"KU": "ku"}
    with pytest.raises(ValueError, match="unknown language code 'qq'"):
        babel_codes(["DE", "QQ"])


def babel_files(folder: Path) -> tuple[Path, Path]:
    """The authors' two files in their layout: 298 languages with ten classes or more each (English all of them), 80 prompts for 90 of them."""
    codes, names = published.BABEL_CODES.split(), english()[0]
    labels = {
        code: [list(range(1000)), list(names)]
        if code == "EN"
        else [ids := sorted((index * 97 + number * 31) % 1000 for number in range(10 + index % 5)), [f"{code} {label}" for label in ids]]
        for index, code in enumerate(codes)
    }
    prompted = published.BABEL_IMAGENET.split()[::2]
    prompts = {code: [f"{code} prompt {number} {{}}" for number in range(80)] for code in prompted}
    files = folder / "babel_imagenet-298.json", folder / "nllb_dist13b_prompts.json"
    for path, value in zip(files, (labels, prompts), strict=True):
        layouts.write_file(path, json.dumps(value, indent=2))
    return files


VECTORS = np.random.default_rng(0).normal(size=(2**17, DIM))


def vector_of(text: str) -> Vector:
    """Random, by the text alone."""
    row: Vector = VECTORS[zlib.crc32(text.encode()) % len(VECTORS)]
    return row


def test_means_of_babel_imagenet_over_90_and_298_languages(imagenet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official layout of the large file; each mean again with loops over the two JSON files. (English with 4 of its prompts, for speed.)"""
    few = english()[0], english()[1][:4]
    monkeypatch.setattr(imagenet, "english", lambda: few)
    label_file, prompt_file = babel_files(tmp_path)
    task = tasks.BabelImageNet(str(imagenet_folder), str(label_file), str(prompt_file))
    labels, prompts = json.loads(label_file.read_text()), json.loads(prompt_file.read_text())
    assert len(task.languages) == 298
    image_ND = torch.randn(1000, DIM, generator=torch.Generator().manual_seed(0))
    scores: dict[str, list[Drawn]] = {}
    need: dict[str, list[float]] = {"labels-298-languages": [], "prompts-90-languages": []}
    for key, code in babel_codes(list(labels)).items():
        text_TD = torch.from_numpy(np.stack([vector_of(text) for text in task.texts(code)])).float()
        scores[code] = [Drawn(score, None) for score in task.score(code, image_ND, task.condense(code, text_TD))]
        ids, names = labels[key]
        images = unit(image_ND.double().numpy()[ids])
        right = [{index} for index in range(len(ids))]
        need["labels-298-languages"].append(slow_recall(images, unit(np.stack([vector_of(name) for name in names])), right, 1))
        if key in prompts:
            names, own = few if key == "EN" else (names, prompts[key])
            classes = slow_classifier([[name] for name in names], own, lambda text: unit(vector_of(text)))
            need["prompts-90-languages"].append(slow_recall(images, classes, right, 1))
    found = {row.protocol: row for row in task_results(task.name, scores, {}) if (row.language, row.metric) == (MEAN, "top1")}
    assert {protocol: len(values) for protocol, values in need.items()} == {"labels-298-languages": 298, "prompts-90-languages": 90}
    assert {protocol: row.value for protocol, row in found.items()} == {
        protocol: pytest.approx(np.mean(values)) for protocol, values in need.items()
    }
