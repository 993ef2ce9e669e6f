"""ImageNet-1k and v2 with English names, and Babel-ImageNet with the names of up to 298 languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, final

from mc2 import languages
from mc2.benchmarks.tasks.class_texts import ClassTexts, IntArray, single_labels
from mc2.benchmarks.tasks.classification import Classification
from mc2.benchmarks.tasks.image_sets import ImageFiles, class_folders
from mc2.benchmarks.tasks.reading import check_prompts, package_file, read_json

NUM_CLASSES = 1000
IMAGENET = "the validation images of ILSVRC 2012 in 1,000 folders named by synset (n01440764, ...) come from https://image-net.org"
IMAGENET_V2 = "imagenetv2-matched-frequency-format-val, 1,000 folders named 0 to 999, comes from https://github.com/modestyachts/ImageNetV2"
BABEL = "babel_imagenet-298.json and nllb_dist13b_prompts.json come from https://github.com/gregor-ge/Babel-ImageNet (data/)"


@lru_cache(maxsize=1)
def synsets() -> tuple[str, ...]:
    """The 1,000 synsets in the order of the class ids; timm ships them."""
    return tuple(files("timm.data._info").joinpath("imagenet_synsets.txt").read_text().split())


@lru_cache(maxsize=1)
def english() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(1,000 names, 80 prompts with {}) as OpenAI published them; open_clip ships them. Errors: ValueError if it is not installed."""
    try:
        from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
    except ImportError as error:
        raise ValueError(f"benchmarks: ImageNet's names come with open_clip ({error}); `pip install mc2[benchmarks]`") from error
    return tuple(IMAGENET_CLASSNAMES), tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def english_texts(_language: str = "en") -> ClassTexts:
    """The texts of the 1,000 classes with 80 prompts."""
    names, prompts = english()
    return ClassTexts.build(list(enumerate(names)), {"classification": prompts})


def labelled_folders(folder: Path, names: Sequence[str], source: str) -> tuple[ImageFiles, IntArray]:
    """All images in 1,000 folders of classes, with their class ids. Errors: ValueError for a folder that is missing, empty or none of them."""
    found, paths = class_folders(folder, source)
    class_of = {name: index for index, name in enumerate(names)}
    if strange := [name for name in found if name not in class_of]:
        raise ValueError(f"{folder}: folder {strange[0]!r} is no class ({len(strange)} such folders); {source}")
    label = [class_of[path.split("/")[0]] for path in paths]
    if missing := sorted(set(range(len(names))) - set(label)):
        raise ValueError(f"{folder}: found images of {len(set(label))} of {len(names)} classes, none of {names[missing[0]]!r}; {source}")
    return ImageFiles(folder, paths, source), single_labels(label)


@final
class ImageNet(Classification):
    """Top-1 and top-5 on the 50,000 validation images: 1,000 names and 80 prompts in English."""

    def __init__(self, folder: str, name: str = "imagenet") -> None:
        """folder: with 1,000 folders named by synset."""
        images, label_pairs = labelled_folders(Path(folder), synsets(), IMAGENET)
        super().__init__(name, images, label_pairs, english_texts)


@final
class ImageNetV2(Classification):
    """The same on the 10,000 images of ImageNet-v2 (matched frequency)."""

    def __init__(self, folder: str, name: str = "imagenet_v2") -> None:
        """folder: with 1,000 folders named by class id."""
        images, label_pairs = labelled_folders(Path(folder), [str(index) for index in range(NUM_CLASSES)], IMAGENET_V2)
        super().__init__(name, images, label_pairs, english_texts)


@final
class BabelImageNet(Classification):
    """ImageNet's validation images with translated names. In each language only its own classes are candidates, and only their images are scored.

    Two protocols, each named with the number of its languages: `prompts-90-languages`, for the languages that have translated prompts (80 each; the mean over
    them is what the paper prints), and `labels-298-languages`, the bare names, for all. English has the names and prompts of ImageNet.

    Shares its images with `ImageNet` on the same folder.
    """

    def __init__(self, folder: str, labels: str | None = None, prompts: str | None = None, name: str = "babel_imagenet") -> None:
        """
        Args:
            folder: ImageNet's validation images, with 1,000 folders named by synset.
            labels: {"FR": [[class id...], [name...]]}; null: the 93 languages that the package clip_benchmark ships.
            prompts: {"FR": ["... {} ...", ...]}; null: the 90 languages that the same package ships.
        """
        label_file = Path(labels) if labels else package_file("clip_benchmark", "datasets/babel_imagenet.json", "benchmarks")
        prompt_file = Path(prompts) if prompts else package_file("clip_benchmark", "datasets/nllb_dist13b_prompts.json", "benchmarks")
        names = read_labels(label_file)
        templates = read_prompts(prompt_file)
        images, label_pairs = labelled_folders(Path(folder), synsets(), IMAGENET)
        codes = babel_codes(list(names))
        key_of = {code: key for key, code in codes.items()}
        with_prompts = [key for key in names if key in templates]
        protocols = {True: f"prompts-{len(with_prompts)}-languages", False: f"labels-{len(names)}-languages"}

        def class_texts(code: str) -> ClassTexts:
            key = key_of[code]
            if key == "EN":
                return ClassTexts.build(list(enumerate(english()[0])), {protocols[True]: english()[1], protocols[False]: ["{}"]})
            own = {protocols[True]: templates[key]} if key in templates else {}
            return ClassTexts.build(names[key], {**own, protocols[False]: ["{}"]})

        super().__init__(name, images, label_pairs, class_texts, languages=[codes[key] for key in names])


def read_labels(path: Path) -> dict[str, list[tuple[int, str]]]:
    """Upper-case code -> (class id, name) rows. Errors: ValueError that names the language whose entry cannot be used."""
    value = read_json(path, BABEL)
    names: dict[str, list[tuple[int, str]]] = {}
    for key, entry in checked_object(path, value).items():
        where = f"{path}: language {key!r}"
        if (
            not isinstance(entry, list)
            or len(entry) != 2
            or not all(isinstance(part, list) for part in entry)
            or len(entry[0]) != len(entry[1])
        ):
            raise ValueError(f"{where} is not [[class id...], [name...]] of equal lengths; {BABEL}")
        if not entry[0]:
            raise ValueError(f"{where} has no class; leave it out of the file")
        wrong = [label for label in entry[0] if type(label) is not int or not 0 <= label < NUM_CLASSES]
        if wrong:
            raise ValueError(f"{where} has class {wrong[0]!r}, need whole numbers from 0 to {NUM_CLASSES - 1}; {BABEL}")
        if len(set(entry[0])) < len(entry[0]):
            twice = next(label for label in entry[0] if entry[0].count(label) > 1)
            raise ValueError(f"{where} has class {twice} twice; {BABEL}")
        if any(not isinstance(label, str) or not label.strip() for label in entry[1]):
            raise ValueError(f"{where} has an empty name; {BABEL}")
        names[key] = list(zip(*entry, strict=True))
    if "EN" in names and len(names["EN"]) != NUM_CLASSES:
        raise ValueError(f"{path}: language 'EN' has {len(names['EN'])} classes, need all {NUM_CLASSES}; {BABEL}")
    return names


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Upper-case code -> prompts with one {} each."""
    prompts = checked_object(path, read_json(path, BABEL))
    for key, own in prompts.items():
        check_prompts(f"{path}: language {key!r}", own)
    return dict(prompts)


def checked_object(path: Path, value: Any) -> Mapping[str, Any]:
    """Errors: ValueError for what is not {language: ...}."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path}: found no languages, need {{code: ...}}; {BABEL}")
    return value


def babel_codes(keys: Sequence[str]) -> dict[str, str]:
    """Babel-ImageNet's code (upper-case, in the style of Wikipedia: ZH_CLASSICAL) -> canonical code; no two the same.

    Of two codes with one canonical code ("KU" and "KMR") that one has it which says it, the other keeps its own. What is no language of its own keeps the
    rest of its code as private use: "be-x-old", "en-x-simple". Errors: ValueError for what is no language.
    """
    first = {key: first_choice(key) for key in keys}
    codes: dict[str, str] = {}
    for key in sorted(keys, key=lambda key: (first[key] != key.lower(), key)):  # who says it comes first
        codes[key] = first[key] if first[key] not in codes.values() else wikipedia_code(key)
    return {key: codes[key] for key in keys}


def wikipedia_code(key: str) -> str:
    """ "be-x-old" for "BE_X_OLD"."""
    return key.lower().replace("_", "-")


def first_choice(key: str) -> str:
    """The canonical code of one of Babel-ImageNet's codes, taken alone."""
    code = wikipedia_code(key)
    if code in languages.WIKIPEDIA_LANGUAGES:
        return languages.WIKIPEDIA_LANGUAGES[code]
    head, _, rest = ("en-" + code if code == "simple" else code).partition("-")
    return f"{head}-x-{rest.removeprefix('x-')[:8]}" if rest else languages.canonical(head)
