"""Weight files of a backbone alone, loaded into a timm backbone: the maps are those of timm's own net."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_models import tiny_config
from torch import Tensor, nn

from mask_former.checkpoint import Checkpointer, resolve
from mask_former.checkpoint.locating import cached_path
from mask_former.modeling.build import build_model


def model_of(name: str) -> nn.Module:
    cfg = tiny_config()
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name])
    return build_model(cfg, "cpu").eval()


def loaded(name: str, file: Path) -> tuple[nn.Module, str, bool]:
    """Return the model with the file's weights, the report, and whether it is complete but for the head."""
    model = model_of(name)
    checkpointer = Checkpointer(model)
    checkpointer.load(str(file))
    report = checkpointer.report
    names = {name for group in report.groups if group.is_fault for name in group.names}
    return model, str(report), not any(name.startswith("backbone.net.") for name in names)


def drawn_net(name: str, **options: object) -> nn.Module:
    """Return a net of timm whose entries, running statistics too, are drawn."""
    torch.manual_seed(5)
    net = timm.create_model(name, **options).eval()
    for key, value in net.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return net


@torch.no_grad()
def assert_same_maps(model: nn.Module, net: nn.Module, first: int) -> None:
    picture = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = net.forward_intermediates(picture, intermediates_only=True)[first:]
    for ours, theirs in zip(model.backbone(picture).values(), expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-6


@pytest.fixture(scope="module")
def efficientnet() -> nn.Module:
    return drawn_net("test_efficientnet")


def test_a_file_with_the_names_of_timm(efficientnet: nn.Module, tmp_path: Path):
    file = tmp_path / "weights.safetensors"
    save_file(efficientnet.state_dict(), file)
    model, report, is_complete = loaded("test_efficientnet", file)
    assert is_complete
    assert "licence by timm's record of test_efficientnet.r160_in1k: apache-2.0" in report
    assert "order" not in report
    assert_same_maps(model, efficientnet, first=1)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries under an author's names, without the counters, as old files are."""
    values = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    return {f"_blocks.{number}.tensor": value for number, value in enumerate(values)}


def test_a_file_with_other_names_is_fitted_by_order_and_shape(efficientnet: nn.Module, tmp_path: Path):
    state = renamed(efficientnet.state_dict())
    torch.save(state, tmp_path / "weights.pth")
    model, report, is_complete = loaded("test_efficientnet", tmp_path / "weights.pth")
    assert is_complete
    assert f"all {len(state)} entries fitted by order and shape" in report
    assert_same_maps(model, efficientnet, first=1)


@pytest.mark.parametrize("change", ["one less", "one shape", "two swapped"])
def test_other_names_are_refused_unless_order_and_shape_agree(
    efficientnet: nn.Module, tmp_path: Path, change: str
):
    state = renamed(efficientnet.state_dict())
    first, second = next(iter(state)), list(state)[-2]
    if change == "one less":
        state.pop(first)
    elif change == "one shape":
        state[first] = state[first][:-1]
    else:
        state[first], state[second] = state[second], state[first]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"none of its .* entries fits the model"):
        loaded("test_efficientnet", tmp_path / "weights.pth")


def test_position_table_of_another_picture_size_is_resized_as_timm_does(tmp_path: Path):
    net = drawn_net("test_vit", img_size=96)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    model, report, is_complete = loaded("test_vit", tmp_path / "weights.pth")
    assert is_complete
    assert "position tables converted by timm" in report
    net.set_input_size((160, 160))  # that of the model's net
    torch.testing.assert_close(model.backbone.net.pos_embed, net.pos_embed)


def test_a_saved_model_loads_whole(tmp_path: Path):
    model = model_of("test_vit")
    Checkpointer(model).save_weights(tmp_path / "model.pth")
    other = model_of("test_vit")
    checkpointer = Checkpointer(other, strict=True)
    checkpointer.load(str(tmp_path / "model.pth"))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_name_of_timm_is_the_file_that_timm_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASK_FORMER_CACHE", str(tmp_path))
    url = "https://huggingface.co/timm/convnext_tiny.in12k/resolve/main/model.safetensors"
    file = cached_path(url)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert resolve("timm://convnext_tiny.in12k") == file
    with pytest.raises(ValueError, match=r"timm://convnext_tiny.in13k: timm .* has no such weights"):
        resolve("timm://convnext_tiny.in13k")
