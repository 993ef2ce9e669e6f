"""Both towers together: features, pixels, configuration, and the vision tower against timm itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch

from mc2.model.text_tower import TextConfig
from mc2.model.two_tower import CLIP_MEAN, CLIP_STD, TwoTower, TwoTowerConfig
from mc2.model.vision_tower import VisionConfig, VisionTower

VISION = VisionConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2)
CONFIG = TwoTowerConfig(embed_dim=8, vision=VISION, text=TextConfig(vocab_size=50, context_length=12, width=16, layers=2, heads=2))


@pytest.fixture
def towers() -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(CONFIG).eval()


def test_features_are_fp32_of_unit_length(towers: TwoTower) -> None:
    image, tokens = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8), torch.tensor([[0, 5, 2], [0, 6, 2], [0, 7, 2]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image_BD, text_BD, scale, _ = towers(image, tokens)
    for feature in (image_BD, text_BD):
        assert feature.dtype == torch.float32
        torch.testing.assert_close(feature.norm(dim=1), torch.ones(3))
    assert scale.shape == ()
    assert scale.item() == pytest.approx(1 / 0.07)
    assert towers.logit_scale.log.shape == (1,)


def test_pixels_are_normalised_as_torchvision_does(towers: TwoTower) -> None:
    from torchvision.transforms.v2.functional import normalize

    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    pixels = normalize(image.float() / 255, list(CLIP_MEAN), list(CLIP_STD))
    torch.testing.assert_close((image - towers.pixel_mean) / towers.pixel_std, pixels, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        towers.encode_image(image), torch.nn.functional.normalize(towers.vision(pixels), dim=1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "kwargs", [{}, {"qk_norm": True}, {"reg_tokens": 2, "act_layer": "quick_gelu"}, {"scale_attn_norm": True, "proj_bias": False}]
)
def test_vision_tower_equals_timm_with_its_own_attention(kwargs: dict[str, object]) -> None:
    config = VisionConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2, timm_kwargs=kwargs)
    tower = VisionTower(config, embed_dim=8).eval()
    other = timm.create_model(config.name, num_classes=0, **config.overrides()).eval()
    other.load_state_dict(tower.trunk.state_dict())
    pixels = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(tower.trunk(pixels), other(pixels))


def test_initial_deviations_of_the_vision_tower() -> None:
    torch.manual_seed(0)
    tower = VisionTower(VisionConfig(image_size=64, patch_size=8, width=64, layers=1, heads=2), embed_dim=32)
    for parameter in (tower.trunk.cls_token, tower.trunk.pos_embed, tower.projection.weight):
        assert parameter is not None
        assert parameter.std().item() == pytest.approx(64**-0.5, rel=0.2)


def test_configuration_survives_json() -> None:
    import json

    assert TwoTowerConfig.from_json(json.loads(json.dumps(CONFIG.to_json()))) == CONFIG
    with pytest.raises(ValueError, match="is of another version"):
        TwoTowerConfig.from_json({**CONFIG.to_json(), "colour": 1})
    before_there_was_a_bias = {name: value for name, value in CONFIG.to_json().items() if name != "init_logit_bias"}
    assert TwoTowerConfig.from_json(before_there_was_a_bias) == CONFIG


def test_logit_scale_starts_where_it_is_told() -> None:
    towers = TwoTower(TwoTowerConfig(embed_dim=8, vision=CONFIG.vision, text=CONFIG.text, init_logit_scale=10.0))
    assert towers.logit_scale.log.item() == pytest.approx(math.log(10))


def test_refuses_bad_input(towers: TwoTower) -> None:
    with pytest.raises(ValueError, match=r"found torch.uint8 \(1, 3, 32, 32\), need torch.uint8 \(B, 3, 16, 16\)"):
        towers.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"found torch.float32"):
        towers.encode_image(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="found 'resnet50', need a vision transformer"):
        VisionConfig("resnet50")
    with pytest.raises(ValueError, match="found width 15 with 2 heads"):
        VisionConfig(width=15, heads=2)
    with pytest.raises(ValueError, match="timm refuses vit_base_patch16_clip_224"):
        VisionTower(VisionConfig(timm_kwargs={"colour": 1}), 8)
    with pytest.raises(ValueError, match="need all above 0"):
        TwoTowerConfig(embed_dim=0)


@pytest.mark.parametrize(
    "vision",
    [
        VISION,
        VisionConfig("vit_tiny_patch16_224", 16, 8, layers=1, readout="concat", timm_kwargs={"class_token": False, "global_pool": "avg"}),
    ],
)
def test_every_parameter_gets_a_gradient(vision: VisionConfig) -> None:
    """DDP refuses a module with a parameter that the loss does not depend on."""
    towers = TwoTower(TwoTowerConfig(embed_dim=8, vision=vision, text=CONFIG.text))
    image, text, scale, _ = towers(
        torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8), torch.tensor([[0, 5, 2], [0, 6, 2], [0, 7, 2]])
    )
    (scale * (image @ text.T)).logsumexp(1).sum().backward()
    assert [name for name, parameter in towers.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("prefix", [1, 3])
def test_patch_dropout_drops_in_training_only(prefix: int) -> None:
    """timm's, with our attention: 16 patches become 8, the prefix tokens stay, and evaluation sees all of them."""
    plain = VisionConfig(image_size=16, patch_size=4, width=16, layers=2, heads=2, timm_kwargs={"reg_tokens": prefix - 1})
    full = VisionTower(plain, 8)
    tower = VisionTower(replace(plain, timm_kwargs={"reg_tokens": prefix - 1, "patch_drop_rate": 0.5}), 8)
    tower.load_state_dict(full.state_dict())
    lengths: list[int] = []
    for block in tower.trunk.blocks:
        block.register_forward_hook(lambda _block, _in, out: lengths.append(out.shape[1]))
    pixels = torch.randn(3, 3, 16, 16)
    first, second = tower.train()(pixels), tower(pixels)
    assert lengths == [prefix + 8] * 4
    assert not torch.allclose(first, second)
    assert torch.equal(tower.eval()(pixels), full.eval()(pixels))
    assert lengths[4:] == [prefix + 16] * 2
    torch.manual_seed(5)
    found = tower.train()(pixels)
    torch.manual_seed(5)  # the kept patches by hand: those whose draw is among the smallest 8
    kept = torch.randn(3, 16).argsort(dim=1)[:, :8]
    trunk: Any = full.trunk
    states = trunk._pos_embed(trunk.patch_embed(pixels))
    rows = torch.arange(3)[:, None]
    states = torch.cat([states[:, :prefix], states[:, prefix:][rows, kept]], dim=1)
    states = trunk.norm(trunk.blocks(trunk.norm_pre(states)))
    torch.testing.assert_close(found, full.projection(trunk.forward_head(states)))


def test_a_locked_tower_has_no_dropout_and_no_graph() -> None:
    towers = TwoTower(replace(CONFIG, vision=replace(VISION, timm_kwargs={"patch_drop_rate": 0.5})))
    towers.lock(["vision"])
    towers.train()
    image = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    image_features, text_features, _, _ = towers(image, torch.tensor([[0, 5, 2]]))
    assert torch.equal(image_features, towers.encode_image(image))
    assert not image_features.requires_grad
    assert text_features.requires_grad
    assert (towers.vision.training, towers.text.training, towers.eval().text.training) == (False, True, False)


def test_concatenated_readout_is_all_positions_side_by_side() -> None:
    tower = VisionTower(VisionConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2, readout="concat"), embed_dim=8)
    pixels = torch.randn(2, 3, 16, 16)
    states = tower.trunk.forward_features(pixels)
    assert states.shape == (2, 1 + 4, 16)
    by_hand = torch.stack([torch.stack([tower.projection.weight @ torch.cat(list(image)) for image in states])])[0]
    torch.testing.assert_close(tower(pixels), by_hand, rtol=1e-4, atol=1e-5)
