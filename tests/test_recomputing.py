"""Activation checkpointing: the same gradients from less memory."""

import copy

import pytest
import torch
from tiny_models import tiny_config, training_picture

from mask_former.modeling.build import build_model, recompute_activations

SWIN = [
    *("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", 16),
    *("MODEL.SWIN.DEPTHS", [1, 1, 2, 1], "MODEL.SWIN.NUM_HEADS", [1, 2, 2, 4], "MODEL.SWIN.WINDOW_SIZE", 4),
    *("MODEL.SWIN.DROP_PATH_RATE", 0.2),
]
BACKBONES = {"ResNet": [], "ResNet with BN": ["MODEL.RESNETS.NORM", "BN"], "Swin": SWIN}


def model_and_batch(backbone):
    cfg = tiny_config(DROPOUT=0.2, ENC_LAYERS=1)
    cfg.merge_from_list(BACKBONES[backbone])
    torch.manual_seed(0)
    return build_model(cfg).train(), [training_picture(64, 96, 3, seed=1)]


def saved_for_backward(model, batch):
    """Numbers that the graph of a step holds, each storage counted once, those of parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = sum(model(batch).values())
    return loss, sum(held.values())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_are_the_same_and_less_is_held(backbone):
    plain, batch = model_and_batch(backbone)
    saving = copy.deepcopy(plain)
    assert recompute_activations(saving) > 4
    loss, held = saved_for_backward(plain, batch)
    saving_loss, saving_held = saved_for_backward(saving, batch)
    loss.backward()
    saving_loss.backward()
    assert torch.equal(loss, saving_loss)
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    # Running statistics, too, count the batch once.
    assert len(list(plain.buffers())) == len(list(saving.buffers()))
    for one, other in zip(plain.buffers(), saving.buffers(), strict=True):
        assert torch.equal(one, other)
    assert saving_held < 0.8 * held


def test_evaluation_and_names_stay_as_they_are():
    plain, batch = model_and_batch("ResNet")
    saving = copy.deepcopy(plain)
    recompute_activations(saving)
    assert list(saving.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        results = [model.eval()(batch)[0]["sem_seg"] for model in (plain, saving)]
    assert torch.equal(*results)
