"""Peak memory of whole processes: it must not grow with classes, nor with layers times full-size masks."""

import json
import subprocess
import sys

PEAK = """
import json, torch
from mask_former.engine.hooks import peak_memory
device = torch.device("cpu")
peaks = [peak_memory() / 2**20]
{work}
print(json.dumps(peaks))
"""

LABEL_MAP = """
from mask_former.inference import semantic_labels
from mask_former.inference.resizing import Sizes
for classes in (20, 847):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 60, 8, 12, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, size=(120, 180), mode="bilinear")[0]
    class_logits = torch.randn(60, classes + 1, generator=generator)
    semantic_labels(class_logits, masks, Sizes((480, 720), (480, 700), (480, 700)))
    peaks.append(peak_memory() / 2**20)
"""

TRAINING_STEP = """
from mask_former.benchmark.measuring import Stopwatch
from mask_former.benchmark.speed import backpropagated_loss
from mask_former.modeling.criterion import SetCriterion
from mask_former.modeling.matcher import HungarianMatcher
from mask_former.modeling.structures import Prediction, Target
matcher = HungarianMatcher(mask_weight=20.0, dice_weight=1.0)
criterion = SetCriterion(
    num_classes=10, matcher=matcher, mask_weight=20.0, dice_weight=1.0, no_object_weight=0.1
)
masks = torch.zeros(20, 384, 384, dtype=torch.bool)
for row in range(20):
    masks[row, 19 * row : 19 * row + 19] = True
target = Target(torch.arange(20) % 10, masks)
for variant in ("ours", "plain"):
    leaves = [
        Prediction(torch.randn(1, 30, 11).requires_grad_(), torch.randn(1, 30, 96, 96).requires_grad_())
        for _ in range(3)
    ]
    backpropagated_loss(variant, criterion, leaves, [target], Stopwatch(device))
    peaks.append(peak_memory() / 2**20)
"""


def peaks_of(work):
    """The peak of a new process at its start, and after each of two works, the one that takes less first."""
    command = [sys.executable, "-c", PEAK.format(work=work)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def test_a_label_map_of_many_classes_takes_the_memory_of_one_of_few():
    start, of_few, of_many = peaks_of(LABEL_MAP)
    assert of_many <= 1.1 * of_few
    all_scores = 847 * 480 * 700 * 4 / 2**20
    assert of_many - start < 0.15 * all_scores


def test_a_training_step_takes_far_less_than_full_size_masks_of_every_layer():
    start, streamed, plain = peaks_of(TRAINING_STEP)
    assert streamed - start < 0.5 * (plain - start)
