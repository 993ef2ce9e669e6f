"""Collections of English data sets: SLIP-26 and DataComp, each data set a task, each with the one number that enters the collection's mean.

That number has the collection as its protocol and the metric `main`, so that the mean over the tasks is the mean over those rows.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from torch.utils.data import Dataset

from mc2.benchmarks.tasks.class_texts import ClassTexts, IntArray, single_labels
from mc2.benchmarks.tasks.classification import Classification
from mc2.benchmarks.tasks.image_sets import (
    DatasetImages,
    ImageFiles,
    Member,
    TarImages,
    class_folders,
    image_member,
    read_index,
)
from mc2.benchmarks.tasks.reading import check_prompts, need, read_json, read_lines
from mc2.benchmarks.tasks.retrieval import Retrieval
from mc2.benchmarks.tasks.scores import Metric
from mc2.benchmarks.tasks.task import ImageSet

SLIP = "labels.json and templates.json come from https://github.com/facebookresearch/SLIP, which also says how each data set is laid out"
DATACOMP = (
    "wds_<task>_test comes from https://huggingface.co/clip-benchmark (DataComp: download_evalsets.py) or from `clip_benchmark_export_wds`"
)

SlipName = Literal[
    "food101", "cifar10", "cifar100", "cub200", "sun397", "cars", "aircraft", "dtd", "pets", "caltech101", "flowers", "mnist", "fer2013",
    "stl10", "eurosat", "resisc45", "gtsrb", "kitti_distance", "country211", "patch_camelyon", "ucf101_frames", "kinetics700_frames",
    "clevr_counts", "hateful_memes", "rendered_sst2", "imagenet",
]  # fmt: skip

# What enters the mean where that is not top-1.
SLIP_MAIN: dict[str, Metric] = {
    **dict.fromkeys(("aircraft", "pets", "caltech101", "flowers"), "mean_per_class"),
    "kinetics700_frames": "mean_of_top1_and_top5",
    "hateful_memes": "roc_auc",
}
DATACOMP_MAIN: dict[str, Metric] = {
    **dict.fromkeys(("vtab-caltech101", "fgvc_aircraft", "vtab-flowers", "vtab-pets"), "mean_per_class"),
    "wilds-iwildcam": "f1_macro",
    "wilds-fmow": "worst_group_top1",
    "dollar_street": "worst_group_top5",
    "geode": "worst_group_top1",
}
# What the first column of a sample's metadata (.npy) is, and which of its values is no group.
DATACOMP_GROUPS: dict[str, tuple[str, set[int]]] = {
    "wilds-fmow": ("region", {5}),  # "Other", which WILDS leaves out
    "dollar_street": ("income", set()),
    "geode": ("region", set()),
}


@final
class Slip(Classification):
    """One of the 26 data sets of SLIP: names and prompts of its labels.json and templates.json, and the metric that enters its mean (`slip26`, `main`)."""

    def __init__(
        self,
        dataset: SlipName,
        labels: str,
        templates: str,
        folder: str | None = None,
        file_list: str | None = None,
        torchvision: Any = None,
        label_attribute: str = "targets",
        name: str | None = None,
    ) -> None:
        """
        Args:
            dataset: its name in labels.json.
            labels: SLIP's labels.json.
            templates: SLIP's templates.json.
            folder: class folders of the test split; their order in the alphabet is that of the labels.
            file_list: "dir/test" for dir/test_images.npy (paths, below dir where they are not absolute) and dir/test_labels.npy.
            torchvision: a data set of torchvision, {class_path: torchvision.datasets.CIFAR10, init_args: {root: ..., train: false}}.
            label_attribute: where that has its labels ("labels" in STL10, "_labels" in Flowers102).
            name: null: "slip26_<dataset>".
        """
        name = name or f"slip26_{dataset}"
        names, prompts = (of_dataset(Path(path), dataset) for path in (labels, templates))
        check_prompts(f"{templates}: {dataset!r}", prompts)
        images: ImageSet
        label: Sequence[int] | IntArray
        if folder is not None:
            images, label = folder_images(Path(folder), len(names))
        elif file_list is not None:
            images, label = listed_images(Path(file_list))
        elif torchvision is not None:
            images, label = dataset_images(name, torchvision, label_attribute)
        else:
            raise ValueError(f"{name}: found none of folder, file_list and torchvision; need one")
        check_labels(name, images.keys, label, len(names))
        rows = [(index, text) for index, own in enumerate(names) for text in ([own] if isinstance(own, str) else own)]

        def class_texts(_language: str) -> ClassTexts:
            return ClassTexts.build(rows, {"classification": prompts})

        wanted = with_main(SLIP_MAIN.get(dataset, "top1"))
        super().__init__(name, images, single_labels(label), class_texts, wanted=wanted, collection="slip26")


def with_main(main: Metric) -> tuple[Metric, ...]:
    """The main metric, then top-1 and top-5."""
    others: tuple[Metric, ...] = ("top1", "top5")
    return (main, *(metric for metric in others if metric != main))


def of_dataset(path: Path, dataset: str) -> list[Any]:
    """The entry of a data set in SLIP's JSON files."""
    value = read_json(path, SLIP)
    if not isinstance(value, dict) or not isinstance(value.get(dataset), list) or not value[dataset]:
        raise ValueError(f"{path}: has no list for {dataset!r}; {SLIP}")
    entry: list[Any] = value[dataset]
    return entry


def check_labels(where: str, keys: Sequence[str], label: Sequence[int] | IntArray, num_classes: int) -> None:
    """Errors: ValueError for another number of labels than images, or one without a name."""
    if len(label) != len(keys):
        raise ValueError(f"{where}: found {len(label)} labels for {len(keys)} images")
    for key, value in zip(keys, label, strict=True):
        if not 0 <= value < num_classes:
            raise ValueError(f"{where}: image {key!r} has label {value}, need 0 to {num_classes - 1}: there are {num_classes} names")


def folder_images(folder: Path, num_classes: int) -> tuple[ImageFiles, list[int]]:
    """All images of class folders with their class: the position of the folder in the alphabet."""
    classes, paths = class_folders(folder, SLIP)
    if len(classes) != num_classes:
        raise ValueError(f"{folder}: found {len(classes)} class folders for {num_classes} names; {SLIP}")
    position = {name: index for index, name in enumerate(classes)}
    return ImageFiles(folder, paths, SLIP), [position[path.split("/")[0]] for path in paths]


def listed_images(prefix: Path) -> tuple[ImageFiles, IntArray]:
    """Images and labels of `<prefix>_images.npy` and `<prefix>_labels.npy`."""
    paths, label = (np.load(need(prefix.with_name(f"{prefix.name}_{part}.npy"), SLIP)) for part in ("images", "labels"))
    return ImageFiles(prefix.parent, [str(path) for path in paths], SLIP), label.astype(np.int64)


def dataset_images(name: str, dataset: Dataset[Any], attribute: str) -> tuple[DatasetImages, IntArray]:
    """Images of a data set of torchvision with its labels. Errors: ValueError if it has no such attribute."""
    try:
        label = np.asarray(getattr(dataset, attribute), dtype=np.int64)
    except AttributeError as error:
        raise ValueError(f"{name}: {type(dataset).__name__} has no {attribute!r}; set label_attribute to what holds its labels") from error
    return DatasetImages(dataset, len(label)), label


# --- DataComp -----------------------------------------------------------------------------------------------------------


@final
class DataComp(Classification):
    """A classification data set in the layout of clip-benchmark, with DataComp's main metric (`datacomp`, `main`).

    classnames.txt, zeroshot_classification_templates.txt ("{c}" for the name), test/nshards.txt, test/<n>.tar with an image, a .cls and, for those with a
    worst group, a .npy each.
    """

    def __init__(self, folder: str, name: str | None = None) -> None:
        """
        Args:
            folder: wds_<task>_test.
            name: null: "datacomp_<task>".
        """
        root = need(Path(folder), DATACOMP)
        task = root.name.removeprefix("wds_").removesuffix("_test")
        check_type(root, "classification")
        names = read_lines(root / "classnames.txt", DATACOMP)
        prompts = [line.replace("{c}", "{}") for line in read_lines(root / "zeroshot_classification_templates.txt", DATACOMP) if line]
        check_prompts(str(root / "zeroshot_classification_templates.txt"), prompts)
        samples = read_index(shards(root))
        label = [int_label(key, parts) for key, parts in samples.items()]
        images = TarImages({key: image_member(key, parts) for key, parts in samples.items()})
        check_labels(str(root), images.keys, label, len(names))

        def class_texts(_language: str) -> ClassTexts:
            return ClassTexts.build(list(enumerate(names)), {"classification": prompts})

        super().__init__(
            name or f"datacomp_{task}",
            images,
            single_labels(label),
            class_texts,
            wanted=with_main(DATACOMP_MAIN.get(task, "top1")),
            image_groups=metadata_groups(task, samples),
            collection="datacomp",
        )


@final
class DataCompRetrieval(Retrieval):
    """A retrieval data set in the layout of clip-benchmark (dataset_type.txt says "retrieval", a .txt has a caption a line); `main` is the mean of both R@1."""

    def __init__(self, folder: str, name: str | None = None) -> None:
        """
        Args:
            folder: wds_<task>_test.
            name: null: "datacomp_<task>".
        """
        root = need(Path(folder), DATACOMP)
        check_type(root, "retrieval")
        samples = read_index(shards(root))
        captions = [text_lines(key, parts) for key, parts in samples.items()]
        images = TarImages({key: image_member(key, parts) for key, parts in samples.items()})
        task = root.name.removeprefix("wds_").removesuffix("_test")
        super().__init__(name or f"datacomp_{task}", images, {"en": captions}, {"retrieval": None}, "datacomp")


def check_type(folder: Path, expected: str) -> None:
    """Errors: ValueError for a data set of another type."""
    path = folder / "dataset_type.txt"
    found = path.read_text().strip().lower() if path.exists() else "classification"
    if found != expected:
        other = {"retrieval": "use DataCompRetrieval", "classification": "use DataComp"}.get(found, "it cannot be scored here")
        raise ValueError(f"{folder}: is a data set for {found}; {other}")


def shards(folder: Path) -> list[Path]:
    """The tars of the test split, as many as nshards.txt says."""
    lines = read_lines(folder / "test/nshards.txt", DATACOMP)
    if len(lines) != 1 or not lines[0].isdigit():
        raise ValueError(f"{folder / 'test/nshards.txt'}: found {lines}, need one number; {DATACOMP}")
    return [need(folder / "test" / f"{index}.tar", DATACOMP) for index in range(int(lines[0]))]


def int_label(key: str, parts: Mapping[str, Member]) -> int:
    """The number in a sample's .cls."""
    text = parts["cls"].read().decode(errors="replace").strip() if "cls" in parts else None
    if text is None or not text.isdigit():
        raise ValueError(f"{next(iter(parts.values())).tar}: sample {key!r} has no number as label (.cls), found {text!r}; {DATACOMP}")
    return int(text)


def text_lines(key: str, parts: Mapping[str, Member]) -> list[str]:
    """The captions in a sample's .txt."""
    captions = (
        [line.strip() for line in parts["txt"].read().decode("utf-8", "replace").split("\n") if line.strip()] if "txt" in parts else []
    )
    if not captions:
        raise ValueError(f"{next(iter(parts.values())).tar}: sample {key!r} has no caption (.txt); {DATACOMP}")
    return captions


def metadata_groups(task: str, samples: Mapping[str, Mapping[str, Member]]) -> dict[str, list[str]]:
    """Kind of group -> the group of each sample, from the first column of its .npy; nothing where the task has no worst group."""
    if task not in DATACOMP_GROUPS:
        return {}
    kind, left_out = DATACOMP_GROUPS[task]
    groups = []
    for key, parts in samples.items():
        if "npy" not in parts:
            raise ValueError(
                f"{next(iter(parts.values())).tar}: sample {key!r} has no metadata (.npy), which {task} is scored by; {DATACOMP}"
            )
        group = int(np.load(io.BytesIO(parts["npy"].read())).reshape(-1)[0])
        groups.append("" if group in left_out else str(group))
    return {kind: groups}
