"""What a run shows on the screen, and what it writes to its log file."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from detectron2.engine import HookBase
from tqdm import tqdm

# Package -> the lowest level that reaches the screen. Everything reaches the log file.
SCREEN_LEVELS = {"mask_former": logging.INFO, "detectron2": logging.WARNING, "fvcore": logging.WARNING}


class ScreenHandler(logging.StreamHandler):
    """Writes to stdout, above a progress bar if there is one, and leaves tracebacks to the log file."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if not record.exc_info:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


def start_logging(folder: str | Path | None, rank: int = 0) -> None:
    """Log to the screen, on the main process, and to `folder`/log.txt; replaces what an earlier call set up.

    With None only to the screen, until the folder is known.
    """
    handlers: list[logging.Handler] = []
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        handlers.append(
            logging.FileHandler(Path(folder) / ("log.txt" if rank == 0 else f"log.txt.rank{rank}"))
        )
    for name, level in SCREEN_LEVELS.items():
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        for old in [handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]:
            logger.removeHandler(old)
        screen = [ScreenHandler()] if rank == 0 else []
        for handler in (*screen, *handlers):
            logger.addHandler(handler)
        for handler in screen:
            handler.setLevel(level)
            handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", datefmt="%H:%M:%S"))
    for handler in handlers:
        text = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
        handler.setFormatter(logging.Formatter(text, datefmt="%m/%d %H:%M:%S"))


class _Bar(tqdm):
    monitor_interval = 0  # starts no thread, which would be left when the process ends


class ProgressBar(HookBase):
    """A bar with the loss and the time left, where stderr is a terminal."""

    def before_train(self) -> None:
        """Draw it."""
        first, last = self.trainer.start_iter, self.trainer.max_iter
        self.bar = _Bar(initial=first, total=last, unit="step", disable=None, dynamic_ncols=True, leave=False)

    def after_step(self) -> None:
        """Move it by a step."""
        if not self.bar.disable:
            loss = self.trainer.storage.history("total_loss").latest()
            self.bar.set_postfix_str(f"loss {loss:.3g}", refresh=False)
            self.bar.update()

    def after_train(self) -> None:
        """Remove it."""
        self.bar.close()


def progress_level() -> int:
    """Return the level of progress lines, which a bar makes superfluous on the screen."""
    return logging.DEBUG if sys.stderr.isatty() else logging.INFO


def told(error: BaseException) -> str:
    """Return what an error says, with its type where the message alone might not tell."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:  # of a process that was started here
        return text.splitlines()[-1]
    is_clear = isinstance(error, ValueError | OSError | ImportError | FloatingPointError)
    return text if is_clear else f"{type(error).__name__}: {text} (--debug shows where)"


def shown(rows: Mapping[str, str]) -> str:
    """Return rows "name   text" as lines."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows.items())
