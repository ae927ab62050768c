"""An exported model in a runtime: uint8 images in, logits or labels out."""

import json
from pathlib import Path
from typing import Any

import numpy as np

METADATA_KEY = "mask_former"
# Layout of the metadata that this version reads.
FORMAT = 1


class Graph:
    """A model file: .onnx, run by onnxruntime, or .xml, run by OpenVINO.

    Attributes:
        metadata: classes, rules, sizes, licence and versions, as the export wrote them.
        outputs: of "class_logits" and "mask_logits", "pixel_logits", "labels".
    """

    def __init__(self, file: str | Path, threads: int = 0) -> None:
        """Load a file; 0 threads leaves their number to the runtime."""
        loaders = {".onnx": self._load_onnxruntime, ".xml": self._load_openvino}
        if Path(file).suffix not in loaders or not Path(file).is_file():
            raise ValueError(f"{file}: expected a file .onnx or .xml, written by mask_former.export.")
        try:
            text = loaders[Path(file).suffix](str(file), threads)
        except ImportError as error:
            name = "onnxruntime" if Path(file).suffix == ".onnx" else "openvino"
            raise ValueError(f"{file}: its runtime is not installed: pip install {name}") from error
        except Exception as error:  # runtimes raise their own
            reason = " ".join(str(error).split())
            raise ValueError(f"{file}: cannot be loaded, export it again ({reason}).") from error
        self.metadata: dict[str, Any] = json.loads(text or "{}")
        if (found := self.metadata.get("format")) != FORMAT:
            raise ValueError(f"{file}: metadata '{METADATA_KEY}' have format {found}, expected {FORMAT}.")

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name for images (B, C, H, W) uint8."""
        fixed = self.metadata["sizes"]["fixed"]
        if fixed and fixed != list(images.shape[2:]):
            raise ValueError(f"An image of {images.shape[2:]} came; this file takes {fixed} only.")
        return dict(zip(self.outputs, self._run(images), strict=True))

    def _load_onnxruntime(self, file: str, threads: int) -> str | None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in session.get_outputs()]
        self._run = lambda images: session.run(None, {"image": images})
        return session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    def _load_openvino(self, file: str, threads: int) -> str | None:
        import openvino

        # Some processors would compute in bfloat16 by default.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        model = openvino.Core().read_model(file)
        compiled = openvino.compile_model(model, "CPU", settings)
        self.outputs = [output.get_any_name() for output in compiled.outputs]
        self._run = lambda images: [np.array(value) for value in compiled(images).values()]
        return model.get_rt_info(METADATA_KEY).astype(str) if model.has_rt_info(METADATA_KEY) else None
