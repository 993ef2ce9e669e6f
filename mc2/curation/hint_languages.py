"""Languages that a page's hint speaks for."""

from __future__ import annotations

from functools import lru_cache

from mc2 import languages

MIN_SPEAKERS = 0.1  # of the country's most spoken language: so many make a language one of the country


@lru_cache(maxsize=4096)
def hinted_languages(tag: str) -> frozenset[str]:
    """Metadata languages of a BCP 47 tag: {"de"} for "de-AT"; {"de", "en", "fr", "it", ...} for "und-CH", the languages of the country. Pages say anything: what is
    no tag hints at nothing."""
    head, _, rest = tag.strip().replace("_", "-").partition("-")
    if head.lower() == "und":
        return _languages_of_country(rest[-2:].upper())
    try:
        return frozenset({languages.metadata_code(head)}) if head else frozenset()
    except ValueError:
        return frozenset()


@lru_cache(maxsize=512)
def _languages_of_country(country: str) -> frozenset[str]:
    """CLDR's numbers of speakers, as the package language-data has them."""
    from language_data.population_data import LANGUAGE_SPEAKING_POPULATION

    speakers = {
        tag.split("-")[0]: number
        for tag, number in LANGUAGE_SPEAKING_POPULATION.items()
        if tag.count("-") == 1 and tag.endswith(f"-{country}")
    }
    most = max(speakers.values(), default=0)
    found = set()
    for code, number in speakers.items():
        if number >= MIN_SPEAKERS * most:
            try:
                found.add(languages.metadata_code(code))
            except ValueError:
                continue
    return frozenset(found)
