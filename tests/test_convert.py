"""Weights go between frameworks and layouts, and both sides then compute the same.

Whole published models and Hugging Face's are in test_huggingface_parity.py.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_backbone, build_model
from drawn_weights import draw
from safetensors.torch import load_file
from tiny_models import tiny_config
from torch import nn
from transformers import (
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    ResNetConfig,
    SwinConfig,
)

import mask_former  # noqa: F401  (fills the registries)
from mask_former.checkpoint import Checkpointer, describe, read_checkpoint
from mask_former.config import load_config
from mask_former.conversion.backbones import describe_backbone, resnet_to_ours
from mask_former.conversion.files import read_source
from mask_former.conversion.hugging_face_config import (
    class_names,
    config_keys,
    model_config,
    processor_config,
)
from mask_former.convert import configuration, main

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
WHOLE_MODELS = {
    "R50": "ade20k-150/maskformer_R50_bs16_160k",
    "R101": "ade20k-150/maskformer_R101_bs16_160k",
    "Swin-T": "ade20k-150/swin/maskformer_swin_tiny_bs16_160k",
    "Swin-B": "ade20k-150/swin/maskformer_swin_base_IN21k_384_bs16_160k_res640",
}
CLASSES = ["wall", "sky", "tree", "car", "dog"]
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def config_of(name: str, *opts):
    return load_config(CONFIGS / f"{name}.yaml", ["MODEL.DEVICE", "cpu", *opts])


def drawn(cfg, seed=0):
    torch.manual_seed(seed)
    model = build_model(cfg).eval()
    draw(model)
    return model


def saved(model, cfg, file, names=()):
    metadata = {**describe(cfg), "class_names": list(names)}
    Checkpointer(model, metadata=metadata).save_weights(file)
    return file


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def assert_bit_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def relative_difference(ours, theirs) -> float:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01 * theirs.abs().max()  # maps that do not vary would agree for the wrong reason
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def logits_differ_by(ours: nn.Module, theirs: nn.Module) -> float:
    picture = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(4))
    answer, expected = ours.predict(picture)[-1], theirs(picture)
    return max(
        relative_difference(answer.class_logits, expected.class_queries_logits),
        relative_difference(answer.mask_logits, expected.masks_queries_logits),
    )


@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_configurations_of_published_models_go_to_hugging_face_and_back(name):
    cfg = config_of(WHOLE_MODELS[name])
    files = model_config(cfg, []), processor_config(cfg, 255, False)
    again = load_config()
    for key, value in config_keys(*(json.loads(json.dumps(content)) for content in files)).items():
        again.merge_from_list([key, value])
    assert again.MODEL.SWIN == cfg.MODEL.SWIN or "Swin" not in name
    assert again.MODEL.RESNETS == cfg.MODEL.RESNETS or "Swin" in name
    assert again.MODEL.MASK_FORMER == cfg.MODEL.MASK_FORMER
    assert again.INPUT.MIN_SIZE_TEST == cfg.INPUT.MIN_SIZE_TEST
    torch.testing.assert_close(torch.tensor(again.MODEL.PIXEL_MEAN), torch.tensor(cfg.MODEL.PIXEL_MEAN))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_models_go_to_the_published_layout_and_back(tmp_path, suffix):
    cfg = tiny_config()
    ours = drawn(cfg)
    file = saved(ours, cfg, tmp_path / f"ours{suffix}", CLASSES)
    assert run(file, tmp_path / "published.pkl", "--verify") == 0
    published = read_checkpoint(tmp_path / "published.pkl")
    # As behaviour of the release demands: early names, and the loss weights of the criterion.
    assert "sem_seg_head.adapter_1.weight" in published["model"]
    assert not [name for name in published["model"] if "pixel_decoder" in name]
    torch.testing.assert_close(published["model"]["criterion.empty_weight"], torch.tensor([1.0] * 5 + [0.1]))
    assert published["__author__"]
    assert run(tmp_path / "published.pkl", tmp_path / f"back{suffix}") == 0
    assert_bit_equal(dict(ours.state_dict()), dict(read_checkpoint(tmp_path / f"back{suffix}")["model"]))


def test_small_models_with_basic_blocks_go_to_hugging_face_too(tmp_path, capsys):
    cfg = tiny_config()
    file = saved(drawn(cfg), cfg, tmp_path / "ours.pth", CLASSES)
    assert run(file, tmp_path / "theirs", "--verify") == 0
    assert "verified: largest difference" in capsys.readouterr().out
    assert json.loads((tmp_path / "theirs/config.json").read_text())["id2label"] == dict(
        zip("01234", CLASSES, strict=True)
    )
    assert run(tmp_path / "theirs", tmp_path / "back.safetensors", "--verify") == 0
    found = read_checkpoint(tmp_path / "back.safetensors")
    assert found["metadata"]["class_names"] == CLASSES


@pytest.mark.parametrize(
    ("kind", "form"),
    [("swin", "safetensors"), ("resnet", "safetensors"), ("resnet", "shards"), ("resnet", "bin")],
)
def test_models_born_at_hugging_face_are_read(tmp_path, form, kind):
    torch.manual_seed(2)
    if kind == "swin":
        sizes = {"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 3], "window_size": 5}
        backbone = SwinConfig(**sizes, out_features=STAGES)
    else:
        sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
        backbone = ResNetConfig(**sizes, out_features=STAGES)
    config = MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=DetrConfig(d_model=64, decoder_layers=2, num_queries=7, decoder_ffn_dim=48),
        fpn_feature_size=64,
        mask_feature_size=32,
        num_labels=5,
    )
    theirs = MaskFormerForInstanceSegmentation(config).eval()
    draw_theirs(theirs)
    folder = tmp_path / "theirs"
    theirs.save_pretrained(folder, max_shard_size="300KB" if form == "shards" else "1GB")
    if form == "shards":
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    if form == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    assert run(folder, tmp_path / "ours.pth") == 0
    ours = build_model(configuration(read_source(tmp_path / "ours.pth"), None, [])).eval()
    Checkpointer(ours, strict=True).load(str(tmp_path / "ours.pth"))
    assert logits_differ_by(ours, theirs) < 1e-4


def draw_theirs(model):
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if re.search("norm.*weight|running_var", name):
                tensor.uniform_(0.5, 1.5)
            elif re.search("bias|running_mean", name) and tensor.is_floating_point():
                tensor.normal_(0, 0.2)


def test_the_image_processor_gives_our_sizes_values_and_labels(tmp_path):
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 160
    file = saved(drawn(cfg), cfg, tmp_path / "ours.pth", CLASSES)
    assert run(file, tmp_path / "theirs") == 0
    processor = MaskFormerImageProcessor.from_pretrained(tmp_path / "theirs")
    model = build_model(cfg)
    for height, width in [(97, 131), (50, 200), (160, 96)]:
        picture = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        labels = torch.full((height, width), 255)
        labels[:30], labels[30:40] = 0, 4
        found = processor(picture, segmentation_maps=labels.numpy(), return_tensors="pt")
        resize = ResizeShortestEdge(96, 160).get_transform(np.zeros((height, width, 3)))
        new_height, new_width = resize.new_h, resize.new_w
        size = found["pixel_values"].shape[-2:]
        assert abs(size[0] - new_height) <= 1  # they round another way
        assert abs(size[1] - new_width) <= 1
        assert found["class_labels"][0].tolist() == [0, 4]  # void is no class, and class 0 stays 0
    grey = torch.full((3, 96, 96), 100, dtype=torch.uint8)
    values = processor(grey, return_tensors="pt")["pixel_values"][0, :, 50, 50]
    torch.testing.assert_close(values, model.prepare_images([grey]).tensor[0, :, 50, 50], atol=1e-5, rtol=0)


def test_raw_ade20k_labels_are_reduced_on_request(tmp_path):
    cfg = tiny_config()
    file = saved(drawn(cfg), cfg, tmp_path / "ours.pth", CLASSES)
    assert run(file, tmp_path / "theirs", "--reduce-labels") == 0
    processor = MaskFormerImageProcessor.from_pretrained(tmp_path / "theirs")
    labels = torch.tensor([[0, 1], [5, 5]]).repeat_interleave(40, 0).repeat_interleave(40, 1)
    picture = torch.zeros(3, 80, 80, dtype=torch.uint8)
    found = processor(picture, segmentation_maps=labels.numpy(), return_tensors="pt")
    assert found["class_labels"][0].tolist() == [0, 4]


RESNETS = {
    "torchvision resnet50": (lambda: torchvision.models.resnet50(weights=None), 50, ".pkl"),
    "timm resnet18": (lambda: timm.create_model("resnet18"), 18, ".pkl"),
    "timm resnet18 features": (lambda: timm.create_model("resnet18", features_only=True), 18, ".safetensors"),
}


@torch.no_grad()
@pytest.mark.parametrize("name", RESNETS)
def test_converted_resnets_compute_the_same_maps(tmp_path, name):
    torch.manual_seed(1)
    make, depth, suffix = RESNETS[name]
    theirs = make().eval()
    draw_norms(theirs)
    torch.save(theirs.state_dict(), tmp_path / "source.pth")
    assert run(tmp_path / "source.pth", tmp_path / f"converted{suffix}") == 0
    cfg = tiny_config()
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.STRIDE_IN_1X1", False])
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    ours = build_model(cfg).eval()
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(tmp_path / f"converted{suffix}"))
    assert checkpointer.report.loaded == len(ours.backbone.state_dict())
    assert checkpointer.report.named("unused") == []
    picture = torch.randn(1, 3, 64, 96)
    maps = ours.backbone(picture)
    for level, expected in enumerate(resnet_maps(theirs, picture)):
        assert relative_difference(maps[f"res{level + 2}"], expected) < 1e-4


def resnet_maps(model, picture):
    if isinstance(model, timm.models._features.FeatureListNet):
        return model(picture)[1:]
    features = model.maxpool(
        getattr(model, "relu", getattr(model, "act1", None))(model.bn1(model.conv1(picture)))
    )
    maps = []
    for number in range(1, 5):
        features = getattr(model, f"layer{number}")(features)
        maps.append(features)
    return maps


def draw_norms(model):
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if re.search(r"(bn\d|downsample\.1)\.(weight|running_var)", name):
                tensor.uniform_(0.5, 1.5)
            elif re.search(r"(bn\d|downsample\.1)\.(bias|running_mean)", name):
                tensor.normal_(0, 0.2)
            elif "relative_position_bias_table" in name:
                tensor.normal_()


# Two whole windows along the coarsest map: timm leaves out the shift where a map is one window.
SMALL_SWIN = {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 3], "window_size": 2}


def swin_release_of(state):
    """The layout of the Swin releases, by hand: downsampling ends a stage, and what is computed is stored."""
    release = {}
    for name, value in state.items():
        found = re.match(r"layers\.(\d)\.downsample(.*)", name)
        release[
            f"layers.{int(found[1]) - 1}.downsample{found[2]}" if found else name.replace("head.fc", "head")
        ] = value
    release["layers.0.blocks.1.attn_mask"] = torch.zeros(256, 4, 4)
    release["head.weight"] = torch.zeros(21841, 192)  # ImageNet-22k
    for number, depth in enumerate(SMALL_SWIN["depths"]):
        for block in range(depth):
            index = torch.arange(4 * 4).reshape(4, 4)
            release[f"layers.{number}.blocks.{block}.attn.relative_position_index"] = index
    return {"model": release}


@torch.no_grad()
@pytest.mark.parametrize("origin", ["timm features-only", "timm classifier", "release"])
def test_converted_swins_compute_the_same_maps(tmp_path, origin):
    torch.manual_seed(1)
    only = {"features_only": True} if "features" in origin else {}
    theirs = timm.create_model("swin_tiny_patch4_window7_224", img_size=128, **SMALL_SWIN, **only).eval()
    draw_norms(theirs)
    content = swin_release_of(theirs.state_dict()) if origin == "release" else theirs.state_dict()
    torch.save(content, tmp_path / "source.pth")
    assert run(tmp_path / "source.pth", tmp_path / "converted.pkl") == 0
    cfg = tiny_config()
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "D2SwinTransformer"])
    for key, value in SMALL_SWIN.items():
        cfg.merge_from_list([f"MODEL.SWIN.{key.upper()}", value])
    ours = build_model(cfg).eval()
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(tmp_path / "converted.pkl"))
    # The releases have no norms of the outputs; they start as plain ones.
    missing = [name for name in checkpointer.report.named("re-initialised") if name.startswith("backbone.")]
    assert sorted(missing) == sorted(f"backbone.norm{i}.{p}" for i in range(4) for p in ("weight", "bias"))
    assert checkpointer.report.named("unused") == []
    picture = torch.randn(1, 3, 128, 128)
    maps = ours.backbone(picture)
    for level, expected in enumerate(swin_maps(theirs, picture)):
        normalized = nn.functional.layer_norm(expected, expected.shape[-1:]).permute(0, 3, 1, 2)
        assert relative_difference(maps[f"res{level + 2}"], normalized) < 1e-4


def swin_maps(model, picture):
    if isinstance(model, timm.models._features.FeatureListNet):
        return model(picture)
    maps = model.forward_intermediates(picture, intermediates_only=True)
    return [stage_map.permute(0, 2, 3, 1) for stage_map in maps]


@pytest.mark.parametrize("source", ["resnet18", "swin"])
def test_verify_runs_the_source_library(tmp_path, source, capsys):
    if source == "resnet18":
        model = torchvision.models.resnet18(weights=None)
    else:
        model = timm.models.swin_transformer.SwinTransformer(img_size=64, **SMALL_SWIN)
    torch.save(model.state_dict(), tmp_path / "source.pth")
    assert run(tmp_path / "source.pth", tmp_path / "converted.pth", "--verify") == 0
    assert "verified: largest difference" in capsys.readouterr().out


def test_the_depth_of_a_resnet_is_told():
    with torch.device("meta"):
        state = torchvision.models.resnet101(weights=None).state_dict()
    assert describe_backbone(resnet_to_ours(state)).keys["MODEL.RESNETS.DEPTH"] == 101


def test_a_backbone_tells_the_config_that_builds_it(tmp_path, capsys):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "source.pth")
    assert run(tmp_path / "source.pth", tmp_path / "R-18.pkl") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("config: ")]
    cfg = load_config(None, line.removeprefix("config: ").split())
    ours = build_backbone(cfg)
    wanted = {name for name in ours.state_dict() if "num_batches" not in name}
    assert wanted == set(read_checkpoint(tmp_path / "R-18.pkl")["model"])


def test_early_forms_of_their_configs_are_read():
    config = {
        "model_type": "maskformer",
        "backbone_config": {"model_type": "swin", "window_size": 12, "embed_dim": 128, "image_size": 384},
        "id2label": {"1": "sky", "0": "wall"},
    }
    processor = {"size": 640, "max_size": 2560, "size_divisibility": 32, "ignore_index": None}
    keys = config_keys(config, processor)
    assert keys["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] == 2
    assert class_names(config) == ["wall", "sky"]
    assert (keys["INPUT.MIN_SIZE_TEST"], keys["INPUT.MAX_SIZE_TEST"]) == (640, 2560)
    assert (keys["MODEL.SWIN.WINDOW_SIZE"], keys["MODEL.SWIN.EMBED_DIM"]) == (12, 128)
    assert keys["MODEL.MASK_FORMER.SIZE_DIVISIBILITY"] == 32
    assert keys["MODEL.PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    with pytest.raises(ValueError, match="id2label"):
        class_names({"id2label": {"1": "a"}})


CANNOT_GO = {
    "three convolutions in the stem": ("ade20k-150/maskformer_R101c_bs16_160k", "MODEL.BACKBONE.NAME"),
    "encoder in the pixel decoder": ("coco-panoptic/maskformer_panoptic_R50_bs64_554k", "PIXEL_DECODER_NAME"),
    "baseline": ("ade20k-150/per_pixel_baseline_R50_bs16_160k", "META_ARCHITECTURE"),
}


@pytest.mark.parametrize("name", CANNOT_GO)
def test_models_that_hugging_face_cannot_hold_are_refused_by_key(tmp_path, name, capsys):
    config, key = CANNOT_GO[name]
    torch.save({"sem_seg_head.predictor.weight": torch.zeros(3, 4)}, tmp_path / "m.pth")
    assert run(tmp_path / "m.pth", tmp_path / "theirs", "--config-file", CONFIGS / f"{config}.yaml") == 1
    assert key in capsys.readouterr().err
    assert not (tmp_path / "theirs" / "config.json").exists()


def broken_sources(folder):
    """(what, path, words of the error) of sources that cannot be read."""
    torch.save({"encoder.weight": torch.zeros(2)}, folder / "unknown.pth")
    deep = timm.create_model("resnet50d").state_dict()
    torch.save({**deep, "conv1.weight": deep["conv1.0.weight"]}, folder / "deep.pth")
    (folder / "empty").mkdir()
    (folder / "no_weights").mkdir()
    config = {"model_type": "maskformer", "id2label": {"0": "a"}, "backbone_config": {"model_type": "swin"}}
    (folder / "no_weights/config.json").write_text(json.dumps(config))
    (folder / "other").mkdir()
    (folder / "other/config.json").write_text(json.dumps({"model_type": "bert"}))
    torch.save({"model": {}}, folder / "other/pytorch_model.bin")
    (folder / "gaps").mkdir()
    query = "model.transformer_module.decoder.layers.0.self_attn.q_proj.weight"
    torch.save({query: torch.zeros(4, 4)}, folder / "gaps/pytorch_model.bin")
    (folder / "gaps/config.json").write_text(json.dumps(config))
    return {
        "unknown.pth": "none of a known layout's: encoder.weight",
        "deep.pth": "none of a torchvision or timm ResNet's",
        "empty": "has no config.json",
        "no_weights": "has none of model.safetensors",
        "other": "is of a 'bert'",
        "gaps": "k_proj.weight",
        "nothing.pth": "no such file",
    }


def test_sources_that_cannot_be_converted_are_one_line_each(tmp_path, capsys):
    for name, words in broken_sources(tmp_path).items():
        assert run(tmp_path / name, tmp_path / "out.pth") == 1, name
        error = capsys.readouterr().err
        assert words in error, name
        assert error.count("\n") == 1, name
        assert not (tmp_path / "out.pth").exists()


def test_a_hugging_face_folder_needs_a_whole_model_and_its_config(tmp_path, capsys):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r.pth")
    torch.save(build_model(tiny_config()).state_dict(), tmp_path / "m.pth")
    for name, words in (("r.pth", "holds a backbone alone"), ("m.pth", "--config-file")):
        assert run(tmp_path / name, tmp_path / "theirs") == 1
        assert words in capsys.readouterr().err
    assert run(tmp_path / "m.pth", tmp_path / "theirs.zip") == 1
    assert "expected .pth, .safetensors, .pkl" in capsys.readouterr().err


def test_inspect_says_what_a_checkpoint_is(tmp_path, capsys):
    cfg = tiny_config()
    metadata = {**describe(cfg, licence="CC BY 4.0", iteration=70), "class_names": CLASSES}
    metadata["metrics"] = {"sem_seg/mIoU": 12.345, "sem_seg/IoU-wall": 3.0}
    Checkpointer(drawn(cfg), metadata=metadata).save_weights(tmp_path / "m.pth")
    assert run("inspect", tmp_path / "m.pth") == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["backbone"] == "ResNet-18"
    assert rows["classes"] == "5 (wall, sky, tree, car, dog)"
    assert (rows["queries"], rows["iteration"], rows["licence"]) == ("7", "70", "CC BY 4.0")
    assert rows["scores"] == "sem_seg/mIoU 12.35"
    assert rows["entries"].startswith(f"{len(build_model(cfg).state_dict())} (")


def test_inspect_reports_against_a_config(tmp_path, capsys):
    cfg = tiny_config()
    saved(drawn(cfg), cfg, tmp_path / "m.pth", CLASSES)
    (tmp_path / "other.yaml").write_text(cfg.dump().replace("NUM_OBJECT_QUERIES: 7", "NUM_OBJECT_QUERIES: 9"))
    assert run("inspect", tmp_path / "m.pth", "--config-file", tmp_path / "other.yaml") == 0
    assert "7 queries in the file, 9 in the model" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"]])
def test_help_is_given(arguments, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 0
    assert "--config-file" in capsys.readouterr().out


def test_conversion_loads_no_library_of_the_other_side(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r.pth")
    code = (
        "import sys; from mask_former.convert import main; "
        f"assert main([{str(tmp_path / 'r.pth')!r}, {str(tmp_path / 'R.pkl')!r}]) == 0; "
        "assert not {'timm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
