"""What every test needs: one thread, and loggers as they were before it."""

import logging
import os
import sys
from pathlib import Path

# Tests run side by side, and start processes of their own: with more threads they would only wait for each
# other. Before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The programs of demo/ import their siblings by plain name, as from the folder of a script; train_net.py lies
# beside it.
sys.path += [str(Path(__file__).parent.parent / "demo"), str(Path(__file__).parent.parent)]

import pytest


@pytest.fixture(autouse=True)
def loggers_as_before():
    """Undo what a run does to loggers, so that a test sees the messages whatever ran before it."""
    loggers = [logging.getLogger(name) for name in ("mask_former", "detectron2", "fvcore")]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, propagate, handlers in before:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


@pytest.fixture
def log_lines():
    """The messages of the loggers; pytest's own fixture misses them, as they do not propagate."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    collector = Collector()
    loggers = [logging.getLogger(name) for name in ("mask_former", "fvcore")]
    for logger in loggers:
        logger.addHandler(collector)
    yield lines
    for logger in loggers:
        logger.removeHandler(collector)
