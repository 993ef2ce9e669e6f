"""Groups of languages whose means are reported: by script, by region, by how much text there is.

script      ISO 15924, of the code itself (`srp_Latn`) or what the language is usually written in (Unicode CLDR through langcodes)
region      continent (UN M.49) of the country where most of its speakers are by CLDR's likely subtags: English is American, Portuguese too
resources   high, middle, low: wordfreq has a large word list (enough text to count words that occur once in 100 million), a small one, or none
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Mapping
from functools import lru_cache
from xml.etree import ElementTree

import langcodes
import wordfreq
from langcodes.data_dicts import LIKELY_SUBTAGS

from mc2 import languages

SCRIPT_NAMES = {"Hans": "Simplified Han", "Hant": "Traditional Han"}  # where CLDR's own name is short of a noun
KINDS = ("resources", "region", "script")
CONTINENTS = {"002": "Africa", "009": "Oceania", "019": "Americas", "142": "Asia", "150": "Europe"}
WORDFREQ_CODES = {"no": "nb", "tl": "fil", "bs": "sh", "hr": "sh", "sr": "sh"}  # where wordfreq says a language by another code


def members(codes: Iterable[str], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Group -> its languages: those of a task's own `groups`, then "resources:high", "region:Africa", "script:Cyrillic" of two or more languages."""
    codes = list(codes)
    found: dict[str, list[str]] = {}
    for group in sorted({groups[code] for code in codes if code in groups}):
        found[group] = [code for code in codes if groups.get(code) == group]
    for kind, group_of in zip(KINDS, (resources, region, script), strict=True):
        parts: dict[str, list[str]] = {}
        for code in codes:
            parts.setdefault(group_of(code), []).append(code)
        if len(parts) > 1:  # and the mean of a single language is that language
            found |= {f"{kind}:{part}": parts[part] for part in sorted(parts) if part and len(parts[part]) > 1}
    return found


def script_code(code: str) -> str:
    """ISO 15924 of what a language is written in: "Cyrl" for "ru", "Latn" for "srp_Latn", "Hant" for "zh-TW"; "Zyyy" where CLDR knows none."""
    tag = langcodes.Language.get(code)
    written: str | None = tag.maximize().script if tag.script or tag.territory else languages.script(languages.canonical(code))
    return written or "Zyyy"


def script(code: str) -> str:
    """ "Cyrillic" for "ru"; "" where CLDR knows none."""
    written = script_code(code)
    return SCRIPT_NAMES.get(written) or ("" if written == "Zyyy" else langcodes.Language.make(script=written).script_name())


def region(code: str) -> str:
    """ "Africa" for "sw"; "" for a language of no country (Esperanto), or that CLDR knows no country of."""
    language = languages.SERVED_BY.get(languages.canonical(code), languages.canonical(code))
    language = langcodes.Language.get(language).language or language
    territory = langcodes.Language.get(code).territory
    if territory is None and language in LIKELY_SUBTAGS:  # langcodes would say US for what CLDR does not know
        territory = langcodes.Language.get(language).maximize().territory
    return CONTINENTS.get(continents().get(territory or "", ""), "")


def resources(code: str) -> str:
    """ "high", "middle" or "low"."""
    language = languages.canonical(code)
    language = WORDFREQ_CODES.get(language, language)
    if language in wordfreq.available_languages("large"):
        return "high"
    return "middle" if language in wordfreq.available_languages("small") else "low"


@lru_cache(maxsize=1)
def continents() -> dict[str, str]:
    """Territory ("KE") -> code of its continent ("002"), from the supplemental data of CLDR in the package language_data."""
    file = importlib.resources.files("language_data") / "data" / "supplementalData.xml"
    tree = ElementTree.fromstring(file.read_bytes()).find("territoryContainment")
    assert tree is not None
    parts = {
        group.attrib["type"]: group.attrib["contains"].split()
        for group in tree
        if group.attrib.get("status") is None and "grouping" not in group.attrib
    }

    def leaves(code: str) -> list[str]:
        return [leaf for part in parts[code] for leaf in leaves(part)] if code in parts else [code]

    return {territory: continent for continent in CONTINENTS for territory in leaves(continent)}
