"""How the peers without a cache decode: facts about their loops, in lines of our own.

The course captioner (a ViT, and `torch.nn.TransformerDecoder`) passes the whole prefix through decoder and head for
every word, the memory copied for each beam. CATR's script passes the picture through its network again for every word,
with all 128 text positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minivl.models.captioner import Captioner
from minivl.nn.embed import sinusoids


class CourseDecoder(nn.Module):
    """Word table, waves, `torch.nn.TransformerDecoder` and head."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, mlp_dim: int, longest: int = 64,
                 norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(width, heads, mlp_dim, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=norm_first)
        self.words, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.layers = nn.TransformerDecoder(layer, depth)
        self.waves: Tensor
        self.register_buffer("waves", sinusoids(longest, width))

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        """(B, T), (B, N, D) -> (B, T, V)."""
        length = ids.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)  # torch: True = may not attend
        x = self.words(ids) + self.waves[:length].to(memory.dtype)
        return self.head(self.layers(x, memory, tgt_mask=later, tgt_is_causal=True))

    def in_our_names(self) -> dict[str, Tensor]:
        """Its tensors for a `CaptionDecoder`."""
        state = {"embed.weight": self.words.weight, "head.weight": self.head.weight, "head.bias": self.head.bias}
        ours = {"self_attn": "attn", "multihead_attn": "cross", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}
        for name, tensor in self.layers.layers.state_dict().items():
            place, part, rest = name.split(".", 2)
            target = f"blocks.{place}.{ours.get(part, part)}"
            if rest.startswith("in_proj_"):
                for letter, piece in zip("qkv", tensor.chunk(3)):
                    state[f"{target}.{letter}_proj.{rest.removeprefix('in_proj_')}"] = piece
            else:
                state[f"{target}.{rest}"] = tensor
        return state


@torch.no_grad()
def course_loop(decoder: CourseDecoder, memory: Tensor, begin: int, end: int, words: int, beams: int) -> list[int]:
    """The best caption of one image (1, N, D), `words` tokens long (the end token ruled out before), from `beams` beams
    ranked by their sums."""
    ids, sums = torch.tensor([[begin]]), torch.zeros(1)
    for word in range(words):
        copied = memory.repeat(len(ids), 1, 1)  # (beams, N, D)
        logp = decoder(ids, copied)[:, -1].float().log_softmax(-1)
        if word < words - 1:
            logp[:, end] = -torch.inf
        sums, flat = (sums[:, None] + logp).flatten().topk(beams)
        parents, tokens = flat // logp.shape[1], flat % logp.shape[1]
        ids = torch.cat([ids[parents], tokens[:, None]], 1)
    return ids[0].tolist()


@torch.no_grad()
def catr_loop(model: Captioner, image: Tensor, words: int) -> list[int]:
    """The greedy caption of one picture (1, 3, H, W), `words` tokens long, as CATR's script finds it: for every word
    the picture and all 128 positions again."""
    decoder = model.config.decoder
    ids = torch.full((1, 128), decoder.pad_id)
    ids[0, 0] = decoder.bos_id
    for word in range(words):
        logits = model(image, ids)[0, word]
        if word < words - 1:
            logits[decoder.eos_id] = -torch.inf
        if word + 1 < 128:
            ids[0, word + 1] = logits.argmax()
    return ids[0, :words + 1].tolist()
