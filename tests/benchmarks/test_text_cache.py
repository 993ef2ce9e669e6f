"""Class embeddings on the disk: found again by weights, tokenizer and texts alone, and never stale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mc2.benchmarks.evaluate import Engine
from mc2.benchmarks.results import Result
from mc2.benchmarks.tasks import TaskFolder, write_task_folder
from mc2.benchmarks.text_cache import KEPT_MODELS, TextCache, model_fingerprint
from tests.benchmarks.toys import CharacterTokenizer, ToyData, ToyModule, square, toy_task, write_toy_task
from tests.processes import run_processes

CPU = torch.device("cpu")


class CachedModule(ToyModule):
    def text_state(self) -> tuple[str, Mapping[str, Tensor]]:
        return "toy", {**self.words.state_dict(prefix="words."), **self.text.state_dict(prefix="text.")}


class NamedTokenizer(CharacterTokenizer):
    fingerprint = "characters"


def module(seed: int = 0) -> CachedModule:
    torch.manual_seed(seed)
    return CachedModule().eval()


@torch.no_grad()
def evaluate(task: Path, cache: Path | None, encoder: CachedModule) -> tuple[list[Result], int]:
    """Results, and the number of texts that were encoded."""
    encoder.num_texts = 0
    opened = None if cache is None else TextCache(cache, model_fingerprint(encoder, NamedTokenizer()))
    toy = TaskFolder(task)
    found = next(Engine(encoder, ToyData(), CPU, 5, cache=opened).evaluate([toy], [toy.languages]))
    return found.results, encoder.num_texts


def test_the_second_evaluation_encodes_no_text(tmp_path: Path) -> None:
    task, cache, encoder = write_toy_task(tmp_path / "toy"), tmp_path / "cache", module()
    plain, number = evaluate(task, None, encoder)
    assert evaluate(task, cache, encoder) == (plain, number)
    assert evaluate(task, cache, encoder) == (plain, 0)
    write_task_folder(tmp_path / "other", "other", [("k", square(0), 0)], [("de", c, n) for lang, c, n in names() if lang == "de"])
    _, again = evaluate(tmp_path / "other", cache, encoder)
    assert again == 0  # another task with the same names and classes
    next(cache.rglob("*.safetensors")).write_bytes(b"broken")
    assert evaluate(task, cache, encoder)[0] == plain
    assert evaluate(task, cache, encoder) == (plain, 0)


def names() -> list[tuple[str, int, str]]:
    from tests.benchmarks.toys import toy_names

    return toy_names(5)


def test_other_weights_tokens_texts_or_classes_are_not_found(tmp_path: Path) -> None:
    encoder, tokenizer = module(), NamedTokenizer()
    known = model_fingerprint(encoder, tokenizer)
    assert model_fingerprint(module(), NamedTokenizer()) == known
    assert model_fingerprint(module(seed=1), tokenizer) != known
    tokenizer.fingerprint = "letters"
    assert model_fingerprint(encoder, tokenizer) != known
    with torch.no_grad():
        encoder.words.weight[99, 0] += 1e-6  # a row that hardly any text has
    assert model_fingerprint(encoder, NamedTokenizer()) != known
    cache = TextCache(tmp_path / "cache", known)
    task = toy_task(tmp_path / "toy")
    assert cache.path(task, "de") == TextCache(tmp_path / "cache", known).path(toy_task(tmp_path / "toy"), "de")
    swapped = [(code, {0: 1, 1: 0}.get(label, label), name) for code, label, name in names()]
    write_task_folder(tmp_path / "swapped", "toy", [("k", square(0), 2)], swapped)
    assert cache.path(TaskFolder(tmp_path / "swapped"), "de") != cache.path(task, "de")


def test_folders_of_old_weights_go(tmp_path: Path) -> None:
    for number in range(KEPT_MODELS + 3):
        TextCache(tmp_path, f"model{number}")
        (tmp_path / f"model{number}/x").write_text("")
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == KEPT_MODELS
    assert f"model{KEPT_MODELS + 2}" in left


def evaluate_on_a_rank(folder: Path) -> tuple[list[tuple[str, float]], int, int]:
    encoder = module()
    first, second = evaluate(folder / "toy", folder / "cache", encoder), evaluate(folder / "toy", folder / "cache", encoder)
    return [(row.language, row.value) for row in second[0]], first[1], second[1]


def test_two_ranks_agree_on_what_is_there(tmp_path: Path) -> None:
    plain, _ = evaluate(write_toy_task(tmp_path / "toy"), None, module())
    for rows, first, second in run_processes(evaluate_on_a_rank, [(tmp_path,)] * 2):
        assert rows == [(row.language, pytest.approx(row.value)) for row in plain]
        assert first > 0
        assert second == 0
