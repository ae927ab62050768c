"""A small member of each family of timm: built, trained for a step, saved, loaded, and used at odd sizes."""

from pathlib import Path

import pytest
import torch
from tiny_models import picture_of, tiny_config, training_picture

from mask_former.checkpoint import Checkpointer
from mask_former.modeling.build import build_model
from mask_former.solver import build_optimizer

CONVOLUTIONAL = [
    *("resnet10t", "resnext26ts", "seresnet18", "resnetv2_18", "skresnet18", "resnest14d", "regnetx_002"),
    *(
        "regnety_002",
        "densenet121",
        "ese_vovnet19b_dw",
        "hrnet_w18_small",
        "convnext_atto",
        "convnextv2_atto",
    ),
    *("efficientnet_b0", "tf_efficientnet_lite0", "tf_efficientnetv2_b0", "mnasnet_small", "mobilenetv2_035"),
    *("mobilenetv3_small_050", "mobilenetv4_conv_small_035", "lcnet_035", "tinynet_e", "mixnet_s"),
    *("ghostnet_050", "repghostnet_050", "hgnetv2_b0", "rexnet_100", "starnet_s050"),
    *("fasternet_t0", "inception_next_atto", "mambaout_femto", "poolformer_s12"),
]
# With attention; the last row has patches of 14 or 16 pixels, and one map alone.
WITH_ATTENTION = [
    *(
        "edgenext_xx_small",
        "efficientvit_b0",
        "efficientvit_m0",
        "fastvit_t8",
        "mobilevit_xxs",
        "repvit_m0_9",
    ),
    *("pvt_v2_b0", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "maxvit_rmlp_pico_rw_256"),
    *("vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch14_reg4_dinov2"),
    *("vit_small_patch16_dinov3", "vit_base_patch16_siglip_224", "xcit_nano_12_p16_224"),
]


@pytest.mark.parametrize("name", CONVOLUTIONAL + WITH_ATTENTION)
def test_family_trains_is_saved_loaded_and_predicts_at_odd_sizes(name: str, tmp_path: Path):
    cfg = tiny_config(DEC_LAYERS=1)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name])
    model = build_model(cfg, "cpu")

    optimizer = build_optimizer(cfg, model)
    losses = model([training_picture(64, 96, 3), training_picture(64, 96, 2, seed=1)])
    sum(losses.values()).backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    optimizer.step()

    model.eval()
    pictures = [picture_of(61, 90), picture_of(33, 47, seed=1)]
    with torch.no_grad():
        scores = [model([{"image": picture}])[0]["sem_seg"] for picture in pictures]
    assert [tuple(score.shape[1:]) for score in scores] == [(61, 90), (33, 47)]

    Checkpointer(model).save_weights(tmp_path / "model.safetensors")
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    Checkpointer(model, strict=True).load(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    with torch.no_grad():
        again = model([{"image": pictures[0]}])[0]["sem_seg"]
    assert torch.equal(again, scores[0])
