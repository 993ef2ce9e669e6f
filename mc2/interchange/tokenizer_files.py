"""The tokenizer files that transformers and open_clip read, made from our SentencePiece file.

tokenizer.json, tokenizer_config.json   for AutoTokenizer: the same pieces, normalisation and ids
sentencepiece.bpe.model                 the file itself, which `mc2 import` and others read
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from mc2 import storage
from mc2.data.tokenizer import Tokenizer
from mc2.data.tokenizer_forms import MT5, XLM_V
from mc2.interchange.model_directory import SENTENCEPIECE_FILE

PUNCTUATION = Regex(r"[!-/:-@\[-`{-~]")  # string.punctuation


def write_tokenizer_files(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the files into a folder that is there.

    Ids are equal to ours but for captions that hold the literal text of a special token ("</s>"): their tokenizers make the token of it.
    """
    fast = fast_tokenizer(tokenizer)
    storage.write_bytes(folder / "tokenizer.json", fast.to_str(pretty=True).encode())
    storage.write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer))
    storage.write_bytes(folder / SENTENCEPIECE_FILE, tokenizer.pieces.serialized_model_proto())


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """What transformers' AutoTokenizer needs besides tokenizer.json."""
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    if tokenizer.form != MT5:
        special |= {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.context_length,
        "padding_side": "right",
        "truncation_side": "right",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        **special,
    }


def fast_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer in the form of the `tokenizers` package. Errors: ValueError for a form that no other tool's CLIP reads."""
    if tokenizer.form not in (XLM_V, MT5):
        raise ValueError(f"{tokenizer.path}: found ids of the form {tokenizer.form.name}, need xlm-v or mt5 for the files of another tool")
    model: Any = import_module("sentencepiece.sentencepiece_model_pb2").ModelProto.FromString(tokenizer.pieces.serialized_model_proto())
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    if tokenizer.form != MT5:  # fairseq's order (mc2.data.tokenizer_forms)
        pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces[3:], ("<mask>", 0.0)]
    fast = tokenizers.Tokenizer(Unigram(pieces, unk_id=tokenizer.unk_id, byte_fallback=model.trainer_spec.byte_fallback))
    steps: list[Any] = [normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)]
    if tokenizer.form == MT5:
        steps = [normalizers.Replace(PUNCTUATION, ""), normalizers.Lowercase(), *steps]
    fast.normalizer = normalizers.Sequence(steps)
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    ends = [("</s>", tokenizer.eos_id)] if tokenizer.form == MT5 else [("<s>", 0), ("</s>", tokenizer.eos_id)]
    fast.post_processor = processors.TemplateProcessing(
        single=" ".join([*(["<s>"] if len(ends) == 2 else []), "$A", "</s>"]), special_tokens=ends
    )
    return fast
