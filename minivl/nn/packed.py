"""Linear layers whose weights lie as a CPU's products of few rows read them fastest.

Decoding multiplies few rows (one per open sequence) by every matrix of the decoder at every step. A product of that
kind brings the matrix into blocks each time it is called, which can take longer than the arithmetic; here that is done
once (measured in bench/decoding.py). The blocks are those of oneDNN, which torch.compile's freezing packs with too.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAYS = 16  # products of one row: of fewer the making of another layout takes longer than it saves


class PackedLinear(nn.Module):
    """A linear layer for decoding, (..., in) -> (..., out).

    The weight is packed at the first product of several rows, in the precision of autocast where that is on; what
    happens to it afterwards is seen by no product or by some: make another layer of other weights. One row reads the
    matrix as it is, until that has been done so often that another layout pays: blocks too, but in float32, where a
    matrix with as many rows as columns or more is read up to twice as fast transposed, and others fastest as they are.
    Where gradients are wanted, the processor cannot multiply in that precision, or torch.compile makes a graph (which
    has packing of its own), it is an ordinary linear layer.

    Args:
        weight: (out, in), shared with the layer that this one stands for.
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self._kind: torch.dtype | None = None
        self._packed: tuple[Tensor, Tensor | None] | None = None
        self._turned: Tensor | None = None  # (in, out)
        self._single = 0  # products of one row

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        if not x.numel() or torch.is_grad_enabled() or torch.compiler.is_compiling() or not _multiplies(kind):
            return F.linear(x, self.weight, self.bias)
        if x.numel() == x.shape[-1]:
            self._single += 1
            if kind == torch.float32:
                return self._row(x)
            if self._single < PAYS and self._kind != kind:
                return F.linear(x, self.weight, self.bias)
        if self._packed is None or self._kind != kind:
            self._packed = (torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().to(kind)),
                            None if self.bias is None else self.bias.detach().to(kind))
            self._kind = kind
        weight, bias = self._packed
        return torch.ops.mkldnn._linear_pointwise(x.to(kind), weight, bias, "none", [], "")

    def _row(self, x: Tensor) -> Tensor:
        """Of one row in float32."""
        if self._single < PAYS or self.weight.shape[0] < self.weight.shape[1]:
            return F.linear(x, self.weight, self.bias)
        if self._turned is None:
            self._turned = self.weight.detach().t().contiguous()
        y = x.reshape(1, -1)
        y = y @ self._turned if self.bias is None else torch.addmm(self.bias, y, self._turned)
        return y.view(*x.shape[:-1], -1)


def packed(module: nn.Module) -> nn.Module:
    """A twin of a module with its plain linear layers packed; all else is shared with it.

    Layers that do more than multiply (with hooks, parametrised, quantised, sharded) stay as they are, and a module
    without plain ones is itself; so is every one on another device than a CPU.
    """
    if plain(module):
        assert isinstance(module, nn.Linear)
        return PackedLinear(module.weight, module.bias)
    children = {name: None if child is None else packed(child) for name, child in module._modules.items()}
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    twin = copy.copy(module)
    twin._modules = children
    return twin


def plain(module: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether a module is a linear layer of this kind and nothing else, on a CPU."""
    return (type(module) is kind and type(module.weight) is nn.Parameter and module.weight.device.type == "cpu"
            and not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module))


def _multiplies(kind: torch.dtype) -> bool:
    """Whether oneDNN is there and multiplies in this precision here."""
    needed = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")  # not public: may go
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in needed):
        return False
    return kind == torch.float32 or (kind == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
