"""How much of each language training sees, on top of what curation left: pure rules, keyed by nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mc2 import languages

LEAST_USED = 0.01  # share of the pairs that must be left: all are read from the disk, whether they are used or not


@dataclass(frozen=True)
class LanguageShares:
    """What to change in the shares of the languages; as curated by default.

    temperature: a language with the share n gets one in proportion to n ** (1 / temperature): 1 leaves them, above 1 the small ones gain (mT5 and XLM-R call
    1 / temperature alpha). most: upper bounds of shares by code, {"en": 0.3} say; what a bound takes is shared by the others in proportion. Pairs are left out,
    never repeated, by a draw of their own in every pass.
    """

    temperature: float = 1.0
    most: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"data.language_shares.temperature: found {self.temperature}, need a number above 0; 1 leaves the shares as curated"
            )
        for code, share in self.most.items():
            languages.canonical(code)
            if not 0 < share <= 1:
                raise ValueError(
                    f"data.language_shares.most: found {share} for {code}, need a share above 0 and at most 1; `without_languages` leaves one out"
                )

    @property
    def as_curated(self) -> bool:
        return self.temperature == 1 and not self.most

    def shares(self, expected: Mapping[str, float]) -> dict[str, float]:
        """The share of each language from the number of pairs expected of it in a pass. Errors: ValueError if the bounds of all add up to less than 1."""
        powers = {code: number ** (1 / self.temperature) for code, number in expected.items() if number > 0}
        most = {languages.canonical(code): share for code, share in self.most.items()}
        if sum(most.get(code, 1.0) for code in powers) < 1 - 1e-9:  # 0.6 + 0.3 + 0.1 is less than 1
            raise ValueError(
                f"data.language_shares.most: the bounds of all {len(powers)} languages add up to less than 1; raise one or leave one out"
            )
        bounded: dict[str, float] = {}
        while True:  # each round bounds at least one language, or is the last
            rest, total = 1 - sum(bounded.values()), sum(power for code, power in powers.items() if code not in bounded)
            shares = {code: bounded[code] if code in bounded else rest * power / total for code, power in powers.items()}
            over = {code: most[code] for code, share in shares.items() if code not in bounded and share > most.get(code, 1.0)}
            if not over:
                return shares
            bounded |= over

    def keep_probabilities(self, expected: Mapping[str, float]) -> dict[str, float]:
        """The chance of a pair of each language to be used: 1 for the language that gains most.

        Errors: ValueError if hardly anything would be left, and where the shards do not say how many pairs of each language they have.
        """
        total = sum(expected.values())
        if not total or not any(expected):
            raise ValueError(
                "data.language_shares: found shards without languages, need those of `mc2 curate pack`; pack them again, or leave language_shares out"
            )
        gains = {code: share * total / expected[code] for code, share in self.shares(expected).items()}
        most = max(gains.values())
        if 1 / most < LEAST_USED:
            code = max(gains, key=lambda code: gains[code])
            raise ValueError(
                f"data.language_shares: found settings that use {1 / most:.2%} of what is read, because {code} would need {most:,.0f} times its share; need "
                f"{LEAST_USED:.0%}; lower the temperature, or mix in shards of the small languages as a data set of their own"
            )
        return {code: gain / most for code, gain in gains.items()}
