"""`mc2 fit | validate | test | predict` from YAML, as a user calls them: runs that replay and resume, and errors in one line."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mc2.cli import run as cli
from mc2.training.checkpoints import find_checkpoint
from mc2.training.commands import main
from tests.processes import run_processes
from tests.training.tiny import fit_config

STEPS = 6


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    settings = fit_config(tmp_path / "run", STEPS)
    settings["trainer"]["val_check_interval"] = 3
    return {**settings, "checkpoints": {"every_n_steps": 2, "keep": 10}}


@pytest.fixture
def call(config: dict[str, Any], tmp_path: Path) -> Callable[..., int]:
    """Runs a subcommand with the config and what is put on top of it."""

    def run(subcommand: str, *arguments: str, over: dict[str, Any] | None = None) -> int:
        argv = [subcommand]
        for name, part in (("base", config), ("over", over)):
            if part is not None:
                (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(part))
                argv += ["--config", str(tmp_path / f"{name}.yaml")]
        return main([*argv, *arguments])

    return run


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value, as TensorBoard reads them."""
    events = EventAccumulator(str(run)).Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def last_weights(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


SHARES = {"de": 3 / 8, "sw": 3 / 8, "unknown": 2 / 8}  # of the captions of the tiny data


def test_fit_writes_a_run_that_tells_its_story(call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fit") == 0
    weights = {name: number.numel() / 1e6 for name, number in last_weights(tmp_path / "run").items()}
    vision, text = (sum(number for name, number in weights.items() if f"towers.{tower}." in name) for tower in ("vision", "text"))
    rows = weights["towers.text.token_embedding.weight"]
    assert f"model: vision {vision:.4g} M parameters, text {text:.4g} M, {rows:.4g} M of them rows of tokens\n" in capsys.readouterr().out
    found = scalars(tmp_path / "run")
    assert set(found["train/loss"]) == set(range(STEPS))
    assert set(found["speed/samples_per_second"]) == set(range(STEPS))
    assert all(0 <= share <= 1 for share in found["speed/wait_share"].values())
    assert {code: found[f"languages/{code}"][0] for code in SHARES} == SHARES
    by_language = [share * found[f"loss/{code}"][step] for step in range(STEPS) for code, share in SHARES.items()]
    assert [sum(by_language[3 * step : 3 * step + 3]) for step in range(STEPS)] == pytest.approx(
        [found["train/loss"][step] for step in range(STEPS)]
    )
    tokens, samples = found["speed/tokens_per_second"], found["speed/samples_per_second"]
    assert [tokens[step] / samples[step] for step in tokens] == pytest.approx([8] * STEPS)  # captions of the tiny data fill their rows
    assert not {"speed/mfu", "speed/memory_gb"} & set(found)  # no number rather than a wrong one on a CPU
    assert found["train/lr"][0] == pytest.approx(1e-3)
    assert len(found["val/loss"]) == 2
    assert {"train/logit_scale", "speed/wait_seconds"} <= set(found)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["last.ckpt", "step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]


def test_saved_config_replays(call: Callable[..., int], tmp_path: Path) -> None:
    assert call("fit") == 0
    saved = str(tmp_path / "run" / "config.yaml")
    again = tmp_path / "again"
    assert main(["fit", "--config", saved, "--trainer.default_root_dir", str(again)]) == 0
    assert scalars(again)["train/loss"] == scalars(tmp_path / "run")["train/loss"]
    before = Path(saved).read_bytes()
    for subcommand in ("validate", "test"):
        assert main([subcommand, "--config", saved, "--ckpt_path", "last"]) == 0
    assert Path(saved).read_bytes() == before


def test_resumed_run_equals_an_undisturbed_one(call: Callable[..., int], tmp_path: Path) -> None:
    """Stopped by SIGTERM in the middle of step 3 of 6 (and of the epoch of 4): finishes the step, saves, leaves; the same line goes on."""
    elsewhere = {"trainer": {"default_root_dir": str(tmp_path / "whole")}}
    assert call("fit", "--ckpt_path", "last", over=elsewhere) == 0
    stop = {"class_path": "tests.training.tiny.SignalAt", "init_args": {"step": 3, "number": int(signal.SIGTERM)}}
    assert call("fit", "--ckpt_path", "last", over={"trainer": {"callbacks": [stop]}}) == 128 + signal.SIGTERM
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").readlink() == Path("step=3.ckpt")
    assert call("fit", "--ckpt_path", "last") == 0
    whole, parts = scalars(tmp_path / "whole"), scalars(tmp_path / "run")
    assert parts["train/loss"] == whole["train/loss"]
    assert parts["train/lr"] == whole["train/lr"]
    for name, weight in last_weights(tmp_path / "whole").items():
        assert torch.equal(weight, last_weights(tmp_path / "run")[name]), name


@pytest.mark.parametrize(("times", "saved"), [(1, "step=3.ckpt"), (2, "step=2.ckpt")])
def test_ctrl_c_leaves_a_whole_checkpoint(
    times: int, saved: str, call: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: after the step. Twice: at once, with the checkpoint before. Both end with status 130."""
    stop = {"class_path": "tests.training.tiny.SignalAt", "init_args": {"step": 3, "number": int(signal.SIGINT), "times": times}}
    with pytest.raises(KeyboardInterrupt):
        call("fit", over={"trainer": {"callbacks": [stop]}})
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").readlink() == Path(saved)
    monkeypatch.setattr("mc2.training.commands.command_line", lambda _argv: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli(["fit"]) == 130


def test_predict_ranks_texts(call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fit") == 0
    image = tmp_path / "fox.png"
    Image.new("RGB", (30, 20), "red").save(image)
    saved = str(tmp_path / "run" / "config.yaml")
    predict = ["predict", "--config", saved, "--ckpt_path", "last", "--texts", json.dumps(["a fox", "キツネ"]), "--images"]
    capsys.readouterr()
    assert main([*predict, json.dumps([str(image)])]) == 0
    table = capsys.readouterr().out
    assert "a fox" in table
    assert "キツネ" in table
    assert sum(float(word.removesuffix("%")) for word in table.split() if word.endswith("%")) == pytest.approx(100, abs=0.1)
    with pytest.raises(ValueError, match=r"found no readable image at nowhere.jpg"):
        main([*predict, '["nowhere.jpg"]'])
    image.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"found no readable image at .*fox.png"):
        main([*predict, json.dumps([str(image)])])
    with pytest.raises(ValueError, match=r"found 0 images and 2 texts"):
        main([*predict, "[]"])


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"trainer": {"max_stepz": 1}}, "does not accept option 'trainer.max_stepz'; `--print_config`"),
        ({"model": {"init_args": {"towers": {"vision": {"imge_size": 3}}}}}, "'towers' does not accept option 'vision.imge_size'"),
        ({"data": {"init_args": {"batches": 1}}}, "Option 'batches' is not accepted"),
        ({"model": {"class_path": "mc2.training.module.Contrast"}}, "has no attribute 'Contrast'"),
        ({"model": {"init_args": {"towers": {"text": {"width": 15}}}}}, "^text tower: found width 15 with 2 heads"),
        ({"model": {"init_args": {"optimizer": {"warmup_steps": 6}}}}, "found 6 with trainer.max_steps 6, need fewer"),
        (
            {"trainer": {"accumulate_grad_batches": 2}},
            r"trainer.accumulate_grad_batches: found 2, need 1 .* set model.init_args.micro_batches",
        ),
        ({"model": {"init_args": {"teacher": {"folder": "nowhere"}}}}, "found no config.json in nowhere, need a model folder"),
        (
            {"model": {"init_args": {"loss": {"class_path": "mc2.model.loss.SigmoidLoss"}}}},
            "model.loss: found towers without a logit bias for SigmoidLoss",
        ),
        ({"model": {"init_args": {"micro_batches": 3}}}, "model.micro_batches: found 3 for a batch of 8 pairs"),
        ({"trainer": {"max_steps": -1}}, "trainer.max_steps: found -1, need the number of steps"),
        ({"checkpoints": {"keep": 0}}, "found every_n_steps 2 and keep 0"),
        ({"model": {"init_args": {"max_logit_scale": 0.5}}}, "model.max_logit_scale: found 0.5"),
    ],
)
def test_a_wrong_config_is_one_line(over: dict[str, Any], message: str, call: Callable[..., int]) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call("fit", over=over)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_wrong_checkpoint_is_one_line(call: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--ckpt_path: found no checkpoint, need one to validate, such as .*last.ckpt"):
        call("validate")
    with pytest.raises(ValueError, match=r"--ckpt_path: found nothing at nowhere.ckpt"):
        call("fit", "--ckpt_path", "nowhere.ckpt")
    assert call("fit") == 0
    with pytest.raises(ValueError, match=r"holds checkpoints of another run; go on with --ckpt_path last"):
        call("fit")
    wider = {"model": {"init_args": {"towers": {"text": {"width": 32}}}}}
    with pytest.raises(ValueError, match=r"is of another model \(towers.text.width: found 16, need 32\); give the config"):
        call("fit", "--ckpt_path", "last", over=wider)
    file = tmp_path / "run" / "checkpoints" / "step=6.ckpt"
    (tmp_path / "folder.ckpt").mkdir()
    torch.save({"towers": torch.load(file, weights_only=True)["towers"]}, tmp_path / "folder.ckpt" / "meta.pt")
    with pytest.raises(ValueError, match=r"folder.ckpt: found a folder of sharded parts, need a strategy that reads it"):
        call("fit", "--ckpt_path", str(tmp_path / "folder.ckpt"))
    whole = file.read_bytes()
    for content in (b"no checkpoint", whole[: len(whole) // 2], b""):
        (tmp_path / "broken.ckpt").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken.ckpt: found no whole checkpoint of mc2, need one that `mc2 fit` wrote"):
            call("validate", "--ckpt_path", str(tmp_path / "broken.ckpt"))


def test_a_missing_config_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["fit", "--config", "nowhere.yaml"]) == 1
    line = capsys.readouterr().err
    assert line == f"mc2 fit: config: File does not exist: '{Path.cwd() / 'nowhere.yaml'}'; give a file that is there\n"


def on_two_ranks(argv: list[str]) -> tuple[int, int]:
    """Exit status, and how many steps the newest checkpoint has."""
    status = main(argv)
    newest = find_checkpoint("last", argv[argv.index("--trainer.default_root_dir") + 1])
    assert newest is not None
    return status, int(newest.stem.removeprefix("step="))


def test_fsdp2_stops_on_all_ranks_and_goes_on_alone(config: dict[str, Any], call: Callable[..., int], tmp_path: Path) -> None:
    """SIGTERM reaches one of two ranks; both save step 3 and leave; one process without a strategy finishes the run as if it had made all of it."""
    elsewhere = {"trainer": {"default_root_dir": str(tmp_path / "whole")}}
    assert call("fit", over=elsewhere) == 0
    stop = {"class_path": "tests.training.tiny.SignalAt", "init_args": {"step": 3, "number": int(signal.SIGTERM), "rank": 1}}
    strategy = {"class_path": "mc2.training.parallel.FSDP2Strategy", "init_args": {"timeout_minutes": 0.5}}
    config["trainer"] |= {"strategy": strategy, "devices": 2, "callbacks": [stop], "default_root_dir": str(tmp_path / "run")}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    argv = ["fit", "--config", str(tmp_path / "two.yaml"), "--trainer.default_root_dir", str(tmp_path / "run")]
    assert run_processes(on_two_ranks, [(argv,)] * 2, join=False) == [(128 + signal.SIGTERM, 3)] * 2
    assert main([*argv, "--ckpt_path", "last", "--trainer.strategy", "auto", "--trainer.devices", "1", "--trainer.callbacks", "null"]) == 0
    whole, parts = scalars(tmp_path / "whole")["train/loss"], scalars(tmp_path / "run")["train/loss"]
    assert parts == pytest.approx(whole, rel=1e-5)


def test_every_configuration_key_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--print_config"])
    assert caught.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["trainer"]["max_epochs"] == -1
    assert shown["trainer"]["inference_mode"] is False
    assert shown["checkpoints"] == {"every_n_steps": 1000, "keep": 2, "every_n_minutes": None, "async_save": False}


def test_a_lazy_vocabulary_from_yaml_trains_as_the_dense_one(call: Callable[..., int], tmp_path: Path) -> None:
    for vocabulary in ("dense", "lazy"):
        run = {"trainer": {"default_root_dir": str(tmp_path / vocabulary)}}
        assert call("fit", over={**run, "model": {"init_args": {"optimizer": {"vocabulary": vocabulary}}}}) == 0
    dense, lazy = (scalars(tmp_path / vocabulary)["train/loss"] for vocabulary in ("dense", "lazy"))
    assert lazy == pytest.approx(dense, rel=1e-5)
