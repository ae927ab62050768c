"""Quantised files: what is in eight bits, what they lose, and when they are refused."""

import numpy as np
import pytest
from PIL import Image
from small_predictors import picture, write_checkpoint

onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
pytest.importorskip("onnxruntime", reason="needs the extra 'export'")

from mask_former.export.__main__ import main  # noqa: E402
from mask_former.export.quantization import QUANTIZED, check_figures, quantize  # noqa: E402
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


@pytest.fixture(scope="module")
def quantised(checkpoint, photos, tmp_path_factory):
    """A quantised file and its figures, the loss being that of labels that are wrong everywhere."""
    folder = tmp_path_factory.mktemp("quantised")
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu", precision="plain", tasks=["semantic"])
    for result in predictor(str(photos)):
        result.save(folder, ["labels"])
    for file in (folder / "labels").glob("*.png"):
        labels = (np.asarray(Image.open(file)) + 1) % 5
        Image.fromarray(labels.astype(np.uint8)).save(file)
    figures = quantize(predictor, folder / "int8.onnx", photos, labels=folder / "labels", **ANY)
    return folder / "int8.onnx", figures


def test_backbone_and_pixel_decoder_alone_are_quantised(quantised):
    file, figures = quantised
    nodes = onnx.load(file).graph.node
    source = {output: node for node in nodes for output in node.output}
    names = {
        node.name
        for node in nodes
        if node.op_type in ("Conv", "MatMul", "Gemm")
        and all(name in source and source[name].op_type == "DequantizeLinear" for name in node.input[:2])
    }
    convolutions = {node.name for node in nodes if node.op_type == "Conv"}
    assert len(names) > 20
    assert all(name.startswith(QUANTIZED) for name in names)
    assert {name for name in convolutions if name.startswith(QUANTIZED)} <= names
    assert Runner(file).metadata["int8"] == figures


def test_loss_is_that_of_true_labels_where_given(quantised):
    _, figures = quantised
    assert figures["score"] == "mIoU"
    assert figures["float32"] == pytest.approx(0, abs=0.5)
    assert figures["loss"] == pytest.approx(figures["float32"] - figures["int8"])


def test_openvino_file_is_quantised_and_runs(checkpoint, photos, tmp_path):
    pytest.importorskip("openvino", reason="needs the extra 'export'")
    pytest.importorskip("nncf", reason="needs the extra 'export'")
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu", precision="plain")
    quantize(predictor, tmp_path / "int8.xml", photos, **ANY)
    text = (tmp_path / "int8.xml").read_text()
    assert text.count('type="FakeQuantize"') > 20
    runner = Runner(tmp_path / "int8.xml")
    assert "loss" in runner.metadata["int8"]
    (ours,), (theirs,) = predictor(picture(90, 130)), runner(picture(90, 130))
    # Of random weights; close, not equal.
    assert (ours.semantic == theirs.semantic).mean() > 0.7


def test_file_that_loses_too_much_is_refused_with_the_figure(checkpoint, photos, tmp_path, capsys):
    file = tmp_path / "int8.onnx"
    bounds = ["--max-loss", "-1", "--min-speedup", "0"]
    assert main([str(checkpoint), str(file), "--int8", str(photos), "--limit", "1", *bounds]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "PQ (bound -1)" in line
    assert not file.exists()


def test_either_bound_refuses_a_file(tmp_path):
    figures = {"score": "PQ", "loss": 0.4, "speedup": 1.6}
    check_figures(tmp_path / "f.onnx", figures, 0.5, 1.5)
    with pytest.raises(ValueError, match=r"loses 0\.40 PQ \(bound 0\.3\)"):
        check_figures(tmp_path / "f.onnx", figures, 0.3, 1.5)
    with pytest.raises(ValueError, match=r"is 1\.60 times as fast as float32 \(bound 99\)"):
        check_figures(tmp_path / "f.onnx", figures, 0.5, 99)
