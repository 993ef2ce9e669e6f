"""Encoding and evaluation: equal to one image and one text at a time, no work done twice, and the same in two processes as in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mc2.benchmarks import evaluate
from mc2.benchmarks.encode import encode_images, encode_texts, length_batches
from mc2.benchmarks.evaluate import Engine, Evaluation, common_languages, language_blocks
from mc2.benchmarks.results import Result, Score
from mc2.benchmarks.tasks import TaskFolder
from tests.benchmarks.toys import CharacterTokenizer, ToyData, ToyModule, square, toy_task, write_toy_task
from tests.processes import run_processes

CPU = torch.device("cpu")
MEANS = {"mean", "mean:seen", "mean:unseen", "mean:script:Latin"}  # de and en


def toy_module() -> ToyModule:
    torch.manual_seed(0)
    return ToyModule().eval()


@torch.no_grad()
def test_images_in_batches_equal_images_alone(tmp_path: Path) -> None:
    task, module, data = toy_task(tmp_path / "toy"), toy_module(), ToyData()
    found = encode_images(module, data.preprocess, task.image_set, batch_size=5, device=CPU)
    assert module.num_forwards["image"] == 5
    alone = [module.encode_image(data.preprocess.evaluate(image)[None]) for image in task.image_set.read(0, 23)]
    torch.testing.assert_close(found, normalize(torch.cat(alone), dim=1))


@torch.no_grad()
@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_texts_in_buckets_equal_texts_alone(max_tokens: int) -> None:
    texts, module, tokenizer = ["", "a", "ein Fuchs", "キツネ", "a much longer text", "b"], toy_module(), CharacterTokenizer()
    found = encode_texts(module, tokenizer, texts, max_tokens, CPU)
    torch.testing.assert_close(found, normalize(torch.cat([module.encode_text(tokenizer([text])) for text in texts]), dim=1))


def test_length_batches_hold_every_row_once_within_the_budget() -> None:
    length = torch.randint(1, 40, (200,), generator=torch.Generator().manual_seed(0))
    batches = length_batches(length, max_tokens=100)
    assert torch.cat(batches).sort().values.tolist() == list(range(200))
    assert max(len(rows) * int(length[rows].max()) for rows in batches) <= 100
    assert len(length_batches(torch.tensor([150, 3]), max_tokens=100)) == 2  # a text above the budget goes alone
    padded = sum(len(rows) * int(length[rows].max()) for rows in batches)
    assert padded < 1.15 * int(length.sum())


@torch.no_grad()
def evaluation(folder: Path, languages: list[str] | None = None, num_names: int = 0) -> tuple[Evaluation, ToyModule]:
    module, task = toy_module(), TaskFolder(folder)
    chosen = task.languages if languages is None else common_languages(task, languages)
    return next(Engine(module, ToyData(), CPU, 5, num_names=num_names).evaluate([task], [chosen])), module


def test_every_image_and_text_is_encoded_once(tmp_path: Path) -> None:
    folder = write_toy_task(tmp_path / "toy")
    task = TaskFolder(folder)
    found, module = evaluation(folder)
    assert module.num_texts == len({text for language in task.languages for text in task.texts(language)})
    assert module.num_forwards["image"] == 5  # 23 images in batches of 5, for three languages and two protocols
    assert {row.language for row in found.results} == {*MEANS, "de", "en", "ja"}
    assert found.predictions.num_rows == 0


def test_results_are_the_scores_of_the_task_and_their_means(tmp_path: Path) -> None:
    folder = write_toy_task(tmp_path / "toy")
    task, module, data = TaskFolder(folder), toy_module(), ToyData()
    found, _ = evaluation(folder, num_names=2)
    rows = {(row.language, row.protocol, row.metric): row for row in found.results}
    with torch.no_grad():
        image = torch.cat([module.encode_image(data.preprocess.evaluate(image)[None]) for image in task.image_set.read(0, 23)])
        text = {
            language: torch.cat([module.encode_text(data.tokenizer([text])) for text in task.texts(language)])
            for language in task.languages
        }
    scores = {language: task.score(language, image, task.condense(language, text[language])) for language in task.languages}
    for language, own in scores.items():
        for score in own:
            row = rows[language, score.protocol, score.metric]
            assert (row.value, row.num_samples, row.num_candidates) == (score.value, score.num_samples, score.num_candidates)
    for index, score in enumerate(scores["de"]):
        three = [scores[language][index] for language in ("de", "en", "ja")]
        row = rows["mean", score.protocol, score.metric]
        assert row.value == pytest.approx(sum(s.value for s in three) / 3)
        assert row.num_samples == sum(s.num_samples for s in three)
        assert rows["mean:unseen", score.protocol, score.metric].value == three[2].value
    assert found.predictions.num_rows == 2 * (23 + 23 + 17)


def test_a_part_of_the_languages_is_named_in_the_protocol(tmp_path: Path) -> None:
    folder = write_toy_task(tmp_path / "toy")
    part, _ = evaluation(folder, languages=["ja", "de", "zu"])
    assert {row.protocol for row in part.results} == {"classification-2-of-3-languages", "retrieval-2-of-3-languages"}
    assert {row.language for row in part.results} == {"mean", "mean:seen", "mean:unseen", "de", "ja"}
    with pytest.raises(ValueError, match="toy: has none of the languages zu; need some of de, en, ja"):
        common_languages(TaskFolder(folder), ["zu"])


def test_a_block_of_languages_bounds_the_texts_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_toy_task(tmp_path / "toy")
    task = TaskFolder(folder)
    assert {language: len(task.texts(language)) for language in task.languages} == {"de": 7, "en": 12, "ja": 4}
    assert list(language_blocks(task, ["de", "en", "ja"], 11)) == [["de"], ["en"], ["ja"]]
    assert list(language_blocks(task, ["de", "ja", "en"], 11)) == [["de", "ja"], ["en"]]
    whole = evaluation(folder)[0].results
    monkeypatch.setattr(evaluate, "TEXTS_AT_ONCE", 1)
    assert evaluation(folder)[0].results == whole


def evaluate_on_a_rank(folder: Path) -> tuple[list[Result], list[dict[str, object]], dict[str, int]]:
    found, module = evaluation(folder, num_names=3)
    return found.results, found.predictions.to_pylist(), module.num_forwards


@pytest.mark.parametrize("num_images", [23, 1])  # uneven shares, and a rank without an image
def test_two_processes_share_the_work_and_agree_with_one(tmp_path: Path, num_images: int) -> None:
    folder = write_toy_task(tmp_path / "toy", num_images, num_classes=5 if num_images > 4 else 2)
    alone = evaluate_on_a_rank(folder)
    both = run_processes(evaluate_on_a_rank, [(folder,), (folder,)])
    for results, predictions, forwards in both:
        assert [(r.language, r.metric, r.value, r.num_samples) for r in results] == [
            (r.language, r.metric, r.value, r.num_samples) for r in alone[0]
        ]
        assert [(row["key"], row["class"], row["name"]) for row in predictions] == [
            (row["key"], row["class"], row["name"]) for row in alone[1]
        ]
        assert forwards == both[0][2]  # under FSDP2 every forward is collective
    if num_images == 23:
        assert both[0][2]["image"] == 3 < alone[2]["image"] == 5


def test_cosines_are_fp32_when_the_towers_run_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_toy_task(tmp_path / "toy")
    seen: list[tuple[bool, torch.dtype]] = []
    score = TaskFolder.score

    def spy(self: TaskFolder, language: str, image: Tensor, text: Tensor) -> list[Score]:
        seen.append((torch.is_autocast_enabled("cpu"), (image @ text.T).dtype))
        return score(self, language, image, text)

    monkeypatch.setattr(TaskFolder, "score", spy)
    with torch.autocast("cpu", torch.bfloat16):
        evaluation(folder)
    assert seen == [(False, torch.float32)] * 3


def test_an_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    from mc2.benchmarks.tasks import write_task_folder

    write_task_folder(tmp_path / "toy", "toy", [("good", square(0), 0), ("bad", square(0)[:60], 0)], [("de", 0, "Ding")])
    with pytest.raises(ValueError, match="toy: image 'bad' cannot be decoded"):
        evaluation(tmp_path / "toy")


def test_an_embedding_is_of_unit_length_whatever_the_model_says(tmp_path: Path) -> None:
    class Loud(ToyModule):
        def encode_image(self, image: Tensor, /) -> Tensor:
            return 100 * super().encode_image(image)

    with torch.no_grad():
        found = encode_images(Loud().eval(), ToyData().preprocess, toy_task(tmp_path / "toy").image_set, batch_size=8, device=CPU)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(23))
