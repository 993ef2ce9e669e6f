"""Batch and steps of the recipe's YAMLs against the paper's numbers and mc2/training/recipe.py, and each of them fitted for two steps with tiny towers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mc2.training.commands import main
from mc2.training.recipe import Schedule
from tests.data.shards import small_tokenizer, write_folder
from tests.training.tiny import TinyData

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
}


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


MODELS = {"vit_l14_worldwide.yaml": "ViT-L-14", "vit_b32_mt5.yaml": "ViT-B-32-mT5"}  # the others: ViT-H-14-quickgelu


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_towers_are_those_of_the_name(name: str) -> None:
    """A file says them itself: without an overlay, training would begin with the default's."""
    towers = merged(chain(name))["model"]["init_args"]["towers"]
    named = merged([EXPERIMENTS / f"models/{MODELS.get(name, 'ViT-H-14-quickgelu')}.yaml"])
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


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_recipe_trains_for_two_steps(name: str, pool: dict[str, str], tmp_path: Path) -> None:
    argv = ["fit"]
    for path in [*chain(name), *OVERLAYS]:
        argv += ["--config", str(path)]
    for key, value in pool.items():
        argv += [f"--data.init_args.{key}", value]
    run = tmp_path / "run"
    argv += ["--data.init_args.balance", "null", "--trainer.default_root_dir", str(run), "--trainer.enable_progress_bar", "false"]
    assert main([*argv, "--trainer.enable_model_summary", "false"]) == 0
    assert (run / "checkpoints/last.ckpt").exists()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["data"]["init_args"]["languages"] == (["en"] if "vit_h14_english" in name else None)
    assert saved["data"]["init_args"]["without_languages"] == (["en"] if "non_english" in name else None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--data.init_args.val_pairs", "1"], r"data.val_pairs: found 1 for 2 processes, need at least one pair for each"),
        (["--data.init_args.num_workers", "2"], r"found 2 shards for 4 streams .*use at most 1 workers a rank"),
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
