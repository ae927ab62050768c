"""Quantised files: what is in eight bits, what they lose, and when they are refused."""

import json

import numpy as np
import pytest
from PIL import Image
from small_predictors import picture, write_checkpoint

onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
pytest.importorskip("onnxruntime", reason="needs the extra 'export'")

from mask_former.export.__main__ import main  # noqa: E402
from mask_former.export.quantization import QUANTIZED, quantize  # noqa: E402
from mask_former.prediction.predictor import Predictor  # noqa: E402
from mask_former_runner import Runner  # noqa: E402

ANY = {"max_loss": 100.0, "min_speedup": 0.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(((90, 130), (64, 64), (120, 80))):
        Image.fromarray(picture(*size, number)).save(folder / f"{number}.png")
    return folder


def test_backbone_and_pixel_decoder_alone_are_quantised(checkpoint, photos, tmp_path):
    file = tmp_path / "int8.onnx"
    figures = quantize(Predictor.from_checkpoint(checkpoint, device="cpu"), file, photos, **ANY)
    nodes = onnx.load(file).graph.node
    source = {output: node for node in nodes for output in node.output}
    quantised = {
        node.name
        for node in nodes
        if node.op_type in ("Conv", "MatMul", "Gemm")
        and all(name in source and source[name].op_type == "DequantizeLinear" for name in node.input[:2])
    }
    convolutions = {node.name for node in nodes if node.op_type == "Conv"}
    assert len(quantised) > 20
    assert all(name.startswith(QUANTIZED) for name in quantised)
    assert {name for name in convolutions if name.startswith(QUANTIZED)} <= quantised
    metadata = Runner(file).metadata
    assert metadata["int8"] == figures
    assert figures["loss"] == pytest.approx(figures["float32"] - figures["int8"])


def test_openvino_file_is_quantised_and_runs(checkpoint, photos, tmp_path):
    pytest.importorskip("openvino", reason="needs the extra 'export'")
    pytest.importorskip("nncf", reason="needs the extra 'export'")
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    quantize(predictor, tmp_path / "int8.xml", photos, **ANY)
    text = (tmp_path / "int8.xml").read_text()
    assert text.count('type="FakeQuantize"') > 20
    runner = Runner(tmp_path / "int8.xml")
    assert "loss" in runner.metadata["int8"]
    (ours,), (theirs,) = predictor(picture(90, 130)), runner(picture(90, 130))
    # Of random weights; close, not equal.
    assert (ours.semantic == theirs.semantic).mean() > 0.7


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (["--max-loss", "-1", "--min-speedup", "0"], "PQ (bound -1)"),
        (["--max-loss", "100", "--min-speedup", "99"], "times as fast as float32 (bound 99)"),
    ],
)
def test_file_that_loses_or_gains_too_little_is_refused_with_the_figure(
    checkpoint, photos, tmp_path, capsys, bounds, words
):
    file = tmp_path / "int8.onnx"
    assert main([str(checkpoint), str(file), "--int8", str(photos), "--limit", "1", *bounds]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert words in line
    assert not file.exists()


def test_loss_is_that_of_true_labels_where_given(checkpoint, photos, tmp_path):
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu", tasks=["semantic"])
    for result in predictor(str(photos)):
        result.save(tmp_path, ["labels"])
    # Labels that are wrong everywhere: neither float32 nor eight bits have any mIoU.
    for file in (tmp_path / "labels").glob("*.png"):
        labels = (np.asarray(Image.open(file)) + 1) % 5
        Image.fromarray(labels.astype(np.uint8)).save(file)
    figures = quantize(predictor, tmp_path / "int8.onnx", photos, labels=tmp_path / "labels", **ANY)
    assert figures["score"] == "mIoU"
    assert figures["float32"] == pytest.approx(0, abs=0.5)
    assert json.dumps(figures)
