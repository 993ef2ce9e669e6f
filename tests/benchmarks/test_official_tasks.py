"""Every task in its official layout: what it reads, and its scores against slow versions written from the protocol's text, or the reference's own code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc2.benchmarks import tasks
from mc2.benchmarks.results import Score
from mc2.benchmarks.tasks import PREDICTIONS_SCHEMA, Task
from mc2.benchmarks.tasks.captions import XM3600_LOCALES, XTD_LOCALES
from mc2.benchmarks.tasks.imagenet import english
from mc2.data.tokenizer import train_tokenizer
from tests.benchmarks import layouts
from tests.benchmarks.toys import square

DIM = 12
Vector = NDArray[np.float64]


def embeddings(task: Task, language: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images and texts, not of unit length."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(len(task.image_set.keys), DIM, generator=generator),
        3 * torch.randn(len(task.texts(language)), DIM, generator=generator),
    )


def scored(task: Task, language: str) -> tuple[dict[tuple[str, str], Score], Vector, Callable[[str], Vector]]:
    """(scores by protocol and metric, unit images, unit vector of a text). Also checks what holds for all tasks."""
    assert len(set(task.texts(language))) == len(task.texts(language))
    assert len(list(task.image_set.read(0, 2))) == 2
    image, text = embeddings(task, language)
    condensed = task.condense(language, text)
    scores = task.score(language, image, condensed)
    for score in scores:
        if score.outcomes is not None:
            assert len(score.outcomes) == score.num_samples
            assert score.clusters is None or len(score.clusters) == score.num_samples
            if score.strata is None:
                assert score.value == pytest.approx(float(score.outcomes.mean()))
    assert task.predictions(language, image, condensed, 2).schema == PREDICTIONS_SCHEMA
    by_name = {(score.protocol, score.metric): score for score in scores}
    assert len(by_name) == len(scores)
    rows = dict(zip(task.texts(language), unit(text.double().numpy()), strict=True))
    return by_name, unit(image.double().numpy()), rows.__getitem__


def unit(vectors: Vector) -> Vector:
    scaled: Vector = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


def slow_classifier(names: Sequence[Sequence[str]], prompts: Sequence[str], vector: Callable[[str], Vector]) -> Vector:
    """Normalise each embedding, mean over prompts and synonyms, normalise."""
    return np.stack([unit(np.mean([vector(p.replace("{}", name)) for name in own for p in prompts], axis=0)) for own in names])


def slow_hits(images: Vector, classes: Vector, right: Sequence[set[int]], k: int) -> NDArray[np.bool_]:
    """Whether one of the right classes is among the k with the highest cosine, image by image."""
    return np.array(
        [bool(set(np.argsort(-(classes @ image), kind="stable")[:k].tolist()) & own) for image, own in zip(images, right, strict=True)]
    )


def slow_recall(queries: Vector, candidates: Vector, positives: Sequence[set[int]], k: int) -> float:
    return float(slow_hits(queries, candidates, positives, k).mean())


# --- ImageNet -----------------------------------------------------------------------------------------------------------


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
    assert task.texts("en") is not None


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


def test_codes_of_babel_imagenet_are_languages_and_none_twice() -> None:
    from mc2 import languages
    from mc2.benchmarks.tasks.imagenet import babel_codes

    keys = [
        "FR",
        "ZH",
        "ZH_YUE",
        "ZH_CLASSICAL",
        "ZH_MIN_NAN",
        "EN",
        "SIMPLE",
        "BE",
        "BE_X_OLD",
        "ALS",
        "BAT_SMG",
        "GMQ_BOT",
        "SH",
        "NO",
        "NN",
        "ROA_TARA",
    ]
    codes = babel_codes(keys)
    assert list(codes) == keys
    assert len(set(codes.values())) == len(keys)
    assert [codes[key] for key in ("FR", "ZH_YUE", "ZH_CLASSICAL", "BE_X_OLD", "SIMPLE", "ALS")] == [
        "fr",
        "yue",
        "lzh",
        "be-x-old",
        "en-x-simple",
        "als",
    ]
    assert all(languages.name(code) for code in codes.values())


# --- captions -----------------------------------------------------------------------------------------------------------


def check_retrieval(
    found: Mapping[tuple[str, str], Score], protocol: str, image: Vector, captions: Sequence[Sequence[str]], vector: Callable[[str], Vector]
) -> None:
    """R@k from the protocol's text: per caption, is the nearest image its own; per image, does the nearest caption belong to it."""
    owner = [index for index, own in enumerate(captions) for _ in own]
    text = np.stack([vector(caption) for own in captions for caption in own])
    asking = sorted(set(owner))
    own_captions = [{number for number, index in enumerate(owner) if index == asked} for asked in asking]
    for k in (1, 5, 10):
        to_image, to_text = found[protocol, f"t2i_r{k}"], found[protocol, f"i2t_r{k}"]
        assert to_image.value == pytest.approx(slow_recall(text, image, [{index} for index in owner], k))
        assert to_text.value == pytest.approx(slow_recall(image[asking], text, own_captions, k))
        assert (to_image.num_samples, to_image.num_candidates) == (len(owner), len(image))
        assert (to_text.num_samples, to_text.num_candidates) == (len(asking), len(owner))
        assert to_image.clusters is not None
        assert to_image.clusters.tolist() == owner


@pytest.mark.parametrize("locale", layouts.XM_LOCALES)
def test_xm3600_with_all_captions_and_with_the_first(tmp_path: Path, locale: str) -> None:
    task = tasks.XM3600(str(layouts.xm3600(tmp_path)), locales=list(layouts.XM_LOCALES))
    assert task.languages == ("de", "en", "tl", "qu")
    assert list(task.image_set.read(1, 3)) == [square(1), square(2)]
    code = {"fil": "tl", "quz": "qu"}.get(locale, locale)
    found, image, vector = scored(task, code)
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    captions = [line[locale]["caption"] if locale in line else [] for line in lines]
    check_retrieval(found, "all-captions", image, captions, vector)
    check_retrieval(found, "first-caption", image, [own[:1] for own in captions], vector)


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
    check_retrieval(
        found, "retrieval", image, [["jp 0"], ["jp 0"], ["jp 1"], ["jp 1"], ["jp 4"], ["jp 5"]], vector
    )  # equal captions: the first is nearer


@pytest.mark.parametrize(("kind", "index_file"), [(tasks.XTD200, "test_image_names.txt"), (tasks.Flickr30k200, "filenames.txt")])
def test_201_languages_of_flores_have_codes_of_their_own(tmp_path: Path, kind: Any, index_file: str) -> None:
    flores = pytest.importorskip("clip_benchmark.datasets.flores_langs").flores_languages
    task = kind(str(layouts.xtd(tmp_path, {code: f"{code}.txt" for code in flores}, index_file)))
    assert len(set(task.languages)) == 201
    assert {"zh-Hans", "zh-Hant", "sw", "ar", "fa-AF", "acm"} <= set(task.languages)
    assert task.texts("zh-Hant") == tuple(f"zho_Hant {index}" for index in (0, 1, 4, 5))
    scored(task, "sw")


# --- CVQA ---------------------------------------------------------------------------------------------------------------


def test_cvqa_takes_the_nearest_of_four_options(tmp_path: Path) -> None:
    task = tasks.CVQA(str(layouts.cvqa(tmp_path)))
    assert list(task.image_set.read(1, 4)) == [square(1), square(2), square(3)]
    found, image, vector = scored(task, "mul")
    for protocol, question, answer in (("en", "question", "answer"), ("local", "swali", "jibu")):
        right = [
            int(np.argmax([image[index] @ vector(f"{question} {index}? {answer} {number}") for number in range(4)])) == index % 4
            for index in range(5)
        ]
        assert found[protocol, "top1"].value == np.mean(right)
        assert found[protocol, "top1[subset=Swahili-Kenya]"].value == pytest.approx(np.mean(right[:3]))
        assert found[protocol, "top1[subset=Japanese-Japan]"].value == np.mean(right[3:])
        assert found[protocol, "top1"].num_candidates == 4


def test_cvqa_counts_questions_whose_options_do_not_fit_the_context(tmp_path: Path) -> None:
    layouts.cvqa(tmp_path)
    words = train_tokenizer(tasks.CVQA(str(tmp_path)).texts("mul"), tmp_path / "words", vocab_size=320)
    lengths = {text: words([text]).shape[1] for text in tasks.CVQA(str(tmp_path)).texts("mul")}  # with bos and eos
    context = sorted(lengths.values())[len(lengths) // 2]
    task = tasks.CVQA(str(tmp_path), tokenizer=str(tmp_path / "words"), context_length=context)
    found, _, _ = scored(task, "mul")
    need = [any(lengths[f"question {index}? answer {number}"] > context for number in range(4)) for index in range(5)]
    assert found["en", "options_cut"].value == pytest.approx(np.mean(need))
    assert {found[protocol, "options_cut"].value for protocol in ("en", "local")} != {0.0}


# --- objects and places -------------------------------------------------------------------------------------------------


def test_dollar_street_is_right_with_any_of_the_classes_and_counts_an_image_once(tmp_path: Path) -> None:
    task = tasks.DollarStreet(str(layouts.dollar_street(tmp_path)))
    assert len(task.image_set.keys) == 16  # 10 + 7 rows, one image in both
    found, image, vector = scored(task, "en")
    classes = slow_classifier([[name] for name in english()[0]], english()[1], vector)
    right = [{index % 5} | (set() if index % 4 else {900}) for index in range(16)]
    for k in (1, 5):
        hits = slow_hits(image, classes, right, k)
        assert found["classification", f"top{k}"].value == pytest.approx(hits.mean())
        assert found["classification", f"top{k}[region=af]"].value == pytest.approx(hits[::3].mean())
        assert found["classification", f"top{k}[income=Q1]"].value == pytest.approx(hits[:4].mean())  # incomes rise with the number
    assert len(tasks.DollarStreet(str(tmp_path), splits=["test"]).image_set.keys) == 7


def test_geode_has_the_names_of_its_objects(tmp_path: Path) -> None:
    task = tasks.GeoDE(str(layouts.geode(tmp_path)))
    found, image, vector = scored(task, "en")
    classes = slow_classifier([["bag"], ["hand soap"], ["hat"]], english()[1], vector)
    hits = slow_hits(image, classes, [{(1, 0, 2)[index % 3]} for index in range(12)], 1)
    assert found["classification", "top1"].value == pytest.approx(hits.mean())
    assert found["classification", "top1[region=Africa]"].value == pytest.approx(hits[::2].mean())


@pytest.mark.parametrize("flat", [False, True])
def test_gldv2_labels_a_query_with_the_majority_of_its_index_images(tmp_path: Path, flat: bool) -> None:
    task = tasks.GLDv2(str(layouts.gldv2(tmp_path, flat)))
    assert task.texts("en") == ("Bridge", "Happy Valley Racecourse")  # no prompt; what no query shows is no candidate
    assert task.label_pairs[:, 1].tolist() == [1, 0, 0]
    found, image, vector = scored(task, "en")
    classes = np.stack([vector("Bridge"), vector("Happy Valley Racecourse")])
    assert found["classification", "top1"].value == slow_recall(image, classes, [{1}, {0}, {0}], 1)


@pytest.mark.parametrize("kind", ["dollar_street", "geode"])
def test_geolocation_learns_countries_from_a_few_images(tmp_path: Path, kind: str) -> None:
    task: Task
    if kind == "dollar_street":
        layouts.dollar_street(tmp_path, num_images=200)
        task = tasks.DollarStreetGeolocation(str(tmp_path))
    else:
        task = tasks.GeoDEGeolocation(str(layouts.geode(tmp_path, num_images=120)), num_training=60)
    scored(task, "zxx")
    image = torch.randn(len(task.image_set.keys), DIM, generator=torch.Generator().manual_seed(0))
    place = torch.from_numpy(task.label_N)
    image[torch.arange(len(place)), place] += 9.0  # the country is plain to see
    found = {score.protocol: score for score in task.score("zxx", image, torch.empty(0, DIM))}
    assert found["few-shot-10"].value > 0.9
    assert found["few-shot-5"].num_samples == (191 if kind == "dollar_street" else 60)
    shots = task.shots
    assert set(shots[5]) <= set(shots[10])
    assert not set(shots[25]) & set(task.test)
    most = 3 if kind == "dollar_street" else 5  # there are 9 training images of three countries
    assert np.bincount(task.label_N[shots[5]]).max() == most


def test_held_out_pairs_give_alignment_and_uniformity(tmp_path: Path) -> None:
    samples = [(f"p{index}", {"jpg": square(index), "txt": f"caption {index % 5}".encode()}) for index in range(8)]
    layouts.write_tar(tmp_path / "0.tar", [*samples, ("blank", {"jpg": square(0), "txt": b" "})])
    task = tasks.HeldOutPairs(str(tmp_path), num_pairs=6)
    assert len(task.image_set.keys) == 6
    found, image, vector = scored(task, "mul")
    text = np.stack([vector(f"caption {int(key[1:]) % 5}") for key in task.image_set.keys])
    assert found["held-out", "alignment"].value == pytest.approx(
        np.mean([np.sum((x - y) ** 2) for x, y in zip(image, text, strict=True)]), rel=1e-5
    )
    for metric, vectors in (("uniformity_image", image), ("uniformity_text", text)):
        terms = [np.exp(-2 * np.sum((vectors[i] - vectors[j]) ** 2)) for i in range(6) for j in range(i)]
        assert found["held-out", metric].value == pytest.approx(np.log(np.mean(terms)), rel=1e-4)


# --- SLIP-26 and DataComp -----------------------------------------------------------------------------------------------


def slip_files(folder: Path) -> tuple[str, str]:
    names = {
        "pets": ["Abyssinian", "beagle", "pug"],
        "hateful_memes": ["meme", "hatespeech meme"],
        "kinetics700_frames": [f"action {index}" for index in range(9)],
        "cifar10": [["plane", "airplane"], "car"],
    }
    prompts = {key: ["a photo of a {}.", 'the "{}"'] for key in names}
    return str(layouts.write_file(folder / "labels.json", json.dumps(names))), str(
        layouts.write_file(folder / "templates.json", json.dumps(prompts))
    )


def test_slip_sums_up_each_data_set_with_its_own_metric(tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, templates = slip_files(tmp_path)
    names = json.loads(Path(labels).read_text())
    for dataset in ("pets", "hateful_memes", "kinetics700_frames"):
        classes = [f"c{index}" for index in range(len(names[dataset]))]
        folder = layouts.class_folder(tmp_path / dataset / "test", classes[1:], per_class=3)
        layouts.class_folder(folder, classes[:1], per_class=8)  # uneven
        task = tasks.Slip(dataset, labels, templates, folder=str(folder))
        found, image, vector = scored(task, "en")
        logits = image @ slow_classifier([[name] for name in names[dataset]], ["a photo of a {}.", 'the "{}"'], vector).T
        label = task.label_pairs[:, 1]
        need = {
            "pets": lambda logits, label: sklearn.balanced_accuracy_score(label, logits.argmax(1)),
            "hateful_memes": lambda logits, label: sklearn.roc_auc_score(label, logits[:, 1] - logits[:, 0]),
            "kinetics700_frames": lambda logits, label: np.mean([sklearn.top_k_accuracy_score(label, logits, k=k) for k in (1, 5)]),
        }[dataset](logits, label)
        assert found["slip26", "main"].value == pytest.approx(need)
        assert found["classification", "top1"].value == pytest.approx(sklearn.accuracy_score(label, logits.argmax(1)))


def test_slip_reads_data_sets_of_torchvision_and_lists_of_files(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    labels, templates = slip_files(tmp_path)
    folder = layouts.class_folder(tmp_path / "test", ["a", "b"], per_class=2)
    by_object = tasks.Slip("cifar10", labels, templates, torchvision=ImageFolder(str(folder)))
    by_folder = tasks.Slip("cifar10", labels, templates, folder=str(folder))
    np.save(tmp_path / "test_images.npy", np.array([f"test/{key}" for key in by_folder.image_set.keys]))
    np.save(tmp_path / "test_labels.npy", np.array([0, 0, 1, 1]))
    by_list = tasks.Slip("cifar10", labels, templates, file_list=str(tmp_path / "test"))
    assert by_object.label_pairs.tolist() == by_folder.label_pairs.tolist() == by_list.label_pairs.tolist()
    assert next(by_object.image_set.read(2, 3))[:4] == b"\x89PNG"
    assert by_folder.texts("en")[:2] == ("a photo of a plane.", 'the "plane"')  # synonyms share a class
    scored(by_object, "en")


def read_by_clip_benchmark(folder: Path, classification: bool) -> list[Any]:
    """(first pixels, label or captions) of every sample, in its order."""
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    transform: Callable[[Any], Any] = lambda image: np.asarray(image)[0, 0].tolist()
    data = builder.build_wds_dataset("toy", transform=transform, split="test", data_dir=str(folder))
    if classification:
        assert (data.classes, data.templates) == (["cat", "dog", "owl"], ["a photo of a {c}.", "the {c}."])
    return list(data)


def first_pixel(image: bytes) -> list[int]:
    import io

    from PIL import Image

    pixel: list[int] = np.asarray(Image.open(io.BytesIO(image)))[0, 0].tolist()
    return pixel


@pytest.mark.filterwarnings("ignore")
def test_datacomp_reads_what_clip_benchmark_reads_and_scores_the_same(tmp_path: Path) -> None:
    clip_benchmark = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    label = [0, 1, 2, 0, 0, 1, 0]
    folder = layouts.webdataset(tmp_path / "wds_fgvc_aircraft_test", label, ["cat", "dog", "owl"])
    task = tasks.DataComp(str(folder))
    assert task.name == "datacomp_fgvc_aircraft"
    assert read_by_clip_benchmark(folder, True) == [
        (first_pixel(image), own) for image, own in zip(task.image_set.read(0, 9), label, strict=True)
    ]
    found, image, vector = scored(task, "en")
    classes = slow_classifier([["cat"], ["dog"], ["owl"]], ["a photo of a {}.", "the {}."], vector)
    logits, target = torch.from_numpy(image @ classes.T), torch.tensor(label)
    assert found["classification", "top1"].value == pytest.approx(float((logits.argmax(dim=1) == target).double().mean()))
    assert found["datacomp", "main"].value == pytest.approx(clip_benchmark.balanced_accuracy_score(target, logits.argmax(dim=1)))


@pytest.mark.parametrize(("task_name", "k"), [("geode", 1), ("dollar_street", 5), ("wilds-fmow", 1)])
def test_datacomp_takes_the_worst_group(tmp_path: Path, task_name: str, k: int) -> None:
    label, region = [0, 1, 2, 3, 4, 5, 6, 0, 1, 2], [0, 1, 1, 0, 0, 1, 0, 1, 5, 5]
    names = [f"n{index}" for index in range(7)]
    task = tasks.DataComp(str(layouts.webdataset(tmp_path / f"wds_{task_name}_test", label, names, region)))
    found, image, vector = scored(task, "en")
    hits = slow_hits(
        image, slow_classifier([[name] for name in names], ["a photo of a {}.", "the {}."], vector), [{own} for own in label], k
    )
    groups = {0, 1} if task_name == "wilds-fmow" else {0, 1, 5}  # FMoW's 5 is "Other"
    assert found["datacomp", "main"].value == pytest.approx(min(hits[np.array(region) == group].mean() for group in groups))


@pytest.mark.filterwarnings("ignore")
def test_datacomp_retrieval_is_the_mean_of_both_recalls(tmp_path: Path) -> None:
    captions = [[f"text {index} {number}" for number in range(1 + index % 3)] for index in range(7)]
    folder = layouts.webdataset_retrieval(tmp_path / "wds_flickr30k_test", captions)
    task = tasks.DataCompRetrieval(str(folder))
    assert [own for _, own in read_by_clip_benchmark(folder, False)] == captions == task.captions["en"]
    found, image, vector = scored(task, "en")
    check_retrieval(found, "retrieval", image, captions, vector)
    assert found["datacomp", "main"].value == pytest.approx((found["retrieval", "t2i_r1"].value + found["retrieval", "i2t_r1"].value) / 2)


# --- a part of the images -----------------------------------------------------------------------------------------------


def make(kind: str, folder: Path) -> tuple[Task, str]:
    """A task of each kind of scoring, with a language of it."""
    if kind == "classification":
        return tasks.DollarStreet(str(layouts.dollar_street(folder, num_images=40))), "en"
    if kind == "retrieval":
        return tasks.XM3600(str(layouts.xm3600(folder)), locales=list(layouts.XM_LOCALES)), "tl"
    return tasks.CVQA(str(layouts.cvqa(folder))), "mul"


@pytest.mark.parametrize("kind", ["classification", "retrieval", "choice"])
def test_a_part_of_the_images_is_scored_as_if_the_others_were_not_there(tmp_path: Path, kind: str) -> None:
    task, language = make(kind, tmp_path)
    part = task.sample(4)
    place = [list(task.image_set.keys).index(key) for key in part.image_set.keys]
    assert len(place) == 4
    image, text = embeddings(task, language)
    rows = {own: row for own, row in zip(task.texts(language), text, strict=True)}
    own_text = torch.stack([rows[text] for text in part.texts(language)])
    found = part.score(language, image[place], part.condense(language, own_text))
    whole = {(score.protocol, score.metric): score for score in task.score(language, image, task.condense(language, text))}
    for score in found:
        protocol, end = score.protocol.split("-4-of-", 1)
        assert end == f"{len(task.image_set.keys)}-images"
        full = whole[protocol, score.metric]
        if kind == "retrieval":  # fewer candidates: no query is worse off
            assert score.num_candidates < full.num_candidates
        elif "income" not in score.metric:
            assert score.outcomes is not None
            assert full.outcomes is not None
            of_image = dict(zip(np.arange(len(full.outcomes)) if full.clusters is None else full.clusters, full.outcomes, strict=True))
            clusters = np.arange(len(score.outcomes)) if score.clusters is None else score.clusters
            assert [of_image[place[i]] for i in clusters] == pytest.approx(score.outcomes)
    assert {score.protocol for score in task.sample(10**6).score(language, image, task.condense(language, text))} == {p for p, _ in whole}


def test_what_cannot_be_cut_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_images: found 3, but the task geode_geolocation cannot be cut"):
        tasks.GeoDEGeolocation(str(layouts.geode(tmp_path)), num_training=6).sample(3)
