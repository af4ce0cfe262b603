"""Key tables: how a family's tensor names become ours, with a receipt, and every problem in one error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
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
        why: why it is dropped; or, with `tied`, what it is a copy of.
        tied: another tensor of the file may fill the same name, if it is equal to this one.
        known: of a dropped tensor that must be there: whether it is what this library computes itself.
    """

    source: str
    targets: tuple[str, ...]
    change: Callable[[Tensor], Tensor] | None = None
    why: str = ""
    tied: bool = False
    known: Callable[[Tensor], bool] | None = None


def drop(source: str, why: str, known: Callable[[Tensor], bool] | None = None) -> Rule:
    """A tensor that is left out on purpose."""
    return Rule(source, (), why=why, known=known)


def same(*names: str) -> tuple[Rule, ...]:
    """Tensors that are called there as they are here."""
    return tuple(Rule(name, (name,)) for name in names)


def renamed(pairs: Mapping[str, str]) -> tuple[Rule, ...]:
    """Tensors that only have another name."""
    return tuple(Rule(source, (target,)) for source, target in pairs.items())


def under(rules: Sequence[Rule], source: str, target: str = "blocks.{}.") -> tuple[Rule, ...]:
    """The same rules for a part of a model: prefixes (with their dots) of the names on either side. Those of a numbered
    list of blocks hold the number's ``{}``."""
    return tuple(rule._replace(source=source + rule.source, targets=tuple(target + name for name in rule.targets))
                 for rule in rules)


def attention(source: str, target: str) -> tuple[Rule, ...]:
    """The four tensors of a `torch.nn.MultiheadAttention`, which fuses the projections of queries, keys and values;
    source and target are where it stands."""
    fused = tuple(Rule(f"{source}.in_proj_{kind}", tuple(f"{target}.{letter}_proj.{kind}" for letter in "qkv"))
                  for kind in ("weight", "bias"))
    return (*fused, Rule(f"{source}.out_proj.{{}}", (f"{target}.out_proj.{{}}",)))


def turned(weight: Tensor) -> Tensor:
    """A matrix that is kept as (in, out)."""
    return weight.transpose(0, 1)


@dataclass
class Receipt:
    """What became of every tensor of a file.

    Attributes:
        used: its name -> ours (several where a fused tensor was split).
        dropped: its name -> the rule by which it was left out.
        notes: anything else that was done to the file.
    """

    used: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The receipt as text, a line per tensor."""
        width = max(map(len, (*self.used, *self.dropped)), default=0)
        return [*(f"{name:{width}}  -> {', '.join(ours)}" for name, ours in self.used.items()),
                *(f"{name:{width}}  dropped: {why}" for name, why in self.dropped.items()), *self.notes]

    def summary(self) -> str:
        """The receipt in one line."""
        filled = sum(map(len, self.used.values()))
        return (f"{len(self.used)} tensors of the source fill {filled} of the model, each once; "
                f"{len(self.dropped)} dropped by rule"
                + (f" ({some(sorted(set(self.dropped.values())))})" if self.dropped else ""))


class Renamed(NamedTuple):
    """Tensors in our names, and what went wrong on the way.

    Attributes:
        tensors: our name -> tensor; may be views of those given.
        receipt: what became of each.
        unknown: names in the source that no rule matches.
        doubled: pairs of names in the source that fill one name of ours, or are no equal copies.
        absent: names of dropped tensors that must be in the source.
        strange: those whose values are not what is computed here.
        shapes: of the tensors that were changed on the way, as they are in the source.
    """

    tensors: dict[str, Tensor]
    receipt: Receipt
    unknown: list[str]
    doubled: list[str]
    absent: list[str]
    strange: list[str]
    shapes: dict[str, tuple[int, ...]]


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"([^.]+)"))


def rename(state: Mapping[str, Tensor], table: Sequence[Rule]) -> Renamed:
    """Apply a table to a state dict; the first rule that matches a name counts."""
    absent = [rule.source for rule in table if rule.known is not None and rule.source not in state]
    done = Renamed({}, Receipt(), [], [], absent, [], {})
    origin: dict[str, str] = {}
    for name, tensor in state.items():
        found = next(((match, rule) for rule in table if (match := _pattern(rule.source).fullmatch(name))), None)
        if found is None:
            done.unknown.append(name)
            continue
        match, rule = found
        if not rule.targets:
            done.receipt.dropped[name] = rule.why
            if rule.known is not None and not rule.known(tensor):
                done.strange.append(f"{name} ({rule.why})")
            continue
        targets = tuple(target.format(*match.groups()) for target in rule.targets)
        parts = _parts(tensor, rule)
        if rule.change is not None:
            done.shapes[name] = tuple(tensor.shape)
        if earlier := [origin[target] for target in targets if target in origin]:
            equal = all(target in origin and torch.equal(done.tensors[target], part)
                        for target, part in zip(targets, parts))
            if rule.tied and equal:
                done.receipt.dropped[name] = f"equal copy of {earlier[0]}"
            else:
                done.doubled.append(f"{earlier[0]} and {name}" + (" (which should be equal)" if rule.tied else ""))
            continue
        done.tensors.update(zip(targets, parts))
        origin.update((target, name) for target in targets)
        done.receipt.used[name] = targets
    return done


def _parts(tensor: Tensor, rule: Rule) -> tuple[Tensor, ...]:
    """What each target of a rule gets; a tensor of a shape that the rule's change cannot take stays as it is, so
    that `check` speaks of its shape."""
    if rule.change is not None:
        try:
            tensor = rule.change(tensor)
        except (RuntimeError, IndexError, ValueError):
            pass
    count = len(rule.targets)
    return tuple(tensor.chunk(count)) if count > 1 and tensor.ndim else (tensor,) * count


def _origin(name: str, table: Sequence[Rule]) -> str:
    """The family's name of a tensor of ours."""
    for rule in table:
        for target in rule.targets:
            if match := _pattern(target).fullmatch(name):
                return rule.source.format(*match.groups())
    return name


def check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str,
          table: Sequence[Rule] = (), renaming: Renamed | None = None) -> None:
    """Raise one InputError that lists every problem of a file by the source's names: tensors that are missing,
    unexpected, there twice, of another shape or of another type.

    Args:
        tensors: what there is, in our names.
        expected: the state dict of the model it is for.
        source: what to call it in the error.
        table: how the source's names became ours.
        renaming: what `rename` found; the floating-point tensors of a foreign file are then of one type.
    """
    names = {ours: name for name, targets in (renaming.receipt.used if renaming else {}).items() for ours in targets}

    def called(name: str) -> str:
        return names.get(name) or _origin(name, table)

    missing = [*(called(name) for name in expected if name not in tensors), *(renaming.absent if renaming else ())]
    extra = [*(renaming.unknown if renaming else ()), *(called(name) for name in tensors if name not in expected)]
    usual = Counter(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()).most_common(1)
    common: dict[str, list[str]] = {}  # the source's name -> ours, several where it is fused
    for name in tensors:
        if name in expected:
            common.setdefault(called(name), []).append(name)
    shapes, types = [], []
    for origin, ours in common.items():
        pairs = [(tensors[name], expected[name]) for name in ours]
        there, needed = zip(*pairs)
        if any(one.shape != other.shape for one, other in pairs):
            own = renaming.shapes.get(origin) if renaming else None
            shapes.append(f"{origin} " + (f"{own}, which becomes " if own else "")
                          + f"{_fused_shape(there)} instead of {_fused_shape(needed)}")
        elif any(one.is_floating_point() != other.is_floating_point() for one, other in pairs):
            types.append(f"{origin} {there[0].dtype} instead of {needed[0].dtype}")
        elif renaming and there[0].is_floating_point() and there[0].dtype != usual[0][0]:
            types.append(f"{origin} {there[0].dtype} where the others are {usual[0][0]}")
    found = {"missing": missing, "unexpected": extra, "for one place": renaming.doubled if renaming else [],
             "of another shape": shapes, "of another type": types,
             "of other values": renaming.strange if renaming else []}
    problems = [f"{len(listed)} {what}: {some(listed, LISTED)}" for what, repeated in found.items()
                if (listed := list(dict.fromkeys(repeated)))]  # parts of a fused tensor have one name
    if problems:
        raise InputError("tensors do not fit the model: " + "; ".join(problems), source=source)


def _fused_shape(parts: Sequence[Tensor]) -> tuple[int, ...]:
    return (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if parts[0].ndim else ()
