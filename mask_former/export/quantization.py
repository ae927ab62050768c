"""Eight-bit models: backbone and pixel decoder quantised, the transformer decoder in float32."""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_former.export.graph import (
    build_graph,
    import_optional,
    onnx_model,
    read_openvino,
    save_openvino,
    trace,
)
from mask_former.export.metadata import KEY, as_text, describe_export
from mask_former.export.parity import Truth, prepared, read_pictures, runner_class, save_results
from mask_former.formats import replacing
from mask_former.prediction.predictor import Predictor

# Modules whose convolutions and products bear eight bits.
QUANTIZED = ("model.backbone", "model.sem_seg_head.pixel_decoder")
QUANTIZED_OPERATORS = ("Conv", "MatMul", "Gemm")
# Pairs of runs that the speed-up is the median of.
TIMED_PAIRS = 5


def quantize(
    predictor: Predictor,
    file: Path,
    photos: Path,
    *,
    labels: Path | None = None,
    limit: int = 8,
    max_loss: float = 0.5,
    min_speedup: float = 1.5,
) -> dict[str, float]:
    """Write a quantised model and return its `loss`, `speedup`, and scores, which go into its metadata.

    Args:
        predictor: the model with its classes and rules.
        file: .onnx (onnxruntime's static quantisation) or .xml (nncf, for OpenVINO).
        photos: a folder of pictures to calibrate with, and to score.
        labels: true labels of them, see `parity.verify`; None: the float32 model's results are the truth.
        limit: most pictures.
        max_loss: most PQ (panoptic models), else mIoU, in percent, that it may lose.
        min_speedup: least ratio of times of the network, float32 over quantised, in the same runtime.

    Raises:
        ValueError: it loses more or gains less; then nothing is written.
    """
    if file.suffix not in (".onnx", ".xml"):
        raise ValueError(f"{file}: eight bits are written as .onnx or .xml only.")
    pictures = read_pictures(photos, limit)
    metadata = describe_export(predictor)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exact, small = folder / f"float{file.suffix}", folder / f"int8{file.suffix}"
        graph = build_graph(predictor.model)
        content = onnx_model(trace(graph), graph.outputs, as_text(metadata))
        items = [prepared(predictor.cfg, pixels)[None].numpy() for _, pixels in pictures]
        write = _quantize_onnx if file.suffix == ".onnx" else _quantize_openvino
        write(content, as_text(metadata), exact, small, items)
        runner = runner_class()
        runners = runner(exact), runner(small)
        figures = _losses(predictor, runners, pictures, labels, folder)
        figures["speedup"] = _speedup(runners, items[0])
        check_figures(file, figures, max_loss, min_speedup)
        del runners
        _install(small, file, metadata | {"int8": figures})
    return figures


def check_figures(file: Path, figures: dict[str, Any], max_loss: float, min_speedup: float) -> None:
    """Raise ValueError if a quantised model loses too much or gains too little; see `quantize`."""
    if figures["loss"] <= max_loss and figures["speedup"] >= min_speedup:
        return
    raise ValueError(
        f"{file} is not written: in eight bits the model loses {figures['loss']:.2f} {figures['score']} "
        f"(bound {max_loss:g}) and is {figures['speedup']:.2f} times as fast as float32 (bound "
        f"{min_speedup:g}). Use the float32 file, other calibration pictures, or allow it with --max-loss "
        "and --min-speedup."
    )


def _quantize_onnx(
    content: Any, metadata: str, exact: Path, small: Path, items: Sequence[NDArray[np.uint8]]
) -> None:
    import_optional("onnxruntime")
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.items = iter(items)

        def get_next(self) -> dict[str, Any] | None:
            item = next(self.items, None)
            return None if item is None else {"image": item}

    exact.write_bytes(content.SerializeToString())
    quantize_static(
        exact,
        small,
        Reader(),
        nodes_to_quantize=[node.name for node in content.graph.node if _bears_eight_bits(node)],
        per_channel=True,
        # Without it, processors that have no VNNI clip sums of products.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _bears_eight_bits(node: Any) -> bool:
    return node.op_type in QUANTIZED_OPERATORS and node.name.startswith(QUANTIZED)


def _quantize_openvino(
    content: Any, metadata: str, exact: Path, small: Path, items: Sequence[NDArray[np.uint8]]
) -> None:
    nncf = import_optional("nncf")
    model = read_openvino(content.SerializeToString(), metadata)
    save_openvino(model, exact)
    others = [node.get_friendly_name() for node in model.get_ops()]
    others = [name for name in others if not name.startswith(QUANTIZED)]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(items),
        subset_size=len(items),
        ignored_scope=nncf.IgnoredScope(names=others, validate=False),
    )
    quantized.set_rt_info(metadata, KEY)
    save_openvino(quantized, small)


def _losses(
    predictor: Predictor, runners: tuple[Any, Any], pictures: Sequence[Any], labels: Path | None, folder: Path
) -> dict[str, Any]:
    """Return the scores of float32 and eight bits and their difference, in percent."""
    is_panoptic = "panoptic" in predictor.rules.tasks
    if labels is None:
        kind = "panoptic" if is_panoptic else "labels"
        save_results(runners[0], pictures, folder / "exact", predictor.classes, [kind])
        labels = folder / "exact" / ("panoptic.json" if is_panoptic else "labels")
    truth = Truth(labels, [name for name, _ in pictures], predictor.classes, folder)
    exact, small = (truth.score(runner, pictures) for runner in runners)
    ((name, value),) = exact.items()
    return {"score": name, "float32": value, "int8": small[name], "loss": value - small[name]}


def _speedup(runners: tuple[Any, Any], item: NDArray[np.uint8]) -> float:
    """Return the median ratio of times of the network, first over second, in pairs that take turns."""

    def seconds(runner: Any) -> float:
        start = time.perf_counter()
        runner.graph(item)
        return time.perf_counter() - start

    for runner in runners:
        seconds(runner)
    return statistics.median(seconds(runners[0]) / seconds(runners[1]) for _ in range(TIMED_PAIRS))


def _install(small: Path, file: Path, metadata: dict[str, Any]) -> None:
    """Write the quantised model to its place, with its figures."""
    text = json.dumps(metadata, ensure_ascii=False)
    if file.suffix == ".onnx":
        model = import_optional("onnx").load(small)
        del model.metadata_props[:]
        model.metadata_props.add(key=KEY, value=text)
        with replacing(file) as partial:
            partial.write_bytes(model.SerializeToString())
        return
    model = import_optional("openvino").Core().read_model(small)
    model.set_rt_info(text, KEY)
    save_openvino(model, file)
