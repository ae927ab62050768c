"""Nets of timm: built by name for pictures of any size, probed for their maps, and cut into stages."""

import difflib
import importlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

STRIDE = 32  # of the coarsest map


def library() -> Any:
    """Return timm, which is optional."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ModuleNotFoundError(
            "MODEL.BACKBONE.NAME build_timm_backbone needs timm: pip install 'mask-former[timm]'", name="timm"
        ) from error


def checked_name(name: str) -> str:
    """Return a name that timm has, or raise ValueError."""
    timm = library()
    if timm.is_model(name):
        base, _, tag = name.partition(".")
        if tag and name not in (tagged := timm.list_pretrained(f"{base}.*")):
            raise ValueError(
                f"MODEL.TIMM.NAME is {name!r}, but the tags are {', '.join(tagged)}; or give none."
            )
        return name
    known = timm.list_models()
    close = difflib.get_close_matches(name.split(".")[0], known, n=3) or timm.list_models(f"*{name}*")[:3]
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has their names."
    raise ValueError(f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have; {hint}")


def create_net(name: str, options: dict[str, Any]) -> Any:
    """Return a net of timm, for pictures of any size where it has an option for that."""
    create: Callable[..., Any] = library().create_model
    try:
        return create(checked_name(name), **options, dynamic_img_size=True)
    except TypeError:  # no such argument
        return create(name, **options)


@torch.no_grad()
def probe_net(name: str, options: dict[str, Any]) -> tuple[int, list[tuple[int, int]]]:
    """Return the divisor of the picture sizes that a net takes, and stride and channels of its maps."""
    with torch.device("meta"):  # shapes alone
        net = create_net(name, options).eval()
        if not hasattr(net, "prune_intermediate_layers"):
            raise ValueError(f"MODEL.TIMM.NAME {name}: timm has no maps of this net. Choose another.")
        error: Exception | None = None
        largest = max(entry["reduction"] for entry in net.feature_info)
        for multiple in dict.fromkeys((STRIDE, 2 * STRIDE, largest, net.pretrained_cfg["input_size"][1])):
            size = (2 * multiple, 3 * multiple)
            try:
                maps = net.forward_intermediates(
                    torch.empty(1, options["in_chans"], *size), intermediates_only=True
                )
            except (RuntimeError, AssertionError) as refusal:
                error = refusal
                continue
            strides = [{side / own for side, own in zip(size, m.shape[-2:], strict=True)} for m in maps]
            if all(len(both) == 1 and min(both).is_integer() for both in strides):
                return multiple, [(int(min(s)), m.shape[1]) for s, m in zip(strides, maps, strict=True)]
    raise ValueError(
        f"MODEL.TIMM.NAME {name}: in timm, this net does not give maps of pictures of any size. Choose "
        "another, such as convnext_tiny or vit_small_patch14_dinov2."
    ) from error


def stage_ends(net: Any, found: Sequence[tuple[int, int]], last: int) -> list[str]:
    """Return the modules that end the stages: of each stride from 4 on, or each quarter of the blocks."""
    ends = {stride: index for index, (stride, _) in enumerate(found) if stride >= 4}
    indices = sorted(ends.values())
    if len(ends) == 1:
        indices = [math.ceil(len(found) * quarter / 4) - 1 for quarter in range(1, 5)]
    return [net.feature_info[index]["module"] for index in indices if index <= last]


def modules_of(module: nn.Module, parameters: Collection[int]) -> list[nn.Module]:
    """Return the outermost modules that have none but these parameters."""
    own = {id(parameter) for parameter in module.parameters()}
    if own and own <= set(parameters):
        return [module]
    return [part for child in module.children() for part in modules_of(child, parameters)]


def in_order(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the entries of `state` under the names of `shapes`, empty unless all shapes agree in order."""
    counter = "num_batches_tracked"  # absent in old files, and not needed
    values = [value for name, value in state.items() if not name.endswith(counter)]
    names = [name for name in shapes if not name.endswith(counter)]
    if [tuple(value.shape) for value in values] != [shapes[name] for name in names]:
        return {}
    return dict(zip(names, values, strict=True))
