"""What a family's module may say, and what holds where it says nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .described import Described
from .table import Rule

if TYPE_CHECKING:
    from ..images import Preprocessing

State = Mapping[str, Tensor]
Flat = dict[str, Any]  # fields of a config and of the configs in it, these dotted: "decoder.width"


class Family:
    """The conversion of one family: its module's names, with defaults for those that most need not have.

    Attributes:
        name: by which `minivl.from_state_dict(family=...)` knows it.
        kind: "vit", "clip" or "captioner".
        recognises: ``(names) -> bool``: whether these are the family's keys.
        fields: ``(state) -> fields`` of the config that the tensors tell, inner ones dotted.
        fixed: fields that every member has.
        common: fields taken where nothing else says them.
        needed: ``(state) -> names`` of the fields that must come from somewhere.
        table: ``(state) -> rules``: its names in ours.
        untied: the rules where the matrix of words is not the word table.
        describe: ``(config) -> Described | None``: the family's own JSON in our words; None for any other.
        prepare: ``(state) -> (state, notes)``: what is done to the tensors before all else.
        settle: ``(state, fields, given) -> fields``: what only becomes clear from what a caller said.
        preset_name: ``(name, state) -> name``: of the preset that is meant.
        preprocessing: ``(state) -> Preprocessing | None``: where neither a file beside the weights nor a preset says.
        added: tokens that its models have beyond those of their tokenizer's files, with their ids.
    """

    def __init__(self, name: str, module: ModuleType) -> None:
        def own(attribute: str, default: Any) -> Any:
            return getattr(module, attribute, default)

        self.name, self.kind = name, str(module.KIND)
        self.recognises: Callable[[set[str]], bool] = module.recognises
        self.fields: Callable[[State], Flat] = module.fields
        self.fixed: Flat = module.FIXED
        self.common: Flat = own("COMMON", {})
        self.needed: Callable[[State], Sequence[str]] = own("needed", lambda state: module.NEEDED)
        self.table: Callable[[State], Sequence[Rule]] = module.table
        self.untied: Callable[[State], Sequence[Rule]] = own("untied", module.table)
        self.describe: Callable[[Mapping[str, Any]], Described | None] = module.describe
        self.prepare: Callable[[State], tuple[State, list[str]]] = own("prepare", lambda state: (state, []))
        self.settle: Callable[[State, Flat, Flat], Flat] = own("settle", lambda state, fields, given: fields)
        self.preset_name: Callable[[str, State], str] = own("preset_name", lambda name, state: name)
        self.preprocessing: Callable[[State], Preprocessing | None] = own(
            "preprocessing", lambda state: own("PREPROCESSING", None))
        self.added: dict[str, int] = own("ADDED", {})
