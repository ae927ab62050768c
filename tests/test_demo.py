"""demo/demo.py: every flag, hostile inputs, `make demo`. With a small real model that knows nothing."""

import csv
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import own_sets
import pytest
import tiny_runs
import torch
import walkthrough
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from pycocotools.coco import COCO
from small_predictors import picture as blobs
from small_predictors import write_checkpoint
from video_demo import Pace, SteadyColors, instances_as_segments
from video_files import VideoWriter

import demo
import train_net
from demo import build_predictor, needed_tasks, predict_pictures
from mask_former.checkpoint import Checkpointer, describe
from mask_former.data.shapes.drawing import CLASSES, draw_scene
from mask_former.engine import Trainer
from mask_former.evaluation.__main__ import main as evaluate
from mask_former.prediction.predictor import Predictor
from mask_former.prediction.results import Result
from mask_former.prediction.values import InstanceResults, segments_of_map
from mask_former.prediction.video import VideoReader

DEMO = tiny_runs.ROOT / "demo" / "demo.py"
# Of the configuration of small_predictors.
OVERLAP = 0.2
KINDS = "overlay,labels,panoptic,coco,csv"
# A model that knows nothing is sure of nothing.
KEEP_ALL = (
    *("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0"),
    *("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", "0.0"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a self-describing checkpoint, the same weights alone, pictures and a video."""
    folder = tmp_path_factory.mktemp("demo")
    cfg = tiny_runs.tiny_config(folder, *KEEP_ALL, "MODEL.DEVICE", "cpu")
    model = build_model(cfg)
    metadata = describe(cfg, MetadataCatalog.get("shapes_panoptic_train"))
    Checkpointer(model, metadata=metadata).save_weights(folder / "model.pth")
    Checkpointer(model).save_weights(folder / "weights.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(48, 70), (64, 64), (48, 70), (33, 51)], start=1):
        Image.fromarray(draw_scene(rng, height, width).image).save(folder / "pictures" / f"{number:03d}.png")
    (folder / "pictures" / "notes.txt").write_text("no picture")
    with VideoWriter(folder / "walk.mp4", 72, 50, 12.5) as video:
        scene = draw_scene(rng, 80, 120).image
        for frame in range(6):
            video.write(scene[2 * frame : 2 * frame + 50, 3 * frame : 3 * frame + 72])
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """Call the program as from a shell, in a folder of its own; gives the exit status."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return demo.main(["--weights", str(made / "model.pth"), *map(str, arguments)])

    return call


def rows_of(folder):
    with (folder / "segments.csv").open() as file:
        return list(csv.DictReader(file))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_gives_every_kind_of_file(run, made, tmp_path):
    assert run("--input", made / "pictures", "--output", "new/results", "--save", KINDS) == 0
    output = tmp_path / "new/results"
    stems = ["001", "002", "003", "004"]
    assert names(output / "overlay") == [f"{stem}.jpg" for stem in stems]
    assert names(output / "labels") == names(output / "panoptic") == [f"{stem}.png" for stem in stems]
    for stem in stems:
        size = Image.open(made / "pictures" / f"{stem}.png").size
        assert Image.open(output / "overlay" / f"{stem}.jpg").size == size
        labels = Image.open(output / "labels" / f"{stem}.png")
        assert (labels.size, labels.mode) == (size, "P")
        assert np.asarray(labels).max() < 11
    segments = json.loads((output / "panoptic.json").read_text())["annotations"]
    assert sum(len(entry["segments_info"]) for entry in segments) == len(rows_of(output)) > 0
    assert json.loads((output / "coco_instances_results.json").read_text())


def test_overlays_alone_are_the_default(run, made, tmp_path):
    assert run("--input", made / "pictures/001.png", made / "pictures/004.png", "--output", "out") == 0
    assert names(tmp_path / "out") == ["overlay"]
    assert names(tmp_path / "out/overlay") == ["001.jpg", "004.jpg"]


def test_a_pattern_is_expanded_and_one_picture_may_name_its_file(run, made, tmp_path):
    assert run("--input", f"{made}/pictures/*3.png", "--output", "a/drawn.png") == 0
    assert Image.open(tmp_path / "a/drawn.png").size == (70, 48)


def test_a_home_folder_is_expanded(run, made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(made))
    assert run("--input", "~/pictures/00[12].png", "--output", "~/of_home", "--save", "csv") == 0
    assert {row["image"] for row in rows_of(made / "of_home")} == {
        f"{made}/pictures/00{k}.png" for k in (1, 2)
    }


def test_batches_and_threshold_and_classes(run, made, tmp_path):
    assert run("--input", made / "pictures", "--output", "one", "--save", "csv") == 0
    assert run("--input", made / "pictures", "--output", "many", "--save", "csv", "--batch", "3") == 0
    alone, together = rows_of(tmp_path / "one"), rows_of(tmp_path / "many")
    assert [(r["image"], r["name"], r["area"]) for r in alone] == [
        (r["image"], r["name"], r["area"]) for r in together
    ]

    scores = sorted(float(row["score"]) for row in alone)
    threshold = (scores[0] + scores[-1]) / 2
    options = ("--confidence-threshold", threshold, "--save", "csv")
    assert run("--input", made / "pictures", "--output", "sure", *options) == 0
    assert min(float(row["score"]) for row in rows_of(tmp_path / "sure")) > threshold

    some = alone[0]["name"]
    assert (
        run("--input", made / "pictures", "--output", "some", "--save", "csv", "--classes", f" {some} ,") == 0
    )
    kept, expected = rows_of(tmp_path / "some"), [row for row in alone if row["name"] == some]
    assert [(r["image"], r["score"], r["area"]) for r in kept] == [
        (r["image"], r["score"], r["area"]) for r in expected
    ]


def decided_rows(folder, *options):
    """The table of segments of one picture from a model that is sure of classes and masks."""
    command = ["--weights", str(folder / "model.pth"), "--input", str(folder / "blobs.png"), "--save", "csv"]
    assert demo.main([*command, "--output", str(folder / "out"), *map(str, options)]) == 0
    rows = {(row["name"], round(float(row["score"]), 3), int(row["area"])) for row in rows_of(folder / "out")}
    shutil.rmtree(folder / "out")
    return rows


def published_segments(predictor, file, threshold):
    """(name, score, area) of panoptic segments by the published rule."""
    result = predictor([str(file)], return_logits=True)[0]
    logits = result.logits
    size = {"mode": "bilinear", "align_corners": False}
    masks = torch.nn.functional.interpolate(logits.mask_logits[None], logits.sizes.padded, **size)
    masks = masks[..., : logits.sizes.image[0], : logits.sizes.image[1]]
    masks = torch.nn.functional.interpolate(masks, logits.sizes.output, **size)[0].sigmoid()
    scores, classes = logits.class_logits.softmax(-1).max(-1)
    chosen = (classes < len(predictor.classes)) & (scores > threshold)
    masks, scores, classes = masks[chosen], scores[chosen], classes[chosen]
    winner = (scores[:, None, None] * masks).argmax(0)
    segments, stuff = [], {}
    for query, (score, label) in enumerate(zip(scores.tolist(), classes.tolist(), strict=True)):
        own = winner == query
        mask_area = int((masks[query] >= 0.5).sum())
        if not own.any() or mask_area == 0 or int(own.sum()) / mask_area < OVERLAP:
            continue
        if predictor.classes.is_thing[label]:
            segments.append([label, score, int(own.sum())])
        elif label in stuff:
            stuff[label][1:] = max(stuff[label][1], score), stuff[label][2] + int(own.sum())
        else:
            stuff[label] = [label, score, int(own.sum())]
    return {(predictor.classes.names[c], round(s, 3), a) for c, s, a in [*segments, *stuff.values()]}


def test_thresholds_classes_and_sizes_give_the_segments_of_the_published_rule(tmp_path):
    write_checkpoint(tmp_path)
    Image.fromarray(blobs(60, 90)).save(tmp_path / "blobs.png")
    predictor = Predictor.from_checkpoint(tmp_path / "model.pth")
    every = published_segments(predictor, tmp_path / "blobs.png", 0.3)
    assert len(every) > 1
    assert decided_rows(tmp_path) == every
    threshold = sorted(score for _, score, _ in every)[len(every) // 2] - 0.0005
    sure = published_segments(predictor, tmp_path / "blobs.png", threshold)
    assert sure != every
    assert decided_rows(tmp_path, "--confidence-threshold", threshold) == sure
    name = sorted(every)[0][0]
    assert decided_rows(tmp_path, "--classes", name) == {row for row in every if row[0] == name}
    larger = Predictor.from_checkpoint(tmp_path / "model.pth", opts=["INPUT.MIN_SIZE_TEST", 96])
    resized = published_segments(larger, tmp_path / "blobs.png", 0.3)
    assert resized != every
    assert decided_rows(tmp_path, "--opts", "INPUT.MIN_SIZE_TEST", "96") == resized


def test_frames_of_a_video_give_the_segments_of_the_same_pictures(run, made, tmp_path):
    with VideoReader(made / "walk.mp4") as video:
        for number, frame in enumerate(video, start=1):
            (tmp_path / "frames").mkdir(exist_ok=True)
            Image.fromarray(frame).save(tmp_path / "frames" / f"walk_{number:06d}.png")
    options = ("--save", "overlay,csv", "--batch", "2")
    assert run("--video-input", made / "walk.mp4", "--output", "of_video", *options) == 0
    assert run("--input", "frames", "--output", "of_pictures", *options) == 0
    of_video, of_pictures = (
        [
            (Path(row["image"]).stem, row["name"], row["score"][:5], row["area"])
            for row in rows_of(tmp_path / folder)
        ]
        for folder in ("of_video", "of_pictures")
    )
    assert of_video == of_pictures
    assert len({row[0] for row in of_video}) == 6


def test_config_file_and_opts(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["--weights", str(made / "weights.pth"), "--config-file", str(made / "config.yaml")]
    command += ["--input", str(made / "pictures/001.png"), "--save", "csv"]
    assert demo.main([*command, "--output", "all"]) == 0
    assert demo.main([*command, "--output", "none", "--opts", *KEEP_ALL[:1], "0.999"]) == 0
    assert len(rows_of(tmp_path / "all")) > len(rows_of(tmp_path / "none")) == 0


def test_opts_change_what_the_checkpoint_says(run, made, tmp_path):
    assert run("--input", made / "pictures/001.png", "--output", "a", "--save", "csv") == 0
    assert (
        run(
            "--input",
            made / "pictures/001.png",
            "--output",
            "b",
            "--save",
            "csv",
            "--opts",
            KEEP_ALL[0],
            "0.999",
        )
        == 0
    )
    assert len(rows_of(tmp_path / "a")) > len(rows_of(tmp_path / "b")) == 0


def test_weights_without_description_ask_for_the_configuration(made, tmp_path, capsys):
    command = ["--weights", str(made / "weights.pth"), "--input", str(made / "pictures")]
    assert demo.main([*command, "--output", str(tmp_path / "out")]) == 1
    assert_one_line(capsys, "--config-file")


def test_results_score_the_same_as_evaluation(made, run, tmp_path):
    options = (
        "MODEL.DEVICE",
        "cpu",
        "OUTPUT_DIR",
        str(tmp_path / "eval"),
        "DATASETS.TEST",
        "('shapes_panoptic_val',)",
    )
    cfg = tiny_runs.tiny_config(made, *KEEP_ALL, *options)
    model = Predictor.from_checkpoint(made / "model.pth").model
    evaluated = Trainer.test(cfg, model)
    truth, annotations = made / "shapes", made / "shapes/annotations"
    assert (
        run(
            "--input",
            truth / "images/val",
            "--output",
            "out",
            "--save",
            "panoptic,coco,labels",
            "--batch",
            "2",
        )
        == 0
    )

    out = tmp_path / "out"
    assert (
        len(COCO(annotations / "instances_val.json").loadRes(str(out / "coco_instances_results.json")).anns)
        > 0
    )
    commands = {
        "panoptic_seg": [
            "panoptic.json",
            annotations / "panoptic_val.json",
            "--gt-folder",
            truth / "panoptic/val",
        ],
        "segm": ["coco_instances_results.json", annotations / "instances_val.json"],
        "sem_seg": ["labels", truth / "sem_seg/val", "--num-classes", 11],
    }
    for task, (predicted, expected, *more) in commands.items():
        command = ["--pred", out / predicted, "--gt", expected, *more, "--json", tmp_path / "scores.json"]
        assert evaluate([str(part) for part in command]) == 0
        scores = json.loads((tmp_path / "scores.json").read_text())[task]
        for name in {"panoptic_seg": ("PQ", "SQ", "RQ"), "segm": ("AP", "AP50"), "sem_seg": ("mIoU", "pACC")}[
            task
        ]:
            assert scores[name] == pytest.approx(evaluated[task][name], abs=1e-6)


def test_panoptic_files_are_what_the_model_says(made, run, tmp_path):
    # Beside the scores: those of a model that knows nothing are near 0 whatever is written.
    cfg = tiny_runs.tiny_config(made, *KEEP_ALL, "MODEL.DEVICE", "cpu")
    model = Predictor.from_checkpoint(made / "model.pth").model
    assert run("--input", made / "shapes/images/val", "--output", "out", "--save", "panoptic") == 0
    content = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert sorted(image["file_name"] for image in content["images"]) == names(made / "shapes/images/val")
    written = {entry["image_id"]: entry for entry in content["annotations"]}
    for (entry,) in Trainer.build_test_loader(cfg, "shapes_panoptic_val"):
        with torch.no_grad():
            expected, infos = model([entry])[0]["panoptic_seg"]
        found = written[entry["image_id"]]
        red, green, blue = np.moveaxis(
            np.asarray(Image.open(tmp_path / "out/panoptic" / found["file_name"]), int), -1, 0
        )
        np.testing.assert_array_equal(red + 256 * green + 65536 * blue, expected.numpy())
        ids = [category["id"] for category in CLASSES]
        classes = {info["id"]: ids[info["category_id"]] for info in infos}
        assert {info["id"]: info["category_id"] for info in found["segments_info"]} == classes


def test_workers_give_the_same_files_in_the_same_order(run, made, tmp_path, caplog):
    (made / "pictures" / "002b.png").write_bytes(b"no picture")
    try:
        assert run("--input", made / "pictures", "--output", "one", "--save", "csv,labels") == 1
        assert (
            run("--input", made / "pictures", "--output", "two", "--save", "csv,labels", "--workers", "2")
            == 1
        )
    finally:
        (made / "pictures" / "002b.png").unlink()
    assert (tmp_path / "one/segments.csv").read_text() == (tmp_path / "two/segments.csv").read_text()
    assert names(tmp_path / "two/labels") == [f"00{k}.png" for k in (1, 2, 3, 4)]
    assert len([r for r in caplog.records if "002b.png" in r.getMessage()]) == 2


# Videos and cameras.


def video_facts(path):
    with VideoReader(path) as video:
        return (video.width, video.height, video.rate, len(list(video)))


def test_video_keeps_size_rate_and_frames(run, made, tmp_path):
    assert run("--video-input", made / "walk.mp4", "--output", "drawn.mp4", "--batch", "4") == 0
    assert video_facts(tmp_path / "drawn.mp4") == video_facts(made / "walk.mp4") == (72, 50, 12.5, 6)


def test_video_into_a_folder_takes_its_name_and_files_for_each_frame(run, made, tmp_path):
    assert run("--video-input", made / "walk.mp4", "--output", "out", "--save", "overlay,labels,csv") == 0
    assert names(tmp_path / "out") == ["labels", "segments.csv", "walk.mp4"]
    assert names(tmp_path / "out/labels") == [f"walk_{frame:06d}.png" for frame in range(1, 7)]
    assert video_facts(tmp_path / "out/walk.mp4") == (72, 50, 12.5, 6)


def test_a_video_that_is_there_is_not_replaced(run, made, tmp_path, capsys):
    (tmp_path / "drawn.mp4").write_bytes(b"precious")
    assert run("--video-input", made / "walk.mp4", "--output", "drawn.mp4") == 1
    assert_one_line(capsys, "drawn.mp4 is there already")
    assert (tmp_path / "drawn.mp4").read_bytes() == b"precious"


def test_a_video_that_is_cut_off_gives_what_there_is(run, made, tmp_path, caplog):
    with VideoWriter(tmp_path / "cut.avi", 160, 120, 10.0) as video:
        for _ in range(12):
            video.write(np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8))
    whole = (tmp_path / "cut.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    assert run("--video-input", "cut.avi", "--output", "drawn.avi") == 1
    assert "only" in caplog.text
    *size_and_rate, frames = video_facts(tmp_path / "drawn.avi")
    assert size_and_rate == [160, 120, 10.0]
    assert 0 < frames < 12


def test_ctrl_c_leaves_a_video_that_plays(made, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (600, 50, 72, 3)).astype(np.uint8)
    with VideoWriter(tmp_path / "long.mp4", 72, 50, 12.5) as video:
        for frame in frames:
            video.write(frame)
    command = [sys.executable, str(DEMO), "--weights", str(made / "model.pth"), "--video-input", "long.mp4"]
    process = subprocess.Popen(
        [*command, "--output", "drawn.mp4"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # Shells have what they start in the background ignore the signal, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    seen = ""
    while not seen.endswith(" 1%") and (character := process.stderr.read(1)):
        seen += character
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped; what was done until now is complete" in errors
    assert "Traceback" not in errors
    width, height, rate, count = video_facts(tmp_path / "drawn.mp4")
    assert (width, height, rate) == (72, 50, 12.5)
    assert 0 < count < 600
    assert f"{count} frames in drawn.mp4" in errors


def test_a_camera_that_is_not_there_is_told(run, capsys):
    assert run("--webcam", "97", "--output", "out") == 1
    assert_one_line(capsys, "Camera 97 gives no picture")


def test_a_camera_is_filmed_by_index(run, made, tmp_path, monkeypatch):
    # No test machine has a camera: number 2 is a film here, all else is real.
    opened = cv2.VideoCapture

    def open_film_as_camera(source):
        return opened(str(made / "walk.mp4") if source == 2 else source)

    monkeypatch.setattr(cv2, "VideoCapture", open_film_as_camera)
    assert run("--webcam", "2", "--output", "out", "--save", "overlay,csv") == 0
    assert names(tmp_path / "out") == ["camera2.mp4", "segments.csv"]
    width, height, rate, frames = video_facts(tmp_path / "out/camera2.mp4")
    assert (width, height, rate) == (72, 50, 12.5)
    assert frames >= 1  # as many as the time took
    assert {row["image"] for row in rows_of(tmp_path / "out")} <= {f"camera2_{k:06d}" for k in range(1, 7)}


def test_a_film_of_a_camera_runs_as_fast_as_life(monkeypatch):
    class Camera:
        source, rate = 0, 10.0

    times = iter([100.0, 100.05, 100.35, 100.4])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    pace, written = Pace(Camera), 0
    copies = []
    for _ in range(4):
        copies.append(pace.copies(written))
        written += copies[-1]
    # Due after 0, 0.05, 0.35 and 0.4 seconds at ten a second: 1, 1, 4 and 5 frames.
    assert copies == [1, 0, 3, 1]


def result_of(classes, boxes, table, height=40, width=60):
    """A panoptic result of thing segments at these places."""
    ids = np.zeros((height, width), np.int32)
    for number, (top, left) in enumerate(boxes, start=1):
        ids[top : top + 10, left : left + 10] = number
    infos = [{"id": k, "category_id": c, "score": 0.9} for k, c in enumerate(classes, start=1)]
    return Result("f", height, width, table, panoptic=ids, segments=segments_of_map(ids, infos, table))


@pytest.fixture
def table(made):
    return build_predictor(weights=str(made / "model.pth")).classes


def test_colours_stay_with_a_segment_when_ids_change(table):
    colors = SteadyColors()
    first = colors.colors(result_of([0, 0, 3], [(0, 0), (20, 30), (5, 45)], table))
    then = colors.colors(result_of([3, 0, 0], [(6, 45), (21, 31), (1, 1)], table))
    assert [then[3], then[2], then[1]] == [first[1], first[2], first[3]]
    assert first[1] != first[2]


def test_instances_alone_are_drawn_best_in_front(table):
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 0:10, 0:10], masks[1, 5:15, 5:15], masks[2, 16:20, 20:30] = True, True, True
    found = InstanceResults(
        masks=masks,
        boxes=np.zeros((3, 4), np.float32),
        classes=np.array([2, 0, 1]),
        names=("a", "b", "c"),
        scores=np.array([0.9, 0.7, 0.2], np.float32),
        areas=masks.sum((1, 2)),
    )
    flat = instances_as_segments(Result("f", 20, 30, table, instances=found), 0.5)
    assert [(s.category_id, s.area) for s in flat.segments] == [(2, 100), (0, 75)]
    assert flat.panoptic[7, 7] == 1


def test_only_tasks_that_files_need_are_computed():
    every = ("semantic", "panoptic", "instance")
    assert needed_tasks(every, ["overlay"]) == ("panoptic",)
    assert needed_tasks(every, ["labels", "coco"]) == ("semantic", "instance")
    assert needed_tasks(("semantic",), ["overlay", "panoptic"]) == ("semantic",)
    assert needed_tasks(("semantic",), ["coco"]) == ("semantic",)


# Windows, wrong arguments.


def test_without_a_display_output_is_asked_for(run, made, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert run("--input", made / "pictures") == 1
    assert_one_line(capsys, "no display for a window: give --output")
    assert run("--video-input", made / "walk.mp4") == 1
    assert_one_line(capsys, "no display for a window: give --output")
    monkeypatch.setenv("DISPLAY", ":97")  # named, but not there: Qt would abort the program
    assert run("--input", made / "pictures") == 1
    assert_one_line(capsys, "OpenCV opens no window (DISPLAY is ':97')")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "a.png", "--webcam"], "not allowed with"),
        ([], "one of the arguments --input --video-input --webcam is required"),
        (
            ["--input", "a.png", "--save", "overlay,lables", "--output", "o"],
            "lables: choose of overlay,labels",
        ),
        (["--input", "a.png", "--save", "csv"], "--save needs --output"),
        (["--input", "a.png", "--confidence-threshold", "1.5"], "must be in 0..1"),
        (["--input", "a.png", "--batch", "0"], "start at 1"),
        (["--webcam", "--workers", "2", "--output", "o"], "--workers is for --input"),
    ],
)
def test_wrong_arguments_end_in_one_line(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_class_is_told_with_those_there_are(run, made, capsys):
    assert run("--input", made / "pictures", "--output", "out", "--classes", "circel") == 1
    assert_one_line(capsys, "circle")


def test_every_flag_has_help():
    done = subprocess.run([sys.executable, str(DEMO), "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    flags = "config-file input webcam video-input output confidence-threshold opts weights save"
    assert all(f"--{flag}" in done.stdout for flag in [*flags.split(), "batch", "classes", "workers"])


# Hostile inputs.


def assert_one_line(capsys, part):
    """The whole of stderr, but for a progress bar, is one line with this in it."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "picture/s" not in line]
    assert len(lines) == 1, lines
    assert part in lines[0]


def hostile_pictures(folder):
    """Write pictures of all kinds; return names of bad ones, and sizes of good ones by stem."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (40, 56, 3)).astype(np.uint8)
    plain = Image.fromarray(noise)
    plain.save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no picture\n" * 20)
    Image.new("RGB", (20000, 50)).save(folder / "strip.png")
    Image.new("RGB", (1, 1), "red").save(folder / "pixel.png")
    plain.convert("CMYK").save(folder / "cmyk.jpg")
    plain.convert("L").save(folder / "grey.png")
    plain.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 256).save(folder / "deep.png")
    plain.save(folder / "moving.gif", save_all=True, append_images=[plain.rotate(90)] * 3)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    plain.save(folder / "turned.jpg", exif=turned)
    good = dict.fromkeys(["whole", "cmyk", "grey", "alpha", "deep", "moving"], (56, 40))
    return ["empty.png", "strip.png", "text.jpg", "truncated.jpg"], {
        **good,
        "pixel": (1, 1),
        "turned": (40, 56),
    }


def test_bad_pictures_are_named_once_and_the_others_done(run, tmp_path, caplog):
    bad, good = hostile_pictures(tmp_path / "in")
    inputs = ("in", "nowhere.png", "none*.png")
    assert run("--input", *inputs, "--output", "out", "--save", KINDS, "--batch", "3") == 1
    for kind, suffix in (("overlay", "jpg"), ("labels", "png"), ("panoptic", "png")):
        sizes = {p.stem: Image.open(p).size for p in (tmp_path / "out" / kind).glob(f"*.{suffix}")}
        assert sizes == good
    skipped = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Skipped")]
    assert len(skipped) == len(bad) + 2
    for name in [*bad, "nowhere.png", "none*.png"]:
        lines = [line for line in skipped if name in line]
        assert len(lines) == 1
        assert "\n" not in lines[0]
    assert {row["image"] for row in rows_of(tmp_path / "out")} <= {
        f"in/{name}" for name in names(tmp_path / "in")
    }


def test_only_bad_pictures_are_a_failure_without_files(run, tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(b"")
    assert run("--input", "a.png", "--output", "out", "--save", "csv") == 1
    assert len([r for r in caplog.records if "a.png" in r.getMessage()]) == 1
    assert names(tmp_path / "out") == []


@contextmanager
def nobody():
    """Be a user without rights for a while, if we have all."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    own = [folder for folder in tmp_path.parents if "pytest-of-" in str(folder)]
    for folder in (tmp_path, *own):
        folder.chmod(0o755)  # pytest's own folders are closed to others
    try:
        with nobody():
            _, skipped = predict_pictures(build_predictor, [str(closed)], tmp_path / "out")
    finally:
        closed.chmod(0o700)
    assert len(skipped) == 1
    assert re.search(r"closed.*cannot be read \(Permission denied\)", skipped[0])


def test_an_output_that_is_a_file_is_told_and_kept(run, made, tmp_path, capsys):
    (tmp_path / "out").write_text("precious")
    for target in ("out", "out/below"):
        assert run("--input", made / "pictures", "--output", target) == 1
        assert_one_line(capsys, "since a file has that name")
    assert run("--video-input", made / "walk.mp4", "--output", "out") == 1
    assert_one_line(capsys, "since a file has that name")
    assert (tmp_path / "out").read_text() == "precious"


def test_a_picture_is_never_its_own_output(run, tmp_path, capsys):
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert run("--input", "a.png", "--output", "a.png") == 1
    assert_one_line(capsys, "would be lost")
    assert (tmp_path / "a.png").read_bytes() == before


@contextmanager
def files_up_to(size):
    """Let this process write no file beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_loses_nothing(run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(draw_scene(rng, 48, 60).image).save(tmp_path / "in" / f"{number:02d}.png")
    with files_up_to(2000):
        assert run("--input", "in", "--output", "out", "--save", "labels,csv") == 1
    assert_one_line(capsys, "File too large")
    done = names(tmp_path / "out/labels")
    assert 1 < len(done) < 30
    for name in done:
        assert np.asarray(Image.open(tmp_path / "out/labels" / name)).shape == (48, 60)
    # With space again, the rest alone: the table holds what was done before, too.
    rest = [f"in/{name}" for name in names(tmp_path / "in") if name not in done[:-1]]
    assert run("--input", *rest, "--output", "out", "--save", "labels,csv") == 0
    assert len({row["image"] for row in rows_of(tmp_path / "out")}) == 30


# make demo.


def run_next_steps(said: str, shapes: Path) -> None:
    """Run the commands that `make demo` ends with, on pictures, a video and a folder that are there."""
    commands = [shlex.split(line)[1:] for line in said.splitlines() if re.match(r"  \S*python\S* ", line)]
    assert [command[0] for command in commands] == ["demo/demo.py", "demo/demo.py", "train_net.py"]
    pictures = sorted(shapes.glob("**/*val*/*.jpg"))[0].parent
    own_sets.semantic(Path("town"))
    real = {"PICTURES": str(pictures), "VIDEO.mp4": str(shapes / "shapes_video.mp4"), "FOLDER": "town"}
    short = ["SOLVER.MAX_ITER", "1", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
    for program, *words in commands:
        words = [real.get(word, word) for word in words]
        assert (demo.main(words) if program == "demo/demo.py" else train_net.main([*words, *short])) == 0
    assert len(names(Path("results/overlay"))) == len(list(pictures.iterdir()))
    assert Path("results/shapes_video.mp4").is_file()
    assert Path("output/town/model_final.pth").is_file()


def test_the_walk_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    tiny_runs.tiny_config(tmp_path)
    output = tmp_path / "walk"
    opts = [*tiny_runs.OPTS, *KEEP_ALL, "MODEL.DEVICE", "cpu", "TEST.SAMPLE_PICTURES", "0"]
    command = ["--config-file", str(tiny_runs.CONFIG), "--output", str(output), "--pictures", "2", *opts]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "test", stop)
        assert walkthrough.main(command) == 130
    assert "continues from here" in capsys.readouterr().err
    assert (output / "model_final.pth").is_file()
    assert not (output / "gallery").exists()

    weights_made = (output / "model_final.pth").stat().st_mtime_ns
    assert walkthrough.main(command) == 0
    starts = json.loads((output / "run.json").read_text())
    assert all(entry["hardware"] and entry["seconds"] >= 0 for entry in starts)
    said = capsys.readouterr().out
    assert "Training, 4 iterations" not in said
    assert re.search(r"^PQ +\d", said, re.MULTILINE)
    assert f"demo.py --weights {output}/model_final.pth --input" in said
    page = (output / "index.html").read_text()
    assert (
        page.count("<figcaption>truth</figcaption>") == page.count("<figcaption>prediction</figcaption>") == 2
    )
    assert all(
        f"<h2>{part}</h2>" in page for part in ("Scores", "Curves", "Pictures", "Video", "How it was made")
    )
    assert len(names(output / "gallery")) == 2 * 3 + 1
    rows = json.loads((output / "gallery" / "gallery.json").read_text())["rows"]
    assert all(row["classes"] and 0 <= row["score"] <= 100 for row in rows)
    assert {"overlay", "labels", "panoptic", "panoptic.json", "segments.csv"} <= set(
        names(output / "predictions")
    )
    assert video_facts(output / "shapes_video.mp4") == video_facts(tmp_path / "shapes/shapes_video.mp4")

    monkeypatch.chdir(tmp_path)
    run_next_steps(said, tmp_path / "shapes")

    times = {
        path: path.stat().st_mtime_ns for path in output.rglob("*") if path.suffix not in (".html", ".txt")
    }
    assert walkthrough.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (output / "model_final.pth").stat().st_mtime_ns == weights_made
