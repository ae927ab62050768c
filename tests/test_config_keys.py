"""Every key of the default configuration is read by what runs here, or refused, or listed with a reason."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import detectron2.data.build
import detectron2.evaluation.testing
import detectron2.modeling.backbone.build
import detectron2.modeling.backbone.resnet
import detectron2.modeling.meta_arch.build
import detectron2.projects.deeplab.resnet
import detectron2.solver.build
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import DatasetMapperTTA, SemanticSegmentor, build_sem_seg_head
from tiny_runs import tiny_config

from mask_former.config import UNSUPPORTED, load_config, recomputes_activations
from mask_former.engine import Trainer
from mask_former.modeling.swin import D2SwinTransformer

PACKAGE = Path(__file__).parent.parent / "mask_former"
# Parts of Detectron2 that a run here goes through, grouped by source file.
DETECTRON2 = [
    [detectron2.data.build._test_loader_from_config],
    [DatasetMapper],
    [detection_utils.build_augmentation],
    [detectron2.modeling.backbone.build.build_backbone],
    [detectron2.modeling.backbone.resnet.build_resnet_backbone],
    [detectron2.projects.deeplab.resnet],
    [detectron2.modeling.meta_arch.build.build_model],
    [SemanticSegmentor, build_sem_seg_head],
    [
        detectron2.solver.build.build_lr_scheduler,
        detectron2.solver.build.maybe_add_gradient_clipping,
        detectron2.solver.build._create_gradient_clipper,
    ],
    [COCOEvaluator],
    [DatasetMapperTTA],
    [detectron2.evaluation.testing.verify_results],
    [DefaultTrainer.auto_scale_workers, DefaultTrainer.test, DefaultTrainer.resume_or_load],
]
DETECTORS = "belongs to Detectron2's detectors, which a user's META_ARCHITECTURE may be"
DEEPLAB = "belongs to DeepLab's heads, which a user's SEM_SEG_HEAD.NAME may be"
# Key, or beginning of keys -> why nothing here reads it.
NOT_READ = {
    "VERSION": "the version of the file format, read when a file is merged",
    "GLOBAL.HACK": "Detectron2's place for experiments",
    "MODEL.FPN.": "belongs to backbones of Detectron2 with a feature pyramid, which BACKBONE.NAME may name",
    "MODEL.PROPOSAL_GENERATOR.": DETECTORS,
    "MODEL.ANCHOR_GENERATOR.": DETECTORS,
    "MODEL.RPN.": DETECTORS,
    "MODEL.ROI_HEADS.": DETECTORS,
    "MODEL.ROI_BOX_HEAD.": DETECTORS,
    "MODEL.ROI_BOX_CASCADE_HEAD.": DETECTORS,
    "MODEL.ROI_MASK_HEAD.": DETECTORS,
    "MODEL.ROI_KEYPOINT_HEAD.": DETECTORS,
    "MODEL.PANOPTIC_FPN.": DETECTORS,
    "MODEL.RETINANET.": DETECTORS,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": "belongs to Detectron2's SemSegFPNHead",
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": DEEPLAB,
    "MODEL.SEM_SEG_HEAD.PROJECT_": DEEPLAB,
    "MODEL.SEM_SEG_HEAD.ASPP_": DEEPLAB,
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": DEEPLAB,
    "TEST.PRECISE_BN.NUM_ITER": "only goes with TEST.PRECISE_BN.ENABLED, which is refused",
}


def leaf_keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from leaf_keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def upper_case_paths(source: str) -> set[str]:
    """Return every `A.B.C` in the source that ends a chain of attributes, and every string that is one."""
    paths = set()
    for node in ast.walk(ast.parse(source)):
        parts: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            paths.add(node.value)
        while isinstance(node, ast.Attribute) and node.attr.replace("_", "").isupper():
            parts.insert(0, node.attr)
            node = node.value
        paths.add(".".join(parts))
    return paths


@pytest.fixture(scope="module")
def read_paths() -> list[set[str]]:
    """The paths in each file of the package, and in the parts of each file of Detectron2."""
    ours = [path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "config.py"]
    theirs = ["\n".join(textwrap.dedent(inspect.getsource(part)) for part in parts) for parts in DETECTRON2]
    return [upper_case_paths(source) for source in [*ours, *theirs]]


def is_read(key: str, read_paths: list[set[str]]) -> bool:
    """Return whether a file holds the key, or both halves of it: `head = cfg.MODEL.HEAD; head.NAME`."""
    words = key.split(".")
    halves = [(".".join(words[:i]), ".".join(words[i:])) for i in range(1, len(words))]
    return any(
        key in paths or any(first in paths and rest in paths for first, rest in halves)
        for paths in read_paths
    )


def test_every_key_is_read_refused_or_listed(read_paths: list[set[str]]):
    swin = {f"MODEL.SWIN.{name.upper()}" for name in inspect.signature(D2SwinTransformer).parameters}
    aliases = {"SOLVER.RECOMPUTE_ACTIVATIONS", "MODEL.SWIN.USE_CHECKPOINT"}
    unread = [
        key
        for key in leaf_keys(load_config())
        if not is_read(key, read_paths) and key not in {*UNSUPPORTED, *swin, *aliases}
    ]
    assert [key for key in unread if not key.startswith(tuple(NOT_READ))] == []
    assert [name for name in NOT_READ if not any(key.startswith(name) for key in unread)] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("TEST.PRECISE_BN.ENABLED", "True"),
        ("SOLVER.BIAS_LR_FACTOR", "2.0"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "0.5"),
        ("VIS_PERIOD", "20"),
    ],
)
def test_keys_without_effect_are_refused_by_name(tmp_path: Path, key: str, value: str):
    assert key in UNSUPPORTED
    with pytest.raises(ValueError, match=rf"^{key} is {value}, but has no effect here: leave it"):
        Trainer(tiny_config(tmp_path, key, value))


@pytest.mark.parametrize("key", ["SOLVER.RECOMPUTE_ACTIVATIONS", "MODEL.SWIN.USE_CHECKPOINT"])
def test_both_names_of_activation_checkpointing_turn_it_on(tmp_path: Path, key: str):
    assert not recomputes_activations(load_config())
    (tmp_path / "output").mkdir()
    trainer = Trainer(tiny_config(tmp_path, key, "True"))
    passes = []
    layer = trainer.model.sem_seg_head.predictor.transformer.decoder.layers[0]
    layer.linear1.register_forward_pre_hook(lambda *_: passes.append(1))
    batch = next(iter(trainer.data_loader))
    sum(trainer.model(batch).values()).backward()
    assert len(passes) == 2  # in the forward pass, and again for the gradient
