"""CATR as facts about its arithmetic, on PyTorch's own parts and under CATR's names: what ours is compared with.

The state dict comes from torchvision's ResNet and from `torch.nn`'s transformer layers, which CATR's names are those
of; the forward pass keeps DETR's masks (True = padding) and fused projections.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

HEADS = 8
SIZES: dict[str, Any] = {"layers": (1, 1, 1, 1), "width": 32, "depth": 2, "mlp_dim": 48, "vocab_size": 120,
                         "max_len": 20, "head_dim": 24}


def resnet(layers: tuple[int, ...]) -> ResNet:
    """With ordinary batch norm, which in eval mode is the frozen one."""
    return ResNet(Bottleneck, list(layers), replace_stride_with_dilation=[False, False, True]).eval()


def catr_state(seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """A random state dict with CATR's names; every tensor is random, scales and running statistics too.

    Word 7 at place 2 is nearly constant.
    """
    sizes = {**SIZES, **changes}
    width, mlp_dim, vocab_size = sizes["width"], sizes["mlp_dim"], sizes["vocab_size"]
    with torch.device("meta"):
        body = resnet(sizes["layers"])
        del body.fc
        modules = {
            "backbone.0.body": body,
            "input_proj": nn.Conv2d(2048, width, 1),
            "transformer.encoder.norm": nn.LayerNorm(width),
            "transformer.decoder.norm": nn.LayerNorm(width),
            "transformer.embeddings.word_embeddings": nn.Embedding(vocab_size, width),
            "transformer.embeddings.position_embeddings": nn.Embedding(sizes["max_len"], width),
            "transformer.embeddings.LayerNorm": nn.LayerNorm(width),
            "mlp.layers.0": nn.Linear(width, sizes["head_dim"]),
            "mlp.layers.1": nn.Linear(sizes["head_dim"], sizes["head_dim"]),
            "mlp.layers.2": nn.Linear(sizes["head_dim"], vocab_size),
        }
        for i in range(sizes["depth"]):
            modules[f"transformer.encoder.layers.{i}"] = nn.TransformerEncoderLayer(width, HEADS, mlp_dim)
            modules[f"transformer.decoder.layers.{i}"] = nn.TransformerDecoderLayer(width, HEADS, mlp_dim)
        named = {f"{prefix}.{name}": tensor for prefix, module in modules.items()
                 for name, tensor in module.state_dict().items() if "num_batches" not in name}
    generator = torch.Generator().manual_seed(seed)
    state = {name: _random(name, tensor.shape, generator) for name, tensor in named.items()}
    state["transformer.embeddings.word_embeddings.weight"][7] *= 1e-3  # so that the eps of their norm shows
    state["transformer.embeddings.position_embeddings.weight"][2] *= 1e-3
    return state


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("running_var"):
        return noise.abs() + 0.5
    if name.endswith(("running_mean", "bias")):
        return noise * 0.2
    if len(shape) == 1:
        return 1 + 0.2 * noise
    if "embedding" in name:
        return noise
    strength = 0.6 if "in_proj" in name else 1  # more would magnify float32's noise in the weights
    return noise * strength / math.sqrt(math.prod(shape[1:]))


class Reference:
    """CATR of a state dict. Calling it gives logits and the weights of every attention.

    Attributes:
        weights: after a call, {(site, layer): (B, h, Q, K)}; sites are "encoder", "self" and "cross".
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        names = [name.split(".") for name in state]
        layers = tuple(1 + max(int(name[4]) for name in names if name[3:4] == [f"layer{stage}"])
                       for stage in (1, 2, 3, 4))
        self.depth = 1 + max(int(name[3]) for name in names if name[1:3] == ["decoder", "layers"])
        self.body = resnet(layers)
        self.body.fc = nn.Identity()
        prefix = "backbone.0.body."
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        odd = self.body.load_state_dict(own, strict=False)
        assert not odd.unexpected_keys and all("num_batches" in name for name in odd.missing_keys)
        self.weights: dict[tuple[str, int], Tensor] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, 3, H, W), (B, T) and the padded pixels (B, H, W), True = padding -> logits (B, T, V)."""
        if padding is None:
            padding = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.bool)
        features = self.features(images)
        padding = F.interpolate(padding[None].float(), size=features.shape[-2:]).to(torch.bool)[0]  # (B, gh, gw)
        place = sine(~padding, self.state["input_proj.bias"].shape[0])
        x = F.conv2d(features, self.state["input_proj.weight"], self.state["input_proj.bias"])
        x, padding = x.flatten(2).mT, padding.flatten(1)  # (B, N, D)
        for i in range(self.depth):
            layer = f"transformer.encoder.layers.{i}"
            y = self.norm(x, f"{layer}.norm1")
            x = x + self.attention(f"{layer}.self_attn", y + place, y + place, y, ("encoder", i), padding=padding)
            x = x + self.feed_forward(x, layer, "norm2")
        memory = self.norm(x, "transformer.encoder.norm")
        rows = self.state["transformer.embeddings.position_embeddings.weight"][:ids.shape[1]]  # (T, D)
        x = self.state["transformer.embeddings.word_embeddings.weight"][ids] + rows
        x = self.norm(x, "transformer.embeddings.LayerNorm", eps=1e-12)
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        for i in range(self.depth):
            layer = f"transformer.decoder.layers.{i}"
            y = self.norm(x, f"{layer}.norm1")
            x = x + self.attention(f"{layer}.self_attn", y + rows, y + rows, y, ("self", i), later=later)
            y = self.norm(x, f"{layer}.norm2")
            x = x + self.attention(f"{layer}.multihead_attn", y + rows, memory + place, memory, ("cross", i),
                                   padding=padding)
            x = x + self.feed_forward(x, layer, "norm3")
        x = self.norm(x, "transformer.decoder.norm")
        for i in range(3):
            x = self.linear(x if i == 0 else x.relu(), f"mlp.layers.{i}")
        return x

    def features(self, images: Tensor) -> Tensor:
        """The last stage's output."""
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        return body.layer4(body.layer3(body.layer2(body.layer1(x))))

    def norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def feed_forward(self, x: Tensor, layer: str, norm: str) -> Tensor:
        return self.linear(self.linear(self.norm(x, f"{layer}.{norm}"), f"{layer}.linear1").relu(), f"{layer}.linear2")

    def attention(self, name: str, q: Tensor, k: Tensor, v: Tensor, site: tuple[str, int], *,
                  padding: Tensor | None = None, later: Tensor | None = None) -> Tensor:
        """PyTorch's own, which takes (length, B, D); its weights are kept."""
        state = self.state
        out, self.weights[site] = F.multi_head_attention_forward(
            *(x.transpose(0, 1) for x in (q, k, v)), q.shape[-1], HEADS, state[f"{name}.in_proj_weight"],
            state[f"{name}.in_proj_bias"], None, None, False, 0.0, state[f"{name}.out_proj.weight"],
            state[f"{name}.out_proj.bias"], training=False, key_padding_mask=padding, attn_mask=later,
            average_attn_weights=False)
        return out.transpose(0, 1)


def sine(picture: Tensor, width: int) -> Tensor:
    """Positions (B, gh*gw, D) of cells that are picture (B, gh, gw), channel by channel."""
    half = width // 2
    channels = []
    for channel in range(width):
        axis = 1 if channel < half else 2
        count = picture.float().cumsum(axis)
        turns = count / (count.amax(axis, keepdim=True) + 1e-6) * 2 * math.pi
        angle = turns / 10000 ** (channel % half // 2 * 2 / half)
        channels.append(angle.cos() if channel % 2 else angle.sin())
    return torch.stack(channels, -1).flatten(1, 2)
