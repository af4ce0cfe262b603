"""The caption decoder equals torch's own, never looks ahead, and says the same step by step."""

from __future__ import annotations

import math

import pytest
import torch
from random_models import SIZES, decoder, memory, randomise, texts
from torch import Tensor, nn

from minivl.errors import InputError
from minivl.models.decoder import CaptionDecoder, DecoderConfig, Memory
from minivl.nn.record import AttnRecord, Site, filling


def torch_decoder(norm: str, seed: int = 0) -> nn.TransformerDecoder:
    """torch's decoder, 32 wide, 3 deep, 4 heads, every parameter random."""
    layer = nn.TransformerDecoderLayer(32, 4, 48, dropout=0.0, activation="gelu", batch_first=True,
                                       norm_first=norm == "pre")
    stack = nn.TransformerDecoder(layer, 3, norm=nn.LayerNorm(32) if norm == "pre" else None)
    randomise(stack, seed)
    return stack


def copy_of(theirs: nn.TransformerDecoder, ours: CaptionDecoder) -> None:
    """Put torch's weights into our blocks."""
    names = {"self_attn": "attn", "multihead_attn": "cross", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}
    state = {}
    for name, tensor in theirs.state_dict().items():
        name = name.replace("layers.", "blocks.")
        for their_part, our_part in names.items():
            name = name.replace(their_part, our_part)
        if "in_proj" in name:
            for letter, part in zip("qkv", tensor.chunk(3)):
                state[name.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            state[name] = tensor
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected and all(name.split(".")[0] in ("embed", "pos_embed", "head") for name in missing)


def waves(length: int, width: int) -> Tensor:
    """The table of Vaswani et al. 2017, entry by entry."""
    return torch.tensor([[(math.sin if i % 2 == 0 else math.cos)(t / 10000 ** (2 * (i // 2) / width))
                          for i in range(width)] for t in range(length)])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_equals_torchs_decoder(norm: str, positions: str, tied: bool) -> None:
    ours, theirs = decoder(norm=norm, positions=positions, tied=tied), torch_decoder(norm)
    copy_of(theirs, ours)
    seen, ids = memory(3), texts(3, 9)
    x = ours.embed.weight[ids]
    x = x + ours.pos_embed[:9] if positions == "learned" else x * math.sqrt(32) + waves(9, 32)
    causal = torch.ones(9, 9, dtype=torch.bool).triu(1)  # torch: True = may not attend
    y = theirs(x, seen.tokens, tgt_mask=causal)
    expected = y @ ours.embed.weight.T if tied else y @ ours.head.weight.T + ours.head.bias
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(ids, seen), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_memory_equals_torchs_padding_mask() -> None:
    ours, theirs = decoder(), torch_decoder("pre")
    copy_of(theirs, ours)
    seen, ids = memory(3), texts(3, 5)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [False, True] * 3 + [True]])
    y = theirs(ours.embed.weight[ids] + ours.pos_embed[:5], seen.tokens, memory_key_padding_mask=~mask,
               tgt_mask=torch.ones(5, 5, dtype=torch.bool).triu(1))
    logits = ours(ids, seen._replace(mask=mask))
    torch.testing.assert_close(logits, ours.head(y), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits[1:], ours(ids, seen)[1:], atol=1e-2)


@torch.no_grad()
def test_memory_positions_go_to_keys_only() -> None:
    model, seen, ids = decoder(depth=1), memory(2), texts(2, 4)
    pos = memory(2, seed=8).tokens
    cross = model.blocks[0].cross
    with_pos = model(ids, seen._replace(pos=pos))
    assert not torch.allclose(with_pos, model(ids, seen), atol=1e-3)
    values = cross.v_proj(seen.tokens)
    hook = cross.v_proj.register_forward_hook(
        lambda module, args, out: torch.testing.assert_close(out, values))
    torch.testing.assert_close(model(ids, seen._replace(pos=pos)), with_pos)
    hook.remove()


@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_no_row_sees_a_later_token(norm: str) -> None:
    model, seen, ids = decoder(norm=norm), memory(2), texts(2, 10)
    before = model(ids, seen)
    for t in range(9):
        changed = ids.clone()
        changed[:, t + 1] = (ids[:, t + 1] + 1 + t) % 11
        after = model(changed, seen)
        assert torch.equal(after[:, :t + 1], before[:, :t + 1])
        assert ((after[:, t + 1:] - before[:, t + 1:]).abs().amax(-1) > 1e-4).all()  # every later row moves


@pytest.mark.parametrize("prompt", [1, 2, 5, 12])
@pytest.mark.parametrize("norm, positions", [("pre", "learned"), ("post", "sinusoidal")])
@torch.no_grad()
def test_cached_steps_equal_the_whole_pass(norm: str, positions: str, prompt: int) -> None:
    model, seen, ids = decoder(norm=norm, positions=positions), memory(3), texts(3, 12)
    whole, state = model(ids, seen), model.start(seen)
    pieces = [model(ids[:, :prompt], seen, state=state)]
    for t in range(prompt, 12):
        assert state.length == t
        pieces.append(model(ids[:, t:t + 1], seen, state=state))
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="13"):
        model(ids[:, :1], seen, state=state)


@torch.no_grad()
def test_chunks_of_any_length_equal_the_whole_pass() -> None:
    model, seen, ids = decoder(), memory(2), texts(2, 12)
    state, whole = model.start(seen), model(ids, seen)
    pieces = [model(part, seen, state=state) for part in ids.split([3, 1, 4, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_reordered_and_selected_rows_go_on_as_what_they_were() -> None:
    """Rows of a beam step: permuted, repeated, dropped; then an image leaves."""
    model, seen, ids = decoder(), memory(3), texts(3, 4)
    state = model.start(seen)
    model(ids, seen, state=state)
    state.reorder(torch.tensor([0, 0, 1, 1, 2, 2]))
    second = texts(6, 1, seed=9)
    model(second, state.memory, state=state)
    rows = torch.tensor([1, 0, 3, 3, 4, 5])
    state.reorder(rows)
    state.select(torch.tensor([0, 2]))
    third = texts(4, 1, seed=10)
    logits = model(third, state.memory, state=state)
    histories = torch.cat([ids.repeat_interleave(2, 0), second], 1)[rows][[0, 1, 4, 5]]
    full = model(torch.cat([histories, third], 1), Memory(seen.tokens[[0, 2]], None, None, 1, (3, 2)))
    torch.testing.assert_close(logits, full[:, -1:], atol=1e-5, rtol=1e-5)
    assert state.cross_caches[0].k.shape[0] == 2 and state.self_caches[0].k.shape[:3] == (4, 4, 6)


@torch.no_grad()
def test_captions_of_an_image_share_its_memory() -> None:
    model, seen, ids = decoder(), memory(2), texts(6, 8)
    pos, mask = memory(2, seed=8).tokens, torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    full = seen._replace(pos=pos, mask=mask)
    repeated = Memory(*(part.repeat_interleave(3, 0) for part in (full.tokens, pos, mask)), 1, (3, 2))
    torch.testing.assert_close(model(ids, full), model(ids, repeated), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(ids, full), model(ids, Memory(
        *(torch.cat([part] * 3) for part in (full.tokens, pos, mask)), 1, (3, 2))), atol=1e-2)  # side by side
    with pytest.raises(InputError, match="5"):
        model(ids[:5], full)


@torch.no_grad()
def test_records_of_both_sites() -> None:
    model, seen, ids = decoder(), memory(2), texts(4, 6)
    record = AttnRecord()
    sites = {"self": Site(3, 4, 6), "cross": Site(3, 4, 6)}
    with filling(record, sites, 4, ids.device):
        logits = model(ids, seen, attn=record)
    assert torch.equal(logits, model(ids, seen))
    for layer in range(3):
        own, cross = record["self", layer], record["cross", layer]
        assert own.shape == (4, 4, 6, 6) and cross.shape == (4, 4, 6, 7)
        assert torch.equal(own, own.tril())
        torch.testing.assert_close(own.sum(-1), torch.ones(4, 4, 6))
        torch.testing.assert_close(cross.sum(-1), torch.ones(4, 4, 6))


def test_tied_head_has_no_tensor_of_its_own() -> None:
    names = set(decoder(tied=True).state_dict())
    assert "head.weight" not in names and set(decoder().state_dict()) - names == {"head.weight", "head.bias"}
    assert "pos_embed" in names and "pos_embed" not in decoder(positions="sinusoidal").state_dict()


def test_half_precision_with_waves() -> None:
    model = decoder(positions="sinusoidal").bfloat16()
    model.pos_embed = model.pos_embed.float()  # as after loading: the table is no state
    seen = memory(2)
    assert model(texts(2, 3), seen._replace(tokens=seen.tokens.bfloat16())).dtype == torch.bfloat16


@pytest.mark.parametrize("changes, message", [
    ({"norm": "middle"}, "norm"), ({"positions": "none"}, "positions"), ({"eos_id": 11}, "eos_id"),
    ({"bos_id": -1}, "bos_id"), ({"num_heads": 5}, "5"), ({"act": "silu"}, "silu"), ({"depth": 0}, "depth"),
    ({"max_len": 0}, "max_len"), ({"vocab_size": 2.5}, "vocab_size"),
])
def test_impossible_decoders_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CaptionDecoder(DecoderConfig(**{**SIZES, **changes}))
