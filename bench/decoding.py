"""Decoding against its peers, in one run: are the tokens the same, and how long does it take?

    python -m bench.decoding                         # hf course catr step maps cost
    python -m bench.decoding hf --precision bf16 --repeats 3
    python -m bench.decoding cost --out cost.png

``hf``: `VisionEncoderDecoderModel.generate` with its cache, BERT-style decoder of 6 layers, width 768, 12 heads, 10,000
words; 8 images, 20 words each; the decode part alone, from features. ``course`` and ``catr``: see `bench.catr_loop`,
encoder included; one image, 30 and 12 words. ``step``: forward and backward of the decoder against
`torch.nn.TransformerDecoder`. ``maps``: captions of photos with the cross-attention of every word, against captions
alone. ``cost``: time against beams, batch and length, as a picture.

Weights are random and the same on both sides; the end token is ruled out until the last word, so that lengths are
fixed; in fp32 the tokens must be equal. Runs alternate, times are the shortest of the processor's (all threads), ratios
above 1 mean that ours is faster. The ceiling is the arithmetic of the decode part (`arithmetic`) over the rate of a
product of 1024 x 1024 matrices in the same precision, measured in the same run; "matrices" are the linear layers alone
with as many rows, in the layout of `torch.nn.Linear`: what few rows cost because every weight must be read for them.
Matrices are packed once per model (`Captioner.ready`); what that takes is printed, and not counted.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.catr_loop import CourseDecoder, catr_loop, course_loop
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.decoder import CaptionDecoder, DecoderConfig, Memory
from minivl.models.grid import GridConfig
from minivl.models.vit import ViTConfig
from minivl.nn.record import AttnRecord

IMAGES, WORDS, TOKENS, GRID = 8, 20, 197, (14, 14)
AIMS = {("hf", "fp32"): {1: 1.4, 3: 2.2, 10: 4.5}, ("hf", "bf16"): {1: 1.4, 3: 2.5, 10: 4.0},
        ("course", "fp32"): {1: 3.0, 3: 5.0, 10: 10.0}}
TEXT = DecoderConfig(10_000, 768, 6, 12, 3072, norm="post", act="gelu", eps=1e-12, tied=True, pad_id=0, bos_id=1,
                     eos_id=2, embed_norm=True, head="transform", head_bias=True)
VISION = ViTConfig((224, 224), (16, 16), 768, 12, 12, 3072, num_classes=0)


# -- measuring -----------------------------------------------------------------------------------------------

def shortest(functions: list[Callable[[], Any]], repeats: int) -> tuple[list[float], list[Any]]:
    """Process time of the fastest call of each function, the calls interleaved, and what each returned."""
    taken, results = [float("inf")] * len(functions), [None] * len(functions)
    for _ in range(repeats):
        for place, function in enumerate(functions):
            begun = time.process_time()
            results[place] = function()
            taken[place] = min(taken[place], time.process_time() - begun)
    return taken, results


def line(what: str, taken: list[float], note: str) -> None:
    theirs, ours = taken
    print(f"{what:<28} theirs {theirs:7.3f} s   ours {ours:7.3f} s   ratio {theirs / ours:5.2f}   {note}", flush=True)


def rate(kind: torch.dtype) -> float:
    """Multiply-adds per second of a product of two 1024 x 1024 matrices."""
    a, b = torch.randn(2, 1024, 1024).to(kind)
    return 1024 ** 3 / shortest([lambda: a @ b], 9)[0][0]


def arithmetic(config: DecoderConfig, images: int, beams: int, words: int, tokens: int, waits: bool) -> float:
    """Multiply-adds of decoding: keys and values of the memory once per image; for every open row of every step all
    matrices and the looks at the text so far and at the memory. The first step has one row per image. With `waits` no
    keys and values are made, rows go through their matrices instead, and every head looks at the whole memory."""
    assert config.memory_width is not None and config.head_dim is not None
    width = config.width
    head = {"linear": 0, "transform": width * width, "mlp": (width + config.head_dim) * config.head_dim}[config.head]
    row = config.depth * (6 * width ** 2 + 2 * width * config.mlp_dim + 2 * tokens * width) \
        + head + config.head_dim * config.vocab_size
    rows = images * (1 + beams * (words - 1))
    looks = config.depth * 2 * width * images * (1 + beams * sum(range(2, words + 1)))
    memory = images * tokens * config.depth * 2 * config.memory_width * width
    if waits:
        memory = rows * config.depth * 2 * (config.memory_width * width + (
            config.num_heads * config.memory_width - width) * tokens)
    return memory + rows * row + looks


def matrices(decoder: CaptionDecoder, rows: int) -> float:
    """Seconds of one step's linear layers alone with that many rows."""
    kept = [module.weight for name, module in decoder.named_modules()
            if isinstance(module, nn.Linear) and not name.endswith(("cross.k_proj", "cross.v_proj"))]
    kept += [decoder.embed.weight] if decoder.head is None else []
    inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1]).to(weight.dtype) for weight in kept}
    return shortest([lambda: [F.linear(inputs[weight.shape[1]], weight) for weight in kept]], 5)[0][0]


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Every parameter drawn so that activations stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, nn.LayerNorm)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5, generator=generator)
            if id(parameter) in norms:
                parameter.add_(1.0)


def same(theirs: list[Any], ours: list[Any], kind: torch.dtype) -> str:
    """How many captions are equal; in fp32 all must be."""
    equal = sum(list(a) == list(b) for a, b in zip(theirs, ours))
    if kind == torch.float32 and (equal != len(theirs) or len(theirs) != len(ours)):
        raise SystemExit(f"the captions differ: {theirs} and {ours}")
    return f"{equal} of {len(theirs)} captions equal"


# -- the parts -----------------------------------------------------------------------------------------------

def features_only() -> Captioner:
    """A captioner of `TEXT`'s decoder whose encoder is not used."""
    vision = ViTConfig((16, 16), (16, 16), 768, 1, 12, 3072, num_classes=0)
    return Captioner(CaptionerConfig(vision, TEXT, False)).eval()


def hf_pair(kind: torch.dtype) -> tuple[Any, Captioner]:
    """A random model of transformers with a BERT that decodes, and ours with its decoder's weights."""
    from transformers import BertConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel
    from transformers import ViTConfig as HFViTConfig

    text = BertConfig(vocab_size=TEXT.vocab_size, num_hidden_layers=TEXT.depth, is_decoder=True, bos_token_id=1,
                      eos_token_id=2, pad_token_id=0, add_cross_attention=True, max_position_embeddings=TEXT.max_len)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        HFViTConfig(num_hidden_layers=1), text, decoder_start_token_id=1, bos_token_id=1, eos_token_id=2,
        pad_token_id=0)
    theirs = VisionEncoderDecoderModel._from_config(config).eval()
    randomise(theirs)
    ours = features_only()
    ours.decoder.load_state_dict(bert_in_our_names(theirs.decoder.state_dict(), TEXT.depth))
    return theirs.to(kind), ours.to(kind)


def bert_in_our_names(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The tensors of a `BertLMHeadModel` for a `CaptionDecoder`."""
    table, head = "bert.embeddings.", "cls.predictions."
    kinds = theirs[f"{table}token_type_embeddings.weight"]  # all text is of kind 0
    state = {"embed.weight": theirs[f"{table}word_embeddings.weight"], "head_bias": theirs[f"{head}bias"],
             "pos_embed": theirs[f"{table}position_embeddings.weight"] + kinds[0]}
    names = {f"{table}LayerNorm": "embed_norm", f"{head}transform.dense": "head_in.dense",
             f"{head}transform.LayerNorm": "head_in.norm"}
    for i in range(depth):
        layer, block = f"bert.encoder.layer.{i}.", f"blocks.{i}."
        for source, target, norm in (("attention", "attn", "norm1"), ("crossattention", "cross", "norm2")):
            names.update({f"{layer}{source}.self.query": f"{block}{target}.q_proj",
                          f"{layer}{source}.self.key": f"{block}{target}.k_proj",
                          f"{layer}{source}.self.value": f"{block}{target}.v_proj",
                          f"{layer}{source}.output.dense": f"{block}{target}.out_proj",
                          f"{layer}{source}.output.LayerNorm": f"{block}{norm}"})
        names.update({f"{layer}intermediate.dense": f"{block}mlp.fc1", f"{layer}output.dense": f"{block}mlp.fc2",
                      f"{layer}output.LayerNorm": f"{block}norm3"})
    return state | {f"{target}.{part}": theirs[f"{source}.{part}"]
                    for source, target in names.items() for part in ("weight", "bias")}


@torch.no_grad()
def hf(args: argparse.Namespace, kind: torch.dtype) -> None:
    """Against `generate` with its cache."""
    from transformers.modeling_outputs import BaseModelOutput

    theirs, ours = hf_pair(kind)
    features = torch.randn(IMAGES, TOKENS, 768).to(kind)
    memory, peak, ready = Memory(features, None, None, 1, GRID), rate(kind), ours.ready()
    packing = shortest([lambda: ours.caption(memory, beams=2, max_len=2, min_len=2),
                        lambda: ready.caption(memory, beams=2, max_len=2, min_len=2)], 2)[0]
    print(f"{args.precision}: {peak / 1e9:.0f} thousand million multiply-adds a second; packing the decoder once "
          f"{max(0.0, packing[0] - packing[1]) * 1e3:.0f} ms")
    for beams in args.beams:
        sums = {"length_penalty": 0.0} if beams > 1 else {}

        def generate() -> Any:
            seen = BaseModelOutput(last_hidden_state=features)
            return theirs.generate(encoder_outputs=seen, num_beams=beams, max_new_tokens=WORDS, do_sample=False,
                                   min_new_tokens=WORDS, use_cache=True, **sums)

        taken, found = shortest([generate, lambda: ready.caption(memory, beams=beams, max_len=WORDS, min_len=WORDS,
                                                                 forbidden=())], args.repeats)
        counted = arithmetic(TEXT, IMAGES, beams, WORDS, TOKENS, beams == 1 and kind == torch.float32) / peak
        alone = matrices(ours.decoder, IMAGES * beams) * (WORDS - 1) + matrices(ours.decoder, IMAGES)
        aim = AIMS["hf", args.precision].get(beams)
        line(f"hf, beams {beams}", taken, f"aim {aim}; {counted / taken[1]:.0%} of the ceiling; matrices "
             f"{alone:.3f} s; " + same(found[0].tolist(), [one.ids for one in found[1]], kind))


@torch.no_grad()
def course(args: argparse.Namespace, kind: torch.dtype) -> None:
    """Against the loop without a cache; both with the encoder."""
    text = DecoderConfig(18_022, 768, 4, 8, 2048, norm="post", positions="sinusoidal", scaled=False)
    theirs = CourseDecoder(text.vocab_size, text.width, text.depth, text.num_heads, text.mlp_dim).eval()
    ours = Captioner(CaptionerConfig(VISION, text, False)).eval()
    randomise(ours)
    randomise(theirs)
    ours.decoder.load_state_dict(theirs.in_our_names())
    ours, theirs, words = ours.to(kind), theirs.to(kind), 30
    image, ready = torch.randn(1, 3, 224, 224).to(kind), ours.ready()
    for beams in args.beams:
        taken, found = shortest([
            lambda: course_loop(theirs, ours.encode(image).tokens, text.bos_id, text.eos_id, words, beams),
            lambda: ready.caption(image, beams=beams, max_len=words, min_len=words)[0].ids], args.repeats)
        aim = AIMS.get(("course", args.precision), {}).get(beams)
        line(f"course loop, beams {beams}", taken, f"aim {aim}; " + same([found[0]], [found[1]], kind))
    print(f"  of which the encoder {shortest([lambda: ours.encode(image)], args.repeats)[0][0]:.3f} s")


@torch.no_grad()
def catr(args: argparse.Namespace, kind: torch.dtype) -> None:
    """Against the loop that begins with the picture for every word, on the same modules."""
    text = DecoderConfig(30_522, 256, 6, 8, 2048, max_len=128, norm="pre", act="relu", embed_norm=True, embed_eps=1e-12,
                         query_pos=True, head="mlp", head_dim=512, bos_id=101, eos_id=102)
    model = Captioner(CaptionerConfig(GridConfig(256, 6, 8, 2048), text, False)).eval()
    randomise(model.decoder)
    model, ready = model.to(kind), model.to(kind).ready()
    image, words = torch.randn(1, 3, 299, 299).to(kind), 12
    taken, found = shortest([lambda: catr_loop(model, image, words), lambda: ready.caption(
        image, beams=1, max_len=words, min_len=words)[0].ids], args.repeats)
    line("CATR, 12 words", taken, "aim 8; " + same([found[0]], [found[1]], kind))


def step(args: argparse.Namespace, kind: torch.dtype) -> None:
    """Forward and backward of a decoder of the same sizes on the same features, 20 words of 32 captions."""
    text = DecoderConfig(10_000, 768, 6, 12, 3072, norm="post", positions="sinusoidal", scaled=False)
    theirs = CourseDecoder(text.vocab_size, text.width, text.depth, text.num_heads, text.mlp_dim)
    randomise(theirs)
    ours = CaptionDecoder(text)
    ours.load_state_dict(theirs.in_our_names())
    ids, features = torch.randint(4, 10_000, (32, WORDS + 1)), torch.randn(32, TOKENS, 768)
    memory = Memory(features, None, None, 1, GRID)

    def passed(model: nn.Module, seen: Any) -> float:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            loss = F.cross_entropy(model(ids[:, :-1], seen).flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        return float(loss.detach())

    taken, loss = shortest([lambda: passed(theirs, features), lambda: passed(ours, memory)], args.repeats)
    line("training step", taken, f"aim 1.1; losses {loss[0]:.5f} and {loss[1]:.5f}")


@torch.no_grad()
def maps(args: argparse.Namespace, kind: torch.dtype) -> None:
    """Captions and one teacher-forced pass that records, against captions alone; photos and features."""
    model = Captioner(CaptionerConfig(VISION, TEXT, False)).eval()
    randomise(model)
    model = model.to(kind)
    images, ready = torch.randn(IMAGES, 3, 224, 224).to(kind), model.ready()
    features = ready.encode(images)

    def seen(encode: bool, record: bool) -> None:
        memory = ready.encode(images) if encode else features
        captions = ready.caption(memory, max_len=WORDS, min_len=WORDS)
        if record:
            ready.replay(None, captions, memory=memory, attn=AttnRecord("cross"))

    for encode in (True, False):
        alone, both = shortest([lambda: seen(encode, False), lambda: seen(encode, True)], args.repeats)[0]
        print(f"maps of every word, {'photos' if encode else 'features'}: captions {alone:.3f} s, with maps "
              f"{both:.3f} s, cost {both / alone:.3f}" + ("   aim <= 1.15" if encode else ""), flush=True)


@torch.no_grad()
def cost(args: argparse.Namespace, kind: torch.dtype) -> None:
    """Time against beams, batch and length, and the memory of states against beams, as a picture."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    model = features_only()
    randomise(model)
    ready = model.to(kind).ready()

    def seconds(images: int, beams: int, words: int) -> float:
        memory = Memory(torch.randn(images, TOKENS, 768).to(kind), None, None, 1, GRID)
        call = [lambda: ready.caption(memory, beams=beams, max_len=words, min_len=words)]
        return shortest(call, args.repeats)[0][0]

    seconds(2, 2, 4)  # packs the matrices
    series = {"beams": [(k, seconds(2, k, 10)) for k in (1, 2, 4, 8, 16)],
              "images": [(n, seconds(n, 3, 10)) for n in (1, 2, 4, 8, 16)],
              "words": [(t, seconds(2, 3, t)) for t in (5, 10, 20, 40, 60)]}
    fixed = {"beams": "2 images, 10 words", "images": "3 beams, 10 words", "words": "2 images, 3 beams"}
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
    for axis, (name, points) in zip(axes, series.items()):
        axis.plot(*zip(*points), marker="o")
        axis.set(xlabel=name, ylabel="seconds", title=fixed[name], ylim=(0, None), xlim=(0, None))
        print(f"{name:<7}({fixed[name]}): " + ", ".join(f"{x}: {y:.3f} s" for x, y in points), flush=True)
    kept = [(k, state_bytes(ready, 2, k, 10)) for k in (1, 2, 4, 8, 16)]
    axes[3].plot([k for k, _ in kept], [sum(both) / 1e6 for _, both in kept], marker="o", label="all")
    axes[3].plot([k for k, _ in kept], [both[1] / 1e6 for _, both in kept], marker="o", label="of the memory")
    axes[3].set(xlabel="beams", ylabel="MB", title="keys and values, 2 images", ylim=(0, None), xlim=(0, None))
    axes[3].legend()
    print("memory (text, image): " + ", ".join(f"{k}: {a / 1e6:.2f} + {b / 1e6:.2f} MB" for k, (a, b) in kept))
    figure.savefig(args.out, dpi=110)
    print(f"written: {args.out}")


def state_bytes(model: Captioner, images: int, beams: int, words: int) -> tuple[int, int]:
    """Bytes that the keys and values of a decoding take: of the text, and of the memory."""
    memory = Memory(torch.randn(images, TOKENS, model.config.decoder.width).to(model.decoder.embed.weight.dtype), None,
                    None, 1, GRID)
    state = model.start(memory)
    model.step(torch.ones(images, 1, dtype=torch.long), state)
    state.reorder(torch.arange(images).repeat_interleave(beams))
    for _ in range(words - 1):
        model.step(torch.ones(images * beams, 1, dtype=torch.long), state)
    text, image = (sum(one.untyped_storage().nbytes() for cache in caches for one in (cache.k, cache.v))
                   for caches in (state.self_caches, state.cross_caches))
    return text, image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[argparse.Namespace, torch.dtype], None]] = {
        "hf": hf, "course": course, "catr": catr, "step": step, "maps": maps, "cost": cost}
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all where none is named")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--out", type=Path, default=Path("decoding-cost.png"), help="the picture of cost")
    args = parser.parse_args()
    if unknown := [name for name in args.parts if name not in parts]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(parts)}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module="transformers")
    for name in args.parts or parts:
        parts[name](args, torch.bfloat16 if args.precision == "bf16" else torch.float32)


if __name__ == "__main__":
    main()
