"""`mc2 plan` from the recipe's own YAMLs: numbers by hand, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mc2.curation.balance import Balance, LanguageBalance
from mc2.data.data_sets import DataSet
from mc2.data.datamodule import ShardDataModule
from mc2.data.tokenizer import Tokenizer
from mc2.model.two_tower import TwoTower
from mc2.training.flops import PairFlops, meta_towers
from mc2.training.memory import checkpoint_bytes, memory_per_gpu
from mc2.training.plan import fit_settings, main, plan_of
from mc2.training.preflight import disk_finding, english_finding
from tests.data.shards import small_tokenizer, write_folder
from tests.data.test_datamodule import manifest
from tests.model.test_zoo import towers_of
from tests.training.test_recipe import SCHEDULES, chain

XLM_V = 901_629


def arguments(name: str) -> list[str]:
    """The --config options of a recipe."""
    return [word for path in chain(name) for word in ("--config", str(path))]


def test_the_reference_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["plan", *arguments("vit_h14_worldwide.yaml"), "--gpus", "64,384", "--vocab_size", str(XLM_V)]) == 0
    shown = capsys.readouterr().out
    for words in ("391,136 steps of 75,264 pairs: 29.44 B pairs seen, 2.30 x", "632.1 M", "1,226.7 M", "923.3 M", "196"):
        assert words in shown
    of_pair = PairFlops.of(meta_towers(towers_of("ViT-H-14-quickgelu", XLM_V))).step(77, 75_264)
    hours = 391_136 * 75_264 * of_pair / (0.4 * 989e12) / 3600
    assert f"{hours:,.0f}" in shown


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_recipe_can_be_planned(name: str) -> None:
    plan = plan_of(fit_settings(arguments(name)), XLM_V)
    schedule = SCHEDULES[name]
    assert (plan.step.all_pairs, plan.num_steps, plan.seen_pairs) == (schedule.batch, schedule.num_steps, schedule.seen_pairs)
    assert (plan.step.mixed, plan.step.sharded, plan.step.checkpoint_every, plan.step.tokens) == (True, True, 1, 77)


def test_settings_of_the_command_line_count(tmp_path: Path) -> None:
    """As for `mc2 fit`; the vocabulary is read from the tokenizer where there is one."""
    tokenizer = str(small_tokenizer(tmp_path / "tokenizer"))
    more = [
        "--trainer.max_steps",
        "10",
        "--data.init_args.tokenizer",
        tokenizer,
        "--model.init_args.micro_batches",
        "4",
        "--trainer.strategy",
        "auto",
        "--model.init_args.optimizer.vocabulary",
        "lazy",
    ]
    plan = plan_of(fit_settings([*arguments("vit_h14_english.yaml"), *more]), None)
    assert plan.seen_pairs == 10 * 32_768
    assert (plan.step.micro_batches, plan.step.sharded) == (4, False)
    assert (plan.step.lazy_vocabulary, plan.step.ema) == (True, False)
    assert plan.towers.text.vocab_size < 1000


def planned(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_shards_loader_and_disk_are_compared_with_what_the_run_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The data module itself says whether every worker of every rank has a shard."""
    shards, tokenizer = write_folder(tmp_path / "shards", [1] * 16), small_tokenizer(tmp_path / "tokenizer")
    recipe = [*arguments("vit_h14_english.yaml"), "--trainer.default_root_dir", str(tmp_path / "run")]
    assert "is not here" not in planned([*recipe, "--vocab_size", "9"], capsys)
    recipe += ["--data.init_args.tokenizer", str(tokenizer), "--data.init_args.shards", str(shards), "--data.init_args.balance", "null"]
    with pytest.raises(ValueError, match=r"found 16 shards for 2048 streams .*need a shard for each; use at most 16 ranks"):
        main(["plan", *recipe])
    recipe += ["--trainer.num_nodes", "1", "--trainer.devices", "4", "--data.init_args.num_workers", "2"]
    shown = planned(recipe, capsys)
    assert (
        "ok   data: shards: 16 pairs in 16 shards, 2.0 for each of 2 lanes (workers) of 4 streams (ranks); 16.0 shards meet in a batch of 512 ("
        in shown
    )
    assert "warn english: the shards do not say how many pairs of each language they have" in shown
    need = 0.4 * 989e12 / plan_of(fit_settings(recipe), None).pair_flops()
    assert f"warn loader: each rank needs {need:,.0f} pairs/s; measure with `mc2 bench loader --json FILE` on a node" in shown
    figures = tmp_path / "loader.json"
    few = f"2 workers make {need:,.0f} where each has a core: the GPU waits; set data.num_workers to 5"
    for of_one, size, words in (
        (need, 224, "ok   loader: each"),
        (need / 4.5, 224, few.replace(f"{need:,.0f}", f"{need / 2.25:,.0f}")),
        (need, 64, "need `mc2 bench loader --image_size 224`"),
    ):
        figures.write_text(json.dumps({"samples_per_second_of_a_worker": of_one, "sample": {"image_size": size}}))
        assert words in planned([*recipe, "--loader", str(figures)], capsys)
    figures.write_text("{}")
    with pytest.raises(ValueError, match=r"--loader: found no figures in .*loader.json, need a file of `mc2 bench loader"):
        main(["plan", *recipe, "--loader", str(figures)])


def test_english_pairs_are_counted(tmp_path: Path) -> None:
    """Two data sets, 3 : 1: a third of the first is English; of the second, balanced, 80 of 100 pairs, of which French is left out: 80 of 90."""
    tokenizer = str(small_tokenizer(tmp_path / "tokenizer"))
    first = manifest(write_folder(tmp_path / "first", [4, 4]), pairs={"en": 10, "de": 20})
    second = manifest(write_folder(tmp_path / "second", [4, 4]), pairs={"en": 1, "de": 1})
    one = LanguageBalance(np.ones(1, dtype=np.int64), 1, np.ones(1))
    pairs = {"en": 80, "de": 10, "fr": 10}
    summary = {"languages": {code: {"expected_pairs": number} for code, number in pairs.items()}}
    Balance(0.06, 1, "paper", dict.fromkeys(pairs, one)).save(tmp_path / "balance", lambda _code: ["x"], summary=summary)
    sets = [DataSet(str(first), 3.0), DataSet(str(second), 1.0, balance=str(tmp_path / "balance"))]
    share = ShardDataModule(sets, tokenizer, without_languages=["fr"]).expected_shares()["en"]
    assert share == pytest.approx(0.75 / 3 + 0.25 * 80 / 90)
    found = english_finding({"en": share, "de": 1 - share}, 2e9)
    assert (found.level, found.text) == (
        "ok",
        f"{share * 2e9:,.4g} of 2e+09 pairs seen, {share:.1%}; CLIP's English schedule sees 1.28e+10",
    )


def test_a_full_disk_is_told_before(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert disk_finding(tmp_path / "not/yet", free / 4, 2).level == "ok"
    found = disk_finding(tmp_path / "not/yet", free / 2, 2)
    assert (found.level, f"are free at {tmp_path}; make room" in found.text) == ("warn", True)


def test_the_job_of_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "jobs/h14.sbatch"
    recipe = arguments("vit_h14_worldwide.yaml")
    planned([*recipe, "--vocab_size", "9", "--sbatch", str(path), "--trainer.precision", "32-true"], capsys)
    text = path.read_text()
    assert text.splitlines()[0] == "#!/bin/bash"
    header = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, flags=re.MULTILINE))
    wanted = {
        "job-name": "vit_h14_worldwide",
        "nodes": "48",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "cpus-per-task": "9",
        "signal": "USR1@300",
    }
    assert wanted.items() <= header.items()
    assert f'{shlex.join(recipe)} --trainer.precision 32-true "$@" --trainer.default_root_dir "$run" --ckpt_path last' in text
    subprocess.run(["bash", "-n", path], check=True)
    with pytest.raises(ValueError, match=r"--sbatch: found trainer.devices auto, need the number of processes of a node"):
        main(["plan", *recipe, "--vocab_size", "9", "--sbatch", str(path), "--trainer.devices", "auto"])


def test_a_teacher_and_offload_are_counted(tmp_path: Path) -> None:
    towers = replace(towers_of("ViT-B-32", 1000), text=replace(towers_of("ViT-B-32", 1000).text, eos_id=2))
    (tmp_path / "config.json").write_text(json.dumps({"format": "mc2", "towers": towers.to_json()}))
    recipe = [*arguments("vit_h14_english.yaml"), "--trainer.strategy.init_args.cpu_offload", "true"]
    plain = plan_of(fit_settings(recipe), 1000)
    taught = plan_of(fit_settings([*recipe, "--model.init_args.teacher.folder", str(tmp_path)]), 1000)
    assert (plain.step.cpu_offload, plain.step.teacher) == (True, 0)
    assert plan_of(fit_settings([*recipe, "--model.init_args.teacher.folder", "nowhere"]), 1000).step == plain.step
    assert taught.step.teacher == sum(weight.numel() for weight in TwoTower(towers).parameters())
    assert taught.pair_flops() - plain.pair_flops() == PairFlops.of(meta_towers(towers)).forward(77)


def test_students_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first one, and a small one with a vocabulary of its own: their operations, weights and activations add up."""
    tokenizer = small_tokenizer(tmp_path / "tokenizer")
    vision, text = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "heads": 2}, {"width": 32, "layers": 2, "heads": 2}
    student = {"towers": {"embed_dim": 16, "vision": vision, "text": text}, "tokenizer": str(tokenizer)}
    recipe = [*arguments("vit_l14_distilled.yaml"), "--trainer.precision", "32-true"]
    both = [*recipe, "--model.init_args.students", json.dumps({"small": student})]
    plain, plan = (plan_of(fit_settings(each), 1000) for each in (recipe, both))
    small = plan.students["small"]
    assert (small.vision.width, small.text.width, small.text.vocab_size) == (64, 32, Tokenizer(tokenizer).vocab_size)
    operations = PairFlops.of(meta_towers(small)).step(77, plan.step.all_pairs)
    assert plan.pair_flops() - plain.pair_flops() == pytest.approx(operations)
    parameters = sum(weight.numel() for weight in meta_towers(small).parameters()) - 1  # the logit scale is nowhere counted
    with_small, without = (memory_per_gpu(each.shapes(), each.step, 8) for each in (plan, plain))
    assert with_small["moments"] - without["moments"] == pytest.approx(8 * parameters / 8)
    assert with_small["activations"] > without["activations"]
    assert checkpoint_bytes(plan.shapes(), plan.step) - checkpoint_bytes(plain.shapes(), plain.step) == 12 * parameters
    shown = planned([*both, "--vocab_size", "1000"], capsys)
    assert "small vision" in shown
    assert "small text" in shown
    student["tokenizer"] = "nowhere"
    with pytest.raises(ValueError, match=r"model.students.small.tokenizer: found nothing at nowhere, need its size; plan where"):
        plan_of(fit_settings([*recipe, "--model.init_args.students", json.dumps({"small": student})]), 1000)


def test_what_cannot_be_planned_is_one_line() -> None:
    recipe = arguments("vit_h14_worldwide.yaml")
    for more, message in (
        ([], r"data.tokenizer: found nothing at tokenizers/xlm-v/.*; give --vocab_size, such as 901629 for XLM-V"),
        (["--vocab_size", "9", "--gpus", "8,x"], r"--gpus: found '8,x', need numbers of GPUs"),
        (["--mfu", "40"], r"found --mfu 40.0 and --peak_tflops 989.0, need a share up to 1"),
        (["--trainer.max_stepz", "3"], r"max_stepz"),
        (["--vocab_size", "9", "--trainer.max_steps", "-1"], r"trainer.max_steps -1, need both"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            main(["plan", *recipe, *more])
        assert "\n" not in str(caught.value)
