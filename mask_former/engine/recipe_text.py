"""A recipe as text: keys and values of a configuration as YAML, with a reason beside each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class Recipe:
    """Keys with values and reasons. A key that the command gives keeps that value."""

    given: Mapping[str, Any]
    entries: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def set(self, key: str, value: Any, reason: str) -> Any:
        """Set a key unless it is given, and return its value."""
        if key in self.given:
            value, reason = self.given[key], "given with the command"
        self.entries[key] = (value, reason)
        return value

    def text(self, head: str, base: Path) -> str:
        """Return the YAML."""
        for key, value in self.given.items():
            if key not in self.entries:
                self.entries[key] = (value, "" if key == "OUTPUT_DIR" else "given with the command")
        tree: dict[str, Any] = {}
        for key, entry in self.entries.items():
            *path, name = key.split(".")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[name] = entry
        comment = "".join(f"# {line}\n" for line in head.splitlines())
        return f"{comment}_BASE_: {yaml_value(str(base))}\n{_yaml(tree)}VERSION: 2\n"


def yaml_value(value: Any) -> str:
    """Return a plain value on one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def _yaml(node: Mapping[str, Any], indent: str = "") -> str:
    lines = ""
    for name, entry in node.items():
        if isinstance(entry, dict):
            lines += f"{indent}{name}:\n{_yaml(entry, indent + '  ')}"
        else:
            value, reason = entry
            lines += f"{indent}{name}: {yaml_value(value)}" + (f"  # {reason}\n" if reason else "\n")
    return lines
