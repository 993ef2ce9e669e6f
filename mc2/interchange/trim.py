"""Two towers with the rows of a smaller tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mc2.model.two_tower import TwoTower

ROWS = "text.token_embedding.weight"


def trim_towers(towers: TwoTower, old_ids: Sequence[int]) -> TwoTower:
    """The same towers with one row for each id, the one that `old_ids` names; texts whose pieces were kept have the same features."""
    config = replace(towers.config, text=replace(towers.config.text, vocab_size=len(old_ids)))
    trimmed = TwoTower(config)
    weights = towers.state_dict()
    trimmed.load_state_dict({**weights, ROWS: weights[ROWS][torch.tensor(old_ids)]})
    return trimmed
