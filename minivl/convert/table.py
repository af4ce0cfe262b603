"""Key tables: how a family's tensor names become ours, with every problem in one error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from torch import Tensor

from ..errors import InputError, some

LISTED = 500  # names in an error line: all of them unless the weights are those of quite another model


class Rule(NamedTuple):
    """One line of a table; ``{}`` stands for one part of a dotted name, the same on both sides.

    Attributes:
        source: the family's name.
        targets: our names it fills; several share a fused tensor, which is split evenly along its first
            dimension; empty = dropped on purpose.
        change: what is done to the tensor first.
    """

    source: str
    targets: tuple[str, ...]
    change: Callable[[Tensor], Tensor] | None = None


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"([^.]+)"))


def rename(state: Mapping[str, Tensor], table: Sequence[Rule]) -> tuple[dict[str, Tensor], list[str]]:
    """Apply a table.

    Returns:
        ``(tensors in our names, source names that no rule matches)``; tensors may be views of those given.
    """
    tensors: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        found = [(match, rule) for rule in table if (match := _pattern(rule.source).fullmatch(name))]
        if not found:
            unknown.append(name)
            continue
        match, rule = found[0]
        whole = tensor if rule.change is None else rule.change(tensor)
        count = len(rule.targets)
        parts = whole.chunk(count) if count > 1 and whole.ndim else (whole,) * count
        for target, part in zip(rule.targets, parts):
            tensors[target.format(*match.groups())] = part
    return tensors, unknown


def _origin(name: str, table: Sequence[Rule]) -> str:
    """The family's name of a tensor of ours."""
    for rule in table:
        for target in rule.targets:
            if match := _pattern(target).fullmatch(name):
                return rule.source.format(*match.groups())
    return name


def check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str,
          table: Sequence[Rule] = (), unknown: Iterable[str] = ()) -> None:
    """Raise one InputError that lists every missing, unexpected and mis-shaped tensor by the source's names.

    Args:
        tensors: what there is, in our names.
        expected: the state dict of the model it is for.
        source: what to call it in the error.
        table: how the source's names became ours.
        unknown: names in the source that stand for nothing of ours.
    """
    missing = [_origin(name, table) for name in expected if name not in tensors]
    extra = [*unknown, *(_origin(name, table) for name in tensors if name not in expected)]
    common: dict[str, list[str]] = {}  # the source's name -> ours, several where it is fused
    for name in tensors:
        if name in expected:
            common.setdefault(_origin(name, table), []).append(name)
    shapes, types = [], []
    for origin, names in common.items():
        pairs = [(tensors[name], expected[name]) for name in names]
        there, needed = zip(*pairs)
        if any(one.shape != other.shape for one, other in pairs):
            shapes.append(f"{origin} {_fused_shape(there)} instead of {_fused_shape(needed)}")
        elif any(one.is_floating_point() != other.is_floating_point() for one, other in pairs):
            types.append(f"{origin} {there[0].dtype} instead of {needed[0].dtype}")
    found = {"missing": missing, "unexpected": extra, "of another shape": shapes, "of another type": types}
    problems = [f"{len(listed)} {what}: {some(listed, LISTED)}" for what, repeated in found.items()
                if (listed := list(dict.fromkeys(repeated)))]  # parts of a fused tensor have one name
    if problems:
        raise InputError("tensors do not fit the model: " + "; ".join(problems), source=source)


def _fused_shape(parts: Sequence[Tensor]) -> tuple[int, ...]:
    return (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if parts[0].ndim else ()
