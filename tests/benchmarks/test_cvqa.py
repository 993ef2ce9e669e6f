"""CVQA in its official layout against a loop over questions and options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mc2.benchmarks import tasks
from mc2.data.tokenizer import train_tokenizer
from tests.benchmarks import layouts
from tests.benchmarks.slow_scores import scored
from tests.benchmarks.toys import square


def test_cvqa_takes_the_nearest_of_four_options(tmp_path: Path) -> None:
    task = tasks.CVQA(str(layouts.cvqa(tmp_path)))
    assert list(task.image_set.read(1, 4)) == [square(1), square(2), square(3)]
    found, image, vector = scored(task, "mul")
    for protocol, question, answer in (("en", "question", "answer"), ("local", "swali", "jibu")):
        right = [
            int(np.argmax([image[index] @ vector(f"{question} {index}? {answer} {number}") for number in range(4)])) == index % 4
            for index in range(5)
        ]
        assert found[protocol, "top1"].value == np.mean(right)
        assert found[protocol, "top1[subset=Swahili-Kenya]"].value == pytest.approx(np.mean(right[:3]))
        assert found[protocol, "top1[subset=Japanese-Japan]"].value == np.mean(right[3:])
        assert found[protocol, "top1"].num_candidates == 4


def test_cvqa_counts_questions_whose_options_do_not_fit_the_context(tmp_path: Path) -> None:
    layouts.cvqa(tmp_path)
    words = train_tokenizer(tasks.CVQA(str(tmp_path)).texts("mul"), tmp_path / "words", vocab_size=320)
    lengths = {text: words([text]).shape[1] for text in tasks.CVQA(str(tmp_path)).texts("mul")}  # with bos and eos
    context = sorted(lengths.values())[len(lengths) // 2]
    task = tasks.CVQA(str(tmp_path), tokenizer=str(tmp_path / "words"), context_length=context)
    found, _, _ = scored(task, "mul")
    need = [any(lengths[f"question {index}? answer {number}"] > context for number in range(4)) for index in range(5)]
    assert found["en", "options_cut"].value == pytest.approx(np.mean(need))
    assert {found[protocol, "options_cut"].value for protocol in ("en", "local")} != {0.0}
