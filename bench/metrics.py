"""Text metrics beside pycocoevalcap, in one run: is the number the same, and how long does it take?

    python -m bench.metrics                       # speed, reward, scaling
    python -m bench.metrics speed --shared ../shared

``speed``: 5,000 images with 4 references and 1 candidate each (COCO's val2017 captions, or made up ones where the
shared folder is missing). Tokenising and CIDEr-D end to end, theirs with its JVM; BLEU and ROUGE-L on the same tokens.
The tokens of a few captions differ, and end to end the scores with them, because their tokenizer looks ahead into the
next caption (see `minivl.metrics.ptb.tokenize`); on the same tokens all scores must agree to 1e-9.

``reward``: 500 sampled captions against prepared references and document frequencies, as in self-critical training;
theirs is `Cider().compute_score` on captions that are tokens already.

``scaling``: time per image and memory of ours, tokenising included, from 5,000 to 100,000 made up images.

Times are the shortest of interleaved repeats: of the wall clock where a JVM takes part, else of the processor. Above 1
ours is faster. Needs pycocoevalcap and, for ``speed``, Java.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from minivl.data.captions import read_captions
from minivl.metrics.bleu import bleu
from minivl.metrics.cider import Scorer, cider
from minivl.metrics.docfreq import DocFreq
from minivl.metrics.rouge import rouge
from minivl.metrics.tokens import tokenizer

ROOT = Path(__file__).resolve().parents[1]
TOKENS = "ptb-coco"
SIZES = (5_000, 20_000, 100_000)

Candidates = dict[Any, str]
References = dict[Any, list[str]]


# -- captions ------------------------------------------------------------------------------------------------

def made_up(images: int, seed: int = 0, words: int = 20_000) -> tuple[Candidates, References]:
    """Captions whose words follow each other as in a language: few are frequent, and each has few successors."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    spelled = ["".join(draw.choice(letters, size)) for size in draw.integers(2, 10, words)]
    count, longest = 5 * images, 14
    lengths = draw.integers(8, longest + 1, count)
    chosen = np.empty((longest, count), np.int64)
    chosen[0] = draw.zipf(1.5, count) % words
    for place in range(1, longest):
        chosen[place] = (chosen[place - 1] * 7919 + draw.zipf(1.6, count) * 104_729) % words
        start_again = draw.random(count) < 0.3
        chosen[place, start_again] = draw.zipf(1.5, int(start_again.sum())) % words
    captions = [" ".join(spelled[word] for word in row[:length]).capitalize() + "."
                for row, length in zip(chosen.T.tolist(), lengths.tolist())]
    return ({image: captions[5 * image] for image in range(images)},
            {image: captions[5 * image + 1:5 * image + 5] for image in range(images)})


def real(shared: Path) -> tuple[Candidates, References]:
    """COCO's captions: the first of each image against the next four."""
    captions = read_captions(shared / "data" / "coco" / "captions_val2017.json").references()
    return ({image: texts[0] for image, texts in captions.items()},
            {image: texts[1:5] for image, texts in captions.items()})


# -- measuring -----------------------------------------------------------------------------------------------

def shortest(functions: list[Callable[[], Any]], repeats: int,
             clock: Callable[[], float] = time.process_time) -> tuple[list[float], list[Any]]:
    """Seconds of the fastest call of each function, the calls interleaved, and what each returned."""
    taken, results = [float("inf")] * len(functions), [None] * len(functions)
    for _ in range(repeats):
        for place, function in enumerate(functions):
            begun = clock()
            results[place] = function()
            taken[place] = min(taken[place], clock() - begun)
    return taken, results


def at_spaces(text: str) -> list[str]:
    """The tokens of a caption that is tokens already."""
    return text.split(" ") if text else []


def line(what: str, theirs: float, ours: float, note: str) -> None:
    print(f"{what:<34} theirs {theirs * 1e3:8.1f} ms   ours {ours * 1e3:7.1f} ms   ratio {theirs / ours:5.1f}   {note}",
          flush=True)


def apart(theirs: Any, ours: Any) -> str:
    return f"largest difference {np.abs(np.asarray(theirs) - np.asarray(ours)).max():.1e}"


# -- the parts -----------------------------------------------------------------------------------------------

def speed(args: argparse.Namespace) -> None:
    """Print times and differences on the same captions."""
    there = (args.shared / "data" / "coco" / "captions_val2017.json").exists()
    candidates, references = real(args.shared) if there else made_up(5000)
    print(f"{len(candidates)} images, 4 references and 1 candidate each, {'COCO val2017' if there else 'made up'}")
    jvm = PTBTokenizer()

    def their_tokens() -> tuple[dict[Any, list[str]], dict[Any, list[str]]]:
        return (jvm.tokenize({id: [{"caption": text} for text in texts] for id, texts in references.items()}),
                jvm.tokenize({id: [{"caption": text}] for id, text in candidates.items()}))

    split = tokenizer(TOKENS, "bench")
    texts = [text for id in candidates for text in (candidates[id], *references[id])]
    (jvm_time, own_time), (tokens, own) = shortest(
        [their_tokens, lambda: [one for batch in split.batches(texts) for one in batch]], args.repeats,
        time.perf_counter)
    gts, res = tokens
    expected = [text.split() for id in candidates for text in (*res[id], *gts[id])]
    differing = sum(one != list(other) for one, other in zip(expected, own))
    line("tokenising", jvm_time, own_time, f"{differing} of {len(texts)} captions differ")
    (their_time, whole), (score, result) = shortest(
        [lambda: Cider().compute_score(gts, res), lambda: cider(candidates, references, tokenize=TOKENS)], args.repeats,
        time.perf_counter)
    line("tokenising and CIDEr-D", jvm_time + their_time, whole, apart(score[1], list(result.per_item.values())))
    on_tokens: tuple[Any, ...] = {id: text for id, (text,) in res.items()}, gts
    for name, function, metric in (
            ("CIDEr-D on tokens", lambda: Cider().compute_score(gts, res)[1], cider),
            ("BLEU on tokens", lambda: np.transpose(Bleu(4).compute_score(gts, res, verbose=0)[1]), bleu),
            ("ROUGE-L on tokens", lambda: Rouge().compute_score(gts, res)[1], rouge)):
        (theirs, ours), (items, scores) = shortest([function, lambda: metric(*on_tokens, tokenize=at_spaces)],
                                                   args.repeats)
        line(name, theirs, ours, apart(items, list(scores.per_item.values())))


def reward(args: argparse.Namespace) -> None:
    """Print the time of 500 captions, as text and as tokens."""
    there = (args.shared / "data" / "coco" / "captions_val2017.json").exists()
    candidates, references = real(args.shared) if there else made_up(5000)
    draw, ids = np.random.default_rng(0), list(candidates)
    images = [ids[place] for place in draw.integers(0, len(ids), 100) for _ in range(5)]
    pairs = [(id, candidates[id] if draw.random() < 0.5 else references[id][draw.integers(4)]) for id in images]
    split = tokenizer(TOKENS, "bench").split
    tokens = [(id, list(split(caption))) for id, caption in pairs]
    gts = {place: [" ".join(split(text)) for text in references[id]] for place, id in enumerate(images)}
    res = {place: [" ".join(words)] for place, (_, words) in enumerate(tokens)}
    for name, df in (("df of the references", "corpus"),
                     ("another df", DocFreq.from_references({id: references[id] for id in ids[::2]}, tokenize=TOKENS))):
        scorer = Scorer(references, df=df, tokenize=TOKENS)
        (theirs, by_text, by_token), results = shortest(
            [lambda: Cider().compute_score(gts, res), lambda: scorer.score(pairs),
             lambda: scorer.score_tokens(tokens)], args.repeats * 5)
        line(f"500 captions, {name}", theirs, by_text, "from text")
        line("", theirs, by_token, f"from tokens; {apart(results[1], results[2])} of the two")


def scaling(args: argparse.Namespace) -> None:
    """Print time and memory per image, each call in a process of its own, the sizes by turns."""
    call = [sys.executable, "-m", "bench.metrics", "one-size", "--images"]
    found: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    for repeat in range(args.repeats):
        for size in SIZES:
            more = ["--memory"] if repeat == 0 else []
            told = subprocess.run([*call, str(size), *more], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            found[size].append(json.loads(told.stdout))
    best = {size: min(one["seconds"] for one in runs) / size for size, runs in found.items()}
    for size, runs in found.items():
        print(f"{size:>7} images   {best[size] * 1e6:6.1f} us of processor time per image, "
              f"{best[size] / best[SIZES[0]]:.3f} of the first   {runs[0]['bytes'] / size / 1e3:5.1f} kB per image "
              "beyond the captions", flush=True)


def one_size(args: argparse.Namespace) -> None:
    """Print as JSON the seconds and bytes of scoring so many made up images."""
    candidates, references = made_up(args.images)
    warm = dict(list(candidates.items())[:100])
    cider(warm, {id: references[id] for id in warm}, tokenize=TOKENS)
    (seconds,), _ = shortest([lambda: cider(candidates, references, tokenize=TOKENS)], 1)
    most = 0
    if args.memory:
        tracemalloc.start()
        cider(candidates, references, tokenize=TOKENS)
        most = tracemalloc.get_traced_memory()[1]
    print(json.dumps({"seconds": seconds, "bytes": most}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("speed", "reward", "scaling", "one-size", "all"), default="all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000, help="of one-size, which scaling calls")
    parser.add_argument("--memory", action="store_true", help="of one-size: measure it too, which takes longer")
    parser.add_argument("--shared", type=Path, help="the folder with data/coco/captions_val2017.json",
                        default=Path(os.environ.get("MINIVL_SHARED", ROOT.parent / "shared")))
    args = parser.parse_args()
    for name, part in (("speed", speed), ("reward", reward), ("scaling", scaling), ("one-size", one_size)):
        if args.what == name or args.what == "all" and name != "one-size":
            part(args)


if __name__ == "__main__":
    main()
