"""The multilingual caption data sets: XM3600, XTD-10, XTD-200 and Flickr30k-200."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

from mc2 import languages
from mc2.benchmarks.tasks.image_sets import ImageFiles
from mc2.benchmarks.tasks.reading import check_unique, need, read_jsonl, read_lines
from mc2.benchmarks.tasks.retrieval import Retrieval

XM3600_LOCALES = (
    "ar bn cs da de el en es fa fi fil fr hi hr hu id it he ja ko mi nl no pl pt quz ro ru sv sw te th tr uk vi zh".split()  # noqa: SIM905
)
XTD_LOCALES = ("en", "es", "it", "ko", "pl", "ru", "tr", "zh", "de", "fr", "jp")
NUM_FLORES = 201

XM3600_SOURCE = (
    "captions.jsonl (captions.zip) and images/ (images.tgz) come from https://google.github.io/crossmodal-3600 and the bucket "
    "open-images-dataset/crossmodal-3600"
)
XTD10_SOURCE = (
    "XTD10/, MIC/ and STAIR/ come from https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10, the images from MSCOCO 2014"
)


@final
class XM3600(Retrieval):
    """3,600 images with captions in 36 locales. Two protocols: `all-captions`, which the paper prints, and `first-caption`, as clip-benchmark has it."""

    def __init__(self, folder: str, locales: list[str] | None = None, name: str = "xm3600") -> None:
        """
        Args:
            folder: with captions.jsonl (an image a line) and images/<key>.jpg.
            locales: those of the captions to use; null: all 36.
        """
        path = Path(folder) / "captions.jsonl"
        wanted = list(XM3600_LOCALES if locales is None else locales)
        keys: list[str] = []
        captions: dict[str, list[list[str]]] = {locale: [] for locale in wanted}
        for where, line in read_jsonl(path, XM3600_SOURCE):
            if not isinstance(line.get("image/key"), str):
                raise ValueError(f"{where}: has no image/key; {XM3600_SOURCE}")
            keys.append(line["image/key"])
            for locale in wanted:
                captions[locale].append(captions_of(where, line, locale))
        check_unique(str(path), "image/key", keys)
        for locale in wanted:
            if not any(captions[locale]):
                raise ValueError(
                    f"{path}: has no caption in locale {locale!r}; leave it out of `locales`, or get the file again: {XM3600_SOURCE}"
                )
        images = ImageFiles(Path(folder) / "images", [f"{key}.jpg" for key in keys], XM3600_SOURCE)
        codes = languages.distinct(wanted)
        super().__init__(name, images, {codes[locale]: captions[locale] for locale in wanted}, {"all-captions": None, "first-caption": 1})


def captions_of(where: str, line: Mapping[str, Any], locale: str) -> list[str]:
    """The captions of an image in a locale, without blank ones; none where the image has none."""
    value = line.get(locale, {"caption": []})
    captions = value.get("caption") if isinstance(value, dict) else None
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f'{where}: locale {locale!r} is not {{"caption": [text...]}}; {XM3600_SOURCE}')
    return [caption for caption in captions if caption.strip()]


def read_captions(files: Mapping[str, Path], num_images: int, source: str) -> dict[str, list[list[str]]]:
    """Language -> one caption for each image, from files with a caption a line. Errors: ValueError for another number of lines, or an empty line."""
    captions = {}
    for language, path in files.items():
        lines = read_lines(path, source)
        if len(lines) != num_images:
            raise ValueError(f"{path}: found {len(lines)} captions for {num_images} images, need one a line; {source}")
        if not all(lines):
            raise ValueError(f"{path}:{lines.index('') + 1}: found no caption, need one a line; {source}")
        captions[language] = [[line] for line in lines]
    return captions


@final
class XTD10(Retrieval):
    """1,000 images of MSCOCO with one caption in each of 11 languages. The paper's numbers are R@5 over all 11."""

    def __init__(self, folder: str, images: str | None = None, name: str = "xtd10") -> None:
        """
        Args:
            folder: with test_image_names.txt and test_1kcaptions_<language>.txt, or the authors' repository with both in XTD10/, MIC/ (de, fr) and STAIR/ (jp).
            images: the folder of the images; null: `folder`/images.
        """
        root = Path(folder)
        parts = [part for part in (root, root / "XTD10", root / "MIC", root / "STAIR") if part.is_dir()]

        def find(file: str) -> Path:
            return next((part / file for part in parts if (part / file).is_file()), root / file)

        names = read_lines(find("test_image_names.txt"), XTD10_SOURCE)
        codes = languages.distinct(XTD_LOCALES)
        captions = read_captions({codes[key]: find(f"test_1kcaptions_{key}.txt") for key in XTD_LOCALES}, len(names), XTD10_SOURCE)
        super().__init__(name, ImageFiles(Path(images or root / "images"), names, XTD10_SOURCE), captions, {"retrieval": None})


class FloresCaptions(Retrieval):
    """1,000 images with one machine-translated caption in each of 201 languages, a file for each. The paper's numbers are very probably R@5."""

    default_name: ClassVar[str]
    image_names: ClassVar[str]  # the file that has an image a line
    source: ClassVar[str]

    def __init__(self, folder: str, images: str | None = None, name: str | None = None) -> None:
        """
        Args:
            folder: with the file of image names (test_image_names.txt for XTD200, filenames.txt for Flickr30k200) and <flores code>.txt for 201 languages.
            images: the folder of the images; null: `folder`/images.
            name: null: "xtd200", "flickr30k_200".
        """
        root = Path(folder)
        names = read_lines(root / self.image_names, self.source)
        found = sorted(path.stem for path in need(root, self.source).glob("???_????.txt"))
        if len(found) != NUM_FLORES:
            raise ValueError(f"{root}: found {len(found)} files <flores code>.txt, need {NUM_FLORES}; {self.source}")
        codes = languages.distinct(found)
        captions = read_captions({codes[key]: root / f"{key}.txt" for key in found}, len(names), self.source)
        files = ImageFiles(Path(images or root / "images"), names, self.source)
        super().__init__(name or self.default_name, files, captions, {"retrieval": None})


@final
class XTD200(FloresCaptions):
    """The 1,000 images of XTD-10 with one machine-translated caption in each of 201 languages. The paper's numbers are very probably R@5."""

    default_name = "xtd200"
    image_names = "test_image_names.txt"
    source = "<flores code>.txt and test_image_names.txt come from https://github.com/visheratin/nllb-clip (data/xtd200), the images from MSCOCO 2014"


@final
class Flickr30k200(FloresCaptions):
    """1,000 images of Flickr30k with one machine-translated caption in each of 201 languages. The paper's numbers are very probably R@5."""

    default_name = "flickr30k_200"
    image_names = "filenames.txt"
    source = "<flores code>.txt and filenames.txt come from https://github.com/visheratin/nllb-clip (data/flickr30k-200), the images from Flickr30k"
