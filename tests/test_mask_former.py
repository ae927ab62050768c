"""The whole model, from Detectron2's dicts to losses and results."""

import logging
import pickle
from dataclasses import replace

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, ImageList, PolygonMasks
from published_order import published_mask_logits, published_scores
from tiny_models import NUM_CLASSES, NUM_QUERIES, picture_of, tiny_config, training_picture

import mask_former.modeling  # noqa: F401  fills the registries
from mask_former.inference.resizing import Sizes
from mask_former.modeling.mask_former import MaskFormer

THINGS = {10: 0, 30: 3}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    built = build_model(tiny_config(TEST__INSTANCE_ON=True)).eval()
    with torch.no_grad():
        # Fresh mask embeddings say nearly the same everywhere; these masks have shapes.
        built.sem_seg_head.predictor.mask_embed.layers[-1].weight.mul_(20)
    return built


@pytest.fixture(scope="module")
def things_dataset():
    name = "test_mask_former_things"
    MetadataCatalog.get(name).set(thing_dataset_id_to_contiguous_id=THINGS)
    yield name
    MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def stuff_dataset():
    name = "test_mask_former_stuff"
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"])
    yield name
    MetadataCatalog.remove(name)


def run(model, *pictures):
    with torch.no_grad():
        return model(list(pictures))


# Evaluation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [False, True])
def test_results_equal_the_published_order_on_the_whole_batch(model, before, monkeypatch):
    monkeypatch.setattr(model, "rules", replace(model.rules, resize_logits=before))
    pictures = [
        {"image": picture_of(50, 90), "height": 71, "width": 100},
        {"image": picture_of(64, 37, seed=1), "height": 64, "width": 37},
    ]
    results = run(model, *pictures)
    # By hand: normalise, pad with zeros to multiples of 32, network, whole maps.
    batch = torch.zeros(2, 3, 64, 96)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    for row, picture in zip(batch, pictures, strict=True):
        image = picture["image"]
        normal = (image - mean[:, None, None]) / std[:, None, None]
        row[:, : image.shape[1], : image.shape[2]] = normal
    with torch.no_grad():
        answer = model.sem_seg_head(model.backbone(batch))[-1]
    for i, picture in enumerate(pictures):
        sizes = Sizes((64, 96), picture["image"].shape[1:], (picture["height"], picture["width"]))
        expected = published_scores(answer.class_logits[i], answer.mask_logits[i], sizes, before)
        assert torch.allclose(results[i]["sem_seg"], expected, atol=1e-5)
        full = published_mask_logits(answer.mask_logits[i], sizes, to_output=True)
        assert all(
            (mask == (full > 0)).flatten(1).all(1).any() for mask in results[i]["instances"].pred_masks
        )


def test_results_have_the_size_of_the_image_by_default(model):
    (result,) = run(model, {"image": picture_of(45, 70)})
    assert result["sem_seg"].shape == (NUM_CLASSES, 45, 70)
    assert result["instances"].image_size == (45, 70)


def test_a_batch_of_equal_sizes_equals_single_pictures(model):
    pictures = [{"image": picture_of(64, 96, seed)} for seed in range(3)]
    together = run(model, *pictures)
    for picture, result in zip(pictures, together, strict=True):
        (alone,) = run(model, picture)
        # Convolutions of other batch sizes may add in another order.
        assert torch.allclose(alone["sem_seg"], result["sem_seg"], atol=1e-5)


def test_permuting_queries_changes_nothing(model):
    picture = {"image": picture_of(60, 90)}
    (before,) = run(model, picture)
    table = model.sem_seg_head.predictor.query_embed.weight
    original = table.detach().clone()
    try:
        with torch.no_grad():
            table.copy_(original[torch.tensor([4, 2, 6, 0, 1, 5, 3])])
        (after,) = run(model, picture)
    finally:
        with torch.no_grad():
            table.copy_(original)
    assert torch.allclose(before["sem_seg"], after["sem_seg"], atol=1e-5)
    assert torch.allclose(before["instances"].scores, after["instances"].scores, atol=1e-5)


def test_label_maps_are_the_argmax_of_the_scores(model):
    picture = {"image": picture_of(60, 90), "height": 100, "width": 80}
    (scores,) = run(model, picture)
    with torch.no_grad():
        (labels,) = model([picture], rules=replace(model.rules, semantic_form="labels"))
    assert torch.equal(labels["sem_seg"], scores["sem_seg"].argmax(0))


@pytest.mark.parametrize(
    ("switches", "keys"),
    [
        ((True, False, False), {"sem_seg"}),
        ((False, True, False), {"panoptic_seg"}),
        ((False, False, True), {"instances"}),
        ((True, True, True), {"sem_seg", "panoptic_seg", "instances"}),
    ],
)
def test_only_what_is_on_is_given(switches, keys, things_dataset):
    cfg = tiny_config(
        TEST__SEMANTIC_ON=switches[0], TEST__PANOPTIC_ON=switches[1], TEST__INSTANCE_ON=switches[2]
    )
    cfg.DATASETS.TRAIN = (things_dataset,)
    (result,) = run(build_model(cfg).eval(), {"image": picture_of(40, 50)})
    assert set(result) == keys


def test_everything_off_is_refused_by_key():
    with pytest.raises(ValueError, match="SEMANTIC_ON, PANOPTIC_ON and INSTANCE_ON"):
        build_model(tiny_config(TEST__SEMANTIC_ON=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_float32_scores_close_to_full_precision(model, dtype):
    picture = {"image": picture_of(64, 96)}
    (full,) = run(model, picture)
    with torch.autocast("cpu", dtype=dtype):
        (half,) = run(model, picture)
    assert half["sem_seg"].dtype == torch.float32
    assert torch.isfinite(half["sem_seg"]).all()
    # bfloat16 has 8 bits; scores are of the order of one.
    assert (half["sem_seg"] - full["sem_seg"]).abs().mean() < 0.1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 200), (200, 2)])
def test_a_tiny_picture_is_refused_with_its_size_and_the_minimum(model, height, width):
    with pytest.raises(ValueError, match=rf"{height}x{width} pixels.* at least 4"):
        run(model, {"image": picture_of(height, width)})


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 130)])
def test_a_small_picture_works(model, height, width):
    (result,) = run(model, {"image": picture_of(height, width)})
    assert torch.isfinite(result["sem_seg"]).all()


def test_without_padding_to_a_multiple_any_size_works():
    model = build_model(tiny_config(SIZE_DIVISIBILITY=0)).eval()
    (result,) = run(model, {"image": picture_of(37, 61)})
    assert result["sem_seg"].shape == (NUM_CLASSES, 37, 61)


@pytest.mark.parametrize("shape", [(1, 40, 50), (4, 40, 50), (40, 50)])
def test_a_wrong_number_of_channels_is_refused(model, shape):
    with pytest.raises(ValueError, match=r"takes \(3, height, width\)"):
        run(model, {"image": torch.zeros(shape, dtype=torch.uint8)})


def test_the_tensor_only_middle_gives_the_predictions(model):
    image = picture_of(64, 96)
    with torch.no_grad():
        (prediction,) = model.predict(model.normalize(image)[None])
    assert prediction.class_logits.shape == (1, NUM_QUERIES, NUM_CLASSES + 1)
    assert prediction.mask_logits.shape == (1, NUM_QUERIES, 16, 24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16])
def test_pictures_of_other_types_give_the_same_as_bytes(model, dtype):
    image = picture_of(40, 50)
    (expected,) = run(model, {"image": image})
    (result,) = run(model, {"image": image.to(dtype)})
    assert torch.equal(result["sem_seg"], expected["sem_seg"])


def test_a_negative_divisibility_is_the_backbones():
    model = build_model(tiny_config(SIZE_DIVISIBILITY=-1))
    assert model.size_divisibility == model.backbone.size_divisibility


# Things -----------------------------------------------------------------------------------------------


def panoptic_config():
    return tiny_config(TEST__PANOPTIC_ON=True)


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_thing_ids_come_from_the_data_set(things_dataset, key):
    cfg = panoptic_config()
    cfg.DATASETS[key] = (things_dataset,)
    assert build_model(cfg).rules.thing_ids == frozenset({0, 3})


def test_panoptic_without_a_thing_map_names_key_and_data_set(stuff_dataset):
    cfg = panoptic_config()
    cfg.DATASETS.TRAIN = (stuff_dataset,)
    with pytest.raises(ValueError, match=f"{stuff_dataset}.*thing_dataset_id_to_contiguous_id"):
        build_model(cfg)


def test_an_unknown_data_set_stays_unknown():
    cfg = panoptic_config()
    cfg.DATASETS.TRAIN = ("test_mask_former_nowhere",)
    with pytest.raises(ValueError, match=r"test_mask_former_nowhere.*not registered"):
        build_model(cfg)
    assert "test_mask_former_nowhere" not in MetadataCatalog.list()


def test_panoptic_without_any_data_set_needs_thing_ids():
    with pytest.raises(ValueError, match="pass thing_ids"):
        build_model(panoptic_config())
    model = MaskFormer(panoptic_config(), thing_ids={1, 4})
    assert model.rules.thing_ids == frozenset({1, 4})
    ids, _ = run(model.eval(), {"image": picture_of(40, 50)})[0]["panoptic_seg"]
    assert ids.shape == (40, 50)


def test_given_thing_ids_win_over_the_data_set(things_dataset):
    cfg = panoptic_config()
    cfg.DATASETS.TRAIN = (things_dataset,)
    assert MaskFormer(cfg, thing_ids=frozenset({1})).rules.thing_ids == frozenset({1})


def test_thing_ids_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match=r"\[5, 9\].*NUM_CLASSES"):
        MaskFormer(panoptic_config(), thing_ids={0, 9, 5})


def test_without_metadata_every_class_is_an_instance(model):
    (result,) = run(model, {"image": picture_of(64, 96)})
    assert set(result["instances"].pred_classes.tolist()) == set(range(NUM_CLASSES))


# Training ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learner():
    torch.manual_seed(1)
    return build_model(tiny_config()).train()


@pytest.mark.parametrize("segments", [(2, 3), (0, 2), (0, 0), (NUM_QUERIES + 2, 1)])
def test_losses_and_gradients_are_finite_for_any_number_of_segments(learner, segments):
    learner.zero_grad()
    pictures = [training_picture(40, 60, segments[0]), training_picture(64, 50, segments[1], seed=1)]
    losses = learner(pictures)
    expected = {f"loss_{part}{layer}" for part in ("ce", "mask", "dice") for layer in ("", "_0")}
    assert set(losses) == expected
    sum(losses.values()).backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_step_against_the_gradient_lowers_the_loss():
    torch.manual_seed(2)
    model = build_model(tiny_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = [training_picture(64, 96, 3)]
    totals = []
    for _ in range(8):
        total = sum(model(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert min(totals[-3:]) < 0.9 * totals[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_under_autocast_gives_finite_float32_losses(learner, dtype):
    with torch.autocast("cpu", dtype=dtype):
        losses = learner([training_picture(64, 96, 3)])
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


def images_of(model, *pictures):
    return model.prepare_images([picture["image"] for picture in pictures])


def test_targets_are_padded_with_false(learner):
    pictures = [training_picture(40, 60, 2), training_picture(50, 33, 3)]
    targets = learner.prepare_targets(pictures, images_of(learner, *pictures))
    for picture, target in zip(pictures, targets, strict=True):
        masks = picture["instances"].gt_masks
        assert target.masks.shape == (len(masks), 64, 64)
        assert torch.equal(target.masks[:, : masks.shape[1], : masks.shape[2]], masks)
        assert target.masks.sum() == masks.sum()
        assert target.labels.dtype == torch.int64
        assert target.valid is None


def test_bit_masks_are_taken(learner):
    picture = training_picture(40, 60, 2)
    images = images_of(learner, picture)
    (expected,) = learner.prepare_targets([picture], images)
    picture["instances"].gt_masks = BitMasks(picture["instances"].gt_masks)
    (target,) = learner.prepare_targets([picture], images)
    assert torch.equal(target.masks, expected.masks)


def test_no_segments_are_bool_masks_of_the_padded_size(learner):
    picture = training_picture(40, 60, 0)
    picture["instances"].remove("gt_masks")
    (target,) = learner.prepare_targets([picture], images_of(learner, picture))
    assert target.masks.shape == (0, 64, 64)
    assert target.masks.dtype == torch.bool


def test_ignoring_void_marks_void_and_padding_as_not_valid(learner, monkeypatch):
    monkeypatch.setattr(learner, "void_is_ignored", True)
    plain, with_void = training_picture(40, 60, 2), training_picture(30, 64, 2)
    with_void["valid_mask"] = torch.ones(30, 64, dtype=torch.bool)
    with_void["valid_mask"][3, 5] = False
    images = images_of(learner, plain, with_void)
    first, second = learner.prepare_targets([plain, with_void], images)
    assert first.valid[:40, :60].all()
    assert first.valid.sum() == 40 * 60
    assert not second.valid[3, 5]
    assert second.valid.sum() == 30 * 64 - 1


def test_void_as_background_pays_no_attention_to_the_valid_mask(learner):
    picture = training_picture(40, 60, 2) | {"valid_mask": torch.zeros(40, 60, dtype=torch.bool)}
    (target,) = learner.prepare_targets([picture], images_of(learner, picture))
    assert target.valid is None


def test_training_with_void_ignored_does_not_see_the_padding():
    # With void ignored, marking more padding as void must change nothing; as background it would.
    cfg = tiny_config(VOID_IN_LOSS="ignore")
    torch.manual_seed(3)
    model = build_model(cfg).train()
    picture = training_picture(64, 96, 2)
    picture["valid_mask"] = torch.ones(64, 96, dtype=torch.bool)
    picture["valid_mask"][:, 60:] = False
    changed = training_picture(64, 96, 2)
    changed["valid_mask"] = picture["valid_mask"]
    changed["instances"].gt_masks[:, :, 60:] = ~changed["instances"].gt_masks[:, :, 60:]
    first, second = model([picture]), model([changed])
    for name in first:
        assert first[name].item() == pytest.approx(second[name].item(), rel=1e-5), name


def test_an_unknown_choice_for_void_is_refused():
    with pytest.raises(ValueError, match=r"VOID_IN_LOSS is 'maybe'.*'background' or 'ignore'"):
        build_model(tiny_config(VOID_IN_LOSS="maybe"))


def test_a_batch_without_instances_names_the_mapper_key(learner):
    with pytest.raises(KeyError, match=r"street\.png.*INPUT\.DATASET_MAPPER_NAME"):
        learner([{"image": picture_of(40, 60), "file_name": "street.png"}])


def test_instances_without_masks_are_refused(learner):
    picture = training_picture(40, 60, 2)
    picture["instances"].remove("gt_masks")
    with pytest.raises(KeyError, match="gt_masks"):
        learner([picture])


def test_masks_of_another_size_than_the_picture_are_refused(learner):
    picture = training_picture(40, 60, 2)
    picture["image"] = picture_of(41, 60)
    with pytest.raises(ValueError, match="must transform both alike"):
        learner([picture])


def test_polygons_are_refused_with_the_key_to_change(learner):
    picture = training_picture(40, 60, 1)
    picture["instances"].gt_masks = PolygonMasks([[[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]])
    with pytest.raises(TypeError, match=r"INPUT\.MASK_FORMAT"):
        learner([picture])


# Checkpoints ------------------------------------------------------------------------------------------


def published_entries(model, old_names, with_metadata):
    """A state dict as files have it: new or old names under the head, `criterion.empty_weight`."""
    state = model.state_dict()
    metadata = state._metadata
    if old_names:
        state = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): t for name, t in state.items()}
    entries = type(model.state_dict())(state)
    entries["criterion.empty_weight"] = torch.ones(NUM_CLASSES + 1)
    if with_metadata:
        entries._metadata = metadata
        if old_names:
            entries._metadata["sem_seg_head"] = {"version": 1}
    return entries


def other_model():
    torch.manual_seed(99)
    return build_model(tiny_config(TEST__INSTANCE_ON=True)).eval()


def assert_same_weights(model, other):
    for (name, expected), found in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(expected, found), name


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("kind", ["pth", "pkl", "heuristics"])
def test_files_of_both_layouts_load_through_detectron2_without_complaint(
    model, old_names, kind, tmp_path, caplog
):
    entries = published_entries(model, old_names, with_metadata=kind == "pth")
    if kind == "pth":
        path = tmp_path / "model.pth"
        torch.save({"model": entries}, path)
    else:
        path = tmp_path / "model.pkl"
        content = {"model": {name: t.numpy() for name, t in entries.items()}, "__author__": "test"}
        if kind == "heuristics":
            content["matching_heuristics"] = True
        path.write_bytes(pickle.dumps(content))
    other = other_model()
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(other).load(str(path))
    assert_same_weights(model, other)
    assert caplog.text == ""


def test_pixel_statistics_are_not_in_the_state_dict(model):
    assert not [name for name in model.state_dict() if "pixel_mean" in name or "pixel_std" in name]


# GPU --------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_network_does_not_wait_for_the_device(model):
    images = ImageList.from_tensors([model.normalize(picture_of(64, 96))], 32).tensor.cuda()
    on_gpu = other_model().cuda()
    with torch.no_grad():
        on_gpu.predict(images)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            on_gpu.predict(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_results_on_the_gpu_equal_those_of_the_cpu(model):
    picture = {"image": picture_of(60, 90), "height": 100, "width": 80}
    (expected,) = run(model, picture)
    on_gpu = other_model()
    on_gpu.load_state_dict(model.state_dict())
    (found,) = run(on_gpu.cuda(), picture)
    # TensorFloat-32 in convolutions: ten bits.
    assert torch.allclose(found["sem_seg"].cpu(), expected["sem_seg"], atol=2e-2)
