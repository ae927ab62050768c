"""Renaming by rules, with nothing left over."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

State = dict[str, Tensor]
Replacement = str | Callable[[re.Match[str]], str]
Rules = Sequence[tuple[str, Replacement]]


def renamed(name: str, rules: Rules) -> str:
    """Return the name after all rules (regular expression, replacement), in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def rename_all(state: Mapping[str, Tensor], rules: Rules, dropped: str, expected: str, source: str) -> State:
    """Return the state in new names, without the entries whose old name has `dropped` in it.

    Args:
        state: what is renamed.
        rules: see `renamed`.
        dropped: regular expression.
        expected: regular expression of all good new names; anything else is refused.
        source: what the error calls the layout.
    """
    result = {renamed(name, rules): value for name, value in state.items() if not re.search(dropped, name)}
    refuse_unknown((name for name in result if not re.fullmatch(expected, name)), source)
    return result


def refuse_unknown(names: Iterable[str], source: str) -> None:
    """Raise ValueError if there are any names."""
    unknown = list(names)
    if unknown:
        shown = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{len(unknown)} entries are none of {source}: {shown}. The weights are of another architecture; "
            "converted are ResNets with one stem convolution, Swin (version 1), and MaskFormer with these."
        )
