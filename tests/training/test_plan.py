"""`mc2 plan` from the recipe's own YAMLs: numbers by hand, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from mc2.training.flops import PairFlops, meta_towers
from mc2.training.plan import fit_settings, main, plan_of
from tests.data.shards import small_tokenizer
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
