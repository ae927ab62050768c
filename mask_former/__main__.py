"""List the programs of the package."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent


def programs() -> Iterator[tuple[str, str]]:
    """Yield the command of each runnable module, and the first line of its docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        text = path.read_text(encoding="utf-8")
        if 'if __name__ == "__main__":' in text and path != Path(__file__) and "third_party" not in parts:
            name = ".".join(parts).removesuffix(".__main__")
            summary = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0].partition(": `")[0]
            yield f"python -m {name}", summary


if __name__ == "__main__":
    rows = [("train_net.py", "Train or evaluate a model."), *programs()]
    width = max(len(command) for command, _ in rows)
    sys.stdout.writelines(f"{command:{width}}  {summary}\n" for command, summary in rows)
    sys.stdout.write("Each has --help. Programs that show pictures and videos are in demo/ of the source.\n")
