"""Every edit that turns the sources of Detectron2 0.5 into the wheel that this project installs.

An edit names a file of the wheel, the text that stands there, the text that replaces it, how often the
old text must occur, and why. The source is pinned by its hash, so any other count is a mistake in this
list. Groups: A, needed to import or to be right; B, several processes without a GPU; C, warnings of
today's libraries and small errors of 0.5.
"""

from collections import namedtuple

Edit = namedtuple("Edit", "file old new count why")

_GUARDED_EXTENSION = """try:
    from detectron2 import _C
except ImportError:  # built without compiled operators
    _C = None
"""

_NO_EXTENSION = "compiled operators are absent: importing must work, calling them may fail"
_NUMPY_ALIAS = "NumPy 1.24 removed its aliases of Python's types, or gave them another meaning"
_SCHEDULER = "the old private name is only an alias, and torch's own schedulers do not derive from it"
_MESHGRID = "torch wants the order of the axes said"

_TRAINER_STATE = """    def state_dict(self):
        ret = super().state_dict()
        ret["_trainer"] = self._trainer.state_dict()
        return ret

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if "_trainer" in state_dict:  # files written by an unedited 0.5 do not hold it
            self._trainer.load_state_dict(state_dict["_trainer"])

    def resume_or_load(self, resume=True):
"""

A = [
    Edit("layers/deform_conv.py", "from detectron2 import _C\n", _GUARDED_EXTENSION, 1, _NO_EXTENSION),
    Edit("layers/roi_align_rotated.py", "from detectron2 import _C\n", _GUARDED_EXTENSION, 1, _NO_EXTENSION),
    Edit("layers/rotated_boxes.py", "from detectron2 import _C\n", _GUARDED_EXTENSION, 1, _NO_EXTENSION),
    Edit("evaluation/fast_eval_api.py", "from detectron2 import _C\n", _GUARDED_EXTENSION, 1, _NO_EXTENSION),
    Edit(
        "evaluation/fast_eval_api.py",
        '        logger.info("COCOeval_opt.accumulate() finished in {:0.2f} seconds.".format(toc - tic))\n',
        '        logger.info("COCOeval_opt.accumulate() finished in {:0.2f} seconds.".format(toc - tic))\n'
        "\n\nif _C is None:\n    COCOeval_opt = COCOeval  # noqa: F811\n",
        1,
        "the fast evaluation is compiled: without it pycocotools' own gives the same numbers",
    ),
    Edit(
        "export/__init__.py",
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:  # caffe2 is gone\n    pass\n",
        1,
        "caffe2 left torch; tracing and analysis live in the same package and need it no more",
    ),
    Edit(
        "data/transforms/transform.py",
        "interp=Image.LINEAR",
        "interp=Image.BILINEAR",
        1,
        "Pillow 10 removed the old name",
    ),
    Edit(
        "model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "",
        1,
        "setuptools no longer has pkg_resources",
    ),
    Edit(
        "model_zoo/model_zoo.py",
        "    cfg_file = pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )\n",
        "    here = os.path.dirname(os.path.abspath(__file__))\n"
        '    cfg_file = os.path.join(here, "configs", config_path)\n',
        1,
        "the configuration files lie beside the module",
    ),
    Edit("data/build.py", "dtype=np.int\n", "dtype=int\n", 1, _NUMPY_ALIAS),
    Edit("data/build.py", "dtype=np.int)", "dtype=int)", 1, _NUMPY_ALIAS),
    Edit("data/datasets/pascal_voc.py", "dtype=np.str)", "dtype=str)", 1, _NUMPY_ALIAS),
    Edit("evaluation/sem_seg_evaluation.py", "dtype=np.int)", "dtype=int)", 2, _NUMPY_ALIAS),
    Edit("evaluation/sem_seg_evaluation.py", "np.float)", "float)", 5, _NUMPY_ALIAS),
    Edit("evaluation/pascal_voc_evaluation.py", "np.bool)", "bool)", 2, _NUMPY_ALIAS),
    Edit("structures/masks.py", "np.bool)", "bool)", 2, _NUMPY_ALIAS),
    Edit("utils/video_visualizer.py", "np.bool)", "bool)", 1, _NUMPY_ALIAS),
    Edit("utils/visualizer.py", "np.bool)", "bool)", 3, _NUMPY_ALIAS),
    Edit(
        "data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)",
        "self._rng.sample(sorted(self._fallback_candidates), k=1)",
        1,
        "Python 3.11 no longer samples from sets: a mapper that returns None would end the run",
    ),
    Edit(
        "engine/hooks.py",
        "torch.optim.lr_scheduler._LRScheduler)",
        "torch.optim.lr_scheduler.LRScheduler)",
        2,
        "torch's own schedulers were neither saved nor loaded, without a word",
    ),
    Edit(
        "engine/defaults.py",
        "    def resume_or_load(self, resume=True):\n",
        _TRAINER_STATE,
        1,
        "checkpoints held no optimizer state; the key is the one of later releases",
    ),
]

B = [
    Edit(
        "engine/launch.py",
        '    assert torch.cuda.is_available(), "cuda is not available. Please check your installation."\n',
        "    has_gpu = torch.cuda.is_available()\n",
        1,
        "several processes are useful without a GPU too",
    ),
    Edit(
        "engine/launch.py",
        'backend="NCCL"',
        'backend="NCCL" if has_gpu else "GLOO"',
        1,
        "NCCL needs GPUs",
    ),
    Edit(
        "engine/launch.py",
        "    assert num_gpus_per_machine <= torch.cuda.device_count()\n"
        "    torch.cuda.set_device(local_rank)\n",
        "    if has_gpu:\n"
        "        assert num_gpus_per_machine <= torch.cuda.device_count()\n"
        "        torch.cuda.set_device(local_rank)\n",
        1,
        "there is no device to choose without a GPU",
    ),
    Edit(
        "engine/defaults.py",
        '    if "device_ids" not in kwargs:\n',
        '    if "device_ids" not in kwargs and next(model.parameters()).is_cuda:\n',
        1,
        "DistributedDataParallel refuses device_ids for a model on the CPU",
    ),
]

C = [
    Edit(
        "engine/train_loop.py",
        "            from torch.cuda.amp import GradScaler\n\n            grad_scaler = GradScaler()\n",
        "            grad_scaler = torch.amp.GradScaler(next(model.parameters()).device.type)\n",
        1,
        "the old name warns, and knows only CUDA",
    ),
    Edit(
        "engine/train_loop.py",
        '        assert torch.cuda.is_available(), "[AMPTrainer] CUDA is required for AMP training!"\n'
        "        from torch.cuda.amp import autocast\n",
        "        device_type = next(self.model.parameters()).device.type\n",
        1,
        "mixed precision runs on the CPU too",
    ),
    Edit(
        "engine/train_loop.py",
        "        with autocast():\n",
        "        with torch.autocast(device_type, dtype=torch.float16):\n",
        1,
        "the old name warns, and knows only CUDA",
    ),
    Edit(
        "utils/comm.py",
        "    storage = torch.ByteStorage.from_buffer(buffer)\n"
        "    tensor = torch.ByteTensor(storage).to(device=device)\n",
        "    tensor = torch.frombuffer(bytearray(buffer), dtype=torch.uint8).to(device=device)\n",
        1,
        "typed storages are deprecated",
    ),
    Edit(
        "modeling/anchor_generator.py",
        "torch.meshgrid(shifts_y, shifts_x)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        1,
        _MESHGRID,
    ),
    Edit(
        "projects/panoptic_deeplab/post_processing.py",
        "        torch.arange(width, dtype=offsets.dtype, device=offsets.device),\n    )\n",
        "        torch.arange(width, dtype=offsets.dtype, device=offsets.device),\n"
        '        indexing="ij",\n    )\n',
        1,
        _MESHGRID,
    ),
    Edit(
        "layers/wrappers.py",
        "    return F.cross_entropy(input, target, **kwargs)\n",
        "    return F.cross_entropy(input, target, reduction=reduction, **kwargs)\n",
        1,
        "the argument was taken and dropped: the mean was always returned",
    ),
    Edit(
        "utils/visualizer.py",
        "        return modified_color\n",
        "        return tuple(min(max(part, 0.0), 1.0) for part in modified_color)\n",
        1,
        "with some Pythons rounding takes colours out of 0 to 1, which matplotlib refuses",
    ),
    Edit("solver/lr_scheduler.py", "lr_scheduler._LRScheduler)", "lr_scheduler.LRScheduler)", 3, _SCHEDULER),
    Edit("solver/lr_scheduler.py", "lr_scheduler._LRScheduler`", "lr_scheduler.LRScheduler`", 1, _SCHEDULER),
    Edit("solver/build.py", "lr_scheduler._LRScheduler:", "lr_scheduler.LRScheduler:", 1, _SCHEDULER),
    Edit(
        "projects/deeplab/build_solver.py",
        "lr_scheduler._LRScheduler:",
        "lr_scheduler.LRScheduler:",
        1,
        _SCHEDULER,
    ),
    Edit(
        "projects/deeplab/lr_scheduler.py",
        "lr_scheduler._LRScheduler)",
        "lr_scheduler.LRScheduler)",
        1,
        _SCHEDULER,
    ),
    Edit(
        "evaluation/sem_seg_evaluation.py",
        "np.array(output, dtype=int)",
        "np.array(output.numpy(), dtype=int)",
        1,
        "NumPy 2 warns when it has to convert a tensor by itself",
    ),
    Edit(
        "evaluation/coco_evaluation.py",
        'np.array(mask[:, :, None], order="F", dtype="uint8")',
        'np.array(mask.numpy()[:, :, None], order="F", dtype="uint8")',
        1,
        "NumPy 2 warns when it has to convert a tensor by itself",
    ),
]

EDITS = A + B + C
