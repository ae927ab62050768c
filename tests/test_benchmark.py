"""The benchmark measures the same results in every variant, and its program runs; times are no tests."""

import json
import random
import re
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

import numpy as np
import pytest
import torch
import yaml
from published_order import published_scores
from tiny_models import NUM_CLASSES, TINY, tiny_config, training_picture

from mask_former.benchmark import plain, speed
from mask_former.benchmark.__main__ import main
from mask_former.benchmark.measuring import (
    Stopwatch,
    interleaved,
    parameters_and_operations,
    random_model,
    ratios,
    settled_class_logits,
    summary,
    sums,
    synthetic_picture,
    write_labelled_picture,
)
from mask_former.benchmark.speed import backpropagated_loss, register_pictures
from mask_former.data.mapper import build_train_mapper
from mask_former.inference import semantic_labels
from mask_former.inference.resizing import Sizes
from mask_former.modeling.structures import Prediction


@pytest.fixture
def config_file(tmp_path):
    tree = {}
    for key, value in TINY.items():
        *parents, name = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = list(value) if isinstance(value, tuple) else value
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree))
    return str(file)


# The plain formulas -----------------------------------------------------------------------------------


def test_the_plain_label_map_is_the_highest_published_score():
    torch.manual_seed(0)
    class_logits, mask_logits = 2 * torch.randn(6, 5), 3 * torch.randn(6, 8, 16)
    sizes = Sizes((32, 64), (29, 41), (17, 23))
    expected = published_scores(class_logits, mask_logits, sizes, False).argmax(0)
    assert torch.equal(plain.label_map(class_logits, mask_logits, sizes), expected)
    assert torch.equal(semantic_labels(class_logits, mask_logits, sizes), expected)


def test_losses_and_gradients_of_a_step_equal_the_plain_formulas():
    model = random_model(tiny_config()).train()
    batch = [training_picture(64, 96, 4), training_picture(50, 70, 3, seed=1)]
    images = model.prepare_images([picture["image"] for picture in batch])
    targets = model.prepare_targets(batch, images)
    torch.manual_seed(1)
    shapes = [[logits.shape for logits in layer] for layer in model.predict(images.tensor)]
    values = [[2 * torch.randn(shape) for shape in layer] for layer in shapes]
    found = {}
    for variant in ("ours", "plain"):
        leaves = [Prediction(*(logits.clone().requires_grad_() for logits in layer)) for layer in values]
        watch = Stopwatch(model.device)
        loss = backpropagated_loss(variant, model.criterion, leaves, targets, watch)
        assert list(watch.seconds) == ["matching", "losses", "losses backward"]
        found[variant] = loss, [logits.grad for layer in leaves for logits in layer]
    assert len(shapes) > 1
    assert found["ours"][0].item() == pytest.approx(found["plain"][0].item(), rel=1e-5)
    for gradient, expected in zip(found["ours"][1], found["plain"][1], strict=True):
        assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()


# What is measured -------------------------------------------------------------------------------------


def test_settled_predictions_look_like_a_trained_models():
    probs = settled_class_logits(99, 40).softmax(1)
    assert torch.allclose(probs.sum(1), torch.ones(99))
    says_nothing = probs[:, -1] > 0.98
    assert says_nothing.sum() == 66
    assert torch.all(probs[~says_nothing, :-1].amax(1) >= 0.9)
    assert probs[says_nothing, :-1].amax() < 0.002


def test_parameters_and_operations_are_those_of_the_layers():
    cfg = tiny_config()
    found = parameters_and_operations(random_model(cfg), 60, 90)
    model = random_model(cfg)
    assert found["parameters_million"] == sum(p.numel() for p in model.parameters()) / 1e6
    multiply_adds = 0

    def count(conv, inputs, output):
        nonlocal multiply_adds
        multiply_adds += output.numel() * conv.weight[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    model.eval().predict(torch.zeros(1, 3, 64, 96))
    # The rest are the transformer and the mask products: a few percent in this model.
    assert multiply_adds < 1e9 * found["multiply_adds_1e9"] < 1.1 * multiply_adds


def test_pictures_are_the_same_every_time():
    assert (synthetic_picture(40, 70) == synthetic_picture(40, 70)).all()


# Measuring --------------------------------------------------------------------------------------------


def test_variants_take_turns_and_each_begins_some_rounds():
    order = []
    runs = {name: lambda name=name: order.append(name) or {"stage": float(len(order))} for name in "abc"}
    times = interleaved(runs, rounds=3, warm_up=1)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert times["a"] == [{"stage": 6.0}, {"stage": 8.0}, {"stage": 10.0}]


def test_ratios_are_taken_pair_by_pair():
    ours = [{"x": 1.0, "y": 1.0, "z": 50.0}, {"x": 3.0, "y": 1.0}, {"x": 2.0, "y": 1.0}]
    theirs = [{"x": 3.0, "y": 1.0}, {"x": 4.0, "y": 4.0}, {"x": 3.0, "y": 0.0}]
    found = ratios(sums(ours, ["x", "y"]), sums(theirs, ["x", "y"]))
    assert found == {"median": 0.5, "pairs": [0.5, 0.5, 1.0]}


def test_a_summary_is_median_and_95th_percentile():
    assert summary([n / 1000 for n in range(1, 101)]) == {"median_ms": 50.5, "p95_ms": 95.0}
    assert summary([0.002]) == {"median_ms": 2.0, "p95_ms": 2.0}


def test_a_stopwatch_adds_up_stages_of_one_name():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch.stage("a"):
            pass
    assert list(watch.seconds) == ["a"]
    assert watch.seconds["a"] > 0


# The program ------------------------------------------------------------------------------------------


def test_help_names_every_mode(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "inference,training,evaluation,data,models" in capsys.readouterr().out


def test_inference_is_measured_by_stage_and_compared(config_file, tmp_path, capsys):
    words = ["--config-file", config_file, "--size", "64", "70", "--rounds", "2", "--compare", "naive"]
    files = ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    assert main([*words, *files]) == 0
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["setting"]["classes"] == NUM_CLASSES
    assert set(results["variants"]) == {"float32", "naive"}
    for stages in results["variants"].values():
        assert {"data", "network", "post-processing", "save"} <= set(stages)
    pairs = results["ratios"]["float32 / naive: network + post-processing"]["pairs"]
    assert len(pairs) == 2
    assert (tmp_path / "out.md").read_text() == capsys.readouterr().out


def test_labels_beyond_a_byte_are_saved(config_file, monkeypatch):
    monkeypatch.setattr(speed, "form_results", lambda *_, **__: {"sem_seg": torch.full((64, 70), 300)})
    assert main(["--config-file", config_file, "--size", "64", "70", "--rounds", "1"]) == 0


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_other_tasks_are_measured(task, config_file, capsys):
    words = ["--config-file", config_file, "--size", "64", "70", "--rounds", "1", "--task", task]
    assert main([*words, "--predictions", "random"]) == 0
    assert "post-processing / network" in capsys.readouterr().out


def test_hugging_face_is_measured_with_the_same_weights(config_file, tmp_path):
    pytest.importorskip("transformers")
    words = ["--config-file", config_file, "--size", "64", "70", "--rounds", "1"]
    words += ["--compare", "transformers", "--json", str(tmp_path / "out.json")]
    assert (
        main([*words, "--opts", "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256"]) == 0
    )
    assert "transformers" in json.loads((tmp_path / "out.json").read_text())["variants"]


def test_training_is_measured_by_part(config_file, tmp_path):
    words = ["training", "--config-file", config_file, "--size", "64", "96", "--rounds", "1", "--batch", "1"]
    words += ["--segments", "3", "--compare", "plain", "--json", str(tmp_path / "out.json")]
    assert main(words) == 0
    results = json.loads((tmp_path / "out.json").read_text())
    parts = {"data", "forward", "matching", "losses", "losses backward", "backward", "optimiser"}
    assert parts <= set(results["variants"]["ours"])
    assert set(results["variants"]) == {"ours", "plain"}
    assert results["pictures_per_second"]["ours"] > 0


def test_an_evaluation_is_measured_as_a_whole(config_file, tmp_path):
    words = ["evaluation", "--config-file", config_file, "--size", "64", "96", "--pictures", "3"]
    words += ["--json", str(tmp_path / "out.json"), "--opts", "DATALOADER.NUM_WORKERS", "0"]
    assert main(words) == 0
    found = json.loads((tmp_path / "out.json").read_text())["evaluation"]
    assert found["pictures"] == 3
    assert found["whole_s"] > 0
    assert found["ratio"] == found["whole_s"] / found["network_s"]


def test_models_are_listed_with_their_size_time_and_memory(config_file, tmp_path):
    other = tmp_path / "more_queries.yaml"
    other.write_text(f"_BASE_: {config_file}\nMODEL: {{MASK_FORMER: {{NUM_OBJECT_QUERIES: 9}}}}\n")
    words = ["models", "--config-file", config_file, str(other), "--size", "64", "96", "--rounds", "1"]
    assert main([*words, "--markdown", str(tmp_path / "models.md")]) == 0
    heading, names, _, *rows = (tmp_path / "models.md").read_text().replace("\n\n", "\n").splitlines()
    assert "size 64x96" in heading
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (names, *rows)]
    assert cells[0] == ["model", "parameters, M", "multiply-adds, G", "float32, ms", "float32, MiB"]
    assert [row[0] for row in cells[1:]] == ["tiny", "more_queries"]
    assert all(float(value) > 0 for row in cells[1:] for value in row[1:])


def test_a_process_that_fails_leaves_the_other_figures(config_file, tmp_path, monkeypatch, capsys):
    def killed(*_):
        raise BrokenProcessPool("inference was killed")

    monkeypatch.setattr(ProcessPoolExecutor, "submit", killed)
    words = ["--config-file", config_file, "--size", "64", "96", "--rounds", "1", "--memory"]
    assert main([*words, "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr()
    assert "no peak memory of float32: inference was killed" in printed.err
    assert re.search(r"^\| float32 +\| failed ", printed.out, re.MULTILINE)
    assert json.loads((tmp_path / "out.json").read_text())["variants"]["float32"]


def test_several_configurations_are_for_models_alone(config_file, capsys):
    with pytest.raises(SystemExit):
        main(["--config-file", config_file, config_file, "--size", "64", "96"])
    assert "takes one file in mode inference" in capsys.readouterr().err


@pytest.mark.parametrize("mapper", ["mask_former_semantic", "mask_former_panoptic"])
def test_both_ways_to_a_training_sample_give_the_same_segments(mapper, tmp_path):
    cfg = tiny_config()
    words = ["INPUT.DATASET_MAPPER_NAME", mapper, "INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"]
    words += ["INPUT.CROP.SIZE", [48, 64], "INPUT.MIN_SIZE_TRAIN", [60], "INPUT.SIZE_DIVISIBILITY", 64]
    cfg.merge_from_list(words)
    entry = write_labelled_picture(tmp_path, (60, 80), 4, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    random.seed(1)
    np.random.seed(1)
    ours = build_train_mapper(cfg)(entry)
    random.seed(1)
    np.random.seed(1)
    image, masks, classes = plain.mapper(cfg)(entry)
    assert torch.equal(ours["image"], image)
    found = dict(zip(ours["instances"].gt_classes.tolist(), ours["instances"].gt_masks, strict=True))
    expected = {label: mask for label, mask in zip(classes, masks, strict=True) if mask.any()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[label], expected[label]) for label in expected)


def test_training_samples_are_counted(config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SAMPLES", 2)
    words = ["data", "--config-file", config_file, "--size", "64", "96", "--segments", "4", "--rounds", "1"]
    assert main([*words, "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["data"]
    assert found["mapper"].keys() == {"ours", "plain"}
    assert all(rate > 0 for rate in [*found["loader"].values(), *found["mapper"]["ours"]])


def test_labels_of_many_classes_are_written_in_16_bits(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from PIL import Image

    name = register_pictures(tmp_path, 1, (640, 2048), 300)
    (entry,) = DatasetCatalog.get(name)
    with Image.open(entry["sem_seg_file_name"]) as labels:
        assert labels.getextrema() == (0, 299)
    assert MetadataCatalog.get(name).ignore_label == 65535


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--compare", "nobody"], "--compare nobody: in mode inference, expected naive or transformers"),
        (["training", "--compare", "naive"], "in mode training, expected plain"),
        (["--task", "panoptic", "--compare", "naive"], "label maps only"),
        (["evaluation", "--memory"], "mode evaluation takes one --precision"),
        (["data", "--segments", "9"], "--segments is 9, but a label map has 5 classes at most"),
        (["data", "--opts", "INPUT.DATASET_MAPPER_NAME", "x"], "mode data measures mask_former_semantic and"),
        (["training", "--segments", "9"], "--segments is 9, but a label map has 5 classes at most"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, complaint, config_file, capsys):
    assert main(["--config-file", config_file, "--size", "64", "70", *words]) == 1
    assert complaint in capsys.readouterr().err


def test_memory_is_measured_by_the_program_itself():
    words = [
        "training",
        "--config-file",
        "shapes/maskformer_panoptic.yaml",
        "--size",
        "64",
        "64",
        "--batch",
        "1",
    ]
    command = [
        sys.executable,
        "-m",
        "mask_former.benchmark",
        *words,
        "--segments",
        "4",
        "--rounds",
        "1",
        "--memory",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "no peak memory" not in done.stderr
    assert float(done.stdout.split("peak memory, MiB")[1].split("| ours")[1].split("|")[1]) > 100
