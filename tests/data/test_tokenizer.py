"""Ids against transformers for the same SentencePiece file, and what a caption can do to a tokenizer."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from mc2.cli import main
from mc2.data.tokenizer import Tokenizer, train_tokenizer
from mc2.data.tokenizer_forms import canonical_text
from mc2.interchange.tokenizer_files import write_tokenizer_files
from tests.data.shards import TEXTS, write_folder

ODD = ["", "  two   spaces\tand\na line ", "\u2581fox\u2581", "<0x41><0x42>", "ﬁne ﬃ ＡＢＣ"]
SPECIAL = ["</s> a fox </s>", "<s>", "<pad>", "<unk> fox", "<mask>"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Without bytes, as XLM-V's file: transformers' class of this form knows no bytes."""
    return train_tokenizer(TEXTS * 20, tmp_path_factory.mktemp("plain"), 400, byte_fallback=False)


@pytest.fixture(scope="module")
def transformers_tokenizer(plain: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("xlm")
    shutil.copy(plain.path, folder / "sentencepiece.bpe.model")
    return transformers.XLMRobertaTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("context_length", [4, 7, 77])
def test_ids_are_those_of_transformers(plain: Tokenizer, transformers_tokenizer: Any, context_length: int) -> None:
    ours = Tokenizer(plain.path, context_length)
    texts = [*TEXTS, " ".join(TEXTS), "unseen Ἀ Ω ☃ 狐", *ODD]
    theirs = transformers_tokenizer(texts, padding=True, truncation=True, max_length=context_length)["input_ids"]
    torch.testing.assert_close(ours(texts), torch.tensor(theirs, dtype=torch.int32))
    assert ours.vocab_size == len(transformers_tokenizer)


@pytest.fixture(scope="module")
def mt5(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A file as mT5's is: pad 0, eos 1, unk 2, bytes."""
    file = tmp_path_factory.mktemp("mt5") / "sentencepiece.model"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_writer=model, vocab_size=600, hard_vocab_limit=False, byte_fallback=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    file.write_bytes(model.getvalue())
    return Tokenizer(file)


@pytest.mark.parametrize("context_length", [4, 7, 77])
def test_ids_of_the_mt5_form_are_those_of_transformers(mt5: Tokenizer, context_length: int) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.SiglipTokenizer(str(mt5.path), model_max_length=context_length)
    ours = Tokenizer(mt5.path, context_length)
    texts = [*TEXTS, " ".join(TEXTS), "Unseen Ἀ Ω ☃ 狐!", "UPPER, (case): it's", "ﬁne ﬃ ＡＢＣ", "  two   spaces\tand\na line "]
    ids = theirs(texts, padding=True, truncation=True, max_length=context_length)["input_ids"]
    torch.testing.assert_close(ours(texts), torch.tensor(ids, dtype=torch.int32))
    assert ours.vocab_size == theirs.vocab_size


@pytest.mark.parametrize("context_length", [4, 77])
def test_ids_of_the_gemma_form_are_those_of_sentencepiece(context_length: int, tmp_path: Path) -> None:
    """A file as Gemma's is: bytes, merges, no space put before a caption; in a folder beside another tool's tokenizer.json."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_writer=model, vocab_size=600, hard_vocab_limit=False, byte_fallback=True, model_type="bpe",
        add_dummy_prefix=False, normalization_rule_name="identity", remove_extra_whitespaces=False,
        pad_id=0, pad_piece="<pad>", eos_id=1, eos_piece="<eos>", bos_id=2, bos_piece="<bos>", unk_id=3, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    ours, theirs = Tokenizer(tmp_path, context_length), sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    texts = [*TEXTS, *ODD, "<eos> a fox <eos>", "<bos>", "<pad>"]
    for row, text in zip(ours(texts).tolist(), texts, strict=True):
        ids = theirs.encode(text, add_bos=True, add_eos=True)
        kept = ids if len(ids) <= context_length else [*ids[: context_length - 1], theirs.eos_id()]
        assert row == kept + [theirs.pad_id()] * (len(row) - len(kept))
        assert row.count(theirs.eos_id()) == 1
        assert ours.decode(ours.encode([text])[0]) == text.replace("\u2581", " ")
    assert (ours.vocab_size, ours.eos_id) == (theirs.get_piece_size(), 1)
    with pytest.raises(ValueError, match="found ids of the form gemma, need xlm-v or mt5"):
        write_tokenizer_files(tmp_path, ours)


@pytest.mark.parametrize("text", [*SPECIAL, "", "!!!"])
def test_the_first_end_of_the_mt5_form_is_at_the_number_of_ids_above_one(mt5: Tokenizer, text: str) -> None:
    """RECIPE 2.3: what the released model pools is what a text tower with `eos_id` 1 pools."""
    for row in mt5([text, TEXTS[0] * 3]).tolist():
        assert row.index(mt5.eos_id) == sum(piece > 1 for piece in row)
    assert mt5.decode(mt5.encode([text])[0]) == canonical_text(text)


def test_a_literal_eos_is_text_where_transformers_ends_the_caption(plain: Tokenizer, transformers_tokenizer: Any) -> None:
    text = "a fox </s> a hen"
    assert transformers_tokenizer([text], split_special_tokens=True)["input_ids"][0].count(plain.eos_id) == 2
    assert plain([text])[0].tolist().count(plain.eos_id) == 1


def test_every_row_is_bos_pieces_eos_pad(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer(tokenizer_folder, context_length=9)
    rows = tokenizer(["", TEXTS[0], "fox " * 50])
    assert rows.dtype == torch.int32
    assert rows.shape == (3, 9)
    assert rows[0].tolist() == [0, 2] + [1] * 7
    assert rows[2, -1] == tokenizer.eos_id
    assert tokenizer([""]).tolist() == [[0, 2]]  # trimmed to the longest of the batch
    assert tokenizer([]).shape == (0, 0)


@pytest.mark.parametrize("text", [*SPECIAL, *ODD])
def test_text_never_becomes_a_special_id(tokenizer_folder: Path, text: str) -> None:
    tokenizer = Tokenizer(tokenizer_folder)
    pieces = tokenizer.encode([text])[0]
    assert all(tokenizer.unk_id < piece < tokenizer.vocab_size - 1 for piece in pieces)  # the mask is last
    assert "".join(tokenizer.decode(pieces).split()) == "".join(
        text.replace("\u2581", " ").replace("ﬁ", "fi").replace("ﬃ", "ffi").replace("ＡＢＣ", "ABC").split()
    )


def test_a_script_never_seen_is_spelt_in_bytes_instead_of_unk(tokenizer_folder: Path, plain: Tokenizer) -> None:
    text = "ꯃꯩꯇꯩ"
    tokenizer = Tokenizer(tokenizer_folder)
    pieces = tokenizer.encode([text])[0]
    assert tokenizer.unk_id not in pieces
    assert tokenizer.decode(pieces) == text
    assert sum(map(tokenizer.is_spelt, pieces)) == len(text.encode())
    assert plain.unk_id in plain.encode([text])[0]


def test_training_repeats_byte_for_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_tokenizer(iter(TEXTS * 5), tmp_path / name, 350)
    for file in ("tokenizer.model", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_save_and_load(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(tokenizer_folder)
    tokenizer.save(tmp_path)
    assert torch.equal(Tokenizer(tmp_path)(TEXTS), tokenizer(TEXTS))


def test_errors_name_the_file_and_the_cure(tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer here; give a folder"):
        Tokenizer(tmp_path / "none")
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"broken\.model: not a SentencePiece model"):
        Tokenizer(broken)
    shutil.copytree(tokenizer_folder, tmp_path / "changed")
    (tmp_path / "changed/tokenizer.model").write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"need [0-9a-f]{12} of tokenizer\.json"):
        Tokenizer(tmp_path / "changed")
    with pytest.raises(ValueError, match="context_length 2, need at least 3"):
        Tokenizer(tokenizer_folder, 2)


def test_training_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no caption to train on"):
        train_tokenizer(["", "  \n"], tmp_path, 400)
    with pytest.raises(ValueError, match=r"vocab_size 20 .*choose a larger"):
        train_tokenizer(TEXTS, tmp_path, 20)
    assert not list(tmp_path.iterdir())


def test_commands_train_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = str(write_folder(tmp_path / "shards", [5, 5]))
    out = str(tmp_path / "tokenizer")
    assert main(["tokenizer", "train", "--shards", shards, "--out", out, "--vocab_size", "330"]) == 0
    assert main(["tokenizer", "show", "--tokenizer", out, "--shards", shards]) == 0
    table = capsys.readouterr().out
    assert all(code in table for code in ("de", "en", "fr", "100.00%"))
    assert main(["tokenizer", "train", "--shards", str(tmp_path), "--out", out]) == 1
    assert "found no .tar file" in capsys.readouterr().err
