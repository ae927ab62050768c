"""Runs exported MaskFormer models without torch: `Runner(file)(pictures)`."""

from mask_former_runner.results import InstanceResults, Result, Segment, write
from mask_former_runner.runner import Runner

__all__ = ["InstanceResults", "Result", "Runner", "Segment", "write"]
