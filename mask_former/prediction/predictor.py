"""Predictions for images: `Predictor.from_checkpoint(file)(images)`.

An image gives the same result alone and in any batch, up to the last digit of its scores: padding influences
the network, so a batch holds only images that are padded to the size that each is padded to alone.
"""

import copy
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image
from torch import Tensor, nn

from mask_former import model_zoo
from mask_former.checkpoint import described_config, read_checkpoint, resolve
from mask_former.checkpoint.fitting import load_weights
from mask_former.config import load_config, merge_opts
from mask_former.inference import ResultRules
from mask_former.inference.ruled_model import QueryLogits
from mask_former.modeling.build import as_ruled, build_model
from mask_former.modeling.preparation import prepare_for_inference
from mask_former.prediction.classes import ClassTable, classes_of_dataset, described_classes
from mask_former.prediction.inputs import ErrorHandler, InputImage, PictureError, Source, load_all
from mask_former.prediction.options import option_names, refuse_unknown, rules_with_options
from mask_former.prediction.results import Result
from mask_former.prediction.values import result_fields

logger = logging.getLogger(__name__)

# Batches of images that are read ahead to find images that fit into one batch.
READ_AHEAD = 4
# Pixels that a resized image must have on each side.
MIN_SIDE = 4
# What `from_checkpoint` and its siblings take by name.
OPTIONS = (*option_names(rules_with_options), "classes", "precision")

_shown_licences: set[str] = set()


class _Prepared(NamedTuple):
    """An image as read, and as the model takes it: (C, h, w) uint8 in the channels of INPUT.FORMAT."""

    picture: InputImage
    image: Tensor


class _Request(NamedTuple):
    """The options of one call."""

    rules: ResultRules
    output_size: tuple[int, int] | None
    return_scores: bool
    return_logits: bool


class Predictor:
    """A model with its classes and rules, from images to `Result`s.

    Attributes:
        model: in evaluation mode.
        cfg: its configuration.
        classes: names, colours, things.
        rules: tasks, thresholds, classes to keep.
        metadata: that of the checkpoint, empty without any.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: CfgNode,
        classes: ClassTable,
        *,
        precision: str = "plain",
        metadata: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Wrap a model, which is put into evaluation mode; see `from_checkpoint` for the options."""
        refuse_unknown(options, option_names(rules_with_options), "Predictor")
        model = as_ruled(model)
        self.model: Any = model.eval() if precision == "plain" else prepare_for_inference(model, precision)
        self.cfg = cfg
        self.classes = classes
        self.metadata = metadata or {}
        self.rules = rules_with_options(model.rules, classes, **options)
        model.check_rules(self.rules)
        self._resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST, "choice")

    def __repr__(self) -> str:
        kind, backbone = self.cfg.MODEL.META_ARCHITECTURE, self.cfg.MODEL.BACKBONE.NAME
        names = ", ".join([*self.classes.names[:3], *(["..."] if len(self.classes) > 3 else [])])
        classes = f"{len(self.classes)} classes ({names})"
        return f"<Predictor: {kind}, {backbone}, {classes}, {' '.join(self.rules.tasks)}, {self.device}>"

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def with_rules(self, **changes: Any) -> "Predictor":
        """Return a predictor with the same model and some other rules, by the names in `ResultRules`."""
        refuse_unknown(changes, [field.name for field in fields(ResultRules)], "with_rules")
        other = copy.copy(self)
        other.rules = replace(self.rules, **changes)
        self.model.check_rules(other.rules)
        return other

    @classmethod
    def from_checkpoint(
        cls, weights: str | Path, *, device: str | None = None, opts: Sequence[str] = (), **options: Any
    ) -> "Predictor":
        """Return a predictor of a checkpoint that describes itself, as training writes them.

        Args:
            weights: a path or URL.
            opts: `[key, value, ...]` over its configuration.
            device: as "cpu" or "cuda:1"; None: a GPU where there is one and the configuration wants it.
            options: score_threshold: segments and instances at or below it are dropped (None: the
                configuration's for panoptic results, none for instances).
                mask_threshold: mask probability from which a pixel belongs to a mask; scores do not depend
                    on it. Semantic: no effect. Panoptic: the masks that overlap_threshold refers to.
                    Instance: the masks themselves.
                overlap_threshold: panoptic, see `inference.panoptic` (None: the configuration's).
                top_k: most instances of an image (None: TEST.DETECTIONS_PER_IMAGE).
                classes: names or indices that results may have; pixels of others become void.
                tasks: of "semantic", "panoptic", "instance" (None: those that the configuration switches on).
                precision: "float32" (default), which differs from the network as it is trained by rounding,
                    see `modeling.preparation`; "plain", that network; "bfloat16", faster where the device
                    has units for it; "auto", the one of them that suits the device best.
        """
        return cls._load(weights, None, device, opts, options)

    @classmethod
    def from_config(
        cls,
        config: str | Path | CfgNode,
        weights: str | Path | None = None,
        *,
        device: str | None = None,
        **options: Any,
    ) -> "Predictor":
        """Return a predictor of a configuration (file or node) and weights of any kind.

        Args:
            config: its data set defines the classes; if that is not registered, the weights' description.
            weights: a path, URL or `detectron2://` name; None: MODEL.WEIGHTS.
            device: see `from_checkpoint`.
            options: see `from_checkpoint`.
        """
        cfg = config.clone() if isinstance(config, CfgNode) else load_config(config)
        cfg.defrost()
        weights = weights or cfg.MODEL.WEIGHTS
        if not weights:
            raise ValueError("There are no weights to predict with: pass `weights`, or set MODEL.WEIGHTS.")
        return cls._load(weights, cfg, device, (), options)

    @classmethod
    def _load(
        cls,
        weights: str | Path,
        cfg: CfgNode | None,
        device: str | None,
        opts: Sequence[str],
        options: dict[str, Any],
    ) -> "Predictor":
        """Return a predictor of a weight file; `cfg` None: the configuration that the file describes."""
        options.setdefault("precision", "float32")
        if "classes" in options:
            options["classes_to_keep"] = options.pop("classes")
        # Before the file is read, which takes longer.
        refuse_unknown(options, OPTIONS, "Predictor")
        file = resolve(weights)
        checkpoint = read_checkpoint(file)
        metadata = checkpoint.get("metadata", {})
        is_described = cfg is None
        cfg = described_config(metadata, file) if cfg is None else cfg
        if cfg is None:
            raise ValueError(
                f"{file} holds weights only and does not describe its model: give the configuration, too "
                "(Predictor.from_config, --config-file); for published weights, the name in the zoo "
                "(Predictor.from_zoo)."
            )
        merge_opts(cfg, opts)
        if is_described or len(metadata.get("class_names") or ()) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
            classes = described_classes(metadata, cfg)
        else:
            classes = classes_of_dataset(cfg)
        licence = str(metadata.get("license") or "")
        if licence and licence not in _shown_licences:
            _shown_licences.add(licence)
            logger.info("Licence of the weights %s: %s", file.name, licence)
        needs_things = is_described and cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON
        model = build_model(cfg, device, classes.things if needs_things else classes.things or None)
        load_weights(model, checkpoint, str(file))
        return cls(model, cfg, classes, metadata=metadata, **options)

    @classmethod
    def from_zoo(cls, name: str, *, device: str | None = None, **options: Any) -> "Predictor":
        """Return a predictor of published weights, see `model_zoo`; options as for `from_checkpoint`."""
        cfg = model_zoo.get_config(name)
        return cls.from_config(cfg, model_zoo.weights_file(name), device=device, **options)

    def __call__(self, inputs: Source | Iterable[Source], *args: Any, **options: Any) -> list[Result]:
        """Return the results of all images, in input order; arguments as for `stream`."""
        return list(self.stream(inputs, *args, **options))

    predict = __call__

    def stream(
        self,
        inputs: Source | Iterable[Source],
        batch_size: int = 1,
        output_size: tuple[int, int] | None = None,
        return_scores: bool = False,
        return_logits: bool = False,
        top_k_queries: int | None = None,
        on_error: ErrorHandler | None = None,
        **unknown: Any,
    ) -> Iterator[Result]:
        """Yield the result of each image in input order, as soon as its batch is predicted.

        Args:
            inputs: a path of a picture or video, folder, glob pattern, address, PIL picture, array or tensor,
                or an iterable of them; see `inputs.expand` for the shapes and types of arrays.
            batch_size: maximum number of images in one batch; all of them have the same padded size.
            output_size: (height, width) of all results; None: that of each image.
            return_scores: fill `Result.scores`, (K, H, W).
            return_logits: fill `Result.logits`.
            top_k_queries: use only this many queries, those with the highest class probabilities.
            on_error: called for images that cannot be read, which are skipped; None: raise `PictureError`.
        """
        for name in unknown.keys() & OPTIONS:
            raise TypeError(f"{name} is given when the predictor is made: from_checkpoint(..., {name}=...).")
        refuse_unknown(unknown, option_names(type(self).stream), "predict")
        _check_request(batch_size, output_size, top_k_queries)
        rules = replace(self.rules, max_queries=top_k_queries)
        self.model.check_rules(rules)
        request = _Request(rules, output_size, return_scores, return_logits)
        images = self._prepared(inputs, on_error)
        # Without batches nothing is read ahead, so that a camera's images are not delayed.
        window_size = batch_size * READ_AHEAD if batch_size > 1 else 1
        while window := list(itertools.islice(images, window_size)):
            yield from self._predict_window(window, batch_size, request)

    def _prepared(
        self, inputs: Source | Iterable[Source], on_error: ErrorHandler | None
    ) -> Iterator[_Prepared]:
        for picture in load_all(inputs, on_error):
            try:
                yield _Prepared(picture, self._prepare(picture))
            except PictureError as error:
                if on_error is None:
                    raise
                on_error(error)

    def _prepare(self, picture: InputImage) -> Tensor:
        """Return (C, h, w) uint8, resized as at test time."""
        pixels = convert_PIL_to_numpy(Image.fromarray(picture.pixels), self.cfg.INPUT.FORMAT)
        transform = self._resize.get_transform(pixels)
        if min(getattr(transform, "new_h", MIN_SIDE), getattr(transform, "new_w", MIN_SIDE)) < MIN_SIDE:
            height, width = picture.pixels.shape[:2]
            raise PictureError(
                picture.name,
                f"{width}x{height} pixels (width x height) shrink to less than {MIN_SIDE} on a side under "
                "INPUT.MAX_SIZE_TEST: cut the picture, or raise that.",
            )
        resized = transform.apply_image(np.ascontiguousarray(pixels))
        return torch.from_numpy(np.require(resized.transpose(2, 0, 1), requirements=("C", "W")))

    def _predict_window(
        self, window: Sequence[_Prepared], batch_size: int, request: _Request
    ) -> Iterator[Result]:
        """Yield results in order; batches are formed of images with the same padded size."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, prepared in enumerate(window):
            groups.setdefault(self.model.padded_size(*prepared.image.shape[-2:]), []).append(index)
        results: dict[int, Result] = {}
        for indices in groups.values():
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                batch_results = self._predict_batch([window[index] for index in batch], request)
                results |= dict(zip(batch, batch_results, strict=True))
        for index in range(len(window)):
            yield results.pop(index)

    # Not inference_mode: tensors that the model caches must remain usable in training.
    @torch.no_grad()
    def _predict_batch(self, batch: Sequence[_Prepared], request: _Request) -> list[Result]:
        sizes = [request.output_size or prepared.picture.size for prepared in batch]
        inputs = [
            {"image": prepared.image, "height": height, "width": width}
            for prepared, (height, width) in zip(batch, sizes, strict=True)
        ]
        return [
            Result(
                image_name=prepared.picture.name,
                height=height,
                width=width,
                classes=self.classes,
                image=prepared.picture.pixels,
                **result_fields(logits.results(request.rules), self.classes),
                scores=logits.scores(request.rules).cpu() if request.return_scores else None,
                logits=_on_host(logits, request.rules) if request.return_logits else None,
            )
            for prepared, (height, width), logits in zip(
                batch, sizes, self.model.predict_logits(inputs), strict=True
            )
        ]


def _on_host(logits: Any, rules: ResultRules) -> QueryLogits:
    if not isinstance(logits, QueryLogits):
        raise ValueError("A per-pixel model has no queries: leave out return_logits.")
    class_logits, mask_logits, sizes = logits.strongest(rules.max_queries)
    return QueryLogits(class_logits.float().cpu(), mask_logits.float().cpu(), sizes)


def _check_request(batch_size: int, output_size: tuple[int, int] | None, top_k_queries: int | None) -> None:
    for name, value in (("batch_size", batch_size), ("top_k_queries", top_k_queries)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if output_size is not None and (len(output_size) != 2 or min(output_size) < 1):
        raise ValueError(f"output_size is {output_size}; expected (height, width), both at least 1.")
