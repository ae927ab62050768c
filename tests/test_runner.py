"""mask_former_runner against the Predictor, without torch, and its messages."""

import ast
import csv
import importlib.util
import io
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image
from small_predictors import NAMES, picture, write_checkpoint

onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
pytest.importorskip("onnxruntime", reason="needs the extra 'export'")

from mask_former import inference  # noqa: E402
from mask_former.export.graph import export, read_openvino, save_openvino  # noqa: E402
from mask_former.inference.resizing import Sizes  # noqa: E402
from mask_former.prediction.predictor import Predictor  # noqa: E402
from mask_former_runner import Runner, masks, write  # noqa: E402
from mask_former_runner.__main__ import main  # noqa: E402
from mask_former_runner.results import run_lengths  # noqa: E402

ROOT = Path(__file__).parent.parent
EQUAL_PIXELS = 0.9999


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.from_checkpoint(
        write_checkpoint(tmp_path_factory.mktemp("model")), device="cpu", precision="plain"
    )


@pytest.fixture(scope="module")
def model(predictor, tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export(predictor, file)
    return file


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for name, size in (("7.png", (90, 130)), ("b.jpg", (120, 80)), ("c.png", (64, 64))):
        Image.fromarray(picture(*size, len(name))).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def logits_of(queries, classes, grid, seed=0):
    """Logits with smooth masks, as trained models have them."""
    generator = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(queries, classes + 1, generator=generator) * 4
    coarse = torch.randn(1, queries, 4, 5, generator=generator) * 6
    mask_logits = torch.nn.functional.interpolate(coarse, size=grid, mode="bicubic")[0]
    return class_logits, mask_logits


CASES = [
    (Sizes((96, 128), (96, 128), (96, 128)), True),
    (Sizes((96, 128), (90, 121), (90, 121)), False),
    (Sizes((96, 128), (90, 121), (233, 300)), False),
    (Sizes((96, 128), (90, 121), (233, 300)), True),
    (Sizes((96, 128), (90, 121), (31, 40)), False),
]


@pytest.mark.parametrize(("sizes", "resize_logits"), CASES)
@pytest.mark.parametrize("classes", [1, 2, 12, 150])
def test_semantic_labels_are_those_of_inference(sizes, resize_logits, classes):
    class_logits, mask_logits = logits_of(20, classes, (24, 32), classes)
    scores = inference.semantic_scores(class_logits, mask_logits, sizes, resize_logits=resize_logits)
    expected = scores.argmax(0) if classes > 1 else (scores[0] < 0.5).long()
    found = masks.semantic_labels(class_logits.numpy(), mask_logits.numpy(), tuple(sizes), resize_logits)
    assert (expected.numpy() == found).mean() >= EQUAL_PIXELS


@pytest.mark.parametrize("sizes", [case[0] for case in CASES])
@pytest.mark.parametrize("mask_threshold", [0.5, 0.3])
def test_panoptic_map_is_that_of_inference(sizes, mask_threshold):
    class_logits, mask_logits = logits_of(20, 12, (24, 32), 3)
    rules = {"object_mask_threshold": 0.3, "overlap_threshold": 0.1, "mask_threshold": mask_threshold}
    rules["thing_ids"] = [0, 1, 2, 3, 4]
    expected, infos = inference.panoptic(class_logits, mask_logits, sizes, inference.ResultRules(**rules))
    found, segments = masks.panoptic(class_logits.numpy(), mask_logits.numpy(), tuple(sizes), rules, None)
    assert (expected.numpy() == found).mean() >= EQUAL_PIXELS
    assert [(s["id"], s["category_id"]) for s in segments] == [(i["id"], i["category_id"]) for i in infos]
    assert [s["score"] for s in segments] == pytest.approx([i["score"] for i in infos], abs=1e-5)
    assert len(infos) > 2


def test_no_map_of_all_classes_or_queries_is_built():
    import tracemalloc

    classes, sizes = 400, ((512, 512),) * 3
    class_logits, mask_logits = (values.numpy() for values in logits_of(100, classes, (128, 128)))
    tracemalloc.start()
    masks.semantic_labels(class_logits, mask_logits, sizes, True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The labels take 2 MiB; K x H x W float32 would take 400 MiB, Q x H x W 100 MiB.
    assert peak < 60 * 2**20


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tasks": ["panoptic"], "score_threshold": 0.6},
        {"tasks": ["instance"], "score_threshold": 0.02, "top_k": 4},
        {"classes": ["car", "sea"]},
        {"mask_threshold": 0.3, "overlap_threshold": 0.7},
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_results_are_those_of_the_predictor(predictor, model, tmp_path, options, batch_size):
    ours = Predictor(
        predictor.model,
        predictor.cfg,
        predictor.classes,
        **{"classes_to_keep" if key == "classes" else key: value for key, value in options.items()},
    )
    pictures = [picture(90, 130, seed) for seed in range(3)] + [picture(200, 77), picture(500, 90)]
    theirs = Runner(model, **options)(pictures, batch_size)
    for expected, found in zip(ours(pictures), theirs, strict=True):
        assert (expected.height, expected.width, expected.image_name) == (
            found.height,
            found.width,
            found.image_name,
        )
        assert_same(expected, found)


def assert_same(expected, found):
    for name in ("semantic", "panoptic"):
        a, b = getattr(expected, name), getattr(found, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype
            assert (a == b).mean() >= EQUAL_PIXELS, name
    assert [(s.id, s.name, s.is_thing) for s in expected.segments] == [
        (s.id, s.name, s.is_thing) for s in found.segments
    ]
    for a, b in zip(expected.segments, found.segments, strict=True):
        assert b.area == pytest.approx(a.area, rel=1e-3, abs=2)
        assert b.score == pytest.approx(a.score, abs=1e-4)
    assert (expected.instances is None) == (found.instances is None)
    if expected.instances is not None:
        a, b = expected.instances, found.instances
        assert a.scores == pytest.approx(b.scores, abs=1e-4)
        assert a.names == b.names
        assert len(a) == 0 or (a.masks == b.masks).mean() >= EQUAL_PIXELS
        assert np.abs(a.boxes - b.boxes).max(initial=0) <= 1


def test_files_are_those_of_the_predictor(predictor, model, photos, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for result in predictor(str(photos)):
        result.save(ours)
    assert write(Runner(model)(str(photos)), theirs) == 3
    names = {str(file.relative_to(ours)) for file in ours.rglob("*") if file.is_file()}
    assert names == {str(file.relative_to(theirs)) for file in theirs.rglob("*") if file.is_file()}
    equal = []
    for name in sorted(name for name in names if name.endswith(".png")):
        a, b = Image.open(ours / name), Image.open(theirs / name)
        assert (a.mode, a.getpalette()) == (b.mode, b.getpalette())
        equal.append((np.asarray(a) == np.asarray(b)).ravel())
    assert len(equal) == 6
    assert np.concatenate(equal).mean() >= EQUAL_PIXELS
    assert_same_tables(ours, theirs)


def assert_same_tables(ours, theirs):
    a, b = (json.loads((folder / "panoptic.json").read_text()) for folder in (ours, theirs))
    assert a["categories"] == b["categories"]
    assert a["images"] == b["images"]
    keys = ("id", "category_id", "isthing", "iscrowd")
    for x, y in zip(a["annotations"], b["annotations"], strict=True):
        assert (x["image_id"], x["file_name"]) == (y["image_id"], y["file_name"])
        assert [[s[key] for key in keys] for s in x["segments_info"]] == [
            [s[key] for key in keys] for s in y["segments_info"]
        ]
        assert {key for s in y["segments_info"] for key in s} == {
            key for s in x["segments_info"] for key in s
        }
    a, b = (json.loads((folder / "coco_instances_results.json").read_text()) for folder in (ours, theirs))
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        assert (x["image_id"], x["category_id"]) == (y["image_id"], y["category_id"])
        assert pycocotools.mask.iou([x["segmentation"]], [y["segmentation"]], [0])[0, 0] > 0.99
    a, b = (list(csv.DictReader((folder / "segments.csv").open())) for folder in (ours, theirs))
    assert [[row[key] for key in ("image", "task", "segment_id", "category_id", "name")] for row in a] == [
        [row[key] for key in ("image", "task", "segment_id", "category_id", "name")] for row in b
    ]


@pytest.mark.parametrize("seed", range(6))
def test_run_lengths_are_those_of_pycocotools(seed):
    mask = np.random.default_rng(seed).random((37, 53)) > seed / 6
    mask[5:20] = seed % 2
    expected = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    assert run_lengths(mask) == {"size": [37, 53], "counts": expected["counts"].decode()}


def test_command_line_writes_files(model, photos, tmp_path, capsys):
    arguments = [str(model), str(photos), "--output", str(tmp_path / "out"), "--tasks", "panoptic"]
    assert main([*arguments, "--score-threshold", "0.4", "--save", "overlay", "csv"]) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"overlay", "segments.csv"}
    assert "3 pictures" in capsys.readouterr().out
    overlay = np.asarray(Image.open(tmp_path / "out" / "overlay" / "7.jpg"))
    assert overlay.shape == (90, 130, 3)


def test_frames_of_a_video_are_pictures(model, tmp_path):
    cv2 = pytest.importorskip("cv2")
    file = str(tmp_path / "clip.avi")
    video = cv2.VideoWriter(file, cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
    if not video.isOpened():
        pytest.skip("this OpenCV writes no videos")
    for seed in range(3):
        video.write(picture(64, 96, seed)[:, :, ::-1].copy())
    video.release()
    results = list(Runner(model, tasks=["semantic"])(file, batch_size=2))
    assert [Path(result.image_name).name for result in results] == [f"clip_{n:06d}" for n in range(3)]
    # Compressed, but the same pictures in RGB.
    assert np.abs(results[1].image.astype(int) - picture(64, 96, 1)).mean() < 12


def with_metadata(model, folder, change):
    """Write the model with changed metadata, or another change of it."""
    content = onnx.load(model)
    change(content)
    onnx.save(content, folder / "changed.onnx")
    return folder / "changed.onnx"


def set_format(content):
    metadata = json.loads(content.metadata_props[0].value)
    content.metadata_props[0].value = json.dumps(metadata | {"format": 9})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content.ClearField("metadata_props"),
            "metadata 'mask_former' have format None, expected 1",
        ),
        (set_format, "have format 9, expected 1"),
        (lambda content: setattr(content.opset_import[0], "version", 99), "cannot be loaded.*99"),
    ],
)
def test_other_models_are_refused_in_one_line(model, tmp_path, change, message):
    file = with_metadata(model, tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        Runner(file)
    assert "\n" not in str(error.value)


def test_wrong_files_and_options_are_told_in_one_line(model, tmp_path, capsys):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    (tmp_path / "note.png").write_text("no picture")
    cases = [
        ([tmp_path / "broken.onnx", "x.png"], "broken.onnx: cannot be loaded"),
        ([tmp_path / "model.pth", "x.png"], "model.pth: expected a file .onnx or .xml"),
        ([model, tmp_path / "note.png"], "note.png: cannot be read as a picture"),
        ([model, tmp_path], "holds no pictures"),
        (
            [model, tmp_path / "note.png", "--classes", "zebra"],
            f"No class 'zebra'; this model has {NAMES[0]}",
        ),
    ]
    (tmp_path / "note.png").rename(tmp_path / "note.txt")
    for arguments, message in cases:
        if "holds" not in message:
            (tmp_path / "note.png").write_text("no picture")
        else:
            (tmp_path / "note.png").unlink()
        assert main([*map(str, arguments), "--output", str(tmp_path / "out")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_missing_runtime_is_told_in_one_line(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"^[^\n]*not installed: pip install onnxruntime$"):
        Runner(model)


def test_openvino_gives_the_same_results(predictor, model, tmp_path):
    pytest.importorskip("openvino", reason="needs the extra 'export'")
    # As `export` writes .xml, of the ONNX model that is there already.
    (metadata,) = onnx.load(model).metadata_props
    save_openvino(read_openvino(model.read_bytes(), metadata.value), tmp_path / "model.xml")
    pictures = [picture(90, 130), picture(200, 77)]
    for expected, found in zip(predictor(pictures), Runner(tmp_path / "model.xml")(pictures), strict=True):
        assert_same(expected, found)


def code_lines(file):
    """Return how many lines hold code: blank lines, comments and docstrings apart."""
    tree = ast.parse(file.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [
        node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    ]
    documentation = {line for node in nodes for line in range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(file.read_text().splitlines(), 1)
    return sum(1 for n, line in lines if n not in documentation and line.strip() and line.strip()[0] != "#")


def test_runner_is_small_and_imports_nothing_else():
    files = sorted((ROOT / "mask_former_runner").glob("*.py"))
    assert sum(code_lines(file) for file in files) <= 500
    modules = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.split(".")[0])
    optional = {"onnxruntime", "openvino", "cv2"}
    assert modules - optional - set(sys.stdlib_module_names) == {"numpy", "PIL", "mask_former_runner"}


@pytest.mark.timeout(900)
def test_wheel_runs_in_a_fresh_environment_without_torch(model, photos, tmp_path):
    """Install the wheel, numpy, Pillow and onnxruntime alone, predict there, and measure the size."""
    import shutil

    shutil.copytree(
        ROOT / "mask_former_runner", tmp_path / "source", ignore=shutil.ignore_patterns("__pycache__")
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(tmp_path / "source"),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "fresh", with_pip=False)
    python = tmp_path / "fresh" / "bin" / "python"
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    install = [*pip, "--python", str(python), "install", *constraints, f"{wheel}[onnxruntime]"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot download here: {done.stderr.strip().splitlines()[-1]}")
    command = [str(python), "-I", "-m", "mask_former_runner", str(model), str(photos), "--output", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 3
    script = (
        "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'detectron2', 'mask_former')])"
    )
    found = subprocess.run([str(python), "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout.strip() == "[None, None, None]"
    packages = next((tmp_path / "fresh" / "lib").glob("python*/site-packages"))
    # Bytecode, which Python writes or not, apart.
    size = sum(
        file.stat().st_size for file in packages.rglob("*") if file.is_file() and file.suffix != ".pyc"
    )
    assert size <= 150e6, f"{size / 1e6:.0f} MB"


@pytest.fixture
def server(model):
    """The address of examples/serve.py's application, served as it serves it."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra 'export'")
    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples" / "serve.py")
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    own = uvicorn.Server(uvicorn.Config(serve.build_app(Runner(model)), port=0, log_level="error"))
    thread = threading.Thread(target=own.run)
    thread.start()
    while not own.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{own.servers[0].sockets[0].getsockname()[1]}"
    own.should_exit = True
    thread.join()


def test_server_gives_segments_and_label_maps(server, model, photos):
    (result,) = Runner(model)(photos / "7.png")
    body = (photos / "7.png").read_bytes()
    rows = json.loads(urllib.request.urlopen(f"{server}/segments", body, timeout=60).read())
    assert [row["name"] for row in rows] == [segment.name for segment in result.segments]
    assert [row["area"] for row in rows] == [segment.area for segment in result.segments]
    labels = Image.open(io.BytesIO(urllib.request.urlopen(f"{server}/labels", body, timeout=60).read()))
    assert (np.asarray(labels) == result.labels()).all()
    with pytest.raises(urllib.error.HTTPError, match="415"):
        urllib.request.urlopen(f"{server}/labels", b"no picture", timeout=60)


def test_server_is_short():
    assert len((ROOT / "examples" / "serve.py").read_text().splitlines()) <= 60
