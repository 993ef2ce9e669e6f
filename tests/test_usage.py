"""Wrong words of every subcommand: one line that says what was found or is needed and where help is, and the status that shells know; and the helper itself."""

from __future__ import annotations

import pytest

from mc2.cli import SUBCOMMANDS, main
from mc2.usage import UsageError, call, one_line

WRONG = {  # words -> what the line has; status 2: words that no parser takes, 1: what they name is not there or cannot be
    "quickstart --steps many": (2, "--steps: found many, need int"),
    "quickstart --step 5": (2, "found no option --step; did you mean --steps"),
    "quickstart --every 0": (1, "found every 0, need 1"),
    "metadata": (2, "found no subcommand, need one of build, join, show; see `mc2 metadata --help`"),
    "metadata bild": (2, "found no subcommand 'bild', need one of build, join, show; did you mean build"),
    "metadata build": (2, "need --out; see `mc2 metadata build --help`"),
    "metadata show --folder nowhere": (1, "nowhere"),
    "curate run --pool p --metadata m": (2, "need --out; see `mc2 curate run --help`"),
    "curate run --pool p --metadata m --out o --english_treshold 40": (2, "did you mean --english_threshold"),
    "curate run --pool p --metadata m --out o --seed x": (2, "--seed: found x, need int"),
    "curate run --pool nowhere --metadata m --out o": (1, "nowhere"),
    "curate collect --images nowhere --out o": (1, "nowhere"),
    "curate verify --shards nowhere": (1, "nowhere"),
    "tokenizer train --out o": (2, "need --shards; see `mc2 tokenizer train --help`"),
    "tokenizer train --shards nowhere --out o": (1, "nowhere"),
    "tokenizer trim --out o": (1, "need either --tokenizer or --model"),
    "fit --trainer.max_stepz 3": (1, "max_stepz"),
    "fit --config nowhere.yaml": (1, "File does not exist"),
    "validate --trainer.max_steps x": (1, "max_steps"),
    "test --config nowhere.yaml": (1, "File does not exist"),
    "predict --config nowhere.yaml": (1, "File does not exist"),
    "sweep": (2, "need FILE; see `mc2 sweep --help`"),
    "sweep nowhere.yaml": (1, "nowhere.yaml: not found; give a sweep file"),
    "compare a": (2, "need AFTER; see `mc2 compare --help`"),
    "compare nowhere there": (1, "nowhere"),
    "plan --mfu high": (2, "--mfu"),
    "plan --config nowhere.yaml": (1, "File does not exist"),
    "doctor --foldr x": (2, "did you mean --folder"),
    "doctor --folder nowhere": (1, "found no folder at"),
    "import --out o": (2, "need --source; see `mc2 import --help`"),
    "import --source nowhere --out o": (1, "nowhere"),
    "export --out o": (1, "need either --model, or --config and --ckpt_path"),
    "export --out o --model nowhere --to tim": (2, "tim"),
    "export --out o --model nowhere --to timm": (1, "nowhere"),
    "bench mach": (2, "did you mean match"),
    "bench step --size nowhere": (1, "nowhere"),
    "bench match --captions 0": (1, "found captions 0, need at least"),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words_are_one_line(
    words: str, capsys: pytest.CaptureFixture[str], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    status, said = WRONG[words]
    assert main(words.split()) == status
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.startswith(f"mc2 {words.split()[0]}: ")
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_every_subcommand_is_tried() -> None:
    assert {words.split()[0] for words in WRONG} == set(SUBCOMMANDS)


def one(first: int, second: str = "x", maybe: float | None = None) -> tuple[int, str, float | None]:
    """What it was called with."""
    return first, second, maybe


def test_a_function_is_called_with_its_words() -> None:
    assert call(one, ["3", "--second", "y"], "mc2 one") == (3, "y", None)
    assert call({"one": one}, ["one", "--first", "3", "--maybe", "0.5"], "mc2 some") == (3, "x", 0.5)
    with pytest.raises(UsageError, match=r"^--maybe: need float; see `mc2 some one --help`$"):
        call({"one": one}, ["one", "--first", "3", "--maybe", "y"], "mc2 some")


def test_one_line_leaves_our_own_messages_alone() -> None:
    assert one_line("loss: found 1, need 2; do 3") == "loss: found 1, need 2; do 3"
