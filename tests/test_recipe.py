"""The recipe of a user's own data: every value from the data, the device, or the command."""

from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model

import mask_former  # noqa: F401  (registers models)
from mask_former.config import load_config
from mask_former.data.own.dataset import OwnDataset
from mask_former.engine.recipe import Device, Request, write_recipe
from mask_former.engine.start_weights import StartWeights

CPU = Device("a CPU with 2 cores", False, 0, False, 2)
GPU = Device("a GPU", True, 8 * 2**30, True, 8)


def dataset(task: str = "semantic", train: int = 367, classes: int = 11, ignore: int = 255) -> OwnDataset:
    splits = {
        "train": [{"file_name": f"{n}.png"} for n in range(train)],
        "val": [{"file_name": "v.png"}] * 101,
    }
    names = tuple(f"class {n}" for n in range(classes))
    things = frozenset() if task == "semantic" else frozenset({0})
    colors = ((0, 0, 0),) * classes
    return OwnDataset(Path("town"), "label-maps", task, names, things, colors, "classes.txt", ignore, splits)


def recipe(tmp_path, data=None, sizes=None, most=11, device=CPU, request=None, **given):
    """Return the configuration that a written recipe gives."""
    given = {key.replace("__", "."): value for key, value in given.items()}
    text = write_recipe(
        data or dataset(),
        sizes or {(480, 360): 468},
        most,
        device,
        request or Request(),
        {**given, "OUTPUT_DIR": str(tmp_path)},
    )
    (tmp_path / "recipe.yaml").write_text(text)
    return load_config(tmp_path / "recipe.yaml")


def test_names_classes_void_and_sets_are_those_of_the_data(tmp_path):
    cfg = recipe(tmp_path, dataset(ignore=11))
    assert cfg.DATASETS.TRAIN == ("town_train",)
    assert cfg.DATASETS.TEST == ("town_val",)
    assert Path.cwd() / "town" == Path(cfg.DATASETS.FOLDER)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 11
    assert cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE == 11
    # A void value that is a class would be refused by the mapper.
    assert recipe(tmp_path, dataset(classes=300)).MODEL.SEM_SEG_HEAD.IGNORE_VALUE == 65535


@pytest.mark.parametrize(
    ("task", "mapper", "metric", "results"),
    [
        ("semantic", "mask_former_semantic", "sem_seg/mIoU", (True, False, False)),
        ("panoptic", "mask_former_panoptic", "panoptic_seg/PQ", (True, True, False)),
        ("instance", "mask_former_instance", "segm/AP", (False, False, True)),
    ],
)
def test_mapper_results_and_metric_follow_the_task(tmp_path, task, mapper, metric, results):
    cfg = recipe(tmp_path, dataset(task))
    test = cfg.MODEL.MASK_FORMER.TEST
    assert (mapper, metric) == (cfg.INPUT.DATASET_MAPPER_NAME, cfg.TEST.BEST_METRIC)
    assert results == (test.SEMANTIC_ON, test.PANOPTIC_ON, test.INSTANCE_ON)
    assert not cfg.TEST.EXPECTED_RESULTS


def test_a_set_without_validation_is_not_scored(tmp_path):
    data = dataset()
    del data.splits["val"]
    cfg = recipe(tmp_path, data)
    assert (cfg.DATASETS.TEST, cfg.TEST.BEST_METRIC) == ((), "")


@pytest.mark.parametrize(
    ("sizes", "side", "crop"),
    [
        ({(480, 360): 9}, 360, [288, 384]),
        ({(360, 480): 9}, 360, [384, 288]),
        ({(480, 360): 5, (360, 480): 4}, 360, [288, 288]),
        ({(40, 30): 9}, 128, [96, 128]),
    ],
)
def test_sizes_and_crops_follow_the_pictures(tmp_path, sizes, side, crop):
    cfg = recipe(tmp_path, sizes=sizes)
    assert (side, crop) == (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.CROP.SIZE)
    assert min(cfg.INPUT.MIN_SIZE_TRAIN) < side < max(cfg.INPUT.MIN_SIZE_TRAIN)


def test_large_pictures_are_shrunk_to_what_the_device_affords(tmp_path):
    for device, pixels in ((CPU, 131_072), (GPU, 524_288)):
        cfg = recipe(tmp_path, sizes={(4000, 3000): 9, (4000, 1000): 1}, device=device)
        height, width = cfg.INPUT.CROP.SIZE
        assert 0.7 * pixels < height * width <= pixels
        # The long picture is resized like the others, not shrunk more.
        assert cfg.INPUT.MAX_SIZE_TEST == 4 * cfg.INPUT.MIN_SIZE_TEST


def test_lengths_and_rate_follow_pictures_epochs_and_batch(tmp_path):
    cfg = recipe(tmp_path, request=Request(epochs=50))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (6, 3059)  # 50 * 367 / 6 = 3058.3
    assert (cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD) == (306, 306)
    assert cfg.SOLVER.WARMUP_ITERS == 305
    assert cfg.SOLVER.EMA_DECAY == 0.9935
    halved = recipe(tmp_path, request=Request(epochs=50), SOLVER__IMS_PER_BATCH=24)
    assert halved.SOLVER.MAX_ITER == 765
    assert pytest.approx(2 * cfg.SOLVER.BASE_LR) == halved.SOLVER.BASE_LR  # four times the batch
    few = recipe(tmp_path, dataset(train=3))
    assert few.SOLVER.IMS_PER_BATCH == 3
    assert few.SOLVER.MAX_ITER == 200  # 200 epochs at most
    assert recipe(tmp_path).SOLVER.MAX_ITER == 1800


def test_a_gpu_with_less_memory_takes_the_batch_in_more_parts(tmp_path):
    parts = {}
    for gigabytes in (4, 8, 80):
        cfg = recipe(tmp_path, sizes={(683, 512): 9}, device=GPU._replace(memory=gigabytes * 2**30))
        assert cfg.SOLVER.IMS_PER_BATCH % cfg.SOLVER.ACCUMULATE == 0
        parts[gigabytes] = cfg.SOLVER.ACCUMULATE
    assert parts[4] > parts[8] > parts[80] == 1
    assert cfg.SOLVER.AMP.DTYPE == "bfloat16"


def test_every_process_has_as_many_pictures(tmp_path):
    cfg = recipe(tmp_path, device=GPU, request=Request(processes=3))
    assert cfg.SOLVER.IMS_PER_BATCH == 15


def test_queries_are_enough_for_the_fullest_picture(tmp_path):
    assert recipe(tmp_path, most=11).MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 50
    assert recipe(tmp_path, most=101).MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 160


def test_what_the_command_gives_stays(tmp_path):
    cfg = recipe(tmp_path, SOLVER__MAX_ITER=30, INPUT__CROP__SIZE=(64, 64), SOLVER__WEIGHT_DECAY=0.1)
    assert (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.EMA_DECAY) == (30, 3, 0.0)
    assert cfg.INPUT.CROP.SIZE == [64, 64]
    assert cfg.SOLVER.WEIGHT_DECAY == 0.1


def test_each_value_has_a_reason_beside_it(tmp_path):
    recipe(tmp_path, request=Request(epochs=5, backbone="R50"), SOLVER__WEIGHT_DECAY=0.1)
    lines = (tmp_path / "recipe.yaml").read_text().splitlines()
    without = {line.split(":")[0].strip() for line in lines if "#" not in line and not line.endswith(":")}
    assert without == {"_BASE_", "FOLDER", "OUTPUT_DIR", "VERSION"}


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("backbone", ["", "R50"])
def test_the_model_of_a_recipe_builds(tmp_path, device, backbone):
    cfg = recipe(tmp_path, device=device, request=Request(backbone=backbone))
    cfg.MODEL.DEVICE = "meta"  # shapes without memory
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) > 1e6


def test_the_network_is_that_of_weights_which_describe_themselves(tmp_path):
    trained = load_config(opts=["MODEL.RESNETS.DEPTH", 101, "MODEL.MASK_FORMER.DEC_LAYERS", 9])
    trained.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 70
    trained.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 133
    assert trained.MODEL.RESNETS.STRIDE_IN_1X1  # Detectron2's default, and not that of the base recipe
    start = StartWeights(tmp_path / "trained.pth", True, trained)
    cfg = recipe(tmp_path, request=Request(start=start))
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.MASK_FORMER.DEC_LAYERS) == (101, 9)
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 70
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 11
    assert Path(cfg.MODEL.WEIGHTS) == tmp_path / "trained.pth"
    assert cfg.SOLVER.BACKBONE_MULTIPLIER == 0.1
    with pytest.raises(ValueError, match=r"--backbone R50: .*trained\.pth has MODEL\.RESNETS\.DEPTH 101"):
        recipe(tmp_path, request=Request(start=start, backbone="R50"))


def test_a_backbone_alone_is_recognised_and_its_statistics_are_frozen(tmp_path):
    keys = {"MODEL.BACKBONE.NAME": "build_resnet_backbone", "MODEL.RESNETS.DEPTH": 101}
    cfg = recipe(tmp_path, request=Request(start=StartWeights(tmp_path / "R-101.pkl", False, None, keys)))
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM) == (101, "FrozenBN")
    assert recipe(tmp_path).MODEL.RESNETS.NORM == "BN"


def test_paths_with_signs_of_yaml_stay_what_they_are(tmp_path):
    name = "a: b # c 'd' ü"
    cfg = recipe(tmp_path, MODEL__WEIGHTS=name)
    assert name == cfg.MODEL.WEIGHTS
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["MODEL"]["WEIGHTS"] == name
