"""Frozen backbones: what learns, modes, saved activations, and rates by layer."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from tiny_models import tiny_config, training_picture
from tiny_runs import tiny_config as tiny_run
from torch import Tensor, nn

from mask_former.config import load_config
from mask_former.engine import Trainer
from mask_former.modeling.build import build_model, recompute_activations
from mask_former.modeling.freezing import freeze_backbone
from mask_former.modeling.timm_backbone import TimmBackbone
from mask_former.solver import parameter_groups

RESNET = ["MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
RESNET += ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.RESNETS.NORM", "BN"]
SWIN = ["MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", 24, "MODEL.SWIN.APE", True]
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME"]
KINDS = {
    "ResNet": RESNET,
    "Swin": [*SWIN, "MODEL.SWIN.DROP_PATH_RATE", 0.5],
    "EfficientNet": [*TIMM, "test_efficientnet"],
    "ViT": [*TIMM, "test_vit3", "MODEL.TIMM.DROP_PATH_RATE", 0.5],
}


def backbone_of(kind: str, what: str = "none", *opts: object) -> nn.Module:
    torch.manual_seed(0)
    backbone = build_backbone(load_config(None, [*KINDS[kind], *opts]))
    freeze_backbone(backbone, what)
    return backbone.train()


def learning(backbone: nn.Module) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def saved_bytes(backbone: nn.Module) -> int:
    """Return the size of what a forward pass keeps for the backward pass, parameters left out."""
    own, kept = {p.data_ptr() for p in backbone.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(torch.randn(1, 3, 64, 96))
    return sum(kept.values())


@pytest.mark.parametrize("kind", KINDS)
def test_wholly_frozen_nets_neither_learn_nor_change_nor_save_activations(kind: str):
    backbone = backbone_of(kind, "all")
    assert all(name.startswith(("pyramid", "norm")) for name in learning(backbone))
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    picture = torch.randn(2, 3, 64, 96)
    first, second = backbone(picture), backbone(picture)
    for name in first:  # no dropped paths, no statistics of the batch
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert saved_bytes(backbone) < 0.1 * saved_bytes(backbone_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_stages_are_a_beginning_that_keeps_its_mode(kind: str):
    whole = learning(backbone_of(kind))
    learned = [learning(backbone_of(kind, f"stages {number}")) for number in (1, 2, 4)]
    assert whole > learned[0] > learned[1] > learned[2]
    backbone = backbone_of(kind, "stages 2")
    maps = backbone(torch.randn(1, 3, 64, 96))
    sum(features.square().sum() for features in maps.values()).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == (name in learned[1]), name
    for module in backbone.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            assert not module.training


def test_stages_are_those_of_the_older_keys():
    older = backbone_of("Swin", "none", "MODEL.SWIN.FROZEN_STAGES", 2)
    assert learning(backbone_of("Swin", "stages 2")) == learning(older)
    older = backbone_of("ResNet", "none", "MODEL.BACKBONE.FREEZE_AT", 3)
    frozen = {name for name, m in older.named_modules() if isinstance(m, FrozenBatchNorm2d)}
    assert learning(backbone_of("ResNet", "stages 2")) == learning(older)
    newer = backbone_of("ResNet", "stages 2")
    newer(torch.randn(1, 3, 64, 96))
    norms = {name: m for name, m in newer.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {name for name, norm in norms.items() if not norm.training} == frozen


def test_stages_end_where_the_maps_do():
    names = learning(backbone_of("EfficientNet", "stages 2"))
    assert {name.split(".")[2] for name in names} == {"3", "4"}  # blocks behind stride 8
    names = learning(backbone_of("ViT", "stages 1"))  # of nine blocks
    assert {int(name.split(".")[2]) for name in names if ".blocks." in name} == set(range(3, 9))


@pytest.mark.parametrize("kind", ["ResNet", "EfficientNet", "ViT"])
def test_frozen_norms_keep_scales_and_statistics(kind: str):
    backbone = backbone_of(kind, "norms")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 96))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    fixed = {name for name, _ in backbone.named_parameters()} - learning(backbone)
    norms = {name for name in before if any(part in name for part in ("norm", ".bn", ".downsample.1."))}
    parameters = dict(backbone.named_parameters())
    expected = {name for name in norms if name in parameters and not name.startswith(("norms", "pyramid"))}
    assert fixed == expected


@pytest.mark.parametrize("what", ["some", "stages", "stages 0", "stages 5", "stages -1"])
def test_what_cannot_be_frozen_is_refused_by_key(what: str):
    with pytest.raises(ValueError, match=r"^MODEL.BACKBONE.FREEZE is '(some|stages)"):
        freeze_backbone(TimmBackbone("test_vit"), what)


def test_nets_without_consecutive_stages_are_refused():
    with torch.device("meta"):
        backbone = TimmBackbone("hrnet_w18_small")
    with pytest.raises(ValueError, match="does not consist of one stage after the other"):
        freeze_backbone(backbone, "stages 1")


def test_frozen_model_trains_its_head_and_recomputes(tmp_path: Path):
    cfg = tiny_config()
    cfg.merge_from_list([*KINDS["EfficientNet"], "MODEL.BACKBONE.FREEZE", "all"])
    model = build_model(cfg, "cpu")
    recompute_activations(model)
    sum(model([training_picture(64, 96, 3)]).values()).backward()
    names = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert names == {"sem_seg_head"}
    trained = {id(p) for group in parameter_groups(cfg, model) for p in group["params"]}
    assert trained == {id(p) for p in model.sem_seg_head.parameters()}


def test_resumed_run_stays_frozen_and_equals_an_unbroken_one(tmp_path: Path):
    (tmp_path / "output").mkdir()
    opts = ["MODEL.BACKBONE.FREEZE", "stages 1", "MODEL.TIMM.OUT_FEATURES", "['res2', 'res3']"]
    opts += ["DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", "2"]
    states = []
    for resume in (False, True):
        trainer = Trainer(tiny_run(tmp_path, *map(str, KINDS["EfficientNet"]), *opts))
        trainer.resume_or_load(resume=resume)
        parts = dict(trainer.model.backbone.named_parameters())
        before = {name: p.clone() for name, p in parts.items() if not p.requires_grad}
        trainer.train()
        assert before
        assert all(torch.equal(parts[name], value) for name, value in before.items())
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        (tmp_path / "output" / "last_checkpoint").write_text("model_0000001.pth")
    assert trainer.start_iter == 2
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_rates_fall_by_layer_and_new_parts_have_the_full_rate():
    cfg = tiny_config()
    cfg.merge_from_list([*KINDS["ViT"], "SOLVER.LAYER_DECAY", 0.5, "SOLVER.BACKBONE_MULTIPLIER", 0.1])
    cfg.merge_from_list(["SOLVER.BASE_LR", 1.0])
    model = build_model(cfg, "cpu")
    rates = {
        id(p): (group["lr"], group["weight_decay"])
        for group in parameter_groups(cfg, model)
        for p in group["params"]
    }
    net = model.backbone.net  # nine blocks behind the patch embedding
    for number, block in enumerate(net.blocks):
        assert rates[id(block.mlp.fc1.weight)][0] == pytest.approx(0.1 * 0.5 ** (8 - number))
    assert rates[id(net.patch_embed.proj.weight)][0] == pytest.approx(0.1 * 0.5**9)
    assert rates[id(net.pos_embed)] == (pytest.approx(0.1 * 0.5**9), 0.0)
    assert rates[id(model.backbone.pyramid.res2[0].weight)][0] == 1.0
    assert rates[id(model.sem_seg_head.predictor.query_embed.weight)][0] == 1.0


def test_rates_of_swin_fall_by_block():
    backbone = backbone_of("Swin")
    numbers = backbone.layer_numbers()
    assert numbers.keys() == {name for name, _ in backbone.named_parameters()}
    depths, expected = [len(stage.blocks) for stage in backbone.layers], 0
    assert numbers["patch_embed.proj.weight"] == numbers["absolute_pos_embed"] == 0
    for stage, depth in enumerate(depths):
        for block in range(depth):
            expected += 1
            assert numbers[f"layers.{stage}.blocks.{block}.mlp.fc2.bias"] == expected
    assert numbers["layers.0.downsample.reduction.weight"] == depths[0]
    assert numbers["norm0.weight"] == sum(depths) + 1


def test_layer_decay_needs_known_layers():
    cfg = tiny_config()
    cfg.merge_from_list(["SOLVER.LAYER_DECAY", 0.9])
    with pytest.raises(
        ValueError, match=r"SOLVER.LAYER_DECAY is 0.9, but the layers of ResNet are not known"
    ):
        parameter_groups(cfg, build_model(cfg, "cpu"))
