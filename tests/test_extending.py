"""What docs/extending.md shows is done here, word by word: files are written, diffs applied, and what comes out is used. Messages of docs/troubleshooting.md are the code's."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mc2 import languages
from mc2.benchmarks.tasks import TaskFolder
from mc2.curation.balance_stage import run_balance
from mc2.curation.language_id import LanguageIdentifier
from mc2.curation.match_stage import run_match
from mc2.curation.pack_plan import PackSettings
from mc2.curation.pack_stage import run_pack
from mc2.engines.local import LocalEngine
from mc2.interchange.convert import named_towers
from mc2.metadata.commands import main as metadata
from mc2.metadata.entries import Metadata
from mc2.model.two_tower import TwoTower
from tests.curation.pools import image_file, record, tar_bytes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
FILES = {name: text for name, text in re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.DOTALL)}
DIFFS = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def apply(diff: str, folder: Path) -> Path:
    """The file of a diff, copied from the repository and changed."""
    name: str = re.findall(r"^\+\+\+ b/(\S+)$", diff, re.MULTILINE)[0]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, folder / name)
    subprocess.run(["git", "apply", "-"], cwd=folder, input=diff.encode(), check=True)
    assert (folder / name).read_bytes() != (ROOT / name).read_bytes()
    return folder / name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the files of the page."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_a_benchmark(here: Path) -> None:
    (here / "photos").mkdir()
    for number, name in enumerate(("cup_1", "cup_2", "lamp_1")):
        (here / f"photos/{name}.jpg").write_bytes(image_file(number))
    imported(here / "products_task.py")
    task = TaskFolder("benchmarks/products")
    assert (task.name, set(task.languages)) == ("products", {"de", "ja"})
    assert {"ein Foto von: Tasse", "ein Foto von: Lampe"} <= set(task.texts("de"))
    callback = yaml.safe_load(apply(DIFFS[0], here).read_text())["trainer"]["callbacks"][0]
    assert [one["init_args"]["folder"] for one in callback["init_args"]["tasks"]][-2:] == [
        "runs/quickstart/benchmarks/flags",
        "benchmarks/products",
    ]


def test_a_language(here: Path) -> None:
    words = re.findall(r"^mc2 metadata (.*)$", PAGE, re.MULTILINE)[0].split()
    assert metadata(["metadata", *words, "--unigram_languages", "[]", "--progress", "false"]) == 0
    built = Metadata.open(here / "metadata")
    assert "bahari" in built.entries("sw")
    assert LanguageIdentifier(built.sha256)("mbwa na paka katika nyumba")[0] == "sw"
    assert languages.canonical("aln") == "aln"  # Gheg Albanian, before the line is there
    assert imported(apply(DIFFS[1], here)).canonical("aln") == "sq"


def test_a_tower(here: Path) -> None:
    towers = TwoTower(named_towers(str(here / "experiments/models/DINOv2-S.yaml")))
    assert towers.vision.trunk.num_prefix_tokens == 5  # a class token and four registers
    assert towers.vision.projection.out_features == 384


def test_a_filter(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"large": (24, 32), "small": (24, 10)}
    members = [member for key, size in sizes.items() for member in record(key, ["a fox in the snow"], image_file(0, size))]
    (here / "pool").mkdir()
    (here / "pool/00000.tar").write_bytes(tar_bytes(members))
    (here / "words.json").write_text('{"en": ["fox"]}')
    assert (
        metadata(["metadata", "build", "--out", "words", "--titles", "words.json", "--unigram_languages", "[]", "--progress", "false"]) == 0
    )
    engine = LocalEngine(1, progress=False)
    run_match("pool", "words", "matched", engine=engine)
    run_balance("matched", "words", "balance", english_threshold=4, engine=engine)
    monkeypatch.syspath_prepend(here)  # workers find it by its name, as they would find a package
    module = importlib.import_module("my_filters")
    manifest = run_pack("pool", "matched", "balance", "shards", PackSettings(), engine, filters=[module.LargeEnough])
    assert (manifest.num_pairs, dict(manifest.drops)) == (1, {"filter:small": 1})


# --- troubleshooting ----------------------------------------------------------------------------------------------------


def messages(page: str, heading: str) -> list[str]:
    """What stands between backticks in the first column of the table under `heading`."""
    table = (ROOT / page).read_text(encoding="utf-8").split(heading)[1]
    return [text for line in table.splitlines() if line.startswith("| `") for text in re.findall(r"`([^`]+)`", line.split("|")[1])]


SOURCES = " ".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in sorted((ROOT / "mc2").rglob("*.py")))


@pytest.mark.parametrize("message", messages("docs/troubleshooting.md", "# Troubleshooting"))
def test_messages_are_those_of_the_code(message: str) -> None:
    assert message in SOURCES


@pytest.mark.parametrize("message", messages("docs/cluster.md", "## What messages mean"))
def test_examples_of_messages_are_those_of_the_code(message: str) -> None:
    """Apart from their names and numbers: some of the words in a row."""
    words = message.split()
    rows = (" ".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1))
    assert max((len(row) for row in rows if row in SOURCES), default=0) >= 10
