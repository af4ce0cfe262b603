"""Captioner: a vision encoder, a projection and a caption decoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..errors import InputError
from ..images import Photo, Preprocessing, preprocess
from ..nn.modes import evaluating
from ..nn.packed import packed
from ..nn.record import AttnRecord, Site, filling
from ..search import BEAMS, Options
from ..text.tokenizer import Tokenizer
from .caption import Caption
from .decoder import CaptionDecoder, DecoderConfig, DecoderState, Memory
from .decoding import CompiledDecoding, Decoding
from .grid import GridConfig, GridEncoder
from .vit import ViT, ViTConfig
from .wishes import search, wishes


@dataclass(frozen=True)
class CaptionerConfig:
    """Encoder and decoder of a captioner.

    Attributes:
        encoder: a ViT (without a head: num_classes=0), or CATR's encoder of a picture of any size.
        decoder: the caption decoder.
        project: whether a linear layer brings the encoder's tokens to `decoder.memory_width`; without one the
            decoder attends to the tokens themselves.
    """

    encoder: ViTConfig | GridConfig
    decoder: DecoderConfig
    project: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.encoder, ViTConfig) and self.encoder.num_classes:
            raise InputError("the encoder of a captioner has no head: give num_classes=0")
        if not self.project and self.encoder.width != self.decoder.memory_width:
            raise InputError(f"project=False: the encoder is {self.encoder.width} wide, the decoder's memory "
                             f"{self.decoder.memory_width}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CaptionerConfig:
        """The inverse of `dataclasses.asdict`; raises TypeError for an unknown field, KeyError for a missing one."""
        rest = {name: value for name, value in values.items() if name not in ("encoder", "decoder")}
        encoder = values["encoder"]
        kind = GridConfig if "layers" in encoder else ViTConfig
        return cls(kind(**encoder), DecoderConfig(**values["decoder"]), **rest)


class Captioner(nn.Module):
    """Images to words.

    Attributes:
        tokenizer: ids <-> text; None: captions are ids.
        preprocessing: how photos become its input; None where unknown.
        notes: what training wrote down (layer and heads to look at, data, settings); travels in the
            weight file.
    """

    kind = "captioner"

    def __init__(self, config: CaptionerConfig, *, tokenizer: Tokenizer | None = None,
                 preprocessing: Preprocessing | None = None, notes: dict[str, Any] | None = None) -> None:
        super().__init__()
        if tokenizer is not None and tokenizer.vocab_size != config.decoder.vocab_size:
            raise InputError(f"the tokenizer has {tokenizer.vocab_size} entries, the decoder "
                             f"{config.decoder.vocab_size}")
        for role in ("bos_id", "eos_id", "pad_id"):
            if tokenizer is not None and getattr(tokenizer, role) != getattr(config.decoder, role):
                raise InputError(f"{role} is {getattr(tokenizer, role)} in the tokenizer and "
                                 f"{getattr(config.decoder, role)} in the decoder")
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.notes = dict(notes or {})
        self.encoder: ViT | GridEncoder = (ViT(config.encoder) if isinstance(config.encoder, ViTConfig)
                                           else GridEncoder(config.encoder))
        assert config.decoder.memory_width is not None  # settled by its config
        self.proj = (nn.Linear(config.encoder.width, config.decoder.memory_width) if config.project
                     else nn.Identity())
        self.decoder = CaptionDecoder(config.decoder)

    @property
    def config(self) -> CaptionerConfig:
        """What fixes its shapes and arithmetic; the encoder's part follows `ViT.resize`."""
        return CaptionerConfig(self.encoder.config, self.decoder.config, isinstance(self.proj, nn.Linear))

    @property
    def attn_sites(self) -> dict[str, tuple[int, int]]:
        """{site: (layers, heads)} that an AttnRecord can ask for."""
        decoder = self.config.decoder
        return {**self.encoder.attn_sites, "self": (decoder.depth, decoder.num_heads),
                "cross": (decoder.depth, decoder.num_heads)}

    @property
    def cell(self) -> tuple[int, int]:
        """(height, width) in pixels of a cell of the encoder's grid."""
        return self.encoder.cell

    @property
    def longest(self) -> int:
        """Most new tokens of a caption where nobody says: 30, or what the decoder has room for."""
        return min(30, self.config.decoder.max_len - 1)

    # -- forward -----------------------------------------------------------------------------------------

    def encode(self, images: Tensor, attn: AttnRecord | None = None, *,
               image_mask: Tensor | None = None) -> Memory:
        """Images to the memory the decoder looks at.

        Args:
            images: (B, C, H, W).
            attn: record to fill, site "encoder".
            image_mask: (B, H, W) boolean, True = picture, where images of several sizes were padded for an encoder
                that takes any size (CATR's).

        Raises:
            InputError: images of another size, a mask for an encoder that takes none, or none for padded images.
        """
        self._check(images, image_mask)
        with filling(attn, self.encoder.sites(images), images.shape[0], images.device):
            return self._look(images, image_mask, attn)

    def _check(self, images: Tensor, image_mask: Tensor | None) -> None:
        if isinstance(self.encoder, GridEncoder):
            self.encoder.check(images, image_mask)
        elif image_mask is not None:
            raise InputError("image_mask: the encoder of this captioner takes whole images, without padding")
        else:
            self.encoder.check(images)

    def _look(self, images: Tensor, image_mask: Tensor | None, attn: AttnRecord | None) -> Memory:
        """`encode` for a caller that has checked the images and opened the record."""
        if isinstance(self.encoder, GridEncoder):
            memory = self.encoder.look(images, image_mask, attn)
            return memory._replace(tokens=self.proj(memory.tokens))
        return self.memory(self.encoder.tokens(images, attn))

    def memory(self, features: Tensor) -> Memory:
        """Tokens of a ViT encoder (B, N, encoder width), computed now or long ago, to a memory."""
        encoder = self.config.encoder
        if not isinstance(encoder, ViTConfig):
            raise InputError("memory: the encoder of this captioner gives positions and a mask too; use encode")
        expected = (encoder.n_tokens, encoder.width)
        if features.ndim != 3 or tuple(features.shape[1:]) != expected:
            raise InputError(f"features of shape {tuple(features.shape)}: this captioner's encoder gives "
                             f"(B, {expected[0]}, {expected[1]})")
        return Memory(self.proj(features), None, None, encoder.n_prefix, encoder.grid)

    def forward(self, images: Tensor | None, ids: Tensor, *, attn: AttnRecord | None = None,
                memory: Memory | None = None, image_mask: Tensor | None = None) -> Tensor:
        """Teacher-forced logits.

        Args:
            images: (B, C, H, W), or None where `memory` is given.
            ids: (B*r, T) token ids beginning with <BOS>; r captions of an image stand side by side.
            attn: record to fill: "encoder" (B rows), "self" and "cross" (B*r rows).
            memory: what `encode` gave.
            image_mask: as in `encode`.

        Returns:
            (B*r, T, V); row t scores the token that follows ``ids[:, : t + 1]``.

        Raises:
            InputError: neither or both of images and memory, ids that are too long or do not match them in
                number, or an impossible record.
        """
        if (images is None) == (memory is None):
            raise InputError("give images or memory, one of the two")
        if ids.ndim != 2 or ids.shape[1] < 1:
            raise InputError(f"ids of shape {tuple(ids.shape)}: give (B, T) with at least one column")
        decoder = self.config.decoder
        if ids.shape[1] > decoder.max_len:
            raise InputError(f"{ids.shape[1]} text positions: this decoder has {decoder.max_len} (max_len)")
        seen = images if memory is None else memory.tokens
        assert seen is not None
        if ids.shape[0] % max(len(seen), 1):
            raise InputError(f"{ids.shape[0]} captions for {len(seen)} images: as many for each are needed")
        sites: dict[str, Site] = {}
        if images is not None:
            self._check(images, image_mask)
            sites.update({name: site._replace(batch=len(images))
                          for name, site in self.encoder.sites(images).items()})
        elif image_mask is not None:
            raise InputError("image_mask belongs to images; a memory has its own mask")
        text = Site(decoder.depth, decoder.num_heads, ids.shape[1])
        sites.update({"self": text, "cross": text})
        with filling(attn, sites, ids.shape[0], ids.device):
            if memory is None:
                assert images is not None
                memory = self._look(images, image_mask, attn)
            return self.decoder(ids, memory, attn=attn)

    def replay(self, images: Tensor | None, ids: Tensor | Sequence[Sequence[int]] | Sequence[Caption], *,
               attn: AttnRecord | None = None, image_mask: Tensor | None = None,
               memory: Memory | None = None) -> Tensor:
        """One teacher-forced pass over finished captions: what the search saw, with its attention.

        Args:
            images: (B, C, H, W), or None with `memory`.
            ids: captions, their ids, or a padded (B, T) tensor; shorter ones are padded here.
            attn: record to fill; ``record["cross", l]`` is (B, h, T, N), row t the look that chose
                ``ids[t + 1]``.
            image_mask: as in `encode`.
            memory: what `encode` gave.

        Returns:
            logits (B, T, V).

        Raises:
            InputError: an image_mask, captions that do not match the images, or an impossible record.
        """
        if not isinstance(ids, Tensor):
            rows = [torch.tensor(row.ids if isinstance(row, Caption) else tuple(row)) for row in ids]
            if not rows or any(row.ndim != 1 or not row.numel() for row in rows):
                raise InputError("ids: give at least one caption, each with at least one id")
            ids = pad_sequence(rows, batch_first=True, padding_value=self.config.decoder.pad_id)
        seen = images if images is not None else memory.tokens if memory is not None else None
        if seen is not None:
            ids = ids.to(seen.device)
            if ids.ndim == 2 and ids.shape[0] != seen.shape[0]:
                raise InputError(f"{ids.shape[0]} captions for {seen.shape[0]} images")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.decoder.vocab_size:
            raise InputError(f"ids from {int(ids.min())} to {int(ids.max())}: the vocabulary has "
                             f"{self.config.decoder.vocab_size} entries")
        return self(images, ids, attn=attn, memory=memory, image_mask=image_mask)

    # -- decoding ----------------------------------------------------------------------------------------

    def step(self, ids: Tensor, state: DecoderState) -> Tensor:
        """Next-token logits (B*r, T, V) of T further tokens (B*r, T); `state` comes from `start`."""
        return self.decoder(ids, state.memory, state=state)

    def start(self, memory: Memory) -> DecoderState:
        """The state in front of the first token."""
        return self.decoder.start(memory)

    def ready(self) -> Captioner:
        """The same captioner for decoding, with the weights as they are now (whoever changes them makes another): see
        `CaptionDecoder.ready`; the encoder's are packed too."""
        twin = copy.copy(self)
        twin._modules = {**self._modules, "encoder": packed(self.encoder), "decoder": self.decoder.ready()}
        return twin

    def decoding(self, memory: Memory, *, single: bool = False, compile: bool | str = False, room: int | None = None,
                 images: int | None = None) -> Decoding | CompiledDecoding:
        """The step protocol that `minivl.search` works on.

        Args:
            memory: of the images. (Where much is decoded on a CPU, take that of `ready()`.)
            single: each image has one sequence to the end, see `Decoding`; a compiled decoding does not ask.
            compile: steps as one graph of torch.compile, see `CompiledDecoding`; a name is that of a backend.
            room, images: of a compiled decoding.
        """
        if not compile:
            return Decoding(self, memory, single=single)
        return CompiledDecoding(self, memory, room=room, images=images, backend=None if compile is True else compile)

    @torch.no_grad()
    def caption(self, images: Tensor | Memory | Sequence[Photo | Tensor], *, beams: int = BEAMS, max_len: int = 30,
                normalise: str = "none", n_best: int = 1, batch_size: int = 64, numbers: Sequence[int] | None = None,
                compile: bool | str = False, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
                **options: Any) -> list[Caption]:
        """Captions of images, searched for or drawn, in eval mode whatever the mode of the model.

        Args:
            images: (B, C, H, W); or paths, PIL images or tensors (C, H, W), which may differ in size where the
                encoder takes any; or a memory.
            beams: of the search; 1 = greedy.
            max_len: most new tokens, <EOS> counted.
            normalise: "none", "mean" or "gnmt(0.6)": how captions of several lengths are ranked.
            n_best: captions per image.
            batch_size: images decoded together.
            numbers: whole numbers from which, with `seed`, samples of each image are drawn; None: places in the list.
            compile: decode in one graph of torch.compile that serves all steps and batches (`CompiledDecoding`): worth
                its making, which takes long, where much is decoded.
            progress: wraps the iteration over batches (e.g. tqdm).
            options: any other of `minivl.search.Options`: stop, groups, diversity, samples, temperature, top_k,
                top_p, seed, min_len, repetition_penalty, no_repeat_ngram, forbidden, required, prefix, allow_unknown.

        Returns:
            One `Caption` per image.

        Raises:
            InputError: options that `Options` or `wishes` refuse, max_len beyond the decoder's positions, a photo that
                does not open, or one photo where a list is needed.
        """
        chosen = Options.of(beams=beams, max_len=max_len, normalise=normalise, n_best=n_best, **options)
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        if not isinstance(images, (Tensor, Memory, Sequence)) or isinstance(images, str):
            raise InputError(f"images is one {type(images).__name__}: give a list of photos, or a tensor")
        count = images.tokens.shape[0] if isinstance(images, Memory) else len(images)
        if numbers is not None and (len(numbers) != count or any(type(one) is not int or one < 0 for one in numbers)):
            raise InputError(f"numbers: give {count} whole numbers of at least 0, one for each image")
        wished = wishes(chosen, self.config.decoder, self.tokenizer, self.decoder.embed.weight.device)
        captions: list[Caption] = []
        with evaluating(self):
            ready = self if compile else self.ready()
            for first in progress(range(0, count, batch_size)):
                part = slice(first, first + batch_size)
                seeds = [(chosen.seed, number) for number in (numbers or range(count))[part]]
                memory = self.memory_of(images, part)
                decode = ready.decoding(memory, single=chosen.single, compile=compile,
                                        room=len(wished.prompt) + chosen.max_len - 1, images=min(batch_size, count))
                found = search(decode, chosen, wished,
                               eos_id=self.config.decoder.eos_id, seeds=seeds, device=memory.tokens.device)
                captions += [Caption.of(hypotheses, self.tokenizer) for hypotheses in found]
        return captions

    def memory_of(self, images: Tensor | Memory | Sequence[Photo | Tensor], part: slice = slice(None)) -> Memory:
        """The memory of a part of what `caption` takes as images."""
        if isinstance(images, Memory):
            return images.select(part)
        batch = images[part]
        device = self.decoder.embed.weight.device
        if isinstance(batch, Tensor):
            return self.encode(batch.to(device))
        photos = [one for one in batch if not isinstance(one, Tensor)]
        if isinstance(self.encoder, ViT) and len(photos) == len(batch):
            return self.encode(preprocess(photos, self)[0].to(device))
        # A padded picture is not seen as it is alone: its border is. So pictures are encoded size by size.
        single = [one[None] if isinstance(one, Tensor) else preprocess([one], self)[0] for one in batch]  # (1, C, H, W)
        sizes = sorted({images.shape for images in single})
        order = [[i for i, images in enumerate(single) if images.shape == size] for size in sizes]
        memory = Memory.join([self.encode(torch.cat([single[i] for i in places]).to(device)) for places in order])
        return memory.select(torch.tensor(sum(order, []), device=device).argsort())

    def header(self) -> Mapping[str, Any]:
        """What a weight file must say beside the tensors (JSON-able)."""
        return {"preprocessing": self.preprocessing and self.preprocessing.to_dict(),
                "tokenizer": self.tokenizer and self.tokenizer.to_json(), "notes": self.notes or None}

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Captioner:
        """A captioner of a weight file's header, its tensors still to be filled."""
        config, tokenizer = CaptionerConfig.from_dict(header["config"]), None
        if header["tokenizer"] is not None:
            roles = {"BOS": config.decoder.bos_id, "EOS": config.decoder.eos_id, "PAD": config.decoder.pad_id}
            tokenizer = Tokenizer.from_json(header["tokenizer"], roles=roles)
        return cls(config, tokenizer=tokenizer, preprocessing=Preprocessing.or_none(header["preprocessing"]),
                   notes=header["notes"])
