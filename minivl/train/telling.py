"""Captions that are given, told to a captioner word by word: how likely it finds them, and where it looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..models.captioner import Caption, Captioner
from ..nn.record import AttnRecord
from .captioning import encode_captions
from .loop import autocast


class Told(NamedTuple):
    """What a captioner makes of a caption.

    Attributes:
        caption: as if it had said it: ids from <BOS> on, words, the log-probability of these ids.
        cross: (T, N) float32 on the CPU, mean of the heads; row t is the look that would have chosen ``ids[t + 1]``.
        n_prefix: how many of the N tokens stand before the patches.
        whole: False where the decoder has too few positions; the ids are those that fit, without <EOS>.
    """

    caption: Caption
    cross: Tensor
    n_prefix: int
    whole: bool


@torch.no_grad()
def tell(captioner: Captioner, images: Tensor, texts: Sequence[str], *, layer: int,
         heads: str | tuple[int, ...] = "mean", precision: str = "fp32") -> list[Told]:
    """One teacher-forced pass over captions of any origin.

    Args:
        captioner: with a tokenizer; words that it does not know are its unknown token.
        images: (B, 3, H, W) on its device.
        texts: B captions.
        layer: of the decoder, from 0.
        heads: those that are averaged, or "mean": all.
        precision: "fp32", "bf16" or "fp16" (autocast).

    Returns:
        One of each caption.

    Raises:
        InputError: no tokenizer, another number of captions than of images, or no such layer or head.
    """
    if captioner.tokenizer is None:
        raise InputError("a captioner without a tokenizer cannot be told a caption: it knows ids only")
    room = captioner.config.decoder.max_len
    rows = encode_captions(texts, captioner.tokenizer, room)  # of room + 1 ids the last one chooses nothing
    record = AttnRecord(sites=("cross",), layers=[layer], heads=heads)
    with autocast(images.device, precision):
        memory = captioner.encode(images)
        logits = captioner.replay(None, [row[:-1].tolist() for row in rows], attn=record, memory=memory)  # (B, T, V)
    logp = logits.float().log_softmax(-1).cpu()
    cross = record["cross", layer].mean(1).float().cpu()  # (B, T, N)
    told = []
    for text, row, ours, looks in zip(texts, rows, logp, cross):
        ids, steps = tuple(row.tolist()), len(row) - 1
        likely = float(ours[torch.arange(steps), row[1:]].sum())
        caption = Caption(ids, text, tuple(captioner.tokenizer.words(ids)), likely, likely)
        told.append(Told(caption, looks[:steps], memory.n_prefix, ids[-1] == captioner.tokenizer.eos_id))
    return told
