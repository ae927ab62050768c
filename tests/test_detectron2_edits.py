"""What Detectron2's own suite never touches, and this project stands on: the edits, seen from outside."""

import itertools
import sys

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MapDataset, MetadataCatalog
from detectron2.engine import AMPTrainer, DefaultTrainer, launch
from detectron2.evaluation import SemSegEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from torch import nn


@META_ARCH_REGISTRY.register()
class TinyRegression(nn.Module):
    """A model small enough to see every number of its optimizer."""

    def __init__(self, cfg):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, batch):
        return {"loss": self.linear(batch).square().mean()}


class TinyTrainer(DefaultTrainer):
    """The default trainer on batches that are made up."""

    @classmethod
    def build_train_loader(cls, cfg):
        return (torch.full((2, 3), float(i % 5)) for i in itertools.count())

    @classmethod
    def build_optimizer(cls, cfg, model):
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    @classmethod
    def test(cls, cfg, model):
        return {}


def tiny_trainer(folder) -> TinyTrainer:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "TinyRegression"
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.MAX_ITER = 10
    cfg.SOLVER.CHECKPOINT_PERIOD = 5
    cfg.OUTPUT_DIR = str(folder)
    return TinyTrainer(cfg)


def test_optimizer_and_schedule_survive_a_resume(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.resume_or_load(resume=False)
    trainer.train()
    moments = trainer.optimizer.state_dict()["state"][0]
    (tmp_path / "last_checkpoint").write_text("model_final.pth")

    resumed = tiny_trainer(tmp_path)
    resumed.resume_or_load(resume=True)
    restored = resumed.optimizer.state_dict()["state"][0]
    assert restored["step"] == 10
    assert torch.equal(restored["exp_avg"], moments["exp_avg"])
    assert resumed.optimizer.param_groups[0]["lr"] == trainer.optimizer.param_groups[0]["lr"]


def test_a_checkpoint_of_an_unedited_detectron2_still_loads(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.iter = 4
    state = trainer.state_dict()
    del state["_trainer"]
    trainer.load_state_dict(state)
    assert trainer.iter == 4


def test_a_mapper_that_returns_none_skips_the_sample():
    data = MapDataset(list(range(6)), lambda number: number if number % 2 else None)
    assert all(data[index] % 2 == 1 for index in range(6))


def test_sem_seg_evaluator_scores_a_perfect_prediction(tmp_path):
    label = np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)
    Image.fromarray(label).save(tmp_path / "label.png")
    name = "edits_sem_seg"
    DatasetCatalog.register(
        name, lambda: [{"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "label.png")}]
    )
    MetadataCatalog.get(name).set(stuff_classes=["a", "b", "c"], ignore_label=255)
    try:
        evaluator = SemSegEvaluator(name, distributed=False, output_dir=str(tmp_path))
        evaluator.reset()
        scores = torch.nn.functional.one_hot(torch.from_numpy(label.astype(int)) % 3, 3).permute(2, 0, 1)
        evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": scores.float()}])
        assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_colours_made_lighter_stay_colours():
    visualizer = Visualizer(np.zeros((8, 8, 3), np.uint8))
    colours = np.random.default_rng(0).random((3000, 3))
    colours[1000:, 1:] = 1  # fully saturated, where rounding shows
    for factor in (-0.7, 0.7, 1.0):
        changed = [visualizer._change_color_brightness(colour, factor) for colour in colours]
        assert np.min(changed) >= 0
        assert np.max(changed) <= 1


def test_mixed_precision_trains_on_the_cpu():
    model = TinyRegression(None)
    before = model.linear.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = AMPTrainer(model, itertools.repeat(torch.ones(2, 3)), optimizer)
    # The scaler starts high, skips steps that overflow, and halves its scale each time.
    trainer.train(start_iter=0, max_iter=10)
    assert not torch.equal(model.linear.weight, before)
    assert trainer.state_dict()["grad_scaler"]["scale"] < 65536


def _two_processes_agree() -> None:
    assert comm.get_world_size() == 2
    ranks = comm.all_gather(("rank", comm.get_rank()))
    assert ranks == [("rank", 0), ("rank", 1)]
    comm.synchronize()
    torch.distributed.destroy_process_group()  # gloo aborts a process whose peer just vanishes


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, launch uses NCCL")
def test_launch_runs_two_processes_without_a_gpu(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test"])  # spawned processes must not start pytest again
    launch(_two_processes_agree, num_gpus_per_machine=2, dist_url="auto")
