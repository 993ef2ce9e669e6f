"""One task, one model -> results and predictions: encode once, score every language, on all ranks.

Shapes: N images, T texts, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pyarrow as pa
import torch
import torch.distributed as dist

from mc2.benchmarks.encode import Encoder, Preprocessing, encode_images, encode_texts, this_rank
from mc2.benchmarks.results import Result, Score, task_results
from mc2.benchmarks.tasks import PREDICTIONS_SCHEMA, Task

T = TypeVar("T")

TEXTS_AT_ONCE = 2**16  # different texts whose embeddings are held together: 128 MiB at D = 512, however many languages there are
TOKENS_PER_IMAGE = 16  # a forward of texts has this many tokens for each image of an image batch


@dataclass(frozen=True)
class Evaluation:
    """What one task said: rows of results.csv, and the best answers for each image (PREDICTIONS_SCHEMA; empty unless asked for)."""

    results: list[Result]
    predictions: pa.Table


def evaluate_task(
    encoder: Encoder,
    data: Preprocessing,
    task: Task,
    batch_size: int,
    device: torch.device,
    languages: Sequence[str] | None = None,
    num_names: int = 0,
) -> Evaluation:
    """What a task says of a model: called on all ranks, the same on every rank.

    `languages` takes a part of the task's, and the protocol's name then says so; `num_names` answers for each image are kept.

    Errors: ValueError for an image that does not decode, or if the task has none of the languages.
    """
    chosen = list(task.languages) if languages is None else common_languages(task, languages)
    image_ND = encode_images(encoder, data.preprocess, task, batch_size, device)
    scores: dict[str, list[Score]] = {}
    tables: dict[str, pa.Table] = {}
    rank, world = this_rank()
    for block in language_blocks(task, chosen, TEXTS_AT_ONCE):
        index = {text: row for row, text in enumerate(dict.fromkeys(text for language in block for text in task.texts(language)))}
        text_TD = encode_texts(encoder, data.tokenizer, list(index), batch_size * TOKENS_PER_IMAGE, device)
        for language in block[rank::world]:
            own_TD = text_TD[torch.tensor([index[text] for text in task.texts(language)], device=text_TD.device)]
            with torch.autocast(device.type, enabled=False):  # the towers may run in bf16, cosines of near neighbours may not
                text_CD = task.condense(language, own_TD)
                scores[language] = task.score(language, image_ND, text_CD)
                if num_names:
                    tables[language] = task.predictions(language, image_ND, text_CD, num_names)
    scores, tables = gather(scores), gather(tables)
    results = task_results(task.name, {language: scores[language] for language in chosen}, task.groups)
    if len(chosen) < len(task.languages):
        suffix = f"-{len(chosen)}-of-{len(task.languages)}-languages"
        results = [replace(row, protocol=row.protocol + suffix) for row in results]
    return Evaluation(
        results, pa.concat_tables([PREDICTIONS_SCHEMA.empty_table(), *(tables[language] for language in chosen if language in tables)])
    )


def common_languages(task: Task, languages: Sequence[str]) -> list[str]:
    """Those of the languages that the task has, in the task's order. Errors: ValueError if there is none."""
    common = [language for language in task.languages if language in languages]
    if not common:
        raise ValueError(f"{task.name}: has none of the languages {', '.join(languages)}; need some of {', '.join(task.languages)}")
    return common


def language_blocks(task: Task, languages: Sequence[str], num_texts: int) -> Iterator[list[str]]:
    """Languages in order, cut into blocks of at most `num_texts` texts (a language is never cut)."""
    block: list[str] = []
    size = 0
    for language in languages:
        size += len(task.texts(language))
        if block and size > num_texts:
            yield block
            block, size = [], len(task.texts(language))
        block.append(language)
    yield block


def gather(part: dict[str, T]) -> dict[str, T]:
    """The union of all ranks' dictionaries, on every rank; no key is on two."""
    _, world = this_rank()
    parts: list[dict[str, T]] = [{} for _ in range(world)]
    if world > 1:
        dist.all_gather_object(parts, part)
    else:
        parts = [part]
    return {key: value for part in parts for key, value in part.items()}
