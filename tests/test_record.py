"""The attention capture contract (seven lines, numbered in the test names), through ViT and Captioner.

Run as a program it is one process of a distributed test.
"""

from __future__ import annotations

import ast
import copy
import itertools
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from random_models import randomise
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from minivl.errors import InputError
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.decoder import DecoderConfig, Memory
from minivl.models.vit import ViT, ViTConfig
from minivl.nn.attention import MultiHeadAttention
from minivl.nn.record import AttnRecord, Site

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
B, T = 3, 6
VIT = ViTConfig((24, 16), (4, 4), 24, 3, 4, 40, num_classes=5)  # 6 x 4 patches, 25 tokens
N = VIT.n_tokens
CAPTIONER = CaptionerConfig(ViTConfig((12, 8), (4, 4), 24, 2, 3, 40, num_classes=0),  # 7 tokens
                            DecoderConfig(11, 32, 3, 4, 48, max_len=12))


def vit(**changes: Any) -> ViT:
    model = ViT(ViTConfig(**{**vars(VIT), **changes}))
    randomise(model, seed=1)
    return model


def captioner(seed: int = 2) -> Captioner:
    model = Captioner(CAPTIONER)
    randomise(model, seed)
    return model


def photos(batch: int = B, config: ViTConfig = VIT, seed: int = 3) -> Tensor:
    return torch.randn(batch, 3, *config.image_size, generator=torch.Generator().manual_seed(seed))


def ids(rows: int = B, length: int = T, seed: int = 4) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


class Case:
    """A model, and a call of it with a record."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model: nn.Module = vit() if name == "vit" else captioner()
        self.images = photos() if name == "vit" else photos(config=CAPTIONER.encoder)
        self.sites = {"encoder": (3, 4, N)} if name == "vit" else \
            {"encoder": (2, 3, 7), "self": (3, 4, T), "cross": (3, 4, T)}  # layers, heads, rows

    def __call__(self, record: AttnRecord | None = None,
                 model: Callable[..., Tensor] | None = None) -> Tensor:
        call = self.model if model is None else model
        if self.name == "vit":
            return call(self.images, attn=record)
        return call(self.images, ids(), attn=record)


@pytest.fixture(params=["vit", "captioner"])
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(5)
    return Case(request.param)


def contents(record: AttnRecord) -> dict[tuple[str, int], Tensor]:
    return {key: record[key] for key in record}


def assert_same(record: AttnRecord, other: AttnRecord, **close: Any) -> None:
    assert list(record) == list(other) and len(record)
    for key in record:
        assert record[key].dtype == torch.float32
        torch.testing.assert_close(record[key], other[key], **(close or CLOSE))


def heads_apart(x: Tensor, heads: int) -> Tensor:
    return torch.stack(x.chunk(heads, -1), 1)  # (B, n, D) -> (B, h, n, d)


class Operations(TorchDispatchMode):
    """Notes the names of all operations, shapes of all softmaxes and the largest storage made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.softmaxes: list[tuple[int, ...]] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, Tensor):
                self.largest = max(self.largest, part.untyped_storage().nbytes() // 4)
                if "_softmax" in str(func):
                    self.softmaxes.append(tuple(part.shape))
        return result


# -- 1: without a record -----------------------------------------------------------------------------------


def test_1_without_a_record_every_attention_is_one_fused_kernel(case: Case,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: Any) -> None:
        raise AssertionError("the path without a record knows of records")

    for name in ("open", "put", "want", "reset"):
        monkeypatch.setattr(AttnRecord, name, touched)
    with Operations() as seen, torch.no_grad():
        case()
    fused = [name for name in seen.names if "scaled_dot_product" in name]
    assert len(fused) == sum(layers for layers, _, _ in case.sites.values())
    assert not seen.softmaxes


def test_1_the_leaf_knows_nothing_of_records() -> None:
    import minivl.nn.attention as leaf
    tree = ast.parse(Path(leaf.__file__).read_text())
    named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any("record" in (name or "").lower() for name in named | imported)


# -- 2: the weights are those used -------------------------------------------------------------------------


def explicit_weights(case: Case, call: Callable[[], Tensor],
                     memory_mask: Tensor | None = None) -> dict[tuple[str, int], Tensor]:
    """Weights of all layers in double precision, from the projections that pass by in `call`."""
    found: dict[tuple[str, int], Tensor] = {}
    kept: dict[str, Tensor] = {}
    handles = []
    for path, module in case.model.named_modules():
        if not isinstance(module, MultiHeadAttention):
            continue
        part = "cross" if path.endswith("cross") else "self" if "decoder" in path else "encoder"
        layer = int(path.split("blocks.")[1].split(".")[0])

        def keep(_: nn.Module, __: Any, y: Tensor, which: str) -> None:
            kept[which] = y.double()

        def weigh(module: nn.Module, _: Any, __: Any, part: str, layer: int) -> None:
            q, k = (heads_apart(kept[which], module.num_heads) for which in "qk")  # type: ignore[arg-type]
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
            allowed = torch.ones_like(scores)
            if part == "self":
                allowed = allowed.tril()
            if part == "cross" and memory_mask is not None:
                allowed = allowed * memory_mask[:, None, None]
            largest = scores.masked_fill(allowed == 0, -1e300).amax(-1, keepdim=True)
            odds = torch.exp(scores - largest).where(allowed > 0, 0.0)
            found[part, layer] = odds / odds.sum(-1, keepdim=True).clamp_min(1e-300)

        for which in "qk":
            handles.append(getattr(module, f"{which}_proj").register_forward_hook(
                lambda m, x, y, which=which: keep(m, x, y, which)))
        handles.append(module.register_forward_hook(
            lambda m, x, y, part=part, layer=layer: weigh(m, x, y, part, layer)))
    with torch.no_grad():
        call()
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("detach", [True, False])
def test_2_weights_equal_an_explicit_softmax(case: Case, detach: bool) -> None:
    expected = explicit_weights(case, case)
    record = AttnRecord(detach=detach)
    case(record)
    assert set(record) == set(expected) and len(record) == len(expected)
    for key, weights in contents(record).items():
        torch.testing.assert_close(weights, expected[key].float(), rtol=0, atol=1e-6)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), **CLOSE)
        if key[0] == "self":
            assert not weights.triu(1).any()
        assert weights.std() > 0.01  # nothing trivial


@pytest.mark.parametrize("detach", [True, False])
def test_2_masked_memory_has_weight_zero_and_a_blind_row_is_zero(detach: bool) -> None:
    case = Case("captioner")
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1], [0] * 7, [0, 0, 1, 0, 0, 0, 0]]).bool()
    tokens, pos = torch.randn(B, 7, 32), torch.randn(B, 7, 32)
    tokens[~mask] = 1e4  # if it were seen, it would show
    memory = Memory(tokens, pos, mask, 1, (3, 2))
    expected = explicit_weights(case, lambda: case.model(None, ids(), memory=memory), mask)
    record = AttnRecord(sites="cross", detach=detach)
    logits = case.model(None, ids(), memory=memory, attn=record)
    assert logits.isfinite().all()
    for key, weights in contents(record).items():
        torch.testing.assert_close(weights, expected[key].float(), rtol=0, atol=1e-6)
        assert not weights.masked_select(~mask[:, None, None]).any() and not weights[1].any()
        torch.testing.assert_close(weights[0].sum(-1), torch.ones(4, T), **CLOSE)
    logits.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in case.model.parameters())


@pytest.mark.parametrize("detach", [True, False])
def test_2_weights_are_those_before_dropout(detach: bool) -> None:
    model, images = vit(dropout=0.5, attn_dropout=0.5), photos()
    expected, record = AttnRecord(layers=[0]), AttnRecord(layers=[0], detach=detach)
    plain = model(images, attn=expected)
    for block in model.blocks:
        block.attn.train()  # only attention weights are dropped, so layer 0 sees the same input
    torch.manual_seed(0)
    assert not torch.allclose(model(images, attn=record), plain, atol=1e-3)
    assert_same(record, expected)


# -- 3: outputs with and without ---------------------------------------------------------------------------


@contextmanager
def halves() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "grad": nullcontext, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16), "autocast without gradient": halves}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("request_", [{}, {"heads": "mean"},
                                      {"queries": [0, -1], "layers": [-1], "heads": [2, 0]}],
                         ids=["all", "mean", "part"])
def test_3_outputs_are_bit_identical_with_a_record(case: Case, mode: str, request_: dict[str, Any]) -> None:
    with MODES[mode]():
        record = AttnRecord(**request_)
        plain, recorded = case(), case(record)
        assert torch.equal(plain, recorded)
        for weights in contents(record).values():
            assert weights.dtype == torch.float32 and not weights.requires_grad
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), **CLOSE)


def test_3_gradients_are_bit_identical_with_a_record(case: Case) -> None:
    parameters = list(case.model.parameters())
    without = torch.autograd.grad(case().square().sum(), parameters)
    with_record = torch.autograd.grad(case(AttnRecord()).square().sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(without, with_record))


@pytest.mark.parametrize("request_", [{}, {"queries": [0, -1]}, {"heads": [1]},
                                      {"layers": [-2], "queries": [3, 3, 0]}],
                         ids=["all", "rows", "heads", "a row twice"])
def test_3_attached_outputs_and_gradients_equal_the_fused_ones(case: Case, request_: dict[str, Any]) -> None:
    parameters = list(case.model.parameters())
    record = AttnRecord(detach=False, **request_)
    plain, attached = case(), case(record)
    torch.testing.assert_close(attached, plain, rtol=1e-5, atol=1e-5)
    assert all(weights.requires_grad for weights in contents(record).values())
    expected = torch.autograd.grad(plain.square().sum(), parameters)
    got = torch.autograd.grad(attached.square().sum(), parameters)
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for mine, theirs in zip(got, expected):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6 * scale + 1e-6)


class Scaled(nn.Module):
    """Attention written out, with one row of one sample and head multiplied by a factor."""

    def __init__(self, inner: MultiHeadAttention, place: tuple[int, int, int], factor: float) -> None:
        super().__init__()
        self.inner, self.place, self.factor = inner, place, factor

    def forward(self, x: Tensor, context: Tensor | None = None, *, k_pos: Tensor | None = None,
                mask: Tensor | None = None, causal: bool = False, **_: Any) -> tuple[Tensor, None]:
        seen = x if context is None else context
        q, k, v = (heads_apart(projection(y), self.inner.num_heads) for projection, y in (
            (self.inner.q_proj, x), (self.inner.k_proj, seen if k_pos is None else seen + k_pos),
            (self.inner.v_proj, seen)))
        odds = torch.exp(torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5)
        odds = odds.tril() if causal else odds
        weights = odds / odds.sum(-1, keepdim=True)
        weights[self.place] *= self.factor
        out = torch.einsum("bhqk,bhkd->bhqd", weights, v)
        return self.inner.out_proj(torch.cat(list(out.unbind(1)), -1)), None


@pytest.mark.parametrize(("name", "site", "layer", "row"), [
    ("vit", "encoder", 0, 0), ("vit", "encoder", 2, 0), ("captioner", "encoder", 1, 4),
    ("captioner", "self", 1, 2), ("captioner", "cross", 0, 3), ("captioner", "cross", 2, 5)])
def test_3_gradient_of_attached_weights_equals_finite_differences(name: str, site: str, layer: int,
                                                                  row: int) -> None:
    case, sample, head = Case(name), 1, 2
    toward = torch.randn(case().shape, dtype=torch.float64)
    record = AttnRecord(sites=site, queries=[0, row], detach=False) if row else \
        AttnRecord(sites=site, queries="class", detach=False)
    logits = case(record)
    weights = record[site, layer]
    gradient, = torch.autograd.grad((logits * toward.float()).sum(), weights)
    got = float((gradient * weights)[sample, head, -1].sum().detach())  # along the scaling of that row

    def scaled(factor: float) -> float:
        exact = Case(name)
        exact.model.double()
        exact.images = exact.images.double()
        stack = exact.model.encoder if site == "encoder" and name == "captioner" else \
            exact.model if name == "vit" else exact.model.decoder
        block, part = stack.blocks[layer], "cross" if site == "cross" else "attn"
        setattr(block, part, Scaled(getattr(block, part), (sample, head, row), factor))
        with torch.no_grad():
            return float((exact() * toward).sum())

    step = 1e-4
    expected = (scaled(1 + step) - scaled(1 - step)) / (2 * step)
    assert abs(expected) > 1e-3
    assert got == pytest.approx(expected, rel=2e-4, abs=1e-5)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


COMPILED = {"mean": {"heads": "mean", "layers": [-1]},
            "attached": {"queries": [0, -1], "heads": [1], "detach": False}}


@pytest.mark.parametrize("request_", COMPILED)
def test_3_and_7_compiled_without_a_graph_break(case: Case, request_: str, fresh_compiler: None) -> None:
    compiled = torch.compile(case.model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        record, expected = AttnRecord(**COMPILED[request_]), AttnRecord(**COMPILED[request_])
        plain = case(expected)
        torch.testing.assert_close(case(record, compiled), plain, rtol=0, atol=1e-6)
        assert_same(record, expected, rtol=0, atol=1e-6)
        with pytest.raises(InputError, match="earlier call"):
            record.open({}, B, torch.device("cpu"))
        fresh = AttnRecord(**COMPILED[request_])
        case(fresh, compiled)
        assert_same(fresh, expected, rtol=0, atol=1e-6)


def test_7_compiled_with_other_rows_at_every_call(fresh_compiler: None) -> None:
    case = Case("vit")
    compiled = torch.compile(case.model, backend="eager", fullgraph=True)
    graphs = []
    with torch.no_grad():
        for call in range(10):  # more than may be compiled again
            rows = torch.randint(-N, N, (B, 2))
            record, expected = AttnRecord(queries=rows), AttnRecord(queries=rows)
            torch.testing.assert_close(case(record, compiled), case(expected), rtol=0, atol=1e-6)
            assert_same(record, expected, rtol=0, atol=1e-6)
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[-1] - graphs[0] <= 2


def test_7_compiled_blocks_and_checks_before_them(fresh_compiler: None) -> None:
    case, expected, record = Case("vit"), AttnRecord(), AttnRecord()
    with torch.no_grad():
        plain = case(expected)
        for block in case.model.blocks:
            block.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(case(record), plain, rtol=0, atol=1e-6)
    assert_same(record, expected, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="layer of encoder 3"):
        case(AttnRecord(layers=[3]))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the tracer's own
def test_7_compiled_gradients(fresh_compiler: None) -> None:
    case = Case("vit")
    compiled = torch.compile(case.model, backend="aot_eager", fullgraph=True)
    records = [AttnRecord(queries="class", detach=False) for _ in range(2)]
    gradients = []
    for record, model in zip(records, (None, compiled)):
        logits = case(record, model)
        gradients.append(torch.autograd.grad(logits.square().sum() + record["encoder", 1].square().sum(),
                                             list(case.model.parameters())))
    assert_same(*records)
    for mine, theirs in zip(*gradients):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_7_a_compiled_model_still_refuses(fresh_compiler: None) -> None:
    case = Case("vit")
    compiled = torch.compile(case.model, backend="eager")
    with pytest.raises(InputError, match="layer of encoder 3"):
        case(AttnRecord(layers=[3]), compiled)


@pytest.mark.slow
@pytest.mark.parametrize("request_", [{}, {"queries": "class", "detach": False}], ids=["all", "attached"])
def test_3_and_7_compiled_by_inductor(request_: dict[str, Any], fresh_compiler: None) -> None:
    case = Case("vit")
    compiled = torch.compile(case.model, fullgraph=True)
    record, expected = AttnRecord(**request_), AttnRecord(**request_)
    with torch.no_grad():
        plain = case(expected)
        torch.testing.assert_close(case(record, compiled), plain, rtol=1e-6, atol=1e-6)
    assert_same(record, expected, rtol=0, atol=1e-6)


# -- 4: nothing but the asked rows -------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [{"queries": "class"}, {"queries": [3, -1]},
                                      {"queries": [3], "heads": [0]},
                                      {"queries": torch.tensor([[1, 2], [3, 4], [5, 6]])},
                                      {"queries": [7], "heads": "mean", "layers": [1]}], ids=str)
def test_4_only_the_asked_rows_are_ever_made(request_: dict[str, Any]) -> None:
    model = vit(image_size=(64, 64), mlp_dim=24)  # 257 tokens: maps of N x N would be the largest by far
    images = photos(config=model.config)
    n, heads = model.config.n_tokens, model.config.num_heads
    record = AttnRecord(**request_)
    with Operations() as seen, torch.no_grad():
        model(images, attn=record)
    rows = 2 if "2" in str(request_["queries"]) or request_["queries"] == [3, -1] else 1
    of_heads = len(request_["heads"]) if isinstance(request_.get("heads"), list) else heads
    assert seen.softmaxes == [(B, of_heads, rows, n)] * len(record)
    assert seen.largest <= max(B * n * model.config.width, B * 3 * 64 * 64) < B * heads * n * n // 16
    with Operations() as seen, torch.no_grad():
        model(images, attn=AttnRecord())
    assert seen.largest >= B * heads * n * n  # the watch sees whole maps


def test_4_a_layer_that_is_not_asked_makes_nothing(case: Case) -> None:
    with Operations() as seen, torch.no_grad():
        case(AttnRecord(sites="encoder", layers=[1], queries=[0]))
    _, heads, _ = case.sites["encoder"]
    assert [shape[:3] for shape in seen.softmaxes] == [(B, heads, 1)]


def test_4_kept_weights_hold_no_more_memory_than_they_show(case: Case) -> None:
    record = AttnRecord(queries=[2], heads=[0])
    with torch.no_grad():
        case(record)
    for weights in contents(record).values():
        assert weights.untyped_storage().nbytes() == weights.numel() * 4


# -- 5: requests that cannot be met ------------------------------------------------------------------------


@pytest.fixture
def nothing_computes() -> Iterator[Callable[[], AbstractContextManager[Any]]]:
    """A context in which no submodule runs and no operation touches a number with a fraction."""
    class Nothing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            touched = [x for x in itertools.chain(args, (kwargs or {}).values()) if isinstance(x, Tensor)]
            assert not any(x.is_floating_point() for x in touched), f"{func} ran"
            return func(*args, **(kwargs or {}))

    yield Nothing


UNKNOWN = {
    "site": ("vit", {"sites": ("cross",)}, r"site 'cross'.*there are: encoder"),
    "sites": ("captioner", {"sites": ["encoder", "text", "image"]}, r"'text', 'image'.*encoder, self, cross"),
    "layer": ("vit", {"layers": [0, 3]}, r"layer of encoder 3.*there are 3 \(0 to 2"),
    "negative layer": ("vit", {"layers": [-4]}, r"layer of encoder -4.*there are 3"),
    "layer of one site": ("captioner", {"layers": [2]}, r"layer of encoder 2.*there are 2"),
    "head": ("vit", {"heads": [4]}, r"head of encoder 4.*there are 4 \(0 to 3"),
    "head of one site": ("captioner", {"heads": [0, 3]}, r"head of encoder 3.*there are 3"),
    "row": ("vit", {"queries": [0, N]}, rf"row of encoder {N}.*there are {N} "),
    "negative row": ("captioner", {"sites": "self", "queries": [-T - 1]},
                     rf"row of self -{T + 1}.*there are {T}"),
    "row in a tensor": ("vit", {"queries": torch.tensor([[0], [1], [N]])}, rf"row of encoder {N}"),
    "negative in a tensor": ("vit", {"queries": torch.tensor([0, -N - 1])}, rf"row of encoder -{N + 1}"),
    "batch": ("vit", {"queries": torch.tensor([[0], [1]])}, rf"2 rows.*batch of {B}"),
    "name": ("vit", {"queries": "eot"}, r"'eot'.*encoder.*'all', 'class'"),
    "name of one site": ("captioner", {"queries": "class"}, r"'class'.*self.*'all'"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_5_unknown_raises_before_any_compute(what: str, nothing_computes: Any) -> None:
    name, request_, message = UNKNOWN[what]
    case, record = Case(name), AttnRecord(**request_)
    calls: list[Callable[[], Tensor]] = [lambda: case(record)]
    if name == "vit":
        calls.append(lambda: case.model.encode(case.images, attn=record))
    else:
        calls.append(lambda: case.model.replay(case.images, ids(), attn=record))
    for call in calls:
        with nothing_computes(), pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="empty"):  # a refused record is as new
            record["encoder", 0]


def test_5_no_class_row_without_a_class_token(nothing_computes: Any) -> None:
    model = vit(class_token=False, pool="mean")
    with nothing_computes(), pytest.raises(InputError, match="'class'"):
        model(photos(), attn=AttnRecord(queries="class"))


def test_5_encoder_is_no_site_of_a_call_with_a_memory(nothing_computes: Any) -> None:
    case = Case("captioner")
    memory = case.model.encode(case.images)
    with nothing_computes(), pytest.raises(InputError, match="'encoder'.*self, cross"):
        case.model(None, ids(), memory=memory, attn=AttnRecord(sites=["encoder"]))


def test_5_a_record_is_filled_once(case: Case, nothing_computes: Any) -> None:
    record = AttnRecord(layers=[0])
    case(record)
    before = {key: weights.clone() for key, weights in contents(record).items()}
    with nothing_computes(), pytest.raises(InputError, match="earlier call"):
        case(record)
    assert list(before) == list(record)
    assert all(torch.equal(weights, record[key]) for key, weights in before.items())


def test_5_an_unfilled_record_raises_when_read() -> None:
    record = AttnRecord()
    assert len(record) == 0 and list(record) == [] and ("encoder", 0) not in record
    with pytest.raises(InputError, match="no call has filled it"):
        record["encoder", 0]
    record.open({"encoder": Site(2, 3, 4)}, B, torch.device("cpu"))  # by a model that forgets to fill it
    with pytest.raises(InputError, match="without filling"):
        record["encoder", 0]


def test_5_reading_what_was_not_recorded_lists_what_was(case: Case) -> None:
    record = AttnRecord(sites="encoder", layers=[1])
    case(record)
    for key in (("encoder", 0), ("cross", 1), ("encoder", 7), ("encoder", -9), "encoder", ("encoder",),
                ("encoder", 1, 0), ("encoder", "1"), 1, "ab", None):
        with pytest.raises(InputError, match=r"\('encoder', 1\)"):
            record[key]  # type: ignore[index]
        assert key not in record
    assert ("encoder", 1) in record and list(record) == [("encoder", 1)] and len(record) == 1


class Counting(AttnRecord):
    """Counts its fillings."""

    __slots__ = ("puts",)

    def put(self, site: str, layer: int, weights: Tensor | None) -> None:
        self.puts = getattr(self, "puts", [])
        if weights is not None:
            self.puts.append((site, layer))
        super().put(site, layer, weights)


class Rerun(nn.Module):
    """A block under activation checkpointing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.runs = inner, 0
        inner.register_forward_pre_hook(self.count)

    def count(self, *_: Any) -> None:
        self.runs += 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.inner, *args, use_reentrant=False, **kwargs)


@pytest.mark.parametrize("detach", [True, False])
def test_5_checkpointed_blocks_fill_once_and_have_the_same_gradients(case: Case, detach: bool) -> None:
    plain = AttnRecord(detach=detach, queries=[0, 2])
    parameters = list(case.model.parameters())
    logits = case(plain)
    expected = torch.autograd.grad(logits.square().sum(),
                                   [*parameters, *([] if detach else contents(plain).values())])
    reruns = []
    for module in list(case.model.modules()):
        if isinstance(module, nn.ModuleList):
            for i, block in enumerate(module):
                module[i] = Rerun(block)
                reruns.append(module[i])
    record = Counting(detach=detach, queries=[0, 2])
    again = case(record)
    kept = contents(record)
    values = {key: weights.detach().clone() for key, weights in kept.items()}
    got = torch.autograd.grad(again.square().sum(), [*parameters, *([] if detach else kept.values())])
    assert torch.equal(again, logits) and all(torch.equal(a, b) for a, b in zip(got, expected))
    assert [rerun.runs for rerun in reruns] == [2] * len(reruns)  # forward, and once more in backward
    assert record.puts == list(plain)
    assert all(record[key] is weights and torch.equal(weights, values[key]) for key, weights in kept.items())
    assert_same(record, plain)


# -- 6: nothing stays behind -------------------------------------------------------------------------------


def traces(model: nn.Module) -> dict[str, dict[str, int]]:
    """Everything a module could be seen to keep: names and identities in its __dict__, hooks included."""
    def inside(value: Any) -> int:
        if isinstance(value, dict):
            return hash(tuple((key, id(item)) for key, item in value.items()))
        return id(value)

    return {path: {name: inside(value) for name, value in vars(module).items()}
            for path, module in model.named_modules()}


class Stop(BaseException):
    """Not an Exception, as KeyboardInterrupt is not."""


@pytest.mark.parametrize("where", ["blocks.0.attn.q_proj", "blocks.1.mlp", "blocks.1", "norm"])
@pytest.mark.parametrize("error", [RuntimeError, Stop])
@pytest.mark.parametrize("detach", [True, False])
def test_6_an_exception_leaves_nothing_behind(case: Case, where: str, error: type[BaseException],
                                              detach: bool) -> None:
    keys, expected, reference = list(case.model.state_dict()), case(), AttnRecord(detach=detach)
    case(reference)
    paths = [where] if case.name == "vit" else [f"encoder.{where}", f"decoder.{where}"]
    before = traces(case.model)
    for path in paths:
        def fail(*_: Any) -> None:
            raise error("on the way")

        record = AttnRecord(detach=detach)
        handle = case.model.get_submodule(path).register_forward_hook(fail)
        with pytest.raises(error, match="on the way"):
            case(record)
        handle.remove()
        assert traces(case.model) == before and list(case.model.state_dict()) == keys
        assert len(record) == 0
        with pytest.raises(InputError, match="no call has filled it"):
            record["encoder", 0]
        torch.testing.assert_close(case(record), expected, rtol=1e-5, atol=1e-5)  # as newly made: usable
        assert_same(record, reference)


def test_6_an_exception_behind_the_last_block_leaves_the_record_as_new() -> None:
    case, record = Case("vit"), AttnRecord()

    def fail(*_: Any) -> None:
        raise RuntimeError("in the head")

    handle = case.model.head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the head"):
        case(record)
    handle.remove()
    case(record)
    assert len(record) == 3


def test_6_a_recording_leaves_the_model_as_it_was(case: Case) -> None:
    before, keys = traces(case.model), list(case.model.state_dict())
    for detach in (True, False):
        case(AttnRecord(detach=detach))
        assert traces(case.model) == before and list(case.model.state_dict()) == keys


def test_6_nobody_but_the_record_holds_the_weights(case: Case) -> None:
    record = AttnRecord()
    logits = case(record)
    watched = [weakref.ref(weights) for weights in contents(record).values()]
    del record
    assert watched and all(reference() is None for reference in watched) and logits.requires_grad


# -- what can be asked for ---------------------------------------------------------------------------------


@pytest.fixture
def everything(case: Case) -> dict[tuple[str, int], Tensor]:
    record = AttnRecord()
    case(record)
    return contents(record)


def test_all_sites_layers_heads_and_rows_are_the_default(case: Case, everything: Any) -> None:
    assert list(case.model.attn_sites) == list(case.sites)
    assert {site: sizes[:2] for site, sizes in case.sites.items()} == case.model.attn_sites
    keys = {(site, layer) for site, (layers, _, _) in case.sites.items() for layer in range(layers)}
    assert set(everything) == keys
    for (site, _), weights in everything.items():
        keys_seen = {"encoder": N if case.name == "vit" else 7, "self": T, "cross": 7}[site]
        assert weights.shape == (B, case.sites[site][1], case.sites[site][2], keys_seen)


@pytest.mark.parametrize("detach", [True, False])
def test_negative_layers_count_per_site_also_when_read(case: Case, everything: Any, detach: bool) -> None:
    record = AttnRecord(layers=[-1, 0], detach=detach)
    case(record)
    for site, (layers, _, _) in case.sites.items():
        assert {layer for name, layer in record if name == site} == {0, layers - 1}
        assert record[site, -1] is record[site, layers - 1]
        assert (site, -1) in record and (site, -layers) in record and (site, -layers - 1) not in record
        torch.testing.assert_close(record[site, -1], everything[site, layers - 1], **CLOSE)
        torch.testing.assert_close(record[site, -layers], everything[site, 0], **CLOSE)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("queries", [[0, 4, -1], [-2], (1,), range(3), [2, 2], torch.tensor([3, -1, 0]),
                                     torch.tensor([[0, -1], [5, 2], [1, 1]], dtype=torch.int32)], ids=str)
def test_rows_by_index_and_per_sample(case: Case, everything: Any, queries: Any, detach: bool) -> None:
    record = AttnRecord(queries=queries, detach=detach)
    case(record)
    per_sample = [list(queries)] * B
    if isinstance(queries, Tensor) and queries.ndim == 2:
        per_sample = queries.tolist()
    for key, weights in everything.items():
        expected = torch.stack([sample[:, [int(row) for row in rows]]
                                for sample, rows in zip(weights, per_sample)])
        torch.testing.assert_close(record[key], expected, **CLOSE)


def test_the_class_row_is_row_zero(case: Case, everything: Any) -> None:
    record = AttnRecord(sites="encoder", queries="class")
    case(record)
    for key in record:
        torch.testing.assert_close(record[key], everything[key][:, :, :1], **CLOSE)


def test_a_named_row_may_differ_per_sample() -> None:
    record = AttnRecord(queries="eot")
    record.open({"text": Site(2, 3, 8, {"eot": torch.tensor([7, 2, 4])})}, 3, torch.device("cpu"))
    rows = record.want("text", 1).rows
    assert isinstance(rows, Tensor) and rows.tolist() == [[7], [2], [4]]


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("heads", [[2, 0], [-1], (1,), [1, 1]], ids=str)
def test_heads_by_index(case: Case, everything: Any, heads: Any, detach: bool) -> None:
    record = AttnRecord(heads=heads, queries=[1, 3], detach=detach)
    case(record)
    for key, weights in everything.items():
        torch.testing.assert_close(record[key], weights[:, list(heads)][:, :, [1, 3]], **CLOSE)


def test_mean_over_heads(case: Case, everything: Any) -> None:
    record = AttnRecord(heads="mean")
    case(record)
    for key, weights in everything.items():
        torch.testing.assert_close(record[key], weights.mean(1, keepdim=True), **CLOSE)


def test_chosen_sites_only(everything: Any) -> None:
    case = Case("captioner")
    for sites in ("cross", ["cross"], ("self", "cross")):
        record = AttnRecord(sites=sites)
        case(record)
        assert {site for site, _ in record} == ({sites} if isinstance(sites, str) else set(sites))


def test_captions_of_one_image_are_recorded_row_by_row() -> None:
    case, share = Case("captioner"), 2
    words = ids(B * share)
    expected, record = AttnRecord(), AttnRecord()
    case.model(case.images.repeat_interleave(share, 0), words, attn=expected)
    logits = case.model(case.images, words, attn=record)
    assert logits.shape[0] == B * share
    for key in record:
        wanted = expected[key][::share] if key[0] == "encoder" else expected[key]
        torch.testing.assert_close(record[key], wanted, **CLOSE)
    rows = torch.tensor([[0, 1], [5, 3], [2, 2], [4, 0], [1, 3], [3, 5]])
    for detach in (True, False):
        part = AttnRecord(sites=["self", "cross"], queries=rows, detach=detach)
        case.model(case.images, words, attn=part)
        for key in part:
            wanted = torch.stack([sample[:, row] for sample, row in zip(expected[key], rows)])
            torch.testing.assert_close(part[key], wanted, **CLOSE)


def test_rows_per_image_of_an_encoder_whose_images_have_several_captions() -> None:
    case, rows = Case("captioner"), torch.tensor([[0, 1], [5, 3], [6, 2]])
    expected, record = AttnRecord(sites="encoder"), AttnRecord(sites="encoder", queries=rows)
    case(expected)
    case.model(case.images, ids(B * 2), attn=record)
    for key in record:
        wanted = torch.stack([sample[:, row] for sample, row in zip(expected[key], rows)])
        torch.testing.assert_close(record[key], wanted, **CLOSE)
    with pytest.raises(InputError, match="6 rows.*batch of 3"):
        case.model(case.images, ids(B * 2), attn=AttnRecord(queries=torch.zeros(6, 1, dtype=torch.long)))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"sites": ()}, "sites"), ({"layers": []}, "layers"), ({"layers": "last"}, "layers='last'.*'all'"),
    ({"layers": 3}, "layers=3"), ({"layers": [1.5]}, "layers"), ({"layers": None}, "layers"),
    ({"layers": ["1x"]}, "layers"), ({"queries": 0}, "queries=0"), ({"queries": []}, "queries"),
    ({"queries": [0.5]}, "queries"), ({"queries": ["class"]}, "queries"),
    ({"queries": torch.tensor([0.0, 1.0])}, "queries.*float32"),
    ({"queries": torch.tensor([True, False])}, "queries.*bool"),
    ({"queries": torch.tensor(3)}, r"queries.*\(\)"),
    ({"queries": torch.zeros(2, 2, 2, dtype=torch.long)}, r"queries.*\(2, 2, 2\)"),
    ({"queries": torch.zeros(0, dtype=torch.long)}, "queries"), ({"heads": []}, "heads"),
    ({"heads": "max"}, "heads='max'.*'all', 'mean'"), ({"heads": 1}, "heads=1"),
    ({"heads": "mean", "detach": False}, "mean.*detach|detach.*mean")], ids=str)
def test_wrong_arguments_raise_at_construction(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        AttnRecord(**wrong)
    assert "\n" not in str(caught.value)


def test_a_record_is_no_dataclass_and_takes_no_other_attribute() -> None:
    record = AttnRecord()
    assert not hasattr(record, "__dict__") and not hasattr(record, "__dataclass_fields__")
    with pytest.raises(AttributeError):
        record.layer = 3  # type: ignore[attr-defined]
    assert "layers='all'" in repr(record) and "0 layers recorded" in repr(record)


# -- 7: wherever it runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("detach", [True, False])
def test_7_autocast_weights_come_from_the_cast_operands_in_float32(case: Case, detach: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        record = AttnRecord(detach=detach)
        expected = explicit_weights(case, lambda: case(record))  # one pass: another may round otherwise
        assert case().dtype == torch.bfloat16
    for key, weights in contents(record).items():
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights, expected[key].float(), rtol=0, atol=1e-6)


def test_7_inference_mode(case: Case, everything: Any) -> None:
    for detach in (True, False):
        record = AttnRecord(detach=detach)
        with torch.inference_mode():
            case(record)
        for key, weights in everything.items():
            torch.testing.assert_close(record[key], weights, **CLOSE)


def test_7_a_whole_model_in_bfloat16(case: Case) -> None:
    case.model.bfloat16()
    case.images = case.images.bfloat16()
    record = AttnRecord()
    assert torch.equal(case(record), case())
    for weights in contents(record).values():
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), **CLOSE)


REQUESTS: tuple[dict[str, Any], ...] = ({"queries": torch.tensor([[1], [0], [5]]), "heads": [2, 0]},
                                        {"queries": [0, -1], "layers": [-1], "detach": False})


def in_parallel(wrap: Callable[[nn.Module], nn.Module], name: str, like: Callable[[Case], Case],
                tolerance: float) -> None:
    """Assert that a wrapped model fills the caller's record as the bare one does, backward included."""
    for request_ in REQUESTS:
        case, bare = Case(name), like(Case(name))
        for one in (case, bare):
            drawn = photos(config=VIT if name == "vit" else CAPTIONER.encoder, seed=dist.get_rank())
            one.images = drawn.to(one.images.dtype)
        expected, record = AttnRecord(**request_), AttnRecord(**request_)
        bare(expected)
        model = wrap(case.model)
        logits = case(record, model)
        assert_same(record, expected, rtol=0, atol=tolerance)
        for weights in contents(record).values():
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), **CLOSE)
        loss = logits.float().square().mean()
        if not record.detach:
            site, layer = list(record)[-1]
            loss = loss + record[site, layer].square().sum()
        loss.backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            gradient = parameter.grad
            if hasattr(gradient, "full_tensor"):
                gradient = gradient.full_tensor()
            ranks = [torch.empty_like(gradient) for _ in range(dist.get_world_size())]
            dist.all_gather(ranks, gradient.contiguous())
            assert all(torch.equal(gradient, other) for other in ranks) and gradient.isfinite().all()


def sharded(model: nn.Module) -> nn.Module:
    """FSDP2 over every block and the whole, computing in bfloat16."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)  # type: ignore[return-value]


def halved(case: Case) -> Case:
    """What FSDP2's policy amounts to: parameters and images in bfloat16."""
    case.model, case.images = copy.deepcopy(case.model).bfloat16(), case.images.bfloat16()
    return case


def distributed_process(rank: int, world: int, meeting_place: str) -> dict[str, str]:
    """One rank: what of the parallel wrappings works, by name ("" = it does)."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=world,
                            timeout=timedelta(seconds=60))
    outcome = {}
    for name in ("vit", "captioner"):
        in_parallel(lambda model: nn.parallel.DistributedDataParallel(model), name, lambda case: case, 1e-6)
        outcome[f"ddp {name}"] = ""
        try:
            sharded(Case(name).model)
        except (ImportError, NotImplementedError, RuntimeError) as error:
            outcome[f"fsdp {name}"] = f"torch {torch.__version__} has no FSDP2 on CPU: {error!r}"
            continue
        in_parallel(sharded, name, halved, 1e-6)
        outcome[f"fsdp {name}"] = ""
    dist.destroy_process_group()
    return outcome


@pytest.fixture(scope="module")
def distributed() -> dict[int, dict[str, str]]:
    """Outcomes of runs with one and with two processes."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        processes = {(world, rank): subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world), f"{folder}/meet{world}"], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for world in (1, 2) for rank in range(world)}
        try:
            ends = {key: process.communicate(timeout=150) for key, process in processes.items()}
        finally:
            for process in processes.values():
                process.kill()
    outcomes = {}
    for world in (1, 2):
        errors = [ends[world, rank][1] for rank in range(world) if processes[world, rank].returncode]
        printed = ends[world, 0][0].splitlines()
        outcomes[world] = {"error": "\n".join(errors)} if errors else json.loads(printed[-1])
    return outcomes


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", ["vit", "captioner"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_7_parallel_models_fill_the_callers_record(kind: str, name: str, world: int,
                                                   distributed: dict[int, dict[str, str]]) -> None:
    outcome = distributed[world]
    assert "error" not in outcome, outcome["error"]
    if outcome[f"{kind} {name}"]:
        pytest.skip(outcome[f"{kind} {name}"])


if __name__ == "__main__":
    print(json.dumps(distributed_process(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
