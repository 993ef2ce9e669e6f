"""A tiny model with everything around it: two towers, a tokenizer trained on five captions, preprocessing."""

from __future__ import annotations

from pathlib import Path

import torch

from mc2.data.preprocess import ImagePreprocess
from mc2.data.tokenizer import Tokenizer, train_tokenizer
from mc2.model.text_tower import TextConfig
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.model.vision_tower import VisionConfig

CAPTIONS = ["ein Fuchs im Schnee", "a red fox", "キツネ", "лиса в лесу", "en räv i skogen"] * 4
SIZE, CONTEXT = 32, 16


def tiny_tokenizer(folder: Path) -> Tokenizer:
    train_tokenizer(CAPTIONS, folder, vocab_size=360)
    return Tokenizer(folder, context_length=CONTEXT)


def tiny_config(vocab_size: int, width: int = 32) -> TwoTowerConfig:
    vision = VisionConfig(image_size=SIZE, width=width, layers=1, heads=2)
    text = TextConfig(vocab_size=vocab_size, context_length=CONTEXT, width=width, layers=1, heads=2)
    return TwoTowerConfig(embed_dim=24, vision=vision, text=text)


def tiny_parts(folder: Path) -> tuple[TwoTower, Tokenizer, ImagePreprocess]:
    tokenizer = tiny_tokenizer(folder)
    torch.manual_seed(0)
    return TwoTower(tiny_config(tokenizer.vocab_size)), tokenizer, ImagePreprocess(image_size=SIZE)
