"""The text tower: pooling, mask, initialisation and refusals."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import Tensor

from mc2.model.text_tower import QuickGELU, TextBlock, TextConfig, TextTower

CONFIG = TextConfig(vocab_size=50, context_length=12, width=16, layers=2, heads=2)


@pytest.fixture
def tower() -> TextTower:
    torch.manual_seed(0)
    return TextTower(CONFIG, embed_dim=8).eval()


def captions() -> Tensor:
    """bos ... eos pad ...: lengths 3, 5 and 8; the last has a second eos behind the first."""
    rows = [[0, 7, 2, 1, 1, 1, 1, 1], [0, 9, 8, 7, 2, 1, 1, 1], [0, 5, 2, 6, 7, 8, 9, 2]]
    return torch.tensor(rows, dtype=torch.int32)


def test_pools_at_the_first_eos(tower: TextTower) -> None:
    tokens = captions()
    hidden: list[Tensor] = []
    tower.blocks.register_forward_hook(lambda _module, _inputs, output: hidden.append(output))
    found = tower(tokens)
    for row, state, feature in zip(tokens.tolist(), hidden[0], found, strict=True):
        position = next(index for index, token in enumerate(row) if token == CONFIG.eos_id)
        torch.testing.assert_close(feature, tower.projection(tower.ln_final(state[position])))


def test_neither_padding_nor_later_tokens_matter(tower: TextTower) -> None:
    tokens = captions()
    whole = tower(tokens)
    torch.testing.assert_close(tower(tokens[:2, :5]), whole[:2])
    changed = tokens.clone()
    changed[0, 3:], changed[2, 3:] = 33, 44
    torch.testing.assert_close(tower(changed), whole)
    changed[:, 1] = 20
    assert (tower(changed) - whole).abs().min() > 0


def test_equals_open_clip_with_the_same_weights(tower: TextTower) -> None:
    """open_clip's text transformer pools at the eos id; its names are those of RECIPE 2.5."""
    other = open_clip.transformer.TextTransformer(
        context_length=12, vocab_size=50, width=16, heads=2, layers=2, output_dim=8, pool_type="eos", eos_id=2, pad_id=1
    ).eval()
    weights = {
        "token_embedding.weight": tower.token_embedding.weight,
        "positional_embedding": tower.position_embedding,
        "ln_final.weight": tower.ln_final.weight,
        "ln_final.bias": tower.ln_final.bias,
        "text_projection": tower.projection.weight.T,
    }
    names = {
        "norm1": "ln_1",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for name, parameter in tower.blocks.named_parameters():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[f"transformer.resblocks.{name}"] = parameter
    missing = other.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"attn_mask"}
    tokens = torch.nn.functional.pad(captions(), (0, 4), value=1)
    torch.testing.assert_close(tower(tokens), other(tokens.long()), rtol=1e-5, atol=1e-5)


def test_initial_deviations_are_clips() -> None:
    torch.manual_seed(0)
    tower = TextTower(TextConfig(vocab_size=500, context_length=77, width=64, layers=3, heads=4), embed_dim=32)
    block = tower.blocks[0]
    assert isinstance(block, TextBlock)
    need = {
        tower.token_embedding.weight: 0.02,
        tower.position_embedding: 0.01,
        tower.projection.weight: 64**-0.5,
        block.attn.qkv.weight: 64**-0.5,
        block.attn.proj.weight: 64**-0.5 * 6**-0.5,
        block.mlp.fc1.weight: 128**-0.5,
        block.mlp.fc2.weight: 64**-0.5 * 6**-0.5,
    }
    for parameter, deviation in need.items():
        assert parameter.std().item() == pytest.approx(deviation, rel=0.05)


def test_bf16_on_the_cpu_is_near_fp32(tower: TextTower) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = tower(captions())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), tower(captions()), rtol=0.1, atol=0.05)


def test_quick_gelu() -> None:
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + (-1.702 * x).exp()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 15}, "found width 15 with 2 heads"),
        ({"layers": 0}, "need sizes above 0"),
        ({"eos_id": 50}, "found eos_id 50 with vocab_size 50"),
    ],
)
def test_refuses_impossible_sizes(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextConfig(**{"vocab_size": 50, "width": 16, "heads": 2, **wrong})  # type: ignore[arg-type]


def test_refuses_captions_that_are_too_long(tower: TextTower) -> None:
    with pytest.raises(ValueError, match="found 13 tokens, need at most 12"):
        tower(torch.zeros(1, 13, dtype=torch.int32))
