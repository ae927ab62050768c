"""The network as one graph: uint8 images of any size in, logits or label maps out."""

import copy
import functools
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask_former.export.metadata import KEY, OPSET, as_text, describe_export
from mask_former.formats import replacing
from mask_former.inference.ruled_model import RuledModel
from mask_former.modeling.per_pixel import PerPixelModel
from mask_former.modeling.pixel_decoder import BasePixelDecoder
from mask_former.modeling.preparation import fold_norms, is_prepared
from mask_former.modeling.structures import Prediction
from mask_former.modeling.transformer_decoder import StandardTransformerDecoder
from mask_former.prediction.predictor import Predictor

SUFFIXES = (".onnx", ".xml", ".pt2")
# Sides of the example that is traced, prime to all divisors, strides and windows, so that nothing that
# happens to be equal or divisible there is taken for a rule.
EXAMPLE_SIZE = (283, 313)
INSTALL = "pip install 'mask-former[export]'"


class QueryGraph(nn.Module):
    """Images to `class_logits` (B, Q, K+1) and `mask_logits` (B, Q, h, w)."""

    outputs: tuple[str, ...] = ("class_logits", "mask_logits")

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.divisor = max(1, model.size_divisibility)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for `image` (B, C, H, W) uint8, which is normalised, then padded with zeros."""
        answer = self.model.predict(self.padded(image))[-1]
        return answer.class_logits, answer.mask_logits

    def padded(self, image: Tensor) -> Tensor:
        """Return what the network takes, its sides multiples of the model's divisor."""
        height, width = image.shape[-2:]
        rows = (height + self.divisor - 1) // self.divisor * self.divisor
        columns = (width + self.divisor - 1) // self.divisor * self.divisor
        return F.pad(self.model.normalize(image), (0, columns - width, 0, rows - height))


class QueryLabelGraph(QueryGraph):
    """Images to `labels` (B, H, W), the class of each pixel; of one class, 1 where it is not."""

    outputs = ("labels",)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `QueryGraph.forward`."""
        padded = self.padded(image)
        answer = self.model.predict(padded)[-1]
        masks = _at_image(answer.mask_logits, padded.shape[-2:], image).sigmoid()
        class_probs = answer.class_logits.softmax(-1)[..., :-1]
        scores = torch.einsum("bqk,bqhw->bkhw", class_probs, masks)
        if scores.shape[1] == 1:
            scores = torch.cat([scores, torch.full_like(scores, 0.5)], dim=1)
        return (_labels(scores),)


class PixelGraph(QueryGraph):
    """Images to `pixel_logits` (B, K, h, w) of a per-pixel model."""

    outputs = ("pixel_logits",)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `QueryGraph.forward`."""
        return (self.model.sem_seg_head.grid_scores(self.model.backbone(self.padded(image))),)


class PixelLabelGraph(PixelGraph):
    """Images to `labels` (B, H, W) of a per-pixel model."""

    outputs = ("labels",)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See `QueryGraph.forward`."""
        return (_labels(self.model.predict(self.padded(image))[..., : image.shape[-2], : image.shape[-1]]),)


def _at_image(maps: Tensor, padded: Any, image: Tensor) -> Tensor:
    maps = F.interpolate(maps, size=padded, mode="bilinear", align_corners=False)
    return maps[..., : image.shape[-2], : image.shape[-1]]


def _labels(scores: Tensor) -> Tensor:
    return scores.argmax(1).to(torch.uint8 if scores.shape[1] <= 256 else torch.int32)


def build_graph(model: RuledModel, semantic: bool = False, *, fold: bool = True) -> QueryGraph:
    """Return the module to export, in float32 on the CPU, with fixed norms folded into convolutions."""
    if is_prepared(model):
        raise ValueError("The network is prepared for inference already: export one of precision 'plain'.")
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    if fold:
        fold_norms(model)
        merge_mask_products(model)
    kinds = {(False, False): QueryGraph, (False, True): QueryLabelGraph}
    kinds |= {(True, False): PixelGraph, (True, True): PixelLabelGraph}
    return kinds[isinstance(model, PerPixelModel), semantic](model)


def merge_mask_products(model: Any) -> None:
    """Multiply the queries with the weights of the pixel decoder's last convolution, in place of its output.

    Both are linear. With fewer queries than channels, the products take that much less work.
    """
    head = model.sem_seg_head
    decoder: Any = getattr(head, "pixel_decoder", None)
    predictor: Any = getattr(head, "predictor", None)
    if type(predictor) is not StandardTransformerDecoder or not isinstance(decoder, BasePixelDecoder):
        return
    last = decoder.mask_features
    if predictor.query_embed.num_embeddings >= last.out_channels:
        return
    decoder.mask_features = nn.Identity()
    predictor._predict = functools.partial(_predict, predictor, last)


def _predict(decoder: Any, last: Any, states: Tensor, features: Tensor) -> Prediction:
    """Return what `decoder` predicts, given the map (B, C, h, w) before its last convolution, `last`."""
    class_embed = decoder.class_embed
    class_logits = states.new_empty(*states.shape[:2], 0) if class_embed is None else class_embed(states)
    queries = decoder.mask_embed(states)
    batch, num_queries, _ = queries.shape
    channels, height, width = features.shape[1:]
    side = last.kernel_size[0]
    # One product for each of the positions of the kernel, then their sum, each shifted to its place.
    taps = last.weight.permute(2, 3, 0, 1).reshape(side**2, last.out_channels, channels)
    kernels = torch.matmul(queries[:, None], taps[None]).reshape(batch, side**2 * num_queries, channels)
    padded = F.pad(features, (last.padding[1], last.padding[1], last.padding[0], last.padding[0]))
    products = torch.matmul(kernels, padded.flatten(2))
    products = products.unflatten(1, (side**2, num_queries)).unflatten(3, padded.shape[2:])
    masks = (queries @ last.bias)[:, :, None, None]
    for number in range(side**2):
        row, column = divmod(number, side)
        masks = masks + products[:, number, :, row : row + height, column : column + width]
    return Prediction(class_logits, masks)


def trace(graph: QueryGraph, size: tuple[int, int] | None = None) -> Any:
    """Return the graph as a `torch.export` program, for any batch and size, or for one size."""
    height, width = size or EXAMPLE_SIZE
    channels = len(graph.model.pixel_mean)
    image = torch.zeros(2, channels, height, width, dtype=torch.uint8)
    dynamic = torch.export.Dim.DYNAMIC
    dims = {0: dynamic} if size else {0: dynamic, 2: dynamic, 3: dynamic}
    was_fast = torch.backends.mha.get_fastpath_enabled()
    # The fused operator of torch has no counterpart elsewhere.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), _general_sizes():
            return torch.export.export(graph, (image,), dynamic_shapes={"image": dims}, strict=False)
    except Exception as error:  # torch raises its own, the system's and whatever a model raises
        reason = " ".join(str(error).split())[:200]
        backbone = type(graph.model.backbone).__name__
        advice = "torch cannot trace it" if size else "give --size HEIGHT WIDTH for a file of one size"
        raise ValueError(
            f"{backbone} cannot be exported for {size or 'all sizes'}: {advice} ({reason})."
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)


def _general_sizes() -> Any:
    """Return the setting by which the tracer asks for no property of the example's size."""
    from torch.fx.experimental import _config

    settings: Any = _config
    # Not in every torch that we run on; without it some backbones get guards on the size.
    return (
        settings.patch(backed_size_oblivious=True)
        if "backed_size_oblivious" in vars(settings)
        else nullcontext()
    )


def export(
    predictor: Predictor, file: Path, *, semantic: bool = False, size: tuple[int, int] | None = None
) -> None:
    """Write a model as one file.

    Args:
        predictor: the model with its classes and rules.
        file: .onnx (opset 18), .xml (OpenVINO, with .bin beside it) or .pt2 (torch.export).
        semantic: give label maps instead of logits.
        size: height and width that the graph shall be fixed to; None: any.
    """
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file}: its ending says what is written; expected {', '.join(SUFFIXES)}.")
    metadata = as_text(describe_export(predictor, semantic=semantic, size=size))
    graph = build_graph(predictor.model, semantic)
    program = trace(graph, size)
    if file.suffix == ".pt2":
        with replacing(file) as partial, partial.open("wb") as stream:
            torch.export.save(program, stream, extra_files={KEY: metadata})
        return
    content = onnx_model(program, graph.outputs, metadata)
    if file.suffix == ".onnx":
        with replacing(file) as partial:
            partial.write_bytes(content.SerializeToString())
    else:
        save_openvino(read_openvino(content.SerializeToString(), metadata), file)


def onnx_model(program: Any, outputs: tuple[str, ...], metadata: str) -> Any:
    """Return a traced program as an ONNX model with plain names; nodes are called after their modules."""
    import_optional("onnx")
    import_optional("onnxscript")
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=list(outputs),
        verbose=False,
    )
    assert exported is not None
    model = exported.model_proto
    for number, node in enumerate(model.graph.node):
        scopes = {prop.key: prop.value for prop in node.metadata_props}.get("namespace", "")
        # Each module as "name: class", the last entry being the operator.
        path = [scope.split(":")[0] for scope in scopes.split("/")]
        node.name = f"{path[-2] if len(path) > 1 else ''}/{node.op_type}_{number}"
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    # Besides formulas of sizes, they hold traces with paths of this machine.
    model.graph.ClearField("value_info")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.ClearField("metadata_props")
    _name_dimensions(model.graph)
    model.producer_name = "mask_former"
    model.metadata_props.add(key=KEY, value=metadata)
    return model


def _name_dimensions(graph: Any) -> None:
    names = {4: ("batch", "", "{}height", "{}width"), 3: ("batch", "{}height", "{}width")}
    for value in [*graph.input, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        grid = "" if value.name in ("image", "labels") else "grid_"
        for dim, name in zip(dims, names[len(dims)], strict=True):
            if dim.dim_param:
                dim.dim_param = name.format(grid)


def read_openvino(content: bytes, metadata: str) -> Any:
    """Return an ONNX model as OpenVINO's, with the metadata in its rt_info."""
    openvino = import_optional("openvino")
    model = openvino.Core().read_model(content, b"")
    model.set_rt_info(metadata, KEY)
    return model


def save_openvino(model: Any, file: Path) -> None:
    """Write OpenVINO's two files, weights in float32."""
    openvino = import_optional("openvino")
    openvino.save_model(model, file, compress_to_fp16=False)


def load_program(file: Path) -> Any:
    """Return the module of a .pt2 file, without the guards that torch adds for strides of some sizes."""
    return torch.export.load(file).module(check_guards=False)


def import_optional(name: str) -> Any:
    """Return a module of the extra `export`, or raise ImportError with one line that says what to install."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"This export needs {name}, which is not installed: {INSTALL}") from error
