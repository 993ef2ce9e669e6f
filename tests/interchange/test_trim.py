"""A trimmed tokenizer cuts its corpus as before, in both forms of ids; a trimmed model has the same features; the command reports what changed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from mc2.cli import main
from mc2.data.tokenizer import Tokenizer, write_tokenizer
from mc2.data.trim import compare, count_pieces, trim
from mc2.interchange.model_directory import load, save
from mc2.model.two_tower import TwoTower
from mc2.records import PackedCaption
from tests.data.shards import TEXTS, write_folder
from tests.interchange.tiny import tiny_config, tiny_parts

WORDS = ["fox", "foxes", "red", "redder", "snow", "snowing", "Fuchs", "Schnee", "Füchse", "лиса", "лисы", "キツネ", "狐"]
TRAINING = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in TEXTS]
CORPUS = [PackedCaption("a red fox in snow", "en"), PackedCaption("red foxes", "en"), PackedCaption("лиса", "ru"), PackedCaption("!?☃", "")]


def sentencepiece_file(path: Path, form: str, byte_fallback: bool, model_type: str = "unigram") -> Tokenizer:
    """A file whose special pieces are numbered as XLM-V's or mT5's."""
    numbers: dict[str, Any] = {"xlm-v": {}, "mt5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}}[form]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING), model_writer=model, vocab_size=500 if byte_fallback else 240, hard_vocab_limit=False,
        byte_fallback=byte_fallback, minloglevel=2, model_type=model_type, user_defined_symbols=["<emoji>"], **numbers,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return Tokenizer(path)


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("form", ["xlm-v", "mt5"])
@pytest.mark.parametrize("all_characters", [True, False])
def test_the_corpus_is_cut_as_before(form: str, byte_fallback: bool, all_characters: bool, tmp_path: Path) -> None:
    before = sentencepiece_file(tmp_path / "before.model", form, byte_fallback)
    assert before.form.name == form
    trimmed = trim(before, count_pieces(CORPUS, before), all_characters=all_characters)
    write_tokenizer(tmp_path, trimmed.model, {})
    after = Tokenizer(tmp_path)
    assert after.form == before.form
    assert after.vocab_size == len(trimmed.old_ids) < before.vocab_size
    texts = [caption.text for caption in CORPUS]
    assert [[trimmed.old_ids[piece] for piece in row] for row in after(texts).tolist()] == before(texts).tolist()  # bos, eos, pad too
    for new, old in enumerate(trimmed.old_ids[after.unk_id + 1 : after.pieces.get_piece_size()], after.unk_id + 1):
        assert after.pieces.id_to_piece(new - after.form.offset) == before.pieces.id_to_piece(old - before.form.offset)
    if form == "xlm-v":  # the mask is last
        assert trimmed.old_ids[:4] == (0, 1, 2, 3)
        assert trimmed.old_ids[-1] == before.vocab_size - 1
    kept = {after.pieces.id_to_piece(piece) for piece in range(after.pieces.get_piece_size())}
    everything = {before.pieces.id_to_piece(piece) for piece in range(before.pieces.get_piece_size())}
    assert ("狐" in kept) is all_characters
    assert {"<emoji>", "x", *(f"<0x{byte:02X}>" for byte in range(256) if byte_fallback)} <= kept < everything


def test_what_a_rare_piece_becomes_is_counted(tmp_path: Path) -> None:
    before = sentencepiece_file(tmp_path / "before.model", "xlm-v", byte_fallback=False)
    corpus = [PackedCaption("fox", "en")] * 3 + [PackedCaption("redder fox", "en"), PackedCaption("Fuchs ☃", "de")]
    counts = count_pieces(corpus, before)
    trimmed = trim(before, counts, min_count=2)
    write_tokenizer(tmp_path, trimmed.model, {})
    after = Tokenizer(tmp_path)
    changes = compare(corpus, before, after, trimmed.old_ids)
    assert list(changes) == ["de", "en"]
    assert (changes["en"].captions, changes["en"].unchanged) == (4, 3)
    assert changes["en"].pieces_before == sum(len(before.encode([caption.text])[0]) for caption in corpus if caption.language == "en")
    assert changes["en"].pieces_after > changes["en"].pieces_before
    assert (changes["de"].spelt_before, changes["de"].spelt_after) == (1, 1)  # the snowman, before and after
    assert changes["de"].to_json()["pieces_per_caption_after"] == len(after.encode(["Fuchs ☃"])[0])
    assert after.decode(after.encode(["redder fox"])[0]) == "redder fox"


def test_refuses_what_cannot_be_trimmed(tmp_path: Path) -> None:
    pairs = sentencepiece_file(tmp_path / "pairs.model", "xlm-v", byte_fallback=False, model_type="bpe")
    with pytest.raises(ValueError, match=r"pairs\.model: is no unigram model"):
        trim(pairs, count_pieces(CORPUS, pairs))
    with pytest.raises(ValueError, match="found no caption to keep pieces for"):
        count_pieces([], pairs)


def test_a_trimmed_model_has_the_same_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, preprocess = tiny_parts(tmp_path / "other")
    tokenizer = Tokenizer(sentencepiece_file(tmp_path / "before.model", "xlm-v", byte_fallback=True).path, context_length=16)
    torch.manual_seed(0)
    save(tmp_path / "model", TwoTower(tiny_config(tokenizer.vocab_size + 5)), tokenizer, preprocess)  # some tables have rows beyond the ids
    (tmp_path / "en.txt").write_text("a red fox in snow\n\nred foxes\n", encoding="utf-8")
    (tmp_path / "ru.txt").write_text("лиса\n", encoding="utf-8")
    files = json.dumps([str(tmp_path / "en.txt"), str(tmp_path / "ru.txt")])
    argv = ["tokenizer", "trim", "--model", str(tmp_path / "model"), "--texts", files, "--out"]
    assert main([*argv, str(tmp_path / "small"), "--json", "true"]) == 0
    report = json.loads(capsys.readouterr().out)
    before, after = load(tmp_path / "model"), load(tmp_path / "small")
    assert (report["ids_before"], report["ids_after"]) == (tokenizer.vocab_size, after.tokenizer.vocab_size)
    assert {code: change["captions"] for code, change in report["languages"].items()} == {"en": 2, "ru": 1}
    assert all(change["unchanged_share"] == 1.0 for change in report["languages"].values())
    (tmp_path / "sw.txt").write_text("mbweha\nred fox\n", encoding="utf-8")
    held_out = json.dumps([str(tmp_path / "sw.txt"), str(tmp_path / "ru.txt")])
    assert main([*argv, str(tmp_path / "again"), "--json", "true", "--held_out", held_out]) == 0
    assert {code: change["captions"] for code, change in json.loads(capsys.readouterr().out)["languages"].items()} == {"ru": 1, "sw": 2}
    texts = ["a red fox in snow", "red foxes", "лиса", "a red fox " * 9]
    torch.testing.assert_close(after.encode_text(texts), before.encode_text(texts), rtol=0, atol=1e-6)
    assert len(after.towers.text.token_embedding.weight) == after.tokenizer.vocab_size < tokenizer.vocab_size
    assert main([*argv, str(tmp_path / "small")]) == 1
    assert "is there already; choose a new folder" in capsys.readouterr().err


def test_the_command_on_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sentencepiece_file(tmp_path / "before.model", "mt5", byte_fallback=True)
    argv = ["tokenizer", "trim", "--tokenizer", str(before.path), "--out", str(tmp_path / "small")]
    assert main([*argv, "--shards", str(write_folder(tmp_path / "shards", [3]))]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("en", "100.00%", f"of {before.vocab_size:,} ids"))
    for wrong, message in (
        ([], "need captions, either --shards"),
        (["--texts", '["none.txt"]'], "found no file none.txt"),
        (["--texts", '["none.txt"]', "--model", "m"], "need either --tokenizer or --model"),
        (["--texts", '["none.txt"]', "--min_count", "0"], "found min_count 0"),
    ):
        argv[-1] = str(tmp_path / "none")
        assert main([*argv, *wrong]) == 1
        assert message in capsys.readouterr().err
