"""The data sets of the benchmarks in their official layouts, a few small images each."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.toys import square

XM_LOCALES = ("de", "en", "fil", "quz")
SYNSETS = files("timm.data._info").joinpath("imagenet_synsets.txt").read_text().split()


def write_file(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue())


def class_folder(folder: Path, names: Sequence[str], per_class: int = 1) -> Path:
    """`folder/<name>/<n>.JPEG`."""
    image = square(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            (folder / name / f"{name}_{index}.JPEG").write_bytes(image)
    return folder


def xm3600(folder: Path, num_images: int = 9) -> Path:
    """Up to three captions an image and locale; the fourth image has none in fil; two images share a caption in German."""
    lines = []
    for index in range(num_images):
        key = f"{index:016x}"
        write_file(folder / f"images/{key}.jpg", square(index))
        line: dict[str, object] = {"image/key": key, "image/locale": "en"}
        for locale in XM_LOCALES:
            captions = [f"{locale} {index} {number}" for number in range(1 + (index + len(locale)) % 3)]
            if locale == "de" and index in (2, 5):
                captions[0] = "zwei Hunde"
            if not (locale == "fil" and index == 3):
                line[locale] = {"caption": captions, "caption/tokenized": captions}
        lines.append(json.dumps(line, ensure_ascii=False))
    write_file(folder / "captions.jsonl", "\n".join(lines) + "\n")
    return folder


def xtd(folder: Path, files_of: Mapping[str, str], index_file: str, num_images: int = 6) -> Path:
    """A caption a line; one image shows twice what one caption says."""
    names = [f"COCO_val2014_{index:012}.jpg" for index in range(num_images)]
    for index, name in enumerate(names):
        write_file(folder / "images" / name, square(index))
    write_file(folder / index_file, "\n".join(names) + "\n")
    for language, file in files_of.items():
        write_file(folder / file, "\n".join(f"{language} {index // 2 if index < 4 else index}" for index in range(num_images)) + "\n")
    return folder


def cvqa(folder: Path) -> Path:
    """Two parquet files as `datasets` writes them: three questions of Kenya, two of Japan."""
    rows = []
    for index, subset in enumerate(["('Swahili', 'Kenya')"] * 3 + ["('Japanese', 'Japan')"] * 2):
        rows.append(
            {
                "image": {"bytes": square(index), "path": None},
                "ID": f"{index}_0",
                "Subset": subset,
                "Question": f"swali {index}?",
                "Translated Question": f"question {index}?",
                "Options": [f"jibu {number}" for number in range(4)],
                "Translated Options": [f"answer {number}" for number in range(4)],
                "Label": index % 4,
                "Category": "Sports",
            }
        )
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate((rows[:2], rows[2:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"data/test-0000{number}-of-00002.parquet", row_group_size=2)
    return folder


def dollar_street(folder: Path, num_images: int = 16) -> Path:
    """Images in three countries of two regions; the last training image is also the first of the test; every fourth has two classes."""
    rows = []
    for index in range(num_images):
        path = f"assets/{index:024x}/{index:024x}.jpg"
        write_file(folder / path, square(index))
        rows.append(
            {
                "id": f"{index:024x}",
                "country.id": ("bf", "in", "id")[index % 3],
                "region.id": ("af", "as", "as")[index % 3],
                "income": f"{30.5 * (index + 1):.2f}",
                "imageRelPath": path,
                "imagenet_synonyms": "['x']",
                "imagenet_sysnet_id": str([index % 5] if index % 4 else [index % 5, 900]),
            }
        )
    write_csv(folder / "images_v2_imagenet_train.csv", rows[:10])
    write_csv(folder / "images_v2_imagenet_test.csv", rows[9:])
    return folder


def geode(folder: Path, num_images: int = 12) -> Path:
    rows = []
    for index in range(num_images):
        path = f"{index}_region/{index}.jpg"
        write_file(folder / "images" / path, square(index))
        kind, country, region = (("hand_soap", "bag", "hat")[index % 3], ("Nigeria", "Japan")[index % 2], ("Africa", "EastAsia")[index % 2])
        rows.append({"": index, "object": kind, "file_path": path, "ip_country": country, "region": region})
    write_csv(folder / "index.csv", rows)
    return folder


def gldv2(folder: Path, flat: bool) -> Path:
    """Three queries that count, one that is ignored; the second's index images show two landmarks equally often; two landmarks have one name."""
    queries = {"aa01": ("i1 i2 i3", "Public"), "bb02": ("i3 i1", "Private"), "cc03": ("i4", "Private"), "dd04": ("None", "Ignored")}
    for index, key in enumerate(queries):
        write_file(folder / (f"test/{key}.jpg" if flat else f"test/{key[0]}/{key[1]}/{key[2]}/{key}.jpg"), square(index))
    write_csv(folder / "retrieval_solution_v2.1.csv", [{"id": key, "images": own, "Usage": usage} for key, (own, usage) in queries.items()])
    shown = {"i1": 7, "i2": 7, "i3": 9, "i4": 11, "i5": 13}
    write_csv(folder / "index_image_to_landmark.csv", [{"id": key, "landmark_id": landmark} for key, landmark in shown.items()])
    names = {7: "Happy_Valley_Racecourse", 9: "Tower:Bridge", 11: "Bridge", 13: "Never_shown"}
    wiki = "http://commons.wikimedia.org/wiki/Category:"
    write_csv(folder / "index_label_to_category.csv", [{"landmark_id": key, "category": wiki + name} for key, name in names.items()])
    return folder


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples:
            for extension, content in parts.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def npy(*values: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


def webdataset(folder: Path, labels: Sequence[int], names: Sequence[str], regions: Sequence[int] | None = None) -> Path:
    """clip-benchmark's layout in two tars."""
    write_file(folder / "classnames.txt", "\n".join(names) + "\n")
    write_file(folder / "zeroshot_classification_templates.txt", "a photo of a {c}.\nthe {c}.\n")
    samples = [
        (f"s{index:07}", {"png": square(index), "cls": str(label).encode(), **({"npy": npy(regions[index], 3)} if regions else {})})
        for index, label in enumerate(labels)
    ]
    for number, part in enumerate((samples[:3], samples[3:])):
        write_tar(folder / f"test/{number}.tar", part)
    write_file(folder / "test/nshards.txt", "2\n")
    return folder


def webdataset_retrieval(folder: Path, captions: Sequence[Sequence[str]]) -> Path:
    write_file(folder / "dataset_type.txt", "retrieval\n")
    samples = [(f"s{index:07}", {"jpg": square(index), "txt": "\n".join(own).encode()}) for index, own in enumerate(captions)]
    write_tar(folder / "test/0.tar", samples)
    write_file(folder / "test/nshards.txt", "1\n")
    return folder
