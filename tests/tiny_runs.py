"""A training run small enough for tests: a few dozen synthetic pictures, a thin network, no dropout."""

from pathlib import Path

import torch
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

import mask_former  # noqa: F401  (registers models and data sets)
from mask_former.config import load_config
from mask_former.data.shapes import ShapesSpec, register
from mask_former.engine.step import TrainStep

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "shapes" / "maskformer_panoptic.yaml"
SPEC = ShapesSpec(train=24, val=4, size=64)

# Group norm: a batch norm would see other statistics when a batch is cut up.
OPTS = [
    *("MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3']"),
    *(
        "MODEL.SEM_SEG_HEAD.IN_FEATURES",
        "['res2', 'res3']",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE",
        "res3",
    ),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "16"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "16", "MODEL.MASK_FORMER.NHEADS", "2"),
    *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "32", "MODEL.MASK_FORMER.DEC_LAYERS", "2"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8", "MODEL.MASK_FORMER.DROPOUT", "0.0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "INPUT.CROP.ENABLED", "False"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "1000"),
    *("TEST.EXPECTED_RESULTS", "[]", "TEST.EVAL_PERIOD", "0", "DATALOADER.NUM_WORKERS", "0", "SEED", "3"),
]


def tiny_config(folder: Path, *opts: str):
    """Return the configuration of a tiny run into `folder`, where its data set lies too."""
    torch.set_num_threads(1)
    setup_logger(name="mask_former")
    register(folder, SPEC)
    return load_config(CONFIG, [*OPTS, "OUTPUT_DIR", str(folder / "output"), *opts])


def tiny_command(folder: Path, *opts: str) -> list[str]:
    """Return the arguments of train_net.py for the same run."""
    output = ["OUTPUT_DIR", str(folder / "output")]
    return [str(ROOT / "train_net.py"), "--config-file", str(CONFIG), *OPTS, *output, *opts]


def run_steps(step: TrainStep, iterations: int = 1) -> EventStorage:
    """Return the storage after some training steps."""
    with EventStorage(0) as storage:
        for step.iter in range(iterations):
            storage.iter = step.iter
            step.run_step()
    return storage
