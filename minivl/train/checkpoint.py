"""A resumable training state in one safetensors file: weights, optimiser, average, and where it stood.

No pickle: tensors are tensors, the rest is JSON in the header. What processes keep parts of lies in a folder beside the
file, which names it, so that the two are replaced together.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..errors import InputError, some
from ..files import read_tensors, tensor_bytes, undamaged, write_tensors
from .distributed import ALONE, Processes, part_like
from .optim import Ema, is_frozen
from .parts import has_parts, part_tensors, read_parts, remove_parts, write_parts


def _names(optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameter names in the order of the optimiser's state."""
    return [name for group in optimizer.param_groups for name in group["names"]]


def frozen_hash(model: nn.Module) -> str:
    """Hash of the weights that are not trained, with the buffers of parts that are frozen as a whole."""
    held: dict[str, Tensor] = {name: parameter for name, parameter in model.named_parameters()
                               if not parameter.requires_grad}
    for prefix, module in model.named_modules():
        if is_frozen(module):
            held.update(module.named_buffers(prefix))
    digest = hashlib.sha256()
    for name, tensor in held.items():
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def save_checkpoint(path: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer,
                    ema: Ema | None, progress: Mapping[str, Any], frozen: str | None = None,
                    processes: Processes = ALONE) -> None:
    """Write the whole state atomically.

    Args:
        path: the file; where processes keep parts of weights, they write these to a folder beside it.
        model: its trainable parameters and its buffers are kept, and the hash of its frozen weights (they
            come from their own file).
        optimizer: with groups from `optim.decay_groups`.
        ema: the moving average, if there is one.
        progress: JSON-able: step, epoch, settings, ...
        frozen: the model's `frozen_hash`, where it is known already.
        processes: whose state it is. The first one writes the file; with `shard` each must call this.

    Raises:
        OSError: it cannot be written; the checkpoint before is still there.
    """
    tensors: dict[str, Tensor] = {f"model.{name}": parameter for name, parameter in model.named_parameters()
                                  if parameter.requires_grad}
    tensors.update({f"buffer.{name}": buffer for name, buffer in model.named_buffers()})
    names, states = _names(optimizer), optimizer.state_dict()["state"]
    for index, state in states.items():
        tensors.update({f"optimizer.{key}.{names[index]}": torch.as_tensor(value)
                        for key, value in state.items() if value is not None})  # SGD without momentum keeps a None
    if ema is not None:
        tensors.update({f"ema.{name}": tensor for name, tensor in ema.shadow.items()})
    parts = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    path, folder = Path(path), None
    if parts:
        # never the folder that the present checkpoint names
        number = next(number for number in itertools.count(1) if not _folder(path, number).exists())
        folder = _folder(path, int(processes.sum(number if processes.first else 0)))
        write_parts(folder, parts)
        if processes.any(processes.first and not has_parts(folder, parts)):
            raise OSError(f"{folder}: not all parts are here: the folder of a run that several processes keep parts of "
                          "must be one that all of them see; the checkpoint before stays")
    if not processes.first:
        return
    header = {**progress, "ema_updates": ema.updates if ema is not None else None, "parts": folder and folder.name,
              "frozen": frozen or frozen_hash(model), "moments": sorted(names[index] for index in states)}
    write_tensors(path, {name: tensor for name, tensor in tensors.items() if name not in parts},
                  {"training": json.dumps(header)})
    for old in path.parent.glob(_folder(path, "*").name):
        if old != folder:
            remove_parts(old)


def _folder(path: Path, number: int | str) -> Path:
    """Where parts of a checkpoint lie."""
    return path.with_name(f"{path.stem}-parts-{number}")


def read_checkpoint(path: str | os.PathLike[str], parameters: Mapping[str, Tensor] | None = None
                    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` wrote, by any number of processes.

    Args:
        path: the file.
        parameters: by name; of those that this process keeps parts of, and of their averages and moments, its parts
            are read and not the whole.

    Returns:
        ``({name: tensor}, progress)``.

    Raises:
        InputError: no such file, not a checkpoint, or a damaged one.
    """
    tensors, header = read_tensors(path)
    if "training" not in header:
        raise InputError("is no training checkpoint (it has no 'training' header)", source=path)
    with undamaged(path):
        progress = json.loads(header["training"])
        if not isinstance(progress, dict):
            raise TypeError("its 'training' header is no object")
        folder = Path(path).with_name(progress["parts"]) if progress.get("parts") else None
    if folder is None:
        return tensors, progress
    if not folder.is_dir():
        raise InputError("is missing: this folder belongs to the checkpoint beside it", source=folder)
    parts: dict[str, Tensor] = {}
    for name, blank in part_tensors(folder).items():
        # model.NAME, ema.NAME, optimizer.KEY.NAME
        like = (parameters or {}).get(name.split(".", 2 if name.startswith("optimizer.") else 1)[-1])
        parts[name] = torch.empty_like(blank, device="cpu") if like is None or like.shape != blank.shape else \
            torch.empty_like(like.detach(), dtype=blank.dtype)
    read_parts(folder, parts)
    return {**tensors, **parts}, progress


def load_checkpoint(path: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer,
                    ema: Ema | None, frozen: str | None = None) -> dict[str, Any]:
    """Put a saved state back into model, optimiser and average; arguments as in `save_checkpoint`.

    Returns:
        The `progress` it was saved with.

    Raises:
        InputError: no such file, not a checkpoint, a damaged one, or one of another model (trained or frozen
            weights); nothing has been changed then.
    """
    tensors, progress = read_checkpoint(path, dict(model.named_parameters()))
    wanted: dict[str, Tensor] = {f"model.{name}": parameter.data
                                 for name, parameter in model.named_parameters() if parameter.requires_grad}
    wanted.update({f"buffer.{name}": buffer for name, buffer in model.named_buffers()})
    if ema is not None:
        wanted.update({f"ema.{name}": tensor for name, tensor in ema.shadow.items()})
    wrong = [name for name, tensor in wanted.items()
             if name not in tensors or tensors[name].shape != tensor.shape]
    wrong += [name for name in tensors if not name.startswith("optimizer.") and name not in wanted]
    if wrong:
        raise InputError(f"is the checkpoint of another model or settings; {len(wrong)} tensors do not fit: "
                         f"{some(wrong, 4)}", source=path)
    if progress.get("frozen") != (frozen or frozen_hash(model)):
        raise InputError("was made with other frozen weights: give the encoder it was begun with",
                         source=path)
    with undamaged(path):
        moments = _moments(optimizer, tensors, progress)
        updates = whole_number(progress, "ema_updates") if ema is not None else 0
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(part_like(tensors[name], tensor))
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    if ema is not None:
        ema.updates = updates
    return progress


def _kept(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What an optimiser keeps of each parameter."""
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    return "step", "exp_avg", "exp_avg_sq"


def whole_number(values: Mapping[str, Any], key: str) -> int:
    """A count by its key; TypeError where it is none."""
    value = values[key]
    if type(value) is not int or value < 0:
        raise TypeError(f"{key}={value!r} is no whole number from 0 up")
    return value


def _own(tensor: Tensor) -> Tensor:
    """What of a tensor this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor],
             progress: Mapping[str, Any]) -> dict[int, dict[str, Tensor]]:
    """The state of each parameter, by its place; KeyError and ValueError where parts of it are missing."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = _names(optimizer)
    index = {name: place for place, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, key, parameter = name.split(".", 2)
            state.setdefault(index[parameter], {})[key] = tensor
    if whole_number(progress, "step") and not state and _kept(optimizer):
        raise ValueError("the moments of its optimiser are missing")
    # a parameter without a gradient has no moments, so that those it had are named
    for place in (index[name] for name in progress.get("moments", [names[place] for place in state])):
        for key in _kept(optimizer):
            found, shape = state.get(place, {}).get(key), () if key == "step" else parameters[place].shape
            if found is None or found.shape != shape or not _own(found).isfinite().all():
                raise ValueError(f"the optimiser's {key} of {names[place]} is missing or unfit")
            if key != "step":
                state[place][key] = part_like(found, parameters[place])
    return state
