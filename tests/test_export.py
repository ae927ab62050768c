"""Exported graphs against the Predictor: logits, maps, metadata, reports; for every kind of model."""

import contextlib
import io
import json
import re

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from small_predictors import CLASSES, NAMES, decided_model, picture, small_config, write_checkpoint
from tiny_models import tiny_config

onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")

from mask_former.checkpoint import Checkpointer, describe  # noqa: E402
from mask_former.export.__main__ import main  # noqa: E402
from mask_former.export.graph import build_graph, export, load_program  # noqa: E402
from mask_former.export.parity import ProgramRunner, Truth, read_pictures, verify  # noqa: E402
from mask_former.prediction.predictor import Predictor  # noqa: E402
from mask_former_runner import Runner  # noqa: E402

# Shapes of pictures, uneven, on both sides of the divisor 32 and of Swin's windows.
SIZES = [(33, 60), (64, 64), (97, 133), (160, 75), (128, 96), (40, 200)]
SIZES += [(65, 64), (224, 160), (31, 31), (100, 300), (192, 224), (77, 119)]
EQUAL_PIXELS = 0.9999
LOGITS = 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"), license="CC0")


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint, device="cpu", precision="plain")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate(((90, 130), (120, 80))):
        Image.fromarray(picture(height, width, number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def truth(predictor, photos, tmp_path_factory):
    """A folder with the predictor's own results of the photos, as label files and in COCO's panoptic form."""
    folder = tmp_path_factory.mktemp("truth")
    for result in predictor(str(photos)):
        result.save(folder, ["labels", "panoptic"])
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint, photos, truth, tmp_path_factory):
    """The ONNX file that the program wrote, its report on the photos, and what it printed."""
    file, printed = tmp_path_factory.mktemp("onnx") / "model.onnx", io.StringIO()
    labels = str(truth / "panoptic.json")
    with contextlib.redirect_stdout(printed):
        assert main([str(checkpoint), str(file), "--verify", str(photos), "--labels", labels]) == 0
    report = json.loads(file.with_name("model.parity.json").read_text())
    return file, report, printed.getvalue()


@pytest.fixture(scope="module")
def onnx_file(exported):
    return exported[0]


@pytest.fixture(scope="module")
def program_file(predictor, tmp_path_factory):
    file = tmp_path_factory.mktemp("program") / "model.pt2"
    export(predictor, file)
    return file


def largest_difference(expected, found):
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def images_of(size, batch):
    return torch.stack(
        [torch.from_numpy(picture(*size, seed).transpose(2, 0, 1).copy()) for seed in range(batch)]
    )


def assert_same_logits(predictor, file, sizes=SIZES):
    """Compare a file's outputs with the model's own, norms not folded, over sizes and batches 1, 2, 3."""
    reference = build_graph(predictor.model, fold=False)
    runner = Runner(file)
    for size in sizes:
        for batch in (1, 2, 3):
            images = images_of(size, batch)
            with torch.no_grad():
                expected = dict(zip(reference.outputs, reference(images), strict=True))
            found = runner.graph(images.numpy())
            assert found.keys() == expected.keys()
            for name, logits in expected.items():
                assert logits.shape == found[name].shape
                assert largest_difference(logits.numpy(), found[name]) < LOGITS, (name, size, batch)


def test_one_file_gives_the_logits_of_all_sizes_and_batches(predictor, onnx_file):
    assert_same_logits(predictor, onnx_file)


def test_graph_has_dynamic_axes_and_opset_18_without_custom_operators(onnx_file):
    model = onnx.load(onnx_file)
    dims = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*model.graph.input, *model.graph.output]
    }
    assert dims == {
        "image": ["batch", 3, "height", "width"],
        "class_logits": ["batch", 7, 6],
        "mask_logits": ["batch", 7, "grid_height", "grid_width"],
    }
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert "GridSample" not in {node.op_type for node in model.graph.node}


def test_network_that_is_prepared_already_is_refused(checkpoint):
    with pytest.raises(ValueError, match="export one of precision 'plain'"):
        build_graph(Predictor.from_checkpoint(checkpoint, device="cpu").model)


def test_graph_pads_like_the_model(predictor):
    # 33 x 60 with divisor 32: the mask grid covers 64 x 64 pixels.
    with torch.no_grad():
        _, masks = build_graph(predictor.model)(images_of((33, 60), 1))
    assert masks.shape[-2:] == (16, 16)


def test_metadata_tell_classes_rules_sizes_licence_and_versions(predictor, onnx_file):
    (entry,) = onnx.load(onnx_file).metadata_props
    metadata = json.loads(entry.value)
    assert entry.key == "mask_former"
    assert metadata["classes"]["names"] == NAMES
    assert metadata["classes"]["is_thing"] == [True, True, False, False, False]
    assert metadata["classes"]["dataset_ids"] == list(predictor.classes.dataset_ids)
    assert metadata["rules"]["object_mask_threshold"] == 0.3
    assert metadata["rules"]["overlap_threshold"] == 0.2
    assert (metadata["sizes"]["shortest_edge"], metadata["sizes"]["longest_edge"]) == (64, 160)
    assert metadata["license"] == "CC0"
    assert metadata["versions"]["torch"] == torch.__version__.split("+")[0]


def test_file_names_no_path_of_the_machine_that_wrote_it(onnx_file):
    data = onnx_file.read_bytes()
    assert b"site-packages" not in data
    assert b"mask_former/modeling" not in data


def test_swin_has_dynamic_sizes_too(tmp_path):
    cfg = small_config()
    for key, value in {"EMBED_DIM": 16, "DEPTHS": [2, 1, 1, 1], "NUM_HEADS": [1, 2, 2, 4]}.items():
        cfg.MODEL.SWIN[key] = value
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 1
    predictor = Predictor.from_checkpoint(write_checkpoint(tmp_path, cfg), device="cpu", precision="plain")
    export(predictor, tmp_path / "swin.onnx")
    assert_same_logits(predictor, tmp_path / "swin.onnx", SIZES[:5])


def per_pixel_predictor(folder, head):
    cfg = tiny_config(NUM_OBJECT_QUERIES=5)
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NAME = head
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 160
    torch.manual_seed(0)
    Checkpointer(build_model(cfg), str(folder), metadata=describe(cfg, CLASSES)).save("model")
    return Predictor.from_checkpoint(folder / "model.pth", device="cpu", precision="plain")


def assert_same_labels(predictor, runner, sizes):
    for size in sizes:
        (ours,), (theirs,) = predictor(picture(*size)), runner(picture(*size))
        assert (ours.semantic == theirs.semantic).mean() >= EQUAL_PIXELS
        assert len(np.unique(ours.semantic)) > 1


def test_per_pixel_model_for_openvino(tmp_path):
    pytest.importorskip("openvino", reason="needs the extra 'export'")
    predictor = per_pixel_predictor(tmp_path, "PerPixelBaselineHead")
    export(predictor, tmp_path / "model.xml")
    assert_same_logits(predictor, tmp_path / "model.xml", SIZES[:4])
    assert_same_labels(predictor, Runner(tmp_path / "model.xml"), [(90, 130), (61, 200)])


def test_per_pixel_model_with_queries_of_one_size_only(tmp_path):
    """Pictures of other sizes are refused in one line."""
    predictor = per_pixel_predictor(tmp_path, "PerPixelBaselinePlusHead")
    export(predictor, tmp_path / "fixed.onnx", size=(64, 96))
    assert_same_logits(predictor, tmp_path / "fixed.onnx", [(64, 96)])
    runner = Runner(tmp_path / "fixed.onnx")
    assert_same_labels(predictor, runner, [(64, 96)])
    with pytest.raises(ValueError, match=r"(?s)^[^\n]*\(64, 64\)[^\n]*\[64, 96\][^\n]*$"):
        list(runner(picture(80, 80)))


def test_semantic_graph_gives_label_maps(predictor, tmp_path):
    export(predictor, tmp_path / "labels.onnx", semantic=True)
    session = onnxruntime.InferenceSession(tmp_path / "labels.onnx")
    assert [output.name for output in session.get_outputs()] == ["labels"]
    for size in ((64, 100), (64, 64), (160, 97)):
        (labels,) = session.run(None, {"image": images_of(size, 2).numpy()})
        assert labels.dtype == np.uint8
        for seed in (0, 1):
            (expected,) = predictor.model.results(
                [{"image": images_of(size, 2)[seed]}], predictor.with_rules(tasks=("semantic",)).rules
            )
            assert (expected["sem_seg"].numpy() == labels[seed]).mean() >= EQUAL_PIXELS
    (result,) = Runner(tmp_path / "labels.onnx")(picture(90, 130))
    assert result.semantic.shape == (90, 130)
    assert result.panoptic is None


def test_program_is_loaded_and_run(predictor, program_file):
    program = load_program(program_file)
    reference = build_graph(predictor.model, fold=False)
    for size, batch in (((33, 60), 1), ((97, 133), 3)):
        with torch.no_grad():
            pairs = list(zip(reference(images_of(size, batch)), program(images_of(size, batch)), strict=True))
        assert max(largest_difference(a.numpy(), b.numpy()) for a, b in pairs) < LOGITS
    extra = {"mask_former": ""}
    torch.export.load(program_file, extra_files=extra)
    assert json.loads(extra["mask_former"])["classes"]["names"] == NAMES


def test_parity_report_passes_and_is_written(exported):
    _, report, printed = exported
    assert report["passed"]
    assert {row["batch"] for row in report["rows"]} == {1, 2, 3}
    assert len({(row["height"], row["width"]) for row in report["rows"]}) == 6
    assert {"semantic", "panoptic", "instance"} == set(report["rows"][0]["pixels"])
    assert "onnxruntime" in printed


def test_parity_of_a_program_compares_outputs(predictor, program_file, photos):
    report = verify(predictor, program_file, photos, limit=1)
    assert report["passed"]
    assert {row["runtime"] for row in report["rows"]} == {"torch.export"}
    assert ProgramRunner(program_file).graph(images_of((64, 64), 1).numpy())[0].shape == (1, 7, 6)


def test_parity_of_another_models_file_fails(predictor, program_file, photos):
    other = Predictor(decided_model(small_config(), seed=2), predictor.cfg, predictor.classes)
    report = verify(other, program_file, photos, limit=1)
    assert not report["passed"]
    assert max(row["outputs"]["mask_logits"] for row in report["rows"]) > 0.01


def test_scores_are_compared_where_labels_are_given(predictor, exported, photos, truth, tmp_path):
    file, report, _ = exported
    pictures = read_pictures(photos, limit=8)
    semantic = Truth(truth / "labels", [name for name, _ in pictures], predictor.classes, tmp_path)
    found = {
        "torch": semantic.score(predictor, pictures),
        "onnxruntime": semantic.score(Runner(file), pictures),
    }
    for scores, name in ((report["scores"], "PQ"), (found, "mIoU")):
        assert scores["torch"][name] == pytest.approx(100)
        assert scores["onnxruntime"][name] == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.tflite"], r"model.tflite: .*expected .onnx, .xml, .pt2"),
        (["model.onnx", "--verify", "nowhere"], "nowhere: expected a folder with pictures"),
        (["model.pt2", "--int8", "nowhere"], "eight bits are written as .onnx or .xml only"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([str(checkpoint), *arguments]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert re.search(message, line)
