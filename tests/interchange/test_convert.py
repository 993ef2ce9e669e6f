"""Models to other tools and back, with those tools as judges; and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import mc2
from mc2.cli import main
from mc2.data.preprocess import ImagePreprocess
from mc2.data.tokenizer import Tokenizer, train_tokenizer
from mc2.interchange import onnx_folder
from mc2.interchange.convert import export_model, import_model, named_towers
from mc2.interchange.model_directory import Clip
from mc2.interchange.open_clip_folder import places_of as open_clip_places_of
from mc2.interchange.parity import parity
from mc2.interchange.weight_names import join_qkv, split_qkv, to_theirs
from mc2.model.text_tower import TextConfig
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.model.vision_tower import VisionConfig
from tests.interchange.tiny import CAPTIONS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # of the other tools

SIZE, CONTEXT = 32, 16


def make_clip(folder: Path, quick: bool = False, mode: str = "crop", width: int = 32) -> Clip:
    """Random weights; a logit scale and norms that are not at their start, so that a lost weight is seen."""
    train_tokenizer(CAPTIONS, folder, vocab_size=100, byte_fallback=False)  # as XLM-V: transformers' class of this form knows no bytes
    tokenizer = Tokenizer(folder, CONTEXT)
    name = "vit_base_patch16_clip_quickgelu_224" if quick else "vit_base_patch16_clip_224"
    vision = VisionConfig(name, SIZE, 8, width, 2, 4, timm_kwargs={"mlp_ratio": 3.0})
    text = TextConfig(tokenizer.vocab_size, CONTEXT, 24, 3, 2, activation="quick_gelu" if quick else "gelu")
    torch.manual_seed(0)
    towers = TwoTower(TwoTowerConfig(20, vision, text))
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    preprocess = ImagePreprocess(SIZE, "squash" if mode == "squash" else "crop")
    return Clip(towers, tokenizer, preprocess)


def assert_equal_weights(found: Clip, need: Clip) -> None:
    assert found.towers.config.text == need.towers.config.text
    for name, tensor in need.towers.state_dict().items():
        assert torch.equal(found.towers.state_dict()[name], tensor), name


@pytest.mark.parametrize("to", ["open_clip", "transformers"])
@pytest.mark.parametrize(("quick", "mode"), [(True, "crop"), (False, "squash")])
def test_there_and_back_is_the_same_model(to: str, quick: bool, mode: str, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "tokenizer", quick, mode)
    report = export_model(clip, to, tmp_path / "there")  # type: ignore[arg-type]
    assert json.loads((tmp_path / "there/parity.json").read_text()) == report
    assert report["texts_with_other_ids"] == 0
    import_model(tmp_path / "there", tmp_path / "back")
    back = mc2.load(tmp_path / "back")
    assert_equal_weights(back, clip)
    assert back.preprocess == clip.preprocess
    assert (tmp_path / "back/parity.json").exists()


def test_a_logit_bias_goes_to_open_clip_and_back(tmp_path: Path) -> None:
    """Folder and bare checkpoint; open_clip itself finds it. transformers has no place for it."""
    plain = make_clip(tmp_path / "tokenizer")
    towers = TwoTower(replace(plain.towers.config, init_logit_scale=10.0, init_logit_bias=-10.0))
    with torch.no_grad():
        towers.logit_bias.bias.fill_(-9.5)  # type: ignore[union-attr]
    clip = Clip(towers, plain.tokenizer, plain.preprocess)
    export_model(clip, "open_clip", tmp_path / "there")
    model = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'there'}")[0]
    assert model.logit_bias.item() == clip.logit_bias == -9.5
    import_model(tmp_path / "there", tmp_path / "back")
    assert_equal_weights(mc2.load(tmp_path / "back"), clip)
    torch.save(to_theirs(towers.state_dict(), open_clip_places_of(towers)), tmp_path / "bare.pt")
    import_model(tmp_path / "bare.pt", tmp_path / "bare", str(write_size(tmp_path / "size.yaml", clip)), clip.tokenizer.path)
    assert_equal_weights(mc2.load(tmp_path / "bare"), clip)
    with pytest.raises(ValueError, match="towers: found a logit bias, which MetaClip2Model has no place for; export to open_clip"):
        export_model(clip, "transformers", tmp_path / "elsewhere")


def test_another_logit_bias_is_seen(tmp_path: Path) -> None:
    plain = make_clip(tmp_path / "tokenizer")
    clip = Clip(TwoTower(replace(plain.towers.config, init_logit_bias=-10.0)), plain.tokenizer, plain.preprocess)
    assert export_model(clip, "onnx", tmp_path / "there")["logits"] < 1e-4
    other = replace(onnx_folder.open_side(tmp_path / "there"), logit_bias=-9.5)
    assert parity(clip, other).logits == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(ValueError, match=r"both sides differ: logits 0\.5"):
        parity(clip, other).check("there")


@pytest.mark.parametrize("to", ["timm", "onnx"])
def test_towers_for_other_runtimes_give_the_same_features(to: str, tmp_path: Path) -> None:
    report = export_model(make_clip(tmp_path / "tokenizer"), to, tmp_path / "there")  # type: ignore[arg-type]
    assert report["image_features"] < 1e-5
    assert (report["text_features"] is None) == (to == "timm")


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "as mini_clip saves under compile and DDP"])
def test_a_bare_checkpoint_goes_all_the_way_round(wrapped: bool, tmp_path: Path) -> None:
    """mini_clip -> mc2 -> transformers -> mc2 -> open_clip, with equal weights at the end."""
    clip = make_clip(tmp_path / "tokenizer", quick=True)
    weights = to_theirs(clip.towers.state_dict(), open_clip_places_of(clip.towers))
    named = {f"_orig_mod.module.{name}": tensor for name, tensor in weights.items()} if wrapped else weights
    torch.save({"epoch": 1, "state_dict": named} if wrapped else named, tmp_path / "mini.pt")
    size = write_size(tmp_path / "size.yaml", clip)
    line = ["import", "--source", str(tmp_path / "mini.pt"), "--size", str(size), "--tokenizer", str(clip.tokenizer.path)]
    assert main([*line, "--out", str(tmp_path / "a")]) == 0
    assert main(["export", "--model", str(tmp_path / "a"), "--to", "transformers", "--out", str(tmp_path / "b")]) == 0
    assert main(["import", "--source", str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 0
    assert main(["export", "--model", str(tmp_path / "c"), "--to", "open_clip", "--out", str(tmp_path / "d")]) == 0
    end = load_file(tmp_path / "d/open_clip_model.safetensors")
    assert end.keys() == weights.keys()
    assert all(torch.equal(end[name], tensor) for name, tensor in weights.items())


def write_size(path: Path, clip: Clip) -> Path:
    vision, text = clip.towers.config.vision, clip.towers.config.text
    towers = {
        "embed_dim": clip.towers.config.embed_dim,
        "vision": {**vision.__dict__, "timm_kwargs": dict(vision.timm_kwargs)},
        "text": {"context_length": CONTEXT, "width": text.width, "layers": text.layers, "heads": text.heads, "activation": text.activation},
    }
    path.write_text(json.dumps({"model": {"init_args": {"towers": towers}}}))
    return path


def test_the_wrong_activation_is_seen_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shapes cannot tell GELU from QuickGELU: only features can."""
    clip = make_clip(tmp_path / "tokenizer", quick=True)
    export_model(clip, "transformers", tmp_path / "there")
    config = json.loads((tmp_path / "there/config.json").read_text())
    for tower in ("vision_config", "text_config"):
        config[tower]["hidden_act"] = "gelu"
    plain = make_clip(tmp_path / "tokenizer2", quick=False)
    plain.towers.load_state_dict(clip.towers.state_dict())

    from mc2.interchange.transformers_folder import open_side

    found = parity(plain, open_side(tmp_path / "there"))
    assert found.image_features > 1e-3
    with pytest.raises(ValueError, match=r"both sides differ: image_features .*nothing was written"):
        found.check("here")
    (tmp_path / "there/config.json").write_text(
        json.dumps({**config, "text_config": {**config["text_config"], "hidden_act": "quick_gelu"}})
    )
    assert main(["import", "--source", str(tmp_path / "there"), "--out", str(tmp_path / "back")]) == 1
    assert "found activations gelu and quick_gelu" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_another_resize_mode_is_seen(tmp_path: Path) -> None:
    export_model(make_clip(tmp_path / "tokenizer", mode="crop"), "transformers", tmp_path / "there")
    with pytest.raises(ValueError, match="both sides differ: pixel_levels"):
        import_model(tmp_path / "there", tmp_path / "back", mode="squash")


def test_another_tokenizer_is_seen(tmp_path: Path) -> None:
    export_model(make_clip(tmp_path / "tokenizer"), "transformers", tmp_path / "there")
    train_tokenizer([caption[::-1] for caption in CAPTIONS], tmp_path / "other", vocab_size=90, byte_fallback=False)
    with pytest.raises(ValueError, match=r"texts_with_other_ids \d"):
        import_model(tmp_path / "there", tmp_path / "back", tokenizer=tmp_path / "other")


def test_sources_that_are_no_models(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="found no model; need a folder"):
        import_model(tmp_path / "nothing", tmp_path / "out")
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"give --size .* and --tokenizer"):
        import_model(tmp_path / "other.pt", tmp_path / "out")
    with pytest.raises(ValueError, match=r"has no token_embedding\.weight"):
        import_model(tmp_path / "other.pt", tmp_path / "out", "ViT-B-32", clip.tokenizer.path)
    with pytest.raises(ValueError, match=r"found 'ViT-B-33', need one of .*ViT-B-32"):
        import_model(tmp_path / "other.pt", tmp_path / "out", "ViT-B-33", clip.tokenizer.path)
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="found model_type 'llama', need 'metaclip_2'"):
        import_model(tmp_path / "llama", tmp_path / "out")
    torch.save({"state_dict": {"x": test_sources_that_are_no_models}}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="no checkpoint that can be read safely"):
        import_model(tmp_path / "code.pt", tmp_path / "out", "ViT-B-32", clip.tokenizer.path)


def test_a_damaged_or_other_model_is_named(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "tokenizer")
    export_model(clip, "open_clip", tmp_path / "good")
    file = "open_clip_model.safetensors"
    for name in ("cut", "less", "wide", "siglip"):
        shutil.copytree(tmp_path / "good", tmp_path / name)
    (tmp_path / "cut" / file).write_bytes((tmp_path / "good" / file).read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a safetensors file, or cut short"):
        import_model(tmp_path / "cut", tmp_path / "out")
    weights = load_file(tmp_path / "good" / file)
    save_file({name: tensor for name, tensor in weights.items() if name != "visual.proj"}, tmp_path / "less" / file)
    with pytest.raises(ValueError, match=r"another architecture \(missing: visual.proj; unknown: none\)"):
        import_model(tmp_path / "less", tmp_path / "out")
    save_file({**weights, "visual.proj": torch.zeros(3, 3)}, tmp_path / "wide" / file)
    with pytest.raises(ValueError, match=r"found vision.projection.weight of shape \(3, 3\)"):
        import_model(tmp_path / "wide", tmp_path / "out")
    config = json.loads((tmp_path / "good/open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_so400m"
    (tmp_path / "siglip/open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"found vision_cfg.timm_model_name 'vit_so400m', need a model of Meta CLIP 2's form"):
        import_model(tmp_path / "siglip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tower_that_is_not_clips_is_refused(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "tokenizer")
    vision = VisionConfig(
        "vit_tiny_patch16_224", SIZE, 8, 32, 1, 4, readout="concat", timm_kwargs={"class_token": False, "global_pool": "avg"}
    )
    other = Clip(TwoTower(TwoTowerConfig(20, vision, clip.towers.config.text)), clip.tokenizer, clip.preprocess)
    with pytest.raises(ValueError, match="is not in CLIP's form"):
        export_model(other, "open_clip", tmp_path / "a")
    with pytest.raises(ValueError, match="found readout 'concat', need 'pool'"):
        export_model(other, "timm", tmp_path / "b")
    assert not list(tmp_path.glob("[ab]"))


def test_export_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--out", str(tmp_path / "out")]) == 1
    assert "need either --model, or --config and --ckpt_path" in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="is there already; choose a new folder"):
        export_model(make_clip(tmp_path / "tokenizer"), "onnx", tmp_path / "old")


def test_split_and_joined_projections_are_inverse() -> None:
    weights = {"a.qkv_proj.weight": torch.arange(12.0).view(6, 2), "b.q_proj.weight": torch.ones(1)}
    assert all(torch.equal(join_qkv(split_qkv(weights))[name], tensor) for name, tensor in weights.items())


def test_a_named_size_has_the_widths_of_the_table() -> None:
    config = named_towers("ViT-H-14-quickgelu")
    assert (config.embed_dim, config.text.width, config.text.layers, config.text.activation) == (1024, 1024, 24, "quick_gelu")


@pytest.mark.parametrize("size", ["ViT-S-16-mT5", "ViT-B-32"])
def test_released_sizes_have_open_clips_names_and_shapes(size: str) -> None:
    """open_clip's model of the same sizes, on the meta device: every weight has a place of the same shape."""
    import open_clip

    from mc2.interchange.open_clip_folder import model_cfg

    config = named_towers(size)
    with torch.device("meta"):
        towers = TwoTower(config)
        sizes = model_cfg(towers)
        del sizes["text_cfg"]["hf_tokenizer_name"]
        theirs = {name: tensor.shape for name, tensor in open_clip.CLIP(**sizes).state_dict().items()}
    ours = {name: tensor.shape for name, tensor in to_theirs(towers.state_dict(), open_clip_places_of(towers)).items()}
    assert ours == theirs
