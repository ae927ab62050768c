"""Checkpoints are written whole, say what they are, and are loaded with one report of what did not fit."""

import logging
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_predictors
import tiny_runs
import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tiny_models import NUM_CLASSES, TINY, tiny_config

import mask_former  # noqa: F401  (fills the registries)
from mask_former.checkpoint import Checkpointer, describe, described_config, flat_metrics, read_checkpoint
from mask_former.checkpoint.fitting import fit_weights, resized_bias_table
from mask_former.config import load_config
from mask_former.engine import Trainer
from mask_former.prediction.predictor import Predictor

TESTS = Path(__file__).resolve().parent
CLASSES = ["wall", "sky", "tree", "car", "dog"]


def model(seed=0, **changes):
    torch.manual_seed(seed)
    return build_model(tiny_config(**changes))


def config(**keys):
    cfg = tiny_config()
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def built(seed=1, **keys):
    torch.manual_seed(seed)
    return build_model(config(**keys))


def swin(seed=0, window=7):
    return built(
        seed,
        MODEL__BACKBONE__NAME="D2SwinTransformer",
        MODEL__SWIN__EMBED_DIM=12,
        MODEL__SWIN__DEPTHS=[1, 1, 2, 1],
        MODEL__SWIN__NUM_HEADS=[1, 2, 2, 3],
        MODEL__SWIN__WINDOW_SIZE=window,
    )


def state_of(some_model):
    return {name: value.clone() for name, value in some_model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def backbone_of(some_model):
    state = some_model.state_dict()
    return {
        name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")
    }


def load(file, into, match_class_names=False, **options):
    checkpointer = Checkpointer(into, **options)
    checkpointer.load(str(file), match_class_names=match_class_names)
    return checkpointer.report


def write_pickle(file, state, **extra):
    content = {
        "model": {name: value.numpy() for name, value in state.items()},
        "__author__": "someone",
        **extra,
    }
    file.write_bytes(pickle.dumps(content))


def test_what_is_saved_is_loaded_with_what_else_it_holds(tmp_path):
    source, target = model(0), model(1)
    optimizer = torch.optim.AdamW(source.parameters())
    Checkpointer(source, str(tmp_path), optimizer=optimizer).save("model_0003", iteration=3)
    checkpointer = Checkpointer(target, str(tmp_path), optimizer=torch.optim.AdamW(target.parameters()))
    assert checkpointer.resume_or_load("nothing.pth", resume=True)["iteration"] == 3
    assert_same(source.state_dict(), target.state_dict())
    assert checkpointer.report.is_complete
    assert checkpointer.report.loaded == checkpointer.report.expected == len(source.state_dict())


def test_a_checkpoint_describes_itself_in_plain_values(tmp_path):
    shapes = SimpleNamespace(
        stuff_classes=CLASSES,
        stuff_colors=[(1, 2, 3)] * NUM_CLASSES,
        thing_dataset_id_to_contiguous_id={7: 3, 9: 4},
        ignore_label=65,
    )
    metrics = {"panoptic_seg": {"PQ": np.float64(41.5)}}
    metadata = describe(tiny_config(), shapes, metrics=metrics, licence="CC BY 4.0")
    Checkpointer(model(), str(tmp_path), metadata=metadata).save("m", iteration=12)
    found = torch.load(tmp_path / "m.pth", weights_only=True)["metadata"]
    assert found["class_names"] == CLASSES
    assert found["class_colors"][0] == [1, 2, 3]
    assert (found["thing_classes"], found["ignore_value"], found["iteration"]) == ([3, 4], 65, 12)
    assert found["metrics"] == {"panoptic_seg/PQ": 41.5}
    assert found["license"] == "CC BY 4.0"
    cfg = described_config(found)
    assert TINY["MODEL.PIXEL_MEAN"] == cfg.MODEL.PIXEL_MEAN
    assert yaml.safe_load(cfg.dump()) == yaml.safe_load(tiny_config().dump())


def test_class_names_of_split_catalogs_are_joined():
    split = SimpleNamespace(thing_classes=CLASSES[:2], stuff_classes=CLASSES[2:])
    assert describe(tiny_config(), split)["class_names"] == CLASSES
    assert describe(tiny_config(), None)["class_names"] == []


def test_metrics_are_flattened_to_numbers():
    assert flat_metrics({"sem_seg": {"mIoU": np.float32(2)}, "loss": 1, "note": "x"}) == {
        "sem_seg/mIoU": 2.0,
        "loss": 1.0,
    }


def test_safetensors_hold_weights_and_metadata(tmp_path):
    source, target = model(0), model(1)
    metadata = describe(tiny_config())
    Checkpointer(source, metadata=metadata).save_weights(tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors", target, strict=True).is_complete
    assert_same(source.state_dict(), target.state_dict())
    assert read_checkpoint(tmp_path / "m.safetensors")["metadata"] == metadata


def test_weights_alone_are_saved_without_training_state(tmp_path):
    source = model()
    checkpointer = Checkpointer(
        source, metadata=describe(tiny_config()), optimizer=torch.optim.SGD(source.parameters())
    )
    checkpointer.save_weights(tmp_path / "m.pth")
    assert read_checkpoint(tmp_path / "m.pth").keys() == {"model", "metadata"}


# Early releases keep the pixel decoder's entries under the head itself; both forms with and without the
# versions of modules that torch keeps.
@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("with_versions", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_both_published_layouts_load_completely(tmp_path, layout, with_versions, suffix):
    source, target = model(0), model(1)
    state = source.state_dict()
    written = type(state)(
        (name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.") if layout == "old" else name, value)
        for name, value in state.items()
    )
    if with_versions:
        written._metadata = state._metadata
        for versions in written._metadata.values():
            if layout == "old":
                versions.pop("version", None)
    written["criterion.empty_weight"] = torch.tensor([1.0] * NUM_CLASSES + [0.1])
    written["pixel_mean"] = torch.zeros(3, 1, 1)
    file = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save({"model": written}, file)
    else:
        write_pickle(file, written)
    report = load(file, target, strict=True)
    assert_same(state, target.state_dict())
    assert report.loaded == len(state)
    assert report.groups == ()
    renamed = sum("pixel_decoder." in name for name in state)
    assert report.renamed == (renamed if layout == "old" else 0)


def published_entries(contract):
    """Return the names and shapes of a published model, in early names, with numbers drawn for them."""
    state = {}
    for line in contract.read_text().splitlines():
        if found := re.fullmatch(r"(\S+) \((.*)\) (\w+)", line):
            shape = [int(size) for size in found[2].split(",") if size.strip()]
            dtype = getattr(torch, found[3])
            drawn = torch.rand(shape) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
            state[found[1].replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")] = drawn
    return state


@pytest.mark.parametrize(
    "name",
    [
        "ade20k-150/maskformer_R50_bs16_160k",
        "coco-panoptic/maskformer_panoptic_R50_bs64_554k",
        "coco-panoptic/swin/maskformer_panoptic_swin_tiny_bs64_554k",
        "ade20k-150/per_pixel_baseline_R50_bs16_160k",
        "ade20k-150/per_pixel_baseline_plus_R50_bs16_160k",
    ],
)
def test_files_of_the_published_contracts_load_completely(tmp_path, name):
    torch.manual_seed(0)
    state = published_entries(TESTS / "parameter_names" / f"{name.replace('/', '__')}.txt")
    write_pickle(tmp_path / "model_final.pkl", state)
    cfg = load_config(TESTS.parent / "configs" / f"{name}.yaml", ["MODEL.DEVICE", "cpu"])
    target = build_model(cfg)
    report = load(tmp_path / "model_final.pkl", target, strict=True)
    assert report.loaded == report.expected
    assert report.renamed > 20
    for own, value in target.state_dict().items():
        early = own.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")
        if not own.endswith("relative_position_index"):
            assert torch.equal(value, state[early]), own


def test_the_wrapper_of_several_processes_leaves_no_trace(tmp_path):
    source, target = model(0), model(1)
    torch.save({f"module.{name}": value for name, value in source.state_dict().items()}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth", target).is_complete
    assert_same(source.state_dict(), target.state_dict())


def test_backbone_files_find_their_place_and_their_classifier_is_no_complaint(tmp_path):
    source, target = model(0), model(1)
    state = {**backbone_of(source), "stem.fc.weight": torch.zeros(9, 4), "stem.fc.bias": torch.zeros(9)}
    write_pickle(tmp_path / "R-18.pkl", state, matching_heuristics=True)
    head = {name: value for name, value in state_of(target).items() if not name.startswith("backbone.")}
    report = load(tmp_path / "R-18.pkl", target)
    assert_same(backbone_of(source), backbone_of(target))
    assert_same(head, {name: target.state_dict()[name] for name in head})
    assert report.prefix == "backbone."
    assert report.loaded == len(backbone_of(source))
    assert set(report.named("re-initialised")) == set(head)
    (unused,) = [group for group in report.groups if group.fate == "unused"]
    assert set(unused.names) == {"stem.fc.weight", "stem.fc.bias"}
    assert "classifier of the pre-training, not needed" in unused.why
    assert not unused.is_fault


def test_the_stray_norm_of_swin_files_goes_nowhere(tmp_path):
    source, target = swin(0), swin(1)
    state = {name: value for name, value in backbone_of(source).items() if not name.startswith("norm")}
    before = state_of(target)
    # 96 is the width of the last map here, of a head's norm elsewhere: any suffix would match something.
    state |= {"norm.weight": torch.full((96,), 5.0), "norm.bias": torch.full((96,), 5.0)}
    state["layers.0.blocks.0.attn_mask"] = torch.zeros(4, 49, 49)
    torch.save({"model": state}, tmp_path / "swin.pth")
    report = load(tmp_path / "swin.pth", target)
    after = target.state_dict()
    assert torch.equal(
        after["backbone.layers.2.blocks.1.mlp.fc1.weight"],
        source.state_dict()["backbone.layers.2.blocks.1.mlp.fc1.weight"],
    )
    untouched = [name for name in before if name.startswith(("backbone.norm", "sem_seg_head."))]
    assert_same({name: before[name] for name in untouched}, {name: after[name] for name in untouched})
    assert set(report.named("unused")) == {"norm.weight", "norm.bias"}


def test_caffe2_files_are_still_translated(tmp_path):
    target = model()
    blobs = {"conv1_w": torch.full((64, 3, 7, 7), 0.5), "res_conv1_bn_s": torch.full((64,), 3.0)}
    (tmp_path / "c2.pkl").write_bytes(
        pickle.dumps({"blobs": {name: blob.numpy() for name, blob in blobs.items()}})
    )
    report = load(tmp_path / "c2.pkl", target)
    assert report.loaded == 2
    assert torch.equal(target.backbone.stem.conv1.weight, blobs["conv1_w"])
    assert torch.equal(target.backbone.stem.conv1.norm.weight, blobs["res_conv1_bn_s"])


def test_a_missing_and_a_strange_entry_are_reported_and_strict_refuses_them(tmp_path):
    source, target = model(0), model(1)
    state = state_of(source)
    removed = state.pop("sem_seg_head.predictor.class_embed.bias")
    state["sem_seg_head.predictor.extra"] = torch.zeros(2)
    state["sem_seg_head.predictor.mask_embed.layers.0.bias"] = torch.zeros(99)
    torch.save({"model": state}, tmp_path / "m.pth")
    before = state_of(target)
    with pytest.raises(ValueError, match=r"strict.*\n(.*\n)*.*class_embed\.bias - not in the file"):
        load(tmp_path / "m.pth", target, strict=True)
    assert_same(before, target.state_dict())
    report = load(tmp_path / "m.pth", target)
    assert set(report.named("re-initialised")) == {
        "sem_seg_head.predictor.class_embed.bias",
        "sem_seg_head.predictor.mask_embed.layers.0.bias",
    }
    assert report.named("unused") == ["sem_seg_head.predictor.extra"]
    assert "shape (99,) in the file, (32,) in the model" in str(report)
    after = target.state_dict()["sem_seg_head.predictor.class_embed.bias"]
    assert torch.equal(after, before["sem_seg_head.predictor.class_embed.bias"])
    assert not torch.equal(after, removed)


def test_frozen_entries_that_are_missing_are_told_apart(tmp_path):
    source, target = model(0), built(MODEL__BACKBONE__FREEZE_AT=2)
    state = {name: value for name, value in state_of(source).items() if not name.startswith("backbone.stem.")}
    torch.save({"model": state}, tmp_path / "m.pth")
    report = load(tmp_path / "m.pth", target)
    frozen = [group for group in report.groups if "frozen by the config" in group.why]
    assert [group.names for group in frozen] == [("backbone.stem.conv1.weight",)]
    assert "MODEL.BACKBONE.FREEZE_AT" in frozen[0].action


def test_the_report_is_a_few_lines_however_much_did_not_fit(tmp_path, caplog):
    torch.save({"model": model(0).state_dict()}, tmp_path / "m.pth")
    with caplog.at_level(logging.INFO):
        load(tmp_path / "m.pth", built(MODEL__RESNETS__DEPTH=50, MODEL__RESNETS__RES2_OUT_CHANNELS=256))
    (record,) = [record for record in caplog.records if record.name == "mask_former.checkpoint.fitting"]
    assert record.levelname == "WARNING"
    lines = record.getMessage().splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) < 400


def test_a_file_of_which_nothing_fits_is_an_error(tmp_path):
    torch.save({"model": {"encoder.weight": torch.zeros(3)}}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"none of its 1 entries fits.*mask_former\.convert"):
        load(tmp_path / "m.pth", model())


@pytest.mark.parametrize("resume", [True, False])
def test_all_rows_are_loaded_as_they_are_to_evaluate_and_to_resume(tmp_path, resume, caplog):
    source, target = model(0), model(1)
    Checkpointer(source, str(tmp_path), metadata={"class_names": CLASSES}).save("m")
    checkpointer = Checkpointer(target, str(tmp_path), metadata={"class_names": ["a", "b", "c", "d", "wall"]})
    checkpointer.resume_or_load(str(tmp_path / "m.pth"), resume=resume)
    assert_same(source.state_dict(), target.state_dict())
    assert checkpointer.report.is_complete
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "names its classes wall, sky, tree, car and 1 more, the data set a, b, c, d and 1 more" in warning


def test_training_from_weights_carries_rows_by_name(tmp_path):
    cfg = tiny_runs.tiny_config(tmp_path)
    (tmp_path / "output").mkdir()
    names = [*MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes]
    trainer = Trainer(cfg)
    trainer.checkpointer.metadata["class_names"] = names[::-1]
    trainer.checkpointer.save("other")
    rows = trainer.model.state_dict()["sem_seg_head.predictor.class_embed.weight"].clone()
    cfg.MODEL.WEIGHTS = str(tmp_path / "output" / "other.pth")
    second = Trainer(cfg)
    second.resume_or_load(resume=False)
    assert names != names[::-1]
    carried = second.model.state_dict()["sem_seg_head.predictor.class_embed.weight"]
    assert torch.equal(carried[:-1], rows[:-1].flip(0))


def test_a_description_is_of_the_model_and_not_of_the_machine(tmp_path, monkeypatch):
    cfg = config(OUTPUT_DIR="/home/me/run", MODEL__WEIGHTS="/home/me/R-18.pkl")
    text = describe(cfg)["config"]
    assert cfg.MODEL.DEVICE == "cpu"
    assert not [key for key in ("DEVICE", "OUTPUT_DIR", "/home/me") if key in text]
    # Files of earlier versions have these keys; on a machine with a GPU the model is built there.
    early = {"config": cfg.dump()}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for metadata in (early, describe(cfg)):
        assert described_config(metadata).MODEL.DEVICE == "cuda"
        assert described_config(metadata).MODEL.WEIGHTS == load_config().MODEL.WEIGHTS
        assert described_config(metadata).MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 7


def test_a_description_of_a_newer_version_is_refused():
    metadata = {**describe(tiny_config()), "format": 2}
    with pytest.raises(ValueError, match="newer version of mask_former: update it"):
        described_config(metadata)


def test_every_field_of_a_description_is_read():
    readers = "".join(file.read_text() for file in (TESTS.parent / "mask_former").rglob("*.py"))
    for field in describe(tiny_config()):
        assert re.search(rf"""(get\(|\[|: str = |DATASET_IDS = )"{field}\"""", readers), field


def test_names_that_end_like_caffe2s_are_loaded_as_they_are(tmp_path):
    own = torch.nn.Module()
    own.attn = torch.nn.Module()
    own.attn.rel_pos_w = torch.nn.Parameter(torch.zeros(3))
    torch.save({"attn.rel_pos_w": torch.ones(3)}, tmp_path / "sam.pth")
    assert load(tmp_path / "sam.pth", own).is_complete
    assert own.attn.rel_pos_w.tolist() == [1, 1, 1]
    assert "__author__" not in read_checkpoint(tmp_path / "sam.pth")


@pytest.mark.parametrize("new", [["car", "cat", "wall"], ["dog", "car", "tree", "sky", "wall"]])
def test_class_rows_follow_their_names(tmp_path, new):
    source, target = model(0), built(MODEL__SEM_SEG_HEAD__NUM_CLASSES=len(new))
    Checkpointer(source, str(tmp_path), metadata={"class_names": CLASSES}).save("m")
    before = state_of(target)
    report = load(tmp_path / "m.pth", target, metadata={"class_names": new}, match_class_names=True)
    for part in ("weight", "bias"):
        name = f"sem_seg_head.predictor.class_embed.{part}"
        old, own, found = source.state_dict()[name], before[name], target.state_dict()[name]
        for row, label in enumerate(new):
            expected = old[CLASSES.index(label)] if label in CLASSES else own[row]
            assert torch.equal(found[row], expected), label
        assert torch.equal(found[-1], old[-1])  # "no object" stays "no object"
    assert len(report.named("adapted")) == 2
    assert report.named("re-initialised") == []
    assert ("cat" in str(report)) == ("cat" in new)


def test_rows_of_both_baselines_follow_class_names(tmp_path):
    for head, entry in (
        ("PerPixelBaselineHead", "weight"),
        ("PerPixelBaselinePlusHead", "query_embed.weight"),
    ):
        keys = {"MODEL__META_ARCHITECTURE": "SemanticSegmentor", "MODEL__SEM_SEG_HEAD__NAME": head}
        source = built(0, MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=5, **keys)
        target = built(
            1, MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=2, MODEL__SEM_SEG_HEAD__NUM_CLASSES=2, **keys
        )
        Checkpointer(source, str(tmp_path), metadata={"class_names": CLASSES}).save("m")
        before = state_of(target)
        load(tmp_path / "m.pth", target, metadata={"class_names": ["boat", "tree"]}, match_class_names=True)
        name = f"sem_seg_head.predictor.{entry}"
        assert torch.equal(target.state_dict()[name][1], source.state_dict()[name][2])
        assert torch.equal(target.state_dict()[name][0], before[name][0])


def test_without_class_names_another_number_of_classes_is_drawn_anew(tmp_path):
    torch.save({"model": model(0).state_dict()}, tmp_path / "m.pth")
    report = load(
        tmp_path / "m.pth",
        built(MODEL__SEM_SEG_HEAD__NUM_CLASSES=3),
        metadata={"class_names": ["a", "b", "c"]},
        match_class_names=True,
    )
    assert len(report.named("re-initialised")) == 2
    assert "6 class rows in the file, 4 in the model, and the class names of one side are not known" in str(
        report
    )


@pytest.mark.parametrize("queries", [4, 11])
def test_another_number_of_queries_keeps_the_common_ones(tmp_path, queries):
    source, target = model(0), model(1, NUM_OBJECT_QUERIES=queries)
    torch.save({"model": source.state_dict()}, tmp_path / "m.pth")
    name, before = "sem_seg_head.predictor.query_embed.weight", state_of(target)
    report = load(tmp_path / "m.pth", target)
    common = min(queries, 7)
    assert torch.equal(target.state_dict()[name][:common], source.state_dict()[name][:common])
    assert torch.equal(target.state_dict()[name][common:], before[name][common:])
    assert report.named("adapted") == [name]


def test_swin_tables_are_resized_for_another_window(tmp_path):
    source, target = swin(0, window=7), swin(1, window=5)
    torch.save({"model": source.state_dict()}, tmp_path / "m.pth")
    report = load(tmp_path / "m.pth", target)
    tables = [name for name in source.state_dict() if name.endswith("relative_position_bias_table")]
    assert sorted(report.named("adapted")) == sorted(tables)
    assert report.named("re-initialised") == report.named("unused") == []
    assert target.backbone.layers[0].blocks[0].attn.relative_position_index.shape == (25, 25)


def test_resized_tables_keep_the_sign_and_order_of_offsets():
    rows, columns = torch.meshgrid(torch.arange(-6.0, 7), torch.arange(-6.0, 7), indexing="ij")
    table = torch.stack([rows.flatten(), 3 + columns.flatten()], dim=1)
    resized = resized_bias_table(table, 23**2).reshape(23, 23, 2)
    torch.testing.assert_close(resized[11, 11], torch.tensor([0.0, 3.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(resized[:, :, 0], -resized[:, :, 0].flip(0), atol=1e-5, rtol=0)
    assert (resized[:, :, 0].diff(dim=0) > 0).all()
    assert (resized[:, :, 1].diff(dim=1) > 0).all()
    assert resized_bias_table(table, 13**2).equal(table)


def test_fitting_does_not_touch_the_model():
    source, target = model(0), model(1)
    before = state_of(target)
    fit_weights(source.state_dict(), target, source="here")
    assert_same(before, target.state_dict())


def test_half_precision_files_load_into_a_float_model(tmp_path):
    target = model(1)
    torch.save({name: value.half() for name, value in model(0).state_dict().items()}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth", target).is_complete
    assert next(target.parameters()).dtype == torch.float32


def test_code_in_a_checkpoint_is_refused_and_the_flag_lets_it_in(tmp_path):
    content = {
        "model": {n: v.numpy() for n, v in model(0).state_dict().items()},
        "__author__": "x",
        "tag": print,
    }
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"m\.pkl names 'builtins\.print'"):
        load(tmp_path / "m.pkl", model(1))
    assert load(tmp_path / "m.pkl", model(1), allow_unsafe=True).is_complete


def test_a_configuration_that_grows_without_end_is_refused():
    doubling = "a0: &a0 {x: 1}\n" + "".join(
        f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 40)
    )
    with pytest.raises(ValueError, match="over 100000 values"):
        described_config({"config": doubling})
    with pytest.raises(ValueError, match="no YAML"):
        described_config({"config": "!!python/object/apply:os.getcwd []"})
    assert described_config({"config": tiny_config().dump()}).MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 7
    assert described_config({}) is None


def test_metadata_that_grow_without_end_are_refused(tmp_path):
    tree = [1]
    for _ in range(60):
        tree = [tree, tree]
    torch.save({"model": {"a": torch.zeros(2)}, "metadata": {"tree": tree}}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"m\.pth has over 100000 values"):
        read_checkpoint(tmp_path / "m.pth")


@pytest.mark.parametrize("names", [7, {"a": 1}, [1, 2, 3, 4, 5], "wall!"])
def test_class_names_of_another_kind_are_not_used(tmp_path, names):
    source, target = model(0), model(1)
    torch.save({"model": source.state_dict(), "metadata": {"class_names": names}}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth", target, metadata={"class_names": CLASSES}).is_complete


# One process that imports everything once, and whose children write until they are killed.
KILL_WRITERS = """
import os, random, signal, sys, time, torch
from pathlib import Path
from mask_former.checkpoint.checkpointer import save_torch
file, draws = Path(sys.argv[1]), random.Random(5)
def content(number):
    return {"number": number, "data": torch.full((300_000,), float(number))}
save_torch(content(0), file)
for kill in range(20):
    number = torch.load(file)["number"]
    child = os.fork()
    while child == 0:
        number += 1
        save_torch(content(number), file)
    time.sleep(draws.uniform(0.005, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = torch.load(file)
    whole = found["data"].shape == (300_000,) and bool((found["data"] == found["number"]).all())
    print(found["number"] - number, whole, len(list(file.parent.glob(".*.partial"))))
"""


def test_killing_the_writer_at_any_moment_leaves_a_whole_file(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", KILL_WRITERS, str(tmp_path / "model.pth")]
    lines = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120
    ).stdout.splitlines()
    rows = [line.split() for line in lines]
    assert len(rows) == 20
    assert [whole for _, whole, _ in rows] == ["True"] * 20
    assert all(int(written) >= 0 for written, _, _ in rows)
    assert int(rows[-1][0]) + int(rows[-2][0]) + int(rows[-3][0]) > 0  # writers did write
    assert int(rows[-1][2]) > 3  # and some were killed in the middle of it


@pytest.mark.parametrize("door", ["from_checkpoint", "from_config"])
def test_a_predictor_reads_its_file_once(tmp_path, door):
    file = small_predictors.write_checkpoint(tmp_path)
    loads = []

    def profile(frame, event, _):
        if event == "call" and frame.f_code is torch.load.__code__:
            loads.append(frame.f_locals["f"])

    sys.setprofile(profile)
    try:
        if door == "from_checkpoint":
            Predictor.from_checkpoint(file)
        else:
            Predictor.from_config(small_predictors.small_config(), file)
    finally:
        sys.setprofile(None)
    assert len(loads) == 1
