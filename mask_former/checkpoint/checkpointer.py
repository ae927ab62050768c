"""The checkpointer of every entry point: Detectron2's, with safe reading, a report, and atomic writing."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import save_file
from torch import Tensor, nn

from mask_former.checkpoint.description import class_names_of
from mask_former.checkpoint.fitting import LoadReport, load_weights
from mask_former.checkpoint.locating import resolve
from mask_former.checkpoint.reading import METADATA_KEY, DamagedFileError, UnsafeFileError, read_checkpoint
from mask_former.formats import replacing


def save_torch(data: Mapping[str, Any], file: Path) -> None:
    """Write anything that `torch.save` can write, atomically."""
    with replacing(file) as partial:
        torch.save(data, partial)


def save_safetensors(
    state: Mapping[str, Tensor], file: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write weights atomically, and metadata as JSON under one key of the header."""
    # The format holds no views into shared memory.
    tensors = {name: value.detach().contiguous().clone() for name, value in state.items()}
    header = {} if metadata is None else {METADATA_KEY: json.dumps(metadata)}
    with replacing(file) as partial:
        save_file(tensors, str(partial), {"format": "pt", **header})


def last_in(folder: str | Path) -> str:
    """Return the file name that `last_checkpoint` holds, empty if there is none."""
    try:
        name = (Path(folder) / "last_checkpoint").read_text().strip()
    except (OSError, ValueError):
        return ""
    return name if name.isprintable() and Path(name).name == name else ""


def checkpoints_in(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a run, whole or not: the last by name, then all others, newest first."""
    folder, last = Path(folder), last_in(folder)
    files = [file for file in folder.glob("model_*.pth") if file.name != last]
    files.sort(key=lambda file: file.lstat().st_mtime_ns, reverse=True)
    return [folder / last, *files] if last else files


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with safe reading, a report, and self-describing files written atomically.

    Attributes:
        metadata: what is written beside the weights; entries may be changed at any time.
        report: the result of the last loading, None before.
        saving: a context that `save` enters, such as that of other weights.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
        strict: bool = False,
        allow_unsafe: bool = False,
        **checkpointables: Any,
    ) -> None:
        """Prepare to load and save.

        Args:
            model: the model, wrapped for several processes or not.
            save_dir: folder of the checkpoints.
            save_to_disk: by default, only the main process writes.
            metadata: see `describe`.
            strict: raise ValueError unless the model then holds the file's weights, all of them.
            allow_unsafe: read pickles without restriction, which runs whatever code a file names.
            checkpointables: what else is saved and resumed: objects with `state_dict` and `load_state_dict`.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.strict = strict
        self.allow_unsafe = allow_unsafe
        self.report: LoadReport | None = None
        self.saving: Callable[[], AbstractContextManager[None]] = nullcontext
        self._source = ""
        self._match_class_names = False
        self._is_resuming = False
        self._checkpoint: dict[str, Any] | None = None  # read already

    def load(self, path: str, *args: Any, match_class_names: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Load a file by path, URL or `detectron2://` name, and return what it holds besides the weights.

        Args:
            path: empty: nothing is loaded.
            args: as Detectron2's, and kwargs, too.
            match_class_names: carry classifier rows over by class name, for training on another class list.
        """
        self._match_class_names = match_class_names
        return super().load(str(resolve(path)) if path else path, *args, **kwargs)

    def has_checkpoint(self) -> bool:
        """Return whether the folder holds checkpoints, whatever their state."""
        return bool(checkpoints_in(self.save_dir))

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the last checkpoint, or from the newest whole one; without any, load `path`.

        Raises ValueError if there are checkpoints, but none is whole.
        """
        files = checkpoints_in(self.save_dir) if resume else []
        if not files:
            return self.load(path, checkpointables=[])
        reasons = [] if last_in(self.save_dir) else [f"{self.save_dir}/last_checkpoint names no checkpoint."]
        for file in files:
            try:
                self._checkpoint = self._resumable(file)
                self._is_resuming = bool(self.checkpointables)
            except (DamagedFileError, UnsafeFileError, OSError) as error:
                reasons.append(str(error))
                continue
            for reason in reasons:
                self.logger.warning("Resuming from %s instead: %s", file.name, reason)
            return self.load(str(file))
        raise ValueError(
            f"Cannot resume: none of the {len(files)} checkpoints in {self.save_dir} is whole. Start anew "
            f"with --overwrite or in another OUTPUT_DIR. The last one: {reasons[0]}"
        )

    def _resumable(self, file: Path) -> dict[str, Any]:
        """Return the content of a checkpoint; an error unless it holds all that is to be resumed."""
        checkpoint = read_checkpoint(file, self.allow_unsafe)
        missing = [key for key in self.checkpointables if key not in checkpoint]
        if missing:
            raise DamagedFileError(f"{file} holds no {', '.join(missing)}, so that no run can go on from it.")
        return checkpoint

    def save(self, name: str, tag_last: bool = True, **extra: Any) -> None:
        """Write `name`.pth: the model, everything that is to be resumed, the metadata and `extra`.

        With `tag_last`, a resumed run starts from this file. Raises FloatingPointError, and writes nothing,
        if a weight is not finite.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        file = Path(self.save_dir) / f"{name}.pth"
        with self.saving():
            self._refuse_not_finite(name)
            states = {key: item.state_dict() for key, item in self.checkpointables.items()}
            progress = {"iteration": int(extra["iteration"])} if "iteration" in extra else {}
            data = {"model": self.model.state_dict(), **states, **extra, **self._described(**progress)}
            self.logger.info("Saving checkpoint to %s", file)
            save_torch(data, file)
        if tag_last:
            self.tag_last_checkpoint(file.name)

    def _refuse_not_finite(self, name: str) -> None:
        state = {key: value for key, value in self.model.state_dict().items() if value.is_floating_point()}
        weights = {key for key, _ in self.model.named_parameters()}  # a buffer may be a mask with -inf
        faults = [~v.isfinite().all() if key in weights else v.isnan().any() for key, v in state.items()]
        # One transfer for all: a wait for the device each would take longer.
        bad = [key for key, is_bad in zip(state, torch.stack(faults).tolist(), strict=True) if is_bad]
        if bad:
            raise FloatingPointError(
                f"{name} is not saved: {len(bad)} of {len(state)} weights are not finite, first {bad[0]}. "
                "--resume goes on from the last checkpoint; lower SOLVER.BASE_LR."
            )

    def save_weights(self, file: str | Path) -> None:
        """Write the weights and the metadata alone, as .safetensors or .pth by the file's name."""
        file = Path(file)
        state = self.model.state_dict()
        if file.suffix == ".safetensors":
            save_safetensors(state, file, self.metadata)
        else:
            save_torch({"model": state, **self._described()}, file)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make `--resume` start from this file of the folder."""
        with replacing(Path(self.save_dir) / "last_checkpoint") as partial:
            partial.write_text(last_filename_basename)

    def _described(self, **progress: int) -> dict[str, Any]:
        return {"metadata": {**self.metadata, **progress}} if self.metadata else {}

    def _load_file(self, filename: str) -> dict[str, Any]:
        self._source = filename
        checkpoint, self._checkpoint = self._checkpoint, None
        return checkpoint or read_checkpoint(filename, self.allow_unsafe)

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        self.report = load_weights(
            self.model,
            checkpoint,
            self._source,
            class_names=class_names_of(self.metadata),
            match_class_names=self._match_class_names,
            strict=self.strict,
        )
        if self._is_resuming and not self.report.is_complete:
            raise ValueError(
                f"Cannot resume, the model is another one: {str(self.report).splitlines()[0]}. Go back to "
                "the configuration of the run (config.yaml), or start in another OUTPUT_DIR with "
                f"MODEL.WEIGHTS {self._source}, of which all that fits is loaded."
            )
        del checkpoint["model"]
