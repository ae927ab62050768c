"""Test-time augmentation: original picture, flips undone, mean of the copies."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data.transforms import NoOpTransform, TransformList
from detectron2.modeling import build_model
from PIL import Image
from tiny_models import NUM_CLASSES, picture_of, tiny_config
from torch.nn import functional as F

import mask_former.modeling  # noqa: F401  fills the registries
from mask_former.inference.tta import SemanticSegmentorWithTTA


def tta_config(min_sizes=(32, 48), flip=True, **changes):
    cfg = tiny_config(**changes)
    cfg.TEST.AUG.MIN_SIZES = min_sizes
    cfg.TEST.AUG.MAX_SIZE = 200
    cfg.TEST.AUG.FLIP = flip
    return cfg


def per_pixel_config():
    cfg = tta_config()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PerPixelBaselineHead"
    return cfg


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(tta_config(TEST__INSTANCE_ON=True)).eval()


@pytest.fixture
def picture_file(tmp_path):
    # A gradient with a corner: flipping and channel order change the result, resizing keeps it smooth.
    y, x = np.mgrid[0:40, 0:60]
    array = np.stack([4 * x, 6 * y, 255 * ((x < 20) & (y < 15))], axis=2).astype(np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(array).save(path)
    return path


def resized(array, height, width):
    """As Detectron2 resizes 8-bit pictures."""
    return np.asarray(Image.fromarray(array).resize((width, height), Image.BILINEAR))


def scores_of_array(model, array, height, width):
    image = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
    with torch.no_grad():
        return model([{"image": image, "height": height, "width": width}])[0]["sem_seg"]


def expected_mean(model, array, sizes, height, width):
    total = 0
    for size in sizes:
        copy = resized(array, *size)
        total = total + scores_of_array(model, copy, height, width)
        total = total + scores_of_array(model, copy[:, ::-1], height, width).flip(2)
    return total / (2 * len(sizes))


SIZES_OF_COPIES = [(32, 48), (48, 72)]  # of a 40x60 picture, shorter side 32 and 48


def test_a_file_gives_the_mean_over_sizes_and_flips_of_the_original(model, picture_file):
    array = np.asarray(Image.open(picture_file))
    (result,) = SemanticSegmentorWithTTA(tta_config(), model)([{"file_name": str(picture_file)}])
    assert set(result) == {"sem_seg"}
    expected = expected_mean(model, array, SIZES_OF_COPIES, 40, 60)
    assert torch.allclose(result["sem_seg"], expected, atol=1e-5)


def test_the_loaders_resized_image_is_not_what_is_resized(model, picture_file):
    tta = SemanticSegmentorWithTTA(tta_config(), model)
    (expected,) = tta([{"file_name": str(picture_file)}])
    loaded = {"file_name": str(picture_file), "image": picture_of(80, 120), "height": 40, "width": 60}
    (result,) = tta([loaded])
    assert torch.equal(result["sem_seg"], expected["sem_seg"])


def test_the_channel_order_is_that_of_the_config(model, picture_file):
    cfg = tta_config()
    cfg.INPUT.FORMAT = "BGR"
    array = np.asarray(Image.open(picture_file))[:, :, ::-1]
    (result,) = SemanticSegmentorWithTTA(cfg, model)([{"file_name": str(picture_file)}])
    expected = expected_mean(model, np.ascontiguousarray(array), SIZES_OF_COPIES, 40, 60)
    assert torch.allclose(result["sem_seg"], expected, atol=1e-5)


@pytest.mark.parametrize("key", ["original", "image"])
def test_a_picture_in_memory_needs_no_file_and_no_size(model, picture_file, key):
    array = np.array(Image.open(picture_file))
    tta = SemanticSegmentorWithTTA(tta_config(), model)
    (result,) = tta([{key: torch.from_numpy(array.transpose(2, 0, 1))}])
    (expected,) = tta([{"file_name": str(picture_file)}])
    assert torch.equal(result["sem_seg"], expected["sem_seg"])


def test_height_and_width_give_the_size_of_the_result(model, picture_file):
    tta = SemanticSegmentorWithTTA(tta_config(), model)
    (result,) = tta([{"file_name": str(picture_file), "height": 33, "width": 77}])
    assert result["sem_seg"].shape == (NUM_CLASSES, 33, 77)


@pytest.mark.parametrize("batch_size", [2, 3, 10])
def test_the_batch_size_changes_nothing_for_copies_of_one_size(model, picture_file, batch_size):
    cfg = tta_config(min_sizes=(32,))
    picture = {"file_name": str(picture_file)}
    (expected,) = SemanticSegmentorWithTTA(cfg, model)([picture])
    (result,) = SemanticSegmentorWithTTA(cfg, model, batch_size=batch_size)([picture])
    assert torch.allclose(result["sem_seg"], expected["sem_seg"], atol=1e-5)


def test_a_per_pixel_baseline_works_too(picture_file):
    torch.manual_seed(0)
    model = build_model(per_pixel_config()).eval()
    array = np.asarray(Image.open(picture_file))
    (result,) = SemanticSegmentorWithTTA(per_pixel_config(), model)([{"file_name": str(picture_file)}])
    expected = expected_mean(model, array, SIZES_OF_COPIES, 40, 60)
    assert torch.allclose(result["sem_seg"], expected, atol=1e-4 * expected.abs().max().item())


def test_without_flips_and_at_its_own_size_it_is_the_model(model, picture_file):
    array = np.asarray(Image.open(picture_file))
    tta = SemanticSegmentorWithTTA(tta_config(min_sizes=(40,), flip=False), model)
    (result,) = tta([{"file_name": str(picture_file)}])
    assert torch.allclose(result["sem_seg"], scores_of_array(model, array, 40, 60), atol=1e-6)


def test_labels_are_those_of_the_mean_scores(model, picture_file):
    tta = SemanticSegmentorWithTTA(tta_config(), model)
    (scores,) = tta([{"file_name": str(picture_file)}])
    tta = SemanticSegmentorWithTTA(tta_config(), model, semantic_form="labels")
    (labels,) = tta([{"file_name": str(picture_file)}])
    assert torch.equal(labels["sem_seg"], scores["sem_seg"].argmax(0))


def test_the_model_is_left_as_it_was_even_after_an_error(model, picture_file):
    rules = model.rules
    tta = SemanticSegmentorWithTTA(tta_config(), model)
    tta([{"file_name": str(picture_file)}])
    with pytest.raises(FileNotFoundError):
        tta([{"file_name": str(picture_file) + ".missing"}])
    assert model.rules is rules
    assert "instance" in rules.tasks


def test_results_do_not_pile_up(model):
    """Only one copy's scores and the running sum are alive at any time."""
    alive = []

    class Counting(torch.nn.Module):
        def forward(self, copies):
            scores = [torch.ones(NUM_CLASSES, 8, 9) for _ in copies]
            alive.append(sum(reference() is not None for reference in alive_references))
            alive_references.extend(weakref.ref(score) for score in scores)
            return [{"sem_seg": score} for score in scores]

    alive_references = []
    cfg = tta_config(min_sizes=(8, 10, 12, 14, 16, 18))
    SemanticSegmentorWithTTA(cfg, Counting())([{"image": picture_of(8, 9)}])
    assert len(alive) == 12
    assert max(alive) <= 1


def test_a_mapper_of_ones_own_is_used(model, picture_file):
    def mapper(picture):
        half = F.interpolate(picture["image"][None].float(), scale_factor=0.5)[0]
        return [{**picture, "image": half, "transforms": TransformList([NoOpTransform()])}]

    tta = SemanticSegmentorWithTTA(tta_config(), model, tta_mapper=mapper)
    (result,) = tta([{"file_name": str(picture_file)}])
    array = np.asarray(Image.open(picture_file))[::2, ::2]
    assert torch.allclose(result["sem_seg"], scores_of_array(model, array, 40, 60), atol=1e-6)


def test_a_picture_that_is_nowhere_is_refused(model):
    with pytest.raises(KeyError, match="'file_name', 'original' or 'image'"):
        SemanticSegmentorWithTTA(tta_config(), model)([{"height": 4}])


def test_a_model_without_semantic_results_is_refused(model, monkeypatch):
    monkeypatch.setattr(model, "rules", replace(model.rules, tasks=("instance",)))
    with pytest.raises(ValueError, match="SEMANTIC_ON"):
        SemanticSegmentorWithTTA(tta_config(), model)
