"""An exported model in a runtime: uint8 pictures in, logits or labels out."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

RUNTIMES = ("onnxruntime", "openvino")
METADATA_KEY = "mask_former"
# Layout of the metadata that this version reads.
FORMAT = 1


class Graph:
    """A model file, loaded into a runtime.

    Attributes:
        metadata: what the export wrote into the file: classes, thresholds, sizes, licence, versions.
        outputs: names, of "class_logits", "mask_logits", "pixel_logits", "labels".
    """

    def __init__(self, file: str | Path, runtime: str | None = None, threads: int = 0) -> None:
        """Load a file (.onnx, or .xml of OpenVINO); 0 threads leaves their number to the runtime."""
        self.file = Path(file)
        if not self.file.is_file():
            raise ValueError(f"{file}: there is no such file; give one that mask_former.export wrote.")
        if self.file.suffix not in (".onnx", ".xml"):
            raise ValueError(f"{file}: expected a model file that ends in .onnx or .xml.")
        self.runtime = _runtime(self.file, runtime)
        try:
            load = self._load_onnxruntime if self.runtime == "onnxruntime" else self._load_openvino
            text = load(threads)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{file}: {self.runtime} cannot load it ({reason}). Export the model again (opset 18), or "
                "update the runtime."
            ) from error
        if text is None:
            raise ValueError(f"{file}: no metadata of MaskFormer in it; expected a file of mask_former.export.")
        self.metadata: dict[str, Any] = json.loads(text)
        if self.metadata.get("format") != FORMAT:
            raise ValueError(
                f"{file}: its metadata have format {self.metadata.get('format')}, this runner reads {FORMAT}: "
                "update mask_former_runner, or export the model again."
            )

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name for pictures (B, 3, H, W) uint8."""
        if self.runtime == "onnxruntime":
            values = self._session.run(self.outputs, {"image": images})
        else:
            values = [np.array(value) for value in self._request.infer([images]).values()]
        return dict(zip(self.outputs, values, strict=True))

    def _load_onnxruntime(self, threads: int) -> str | None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            str(self.file), options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [output.name for output in self._session.get_outputs()]
        return self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    def _load_openvino(self, threads: int) -> str | None:
        import openvino

        core = openvino.Core()
        model = core.read_model(self.file)
        # Some processors would compute in bfloat16 by default.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(
            model, "CPU", settings | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        )
        self._request = compiled.create_infer_request()
        self.outputs = [output.get_any_name() for output in compiled.outputs]
        if self.file.suffix == ".onnx":
            return _onnx_metadata(self.file.read_bytes()).get(METADATA_KEY)
        has_metadata = model.has_rt_info(METADATA_KEY)
        return str(model.get_rt_info(METADATA_KEY).astype(str)) if has_metadata else None


def _runtime(file: Path, wanted: str | None) -> str:
    """Return the runtime to use for a file: the wanted one, or the first that is installed."""
    possible = RUNTIMES[1:] if file.suffix == ".xml" else RUNTIMES
    if wanted is not None and wanted not in possible:
        raise ValueError(f"{file}: runtime {wanted!r} cannot run it; choose {' or '.join(possible)}.")
    for name in [wanted] if wanted else possible:
        if importlib.util.find_spec(name):
            return name
    raise ValueError(f"{file}: its runtime is not installed: pip install {wanted or possible[0]}")


def _onnx_metadata(data: bytes) -> dict[str, str]:
    """Return `metadata_props` of an ONNX file, which OpenVINO does not pass on; fields of protocol buffers."""
    entries = [dict(_fields(memoryview(value))) for number, value in _fields(memoryview(data)) if number == 14]
    return {bytes(entry[1]).decode(): bytes(entry[2]).decode() for entry in entries}


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field; memory is not copied."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        length = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        yield number, data[position : position + length]
        position += length
