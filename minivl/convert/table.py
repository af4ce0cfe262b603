"""Key tables: how a family's tensor names become ours, with every problem in one error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from torch import Tensor

from ..errors import InputError, some

LISTED = 60  # names in an error line: all of them unless the weights are those of quite another model


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
        ``(tensors in our names, source names that no rule matches)``; the tensors may be views of those given.
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


def _origin(name: str, table: Sequence[Rule]) -> tuple[str, int]:
    """The family's name of a tensor of ours, and how many of ours share it."""
    for rule in table:
        for target in rule.targets:
            if match := _pattern(target).fullmatch(name):
                return rule.source.format(*match.groups()), len(rule.targets)
    return name, 1


def check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str,
          table: Sequence[Rule] = (), unknown: Iterable[str] = ()) -> None:
    """Raise one InputError that lists every missing, unexpected and mis-shaped tensor, as the source names it.

    Args:
        tensors: what there is, in our names.
        expected: the state dict of the model it is for.
        source: what to call it in the error.
        table: how the source's names became ours.
        unknown: names in the source that stand for nothing of ours.
    """
    missing = [_origin(name, table)[0] for name in expected if name not in tensors]
    extra = [*unknown, *(_origin(name, table)[0] for name in tensors if name not in expected)]
    shapes, kinds = [], []
    for name in (name for name in tensors if name in expected):
        origin, parts = _origin(name, table)
        there, needed = tensors[name], expected[name]
        if there.shape != needed.shape:
            shapes.append(f"{origin} {_whole(there, parts)} instead of {_whole(needed, parts)}")
        elif there.is_floating_point() != needed.is_floating_point():
            kinds.append(f"{origin} {there.dtype} instead of {needed.dtype}")
    problems = [f"{len(names)} {what}: {some(names, LISTED)}" for what, found in
                (("missing", missing), ("unexpected", extra), ("of another shape", shapes), ("of another type", kinds))
                if (names := list(dict.fromkeys(found)))]  # parts of a fused tensor are one name
    if problems:
        raise InputError("tensors do not fit the model: " + "; ".join(problems), source=source)


def _whole(part: Tensor, parts: int) -> tuple[int, ...]:
    """The shape of a fused tensor, from that of one of its even parts."""
    return (part.shape[0] * parts, *part.shape[1:]) if part.ndim else ()
