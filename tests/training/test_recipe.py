"""Batch and steps of the recipe's YAMLs against the paper's numbers and mc2/training/recipe.py, and each of them fitted for two steps with tiny towers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mc2.benchmarks import tasks
from mc2.data.tokenizer import Tokenizer
from mc2.training.commands import main
from mc2.training.recipe import Schedule
from tests.data.shards import small_tokenizer, write_folder
from tests.training.test_initial_weights import model_folder
from tests.training.tiny import TOWERS, TinyData

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
OVERLAYS = [EXPERIMENTS / "overlays/debug.yaml", EXPERIMENTS / "overlays/tiny.yaml"]
SCHEDULES = {
    "vit_h14_worldwide.yaml": Schedule(2.3, 384),
    "vit_h14_worldwide_13b.yaml": Schedule(1.0, 256),
    "vit_h14_english.yaml": Schedule(1.0, 256),
    "vit_h14_non_english.yaml": Schedule(1.3, 256),
    "vit_l14_worldwide.yaml": Schedule(2.3, 128),
    "vit_b32_mt5.yaml": Schedule(1.0, 32),
    "vit_b32_mt5_english.yaml": Schedule(1.0, 32),
    "vit_b32_mt5_english_metadata.yaml": Schedule(1.0, 32),
    "vit_b32_mt5_one_set.yaml": Schedule(1.0, 32),
    "vit_b32_mt5_one_threshold.yaml": Schedule(1.0, 32),
    "vit_b32_gemma.yaml": Schedule(1.0, 32),
    "vit_b32_xlm_r.yaml": Schedule(1.0, 32),
    "vit_b32_xlm_v.yaml": Schedule(1.0, 32),
    "vit_l14_english.yaml": Schedule(1.0, 128),
    "vit_l14_distilled.yaml": Schedule(2.3, 128),
}
SEEN = {"trainer.max_steps", "data.init_args.batch_size", "data.init_args.steps_per_epoch"}  # the number of pairs that a run sees
GPUS = {"trainer.num_nodes"}
SIZE = {"model.init_args.towers"}
CURATED = {"data.init_args.shards", "data.init_args.balance"}
DIFFERENCES = {  # what an experiment changes of its parent, the file before it in its own command; nothing else may differ but the folder of the run
    "vit_h14_worldwide_13b.yaml": SEEN | GPUS,
    "vit_h14_english.yaml": SEEN | GPUS | {"data.init_args.languages"},
    "vit_h14_non_english.yaml": SEEN | GPUS | {"data.init_args.without_languages"},
    "vit_l14_worldwide.yaml": GPUS | SIZE | {"data.init_args.batch_size"},  # on each GPU: all of them see as many pairs
    "vit_l14_english.yaml": SEEN | {"data.init_args.languages"},
    "vit_l14_distilled.yaml": {"model.init_args.teacher"},
    "vit_b32_mt5.yaml": SEEN
    | GPUS
    | SIZE
    | {f"model.init_args.optimizer.{name}" for name in ("learning_rate", "beta2", "weight_decay")}
    | {"data.init_args.tokenizer"},
    "vit_b32_mt5_english.yaml": {"data.init_args.languages"},
    "vit_b32_mt5_english_metadata.yaml": CURATED,
    "vit_b32_mt5_one_set.yaml": CURATED,
    "vit_b32_mt5_one_threshold.yaml": CURATED,
    "vit_b32_gemma.yaml": {"data.init_args.tokenizer"},
    "vit_b32_xlm_r.yaml": {"data.init_args.tokenizer"},
    "vit_b32_xlm_v.yaml": {"data.init_args.tokenizer"},
}
GIVEN_BY_THE_TEST = CURATED | {"data.init_args.tokenizer"}
TRAINED = [
    name for name in SCHEDULES if name not in DIFFERENCES or not DIFFERENCES[name] <= GIVEN_BY_THE_TEST
]  # the others: as their parent


def chain(name: str) -> list[Path]:
    """The files of the command in a YAML's own head, the file itself last."""
    command = next(line for line in (EXPERIMENTS / name).read_text().splitlines() if line.startswith("#   mc2 fit"))
    paths = [ROOT / path for path in re.findall(r"--config (\S+)", command)]
    assert paths[-1] == EXPERIMENTS / name
    return paths


def merged(paths: list[Path]) -> dict[str, Any]:
    """The settings as later files overrule earlier ones."""

    def over(one: Any, other: Any) -> Any:
        both = isinstance(one, dict) and isinstance(other, dict)
        return {**one, **{key: over(one.get(key), value) for key, value in other.items()}} if both else other

    settings: dict[str, Any] = {}
    for path in paths:
        settings = over(settings, yaml.safe_load(path.read_text()))
    return settings


def test_the_reference_run_by_the_papers_numbers() -> None:
    run = Schedule(2.3, 384)
    assert (run.pairs_per_gpu, run.batch, run.num_steps) == (196, 75_264, 391_136)
    assert int(2.3 * 32_768) == 75_366  # what the paper states; 102 pairs do not fit 384 equal parts
    assert run.seen_pairs == pytest.approx(29.44e9, rel=1e-3)


def test_english_pairs_seen_are_the_same_worldwide_and_in_english() -> None:
    english = Schedule(1.0, 256)
    assert english.seen_pairs == pytest.approx(12.8e9, rel=1e-3)
    assert Schedule(2.3, 384).english_pairs() == pytest.approx(english.english_pairs(share=1.0), rel=0.02)
    assert Schedule(1.0, 256).english_pairs() == pytest.approx(0.44 * 12.8e9, rel=1e-3)
    assert Schedule(1.3, 256).seen_pairs == pytest.approx(17e9, rel=0.03)
    assert Schedule(1.3, 256).seen_pairs + english.seen_pairs == pytest.approx(Schedule(2.3, 384).seen_pairs, rel=1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_yamls_follow_the_schedule(name: str) -> None:
    settings, schedule = merged(chain(name)), SCHEDULES[name]
    trainer, data = settings["trainer"], settings["data"]["init_args"]
    assert trainer["devices"] * trainer["num_nodes"] == schedule.num_gpus
    assert data["batch_size"] == schedule.pairs_per_gpu
    assert (trainer["max_steps"], data["steps_per_epoch"]) == (schedule.num_steps, schedule.steps_per_epoch)
    assert trainer["default_root_dir"] == f"runs/{name.removesuffix('.yaml')}"


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """The leaves by their dotted keys."""
    if not isinstance(value, dict):
        return {key: value}
    return {name: leaf for part, inner in value.items() for name, leaf in flat(inner, f"{key}.{part}" if key else part).items()}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_child_differs_from_its_parent_in_what_it_ablates(name: str) -> None:
    child, parent = flat(merged(chain(name))), flat(merged(chain(name)[:-1]))
    different = {key for key in child if key not in parent or child[key] != parent[key]} - {"trainer.default_root_dir"}
    assert parent.keys() <= child.keys()
    for key in different:
        assert any(key == allowed or key.startswith(f"{allowed}.") for allowed in DIFFERENCES[name]), key
    for allowed in DIFFERENCES[name]:  # and it does differ in each of them
        assert any(key == allowed or key.startswith(f"{allowed}.") for key in different), allowed
    written = {
        key for key in flat(yaml.safe_load((EXPERIMENTS / name).read_text())) if not key.endswith("class_path") and ".towers." not in key
    }
    assert written - {"trainer.default_root_dir"} <= different  # nothing is said twice, but towers are said whole


def test_all_but_the_reference_run_have_a_parent() -> None:
    assert set(SCHEDULES) - set(DIFFERENCES) == {"vit_h14_worldwide.yaml"}


MODELS = {"vit_h14": "ViT-H-14-quickgelu", "vit_l14": "ViT-L-14", "vit_b32": "ViT-B-32-mT5"}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_towers_are_those_of_the_name(name: str) -> None:
    """A file says them itself: without an overlay, training would begin with the default's."""
    towers = merged(chain(name))["model"]["init_args"]["towers"]
    named = merged([EXPERIMENTS / f"models/{MODELS[name[:7]]}.yaml"])
    need = named["model"]["init_args"]["towers"]
    assert {**towers, "text": {"activation": "gelu", **need["text"]}} == {**need, "text": towers["text"]}
    assert merged(chain(name))["data"]["init_args"]["preprocess"] == named["data"]["init_args"]["preprocess"]


def test_every_recipe_is_held_to_its_schedule() -> None:
    assert {path.name for path in EXPERIMENTS.glob("vit_*.yaml")} == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_head_names_command_hardware_hours_and_score(name: str) -> None:
    head = (EXPERIMENTS / name).read_text().split("\ntrainer:")[0]
    for words in ("#   mc2 fit", "# Hardware: ", "Hours: ", "# Expected (published): "):
        assert words in head
    nodes = merged(chain(name))["trainer"]["num_nodes"]
    assert f"{nodes} nodes with 8 GPUs" in head


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Shards with captions in three languages, a tokenizer."""
    folder = tmp_path_factory.mktemp("pool")
    return {"shards": str(write_folder(folder / "shards", [20, 20])), "tokenizer": str(small_tokenizer(folder / "tokenizer"))}


@pytest.mark.parametrize("name", TRAINED)
def test_every_recipe_trains_for_two_steps(name: str, pool: dict[str, str], tmp_path: Path) -> None:
    argv = ["fit"]
    for path in [*chain(name), *OVERLAYS]:
        argv += ["--config", str(path)]
    for key, value in pool.items():
        argv += [f"--data.init_args.{key}", value]
    run = tmp_path / "run"
    if "distilled" in name:
        tokenizer = Tokenizer(pool["tokenizer"])
        text = replace(TOWERS.text, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, context_length=77)
        argv += ["--model.init_args.teacher.folder", str(model_folder(tmp_path / "teacher", replace(TOWERS, text=text)))]
        tokenizer.save(tmp_path / "teacher")
    argv += ["--data.init_args.balance", "null", "--trainer.default_root_dir", str(run), "--trainer.enable_progress_bar", "false"]
    assert main(argv) == 0
    assert (run / "checkpoints/last.ckpt").exists()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["data"]["init_args"]["languages"] == (["en"] if name.endswith("_english.yaml") and "non" not in name else None)
    assert saved["data"]["init_args"]["without_languages"] == (["en"] if "non_english" in name else None)


def test_the_papers_benchmarks_go_on_top_of_a_recipe(pool: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has none of the data is told where the first task looks for it."""
    overlay = EXPERIMENTS / "overlays/benchmarks.yaml"
    (callback,) = merged([overlay])["trainer"]["callbacks"]
    listed = {task["class_path"].rpartition(".")[2] for task in callback["init_args"]["tasks"]}
    tasks_of_the_paper = {name for name in tasks.__all__ if isinstance(getattr(tasks, name), type)}
    assert listed == tasks_of_the_paper - {
        "Task",
        "ImageSet",
        "TaskFolder",
        "HeldOutPairs",
        "ImageNetV2",
        "Slip",
        "DataComp",
        "DataCompRetrieval",
    }
    monkeypatch.chdir(tmp_path)
    argv = ["fit"]
    for path in [*chain("vit_h14_worldwide.yaml"), *OVERLAYS, overlay]:
        argv += ["--config", str(path)]
    for key, value in pool.items():
        argv += [f"--data.init_args.{key}", value]
    with pytest.raises(ValueError, match=r"benchmarks/imagenet/val: .*image-net\.org"):
        main([*argv, "--data.init_args.balance", "null", "--trainer.default_root_dir", "run"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--data.init_args.val_pairs", "1"], r"data.val_pairs: found 1 for 2 processes, need at least one pair for each"),
        (["--data.init_args.num_workers", "2"], r"found 2 shards for 4 streams .*; set num_workers to 1, or pack"),
        (["--model.init_args.micro_batches", "3"], r"model.micro_batches: found 3 for a batch of 8 pairs"),
        (["--model.init_args.towers.vision.image_size", "42"], r"data.preprocess.image_size: found 28, need 42 as in model.towers"),
        (
            ["--data.class_path", "tests.training.test_recipe.Silent"],
            r"data.eos_id: found None in Silent, while the text tower has 2; give",
        ),
    ],
)
def test_what_cannot_work_is_said_before_a_process_starts(settings: list[str], message: str, pool: dict[str, str], tmp_path: Path) -> None:
    """Two processes on the CPU, which Lightning would start in `fit`; one line with what was found, what is needed, and the cure."""
    silent = "tests.training.test_recipe.Silent" in settings
    data = [] if silent else [word for key, value in pool.items() for word in (f"--data.init_args.{key}", value)]
    if silent:
        argv = ["fit", "--model", "mc2.training.module.ContrastiveModule", "--trainer.max_steps", "2"]
        argv += [
            "--model.init_args.towers.vision.image_size",
            "32",
            "--model.init_args.towers.vision.width",
            "32",
            "--model.init_args.towers.vision.heads",
            "2",
        ]
    else:
        argv = [word for path in [EXPERIMENTS / "vit_h14_worldwide.yaml", *OVERLAYS] for word in ("--config", str(path))]
        argv = ["fit", *argv, "--data.init_args.balance", "null", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    with pytest.raises(ValueError, match=message) as caught:
        main([*argv, *data, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path / "run"), *settings])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


class Silent(TinyData):
    """A data module that does not say which id ends a caption."""

    def __init__(self) -> None:
        super().__init__()
        del self.eos_id
