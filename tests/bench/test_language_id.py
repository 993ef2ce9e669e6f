"""What the settings are worth, on truth that they were not chosen on."""

from __future__ import annotations

import pytest

from mc2.bench.language_id import emoji_names, measure, territory_names


def test_the_halves_share_no_emoji() -> None:
    tuned, reported = emoji_names(tuned_on=True), emoji_names(tuned_on=False)
    assert len(tuned[0]) + len(reported[0]) > 50_000
    in_english = [{text for text, code in zip(*half, strict=True) if code == "en"} for half in (tuned, reported)]
    assert len(in_english[0] & in_english[1]) < 30  # different emoji of the same name


@pytest.mark.parametrize("least", [{"plain": 0.81, "restricted": 0.84, "letters": 0.88, "default": 0.94, "default, 176": 0.92}])
def test_each_part_helps_on_the_other_half(least: dict[str, float]) -> None:
    macro = {name: row["macro"] for name, row in measure(emoji_names(tuned_on=False), shared=False, cascade=False).items()}
    assert all(macro[name] >= need for name, need in least.items()), macro  # type: ignore[operator]


def test_the_default_is_better_than_the_model_alone_in_forty_languages() -> None:
    rows = measure(territory_names(), shared=True, cascade=False)
    assert rows["default"]["macro"] > 0.86  # type: ignore[operator]
    assert rows["restricted"]["macro"] < 0.82  # type: ignore[operator]
