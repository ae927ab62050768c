"""`python -m mask_former.evaluation` on files of every kind, saved by Detectron2 or by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image

from mask_former.evaluation import InstanceEvaluator, PanopticEvaluator, SemanticEvaluator
from mask_former.evaluation.__main__ import main
from mask_former.formats import id_to_rgb

NAME = "evaluation_cli_test"
NAMES = ["ball", "tree", "sky"]


@pytest.fixture
def shapes(tmp_path):
    """Four pictures with panoptic, semantic and instance truth, and shifted predictions of each."""
    rng = np.random.default_rng(2)
    truth, entries, instances = tmp_path / "annotations" / "panoptic_val.json", [], []
    for folder in ("panoptic_val", "labels"):
        (tmp_path / folder).mkdir()
    truth.parent.mkdir()
    for number in range(4):
        ids = np.sort(rng.choice(2**24 - 1, 3, replace=False)) + 1
        index = np.full((20, 26), 2)
        top, left = rng.integers(0, 6, 2)
        index[top : top + 9, left : left + 8] = 0
        index[top + 5 :, left + 12 : left + 19] = 1
        Image.fromarray(id_to_rgb(ids[index])).save(tmp_path / "panoptic_val" / f"{number}.png")
        Image.fromarray(index.astype(np.uint8)).save(tmp_path / "labels" / f"{number}.png")
        instances += [coco_instance(index == c, number, c, len(instances) + c + 1) for c in (0, 1)]
        entries.append(
            {
                "file_name": str(tmp_path / f"{number}.jpg"),
                "image_id": number,
                "height": 20,
                "width": 26,
                "sem_seg_file_name": str(tmp_path / "labels" / f"{number}.png"),
                "pan_seg_file_name": str(tmp_path / "panoptic_val" / f"{number}.png"),
                "segments_info": [{"id": int(ids[c]), "category_id": c, "iscrowd": 0} for c in range(3)],
            }
        )
    write_truth(truth, entries)
    categories = [{"id": 10 + c, "name": NAMES[c]} for c in (0, 1)]
    images = [{"id": entry["image_id"], "height": 20, "width": 26} for entry in entries]
    instance_file = tmp_path / "annotations" / "instances_val.json"
    instance_file.write_text(
        json.dumps({"images": images, "annotations": instances, "categories": categories, "info": {}})
    )
    DatasetCatalog.register(NAME, lambda: entries)
    MetadataCatalog.get(NAME).set(
        thing_classes=NAMES,
        stuff_classes=NAMES,
        thing_dataset_id_to_contiguous_id={10: 0, 11: 1},
        stuff_dataset_id_to_contiguous_id={10: 0, 11: 1, 12: 2},
        ignore_label=255,
        json_file=str(instance_file),
        panoptic_json=str(truth),
        panoptic_root=str(tmp_path / "panoptic_val"),
    )
    yield entries
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


def coco_instance(mask, image_id, category, annotation_id):
    rows, columns = np.nonzero(mask)
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    corners = [left, top, right, top, right, bottom, left, bottom]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 10 + category,
        "segmentation": [[float(value) for value in corners]],
        "bbox": [float(value) for value in (left, top, right - left, bottom - top)],
        "area": int(mask.sum()),
        "iscrowd": 0,
    }


def write_truth(path, entries):
    annotations = [
        {
            "image_id": entry["image_id"],
            "file_name": f"{entry['image_id']}.png",
            "segments_info": [
                dict(info, category_id=10 + info["category_id"]) for info in entry["segments_info"]
            ],
        }
        for entry in entries
    ]
    categories = [{"id": 10 + c, "name": name, "isthing": int(c < 2)} for c, name in enumerate(NAMES)]
    path.write_text(json.dumps({"annotations": annotations, "categories": categories}))


def shifted_labels(entry):
    labels = np.asarray(Image.open(entry["sem_seg_file_name"]))
    return torch.from_numpy(np.roll(labels, (1, 2 * entry["image_id"]), (0, 1)).astype(np.int32))


def run(capsys, *arguments):
    """Return exit status, standard output and standard error of a command line."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def saved_panoptic(entries, folder):
    """Write predictions in COCO's panoptic form, and return the scores of the evaluator for them."""
    (folder / "predictions").mkdir(parents=True)
    evaluator, annotations = PanopticEvaluator(NAME), []
    for entry in entries:
        number, ids = entry["image_id"], shifted_labels(entry) + 1
        infos = [{"id": c + 1, "category_id": c} for c in range(3)]
        evaluator.process([entry], [{"panoptic_seg": (ids, infos)}])
        Image.fromarray(id_to_rgb(ids.numpy())).save(folder / "predictions" / f"{number}.png")
        own = [{"id": c + 1, "category_id": 10 + c} for c in range(3)]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": own})
    (folder / "predictions.json").write_text(json.dumps({"annotations": annotations}))
    return evaluator.evaluate()["panoptic_seg"]


def test_saved_panoptic_predictions_score_as_the_evaluator_scored_them(shapes, tmp_path, capsys):
    expected = saved_panoptic(shapes, tmp_path / "out")
    arguments = ("--pred", tmp_path / "out" / "predictions.json", "--json", tmp_path / "scores.json")
    truth = tmp_path / "annotations" / "panoptic_val.json"
    status, table, _ = run(capsys, *arguments, "--gt", truth, "--per-class")
    assert status == 0
    assert 20 < expected["PQ"] < 90
    scores = json.loads((tmp_path / "scores.json").read_text())["panoptic_seg"]
    assert scores == pytest.approx(expected)
    row = next(line for line in table.splitlines() if line.startswith("| All"))
    assert f"{expected['PQ']:.3f}" in row
    assert any(
        line.startswith("| tree") and f"{expected['PQ-tree']:.3f}" in line for line in table.splitlines()
    )
    run(capsys, *arguments, "--dataset", NAME)
    assert json.loads((tmp_path / "scores.json").read_text())["panoptic_seg"] == pytest.approx(expected)


def test_saved_semantic_predictions_score_as_the_evaluator_scored_them(shapes, tmp_path, capsys):
    evaluator = SemanticEvaluator(NAME)
    detectron2s = SemSegEvaluator(NAME, output_dir=str(tmp_path / "out"))
    detectron2s.reset()
    (tmp_path / "guesses").mkdir()
    for entry in shapes:
        labels = shifted_labels(entry)
        evaluator.process([entry], [{"sem_seg": labels}])
        scores = torch.nn.functional.one_hot(labels.long(), 3).permute(2, 0, 1)
        detectron2s.process([entry], [{"sem_seg": scores}])
        path = tmp_path / "guesses" / f"{entry['image_id']}.png"
        Image.fromarray(labels.numpy().astype(np.uint8)).save(path)
    detectron2s.evaluate()
    expected = evaluator.evaluate()["sem_seg"]
    assert 20 < expected["mIoU"] < 90
    found = []
    (tmp_path / "names.json").write_text(json.dumps([{"name": name} for name in NAMES]))
    run_lengths = ("--pred", tmp_path / "out" / "sem_seg_predictions.json", "--dataset", NAME)
    label_files = ("--pred", tmp_path / "guesses", "--gt", tmp_path / "labels")
    for arguments in (run_lengths, (*label_files, "--class-names", tmp_path / "names.json")):
        status, _, _ = run(capsys, *arguments, "--json", tmp_path / "scores.json")
        assert status == 0
        found.append(json.loads((tmp_path / "scores.json").read_text())["sem_seg"])
        assert {key: found[-1][key] for key in expected} == pytest.approx(expected)
    assert found[0] == found[1]
    assert 20 < found[0]["PQ"] < 90


def saved_instances(entries, folder):
    """Predictions with masks that are cut, written and scored by Detectron2's evaluator."""
    evaluator = InstanceEvaluator(NAME, output_dir=folder)
    evaluator.reset()
    for entry in entries:
        labels = shifted_labels(entry)
        masks = torch.stack([labels == 0, labels == 1])
        instances = Instances(
            (20, 26), pred_masks=masks, scores=torch.tensor([0.9, 0.4 + entry["image_id"] / 9])
        )
        instances.pred_classes = torch.tensor([0, 1])
        instances.pred_boxes = Boxes(torch.tensor([[1.0, 1, 9, 12], [12, 5, 20, 20]]))
        evaluator.process([entry], [{"instances": instances}])
    return evaluator.evaluate()


def test_instance_results_score_as_detectron2_scores_them(shapes, tmp_path, capsys):
    expected = saved_instances(shapes, tmp_path / "out")
    arguments = (
        "--pred",
        tmp_path / "out" / "coco_instances_results.json",
        "--json",
        tmp_path / "scores.json",
    )
    status, _, _ = run(capsys, *arguments, "--gt", tmp_path / "annotations" / "instances_val.json")
    assert status == 0
    assert 5 < expected["segm"]["AP"] < 95
    scores = json.loads((tmp_path / "scores.json").read_text())
    for task in ("bbox", "segm"):
        known = {key: value for key, value in scores[task].items() if value is not None}
        assert known == pytest.approx({key: expected[task][key] for key in known}), task
        assert {"AP", "AP50", "AP-ball", "AP-tree"} <= known.keys()


def test_empty_results_have_no_precision(shapes, tmp_path, capsys):
    (tmp_path / "empty.json").write_text("[]")
    truth = tmp_path / "annotations" / "instances_val.json"
    status, _, error = run(capsys, "--pred", tmp_path / "empty.json", "--gt", truth)
    assert status == 1
    assert "--task" in error
    status, table, _ = run(capsys, "--pred", tmp_path / "empty.json", "--gt", truth, "--task", "instance")
    assert status == 0
    assert "0.000" in table


def panoptic_error(capsys, tmp_path, change):
    """Return the error line after `change` edited the true panoptic JSON."""
    path = tmp_path / "annotations" / "panoptic_val.json"
    truth = json.loads(path.read_text())
    change(truth)
    path.write_text(json.dumps(truth))
    status, _, error = run(capsys, "--pred", tmp_path / "out" / "predictions.json", "--gt", path)
    assert status == 1
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda truth: truth["annotations"].append(truth["annotations"][1]),
            "panoptic_val.json: image id 1 has two",
        ),
        (lambda truth: truth["annotations"].clear(), "panoptic_val.json: the list 'annotations' is empty"),
        (lambda truth: truth["annotations"][2]["segments_info"].pop(), "2.png: ground truth: the map holds"),
        (lambda truth: truth["categories"].pop(), "0.png: category ids [12] are none"),
        (lambda truth: truth.pop("categories"), "panoptic_val.json lacks 'categories'"),
        (
            lambda truth: truth["annotations"][0].update(image_id=77),
            "1 of 4 true pictures have no prediction",
        ),
        (
            lambda truth: truth["annotations"][0].pop("file_name"),
            "panoptic_val.json: an annotation lacks 'file_name'",
        ),
    ],
)
def test_faulty_panoptic_truth_is_reported_in_one_line(shapes, tmp_path, capsys, change, message):
    saved_panoptic(shapes, tmp_path / "out")
    assert message in panoptic_error(capsys, tmp_path, change)


def test_results_of_another_annotation_file_are_refused(shapes, tmp_path, capsys):
    result = {"image_id": 4000, "category_id": 10, "score": 0.5, "bbox": [0, 0, 3, 3]}
    (tmp_path / "r.json").write_text(json.dumps([result]))
    truth = tmp_path / "annotations" / "instances_val.json"
    status, _, error = run(capsys, "--pred", tmp_path / "r.json", "--gt", truth)
    assert status == 1
    assert "r.json: image id 4000" in error
    assert "another data set" in error


def test_missing_and_broken_files_are_reported_in_one_line(tmp_path, capsys):
    (tmp_path / "labels").mkdir()
    (tmp_path / "cut.json").write_text('[{"file_name": ')
    cases = [
        (["--pred", tmp_path / "none.json", "--gt", tmp_path], "none.json does not exist"),
        (["--pred", tmp_path / "cut.json", "--gt", tmp_path], "cut.json: is not JSON"),
        (["--pred", tmp_path / "labels", "--gt", tmp_path / "labels"], "labels: holds no label files"),
    ]
    for arguments, message in cases:
        status, _, error = run(capsys, *arguments)
        assert status == 1
        assert message in error
        assert error.count("\n") == 1


def test_label_files_need_the_number_of_classes(shapes, tmp_path, capsys):
    arguments = ("--pred", tmp_path / "labels", "--gt", tmp_path / "labels")
    status, _, error = run(capsys, *arguments)
    assert status == 1
    assert "--num-classes" in error
    status, table, _ = run(capsys, *arguments, "--num-classes", 3)
    assert status == 0
    assert "100.000" in table
    status, _, error = run(capsys, *arguments, "--num-classes", 2)
    assert status == 1
    assert "0.png: found labels 2; allowed are 0..1" in error


def test_module_answers_help():
    command = [sys.executable, "-m", "mask_former.evaluation", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--pred" in answer
    assert "sem_seg_predictions.json" in answer
