"""One small pool and its metadata for all tests of the stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from mc2.metadata.build import build_metadata
from tests.curation.pools import write_pool

WORDS = {
    "en": ["fox", "snow", "brown fox", "house", "sea", "dog", "cat", "garden", "moon", "mountains", "black", "the", "a"],
    "de": ["Fuchs", "Schnee", "Haus", "Meer", "Hund", "Garten", "Feld", "der", "im"],
    "ja": ["キツネ", "雪", "公園", "子供", "の"],
}


@pytest.fixture(scope="session")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Entry lists of three languages, by hand."""
    folder = tmp_path_factory.mktemp("curation") / "metadata"
    build_metadata(folder, [], WORDS, progress=False)
    return folder


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of five pairs."""
    return write_pool(tmp_path_factory.mktemp("curation") / "pool")
