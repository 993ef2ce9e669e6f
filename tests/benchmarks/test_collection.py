"""SLIP-26 and DataComp in their official layouts: what clip-benchmark reads, and each data set's own metric against scikit-learn and loops."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mc2.benchmarks import tasks
from tests.benchmarks import layouts
from tests.benchmarks.slow_scores import counts, retrieval_counts, scored, slow_classifier, slow_hits, slow_recalls, values


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
    found, _, _ = scored(by_object, "en")
    assert counts(found, "classification") == {"top1": (4, 2), "top5": (4, 2)}


def read_by_clip_benchmark(folder: Path, classification: bool) -> list[Any]:
    """(first pixels, label or captions) of every sample, in its order."""
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    transform: Callable[[Any], Any] = lambda image: np.asarray(image)[0, 0].tolist()
    data = builder.build_wds_dataset("toy", transform=transform, split="test", data_dir=str(folder))
    if classification:
        assert (data.classes, data.templates) == (["cat", "dog", "owl"], ["a photo of a {c}.", "the {c}."])
    return list(data)


def first_pixel(image: bytes) -> list[int]:
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
    assert values(found, "retrieval") == pytest.approx(slow_recalls(image, captions, vector))
    assert counts(found, "retrieval") == retrieval_counts(captions)
    assert found["datacomp", "main"].value == pytest.approx((found["retrieval", "t2i_r1"].value + found["retrieval", "i2t_r1"].value) / 2)
