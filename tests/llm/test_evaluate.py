"""Evaluation on a small model: where figures must be what they are."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from moska.gen.cli import main
from moska.golden.unit import Store
from moska.host.llm import evaluate as evaluation
from moska.host.llm import prefill
from moska.host.llm.evaluate import Case, Sizes, cases, documents, evaluate, work
from moska.host.llm.quality import WARM_UP, full_attention, score, shared_attention
from moska.host.llm.variant import NUMBERS, ORACLE, Document, Variant, VariantStep, oracle

pytestmark = [pytest.mark.llm, pytest.mark.xdist_group("llm-evaluate")]

TEXT = np.random.default_rng(4).integers(3, 35, 400).tolist()
SIZES = Sizes(document=128, passages=2, length=20)


@pytest.fixture(scope="module")
def figures(model):
    """Figures of all ways, in chunks that the small document has some of."""
    listed = [
        dataclasses.replace(
            case,
            variant=dataclasses.replace(
                case.variant, chunk_tokens=max(16, case.variant.chunk_tokens // 2)
            ),
        )
        for case in cases()
    ]
    return evaluate(model, TEXT, listed, SIZES)


def kl(figures, **wanted):
    (case,) = [c for c in figures["cases"] if all(c[key] == x for key, x in wanted.items())]
    return case["sets"]["recall"]["kl"]


def test_full_attention_is_its_own_measure(figures):
    for found in figures["full"].values():
        assert found["kl"] == 0
        assert found["top1"] == 1
    assert figures["none"]["recall"]["kl"] > 0.01


def test_nothing_rounded_is_full_attention(figures):
    assert abs(kl(figures, section="numbers", numbers="float32")) < 1e-6


def test_coarser_numbers_are_further_away(figures):
    found = [kl(figures, section="numbers", numbers=n) for n in ("bf16", "fp8_e4m3", "int4")]
    assert 0 < found[0] < found[1] < found[2]
    assert kl(figures, section="numbers", numbers="int8") < found[1]


def test_fewer_chunks_are_further_away(figures):
    for router in ("minmax", ORACLE):
        found = [kl(figures, section="router", router=router, keep=k) for k in (0.5, 0.125)]
        assert found[0] < found[1]
    whole = kl(figures, section="numbers", numbers="int8")
    assert kl(figures, section="router", router=ORACLE, keep=0.5) > whole


def test_oracle_beats_routers(figures):
    """Of 8 chunks; two would be the first and the last one, whoever chooses."""
    best = kl(figures, section="router", router=ORACLE, keep=0.5)
    for router in evaluation.ROUTERS[:-1]:
        assert best < 0.6 * kl(figures, section="router", router=router, keep=0.5)


def test_every_case_has_its_line(figures):
    from moska.host.llm.report import HEADER, SECTIONS, line

    lines = [line(case["sets"], case) for case in figures["cases"]]
    assert all(len(cells) == len(HEADER) for cells in lines)
    assert {case["section"] for case in figures["cases"]} == set(SECTIONS)
    for section in SECTIONS:
        names = [
            cells[0]
            for cells, case in zip(lines, figures["cases"], strict=True)
            if case["section"] == section
        ]
        assert len(set(names)) == len(names)


def test_first_half_is_the_same_alone(model):
    """Of two documents one behind the other, only the second one is computed otherwise."""
    kept = documents(model, TEXT[:64])
    k, v = prefill(model, TEXT[:32])
    np.testing.assert_allclose(kept["apart"][0].k, k, atol=1e-5)
    np.testing.assert_allclose(kept["apart"][0].v, v, atol=1e-5)
    assert kept["apart"][1].position == 32
    # The first layer's keys know nothing of other tokens: rotated, they are those of the joint run.
    first = kept["apart"][1].rope.shift(kept["apart"][1].k[0], 32)
    np.testing.assert_allclose(first, kept["one"][0].k[0, :, 32:], atol=1e-4)


def test_apart_in_float_is_attention_to_rotated_keys(model, path):
    """Queries rotated back, against keys rotated forward."""
    passages = [TEXT[64:84]]
    apart = documents(model, TEXT[:64])["apart"]
    second = apart[1]
    joined = Document(
        np.concatenate([apart[0].k, second.rope.shift(second.k, 32)], axis=2),
        np.concatenate([apart[0].v, second.v], axis=2),
    )
    found = [
        shared_attention(model, VariantStep(d, Variant(numbers="float32"), path), 64, passages)
        for d in (apart, [joined])
    ]
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


def test_score_of_known_distributions():
    p = torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]).log()
    q = torch.tensor([[[0.25, 0.75], [0.9, 0.1]]]).log()
    passages = [[0] * WARM_UP + [1, 0]]
    found = score(p, q, passages)
    assert found.kl[0] == pytest.approx(0.5 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3)))
    assert found.top1[0] == pytest.approx(0.5)
    assert found.nll[0] == pytest.approx(-(np.log(0.75) + np.log(0.9)) / 2)
    assert found.perplexity == pytest.approx(np.exp(found.nll[0]))


def test_scores_are_of_the_tokens_behind_the_warm_up(model):
    """Entry i is the distribution of token WARM_UP + i."""
    passage = TEXT[200:220]
    found = full_attention(model, TEXT[:40], [passage])
    assert found.shape == (1, 20 - WARM_UP, model.config.vocab_size)
    with torch.inference_mode():
        logits = model(torch.tensor([TEXT[:40] + passage[:WARM_UP]])).logits[0, -1]
    torch.testing.assert_close(found[0, 0], logits.log_softmax(-1), atol=1e-4, rtol=0)


def test_oracle_takes_the_largest_shares():
    rng = np.random.default_rng(2)
    k = rng.normal(size=(64, 16)).astype(np.float32)
    store = Store.from_float(k, k, chunk_tokens=16, router="mean")
    q = 3 * rng.normal(size=(12, 16)).astype(np.float32)
    p = np.exp((q @ k.T) / 4)
    share = (p / p.sum(1, keepdims=True)).reshape(12, 4, 16).sum(2)
    inner = 1 + share[:, 1:3].argmax(axis=1)  # first and last chunk are always kept
    expected = np.isin(np.arange(4), [0, 3]) | (np.arange(4) == inner[:, None])
    np.testing.assert_array_equal(oracle(store, q, 3, 1), expected)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (Variant(), 1.0),
        (Variant(keep=0.25, router="mean"), 1 / 32 + 0.25),
        (Variant(keep=0.25, router="minmax"), 2 / 32 + 0.25),
        (Variant(keep=0.5, router="submean:4", chunk_tokens=16), 0.75),
        (Variant(keep=0.5, router=ORACLE), 0.5),
    ],
)
def test_work(variant, expected):
    assert work(variant) == expected


@pytest.mark.parametrize("keep", [0, -1, 1.1])
def test_variant_refuses_keep(keep):
    with pytest.raises(ValueError, match=rf"keep must be in \(0, 1\], not {keep}"):
        Variant(keep=keep)


def test_variant_refuses_numbers():
    with pytest.raises(ValueError, match=r"numbers must be one of float32, bf16, .*, not 'int3'"):
        Variant(numbers="int3")


def test_only_int8_is_routed(model, path):
    document = Document(*prefill(model, TEXT[:64]))
    step = VariantStep([document], Variant(keep=0.5, numbers="bf16"), path)
    with pytest.raises(ValueError, match="numbers must be int8 to route, not bf16"):
        shared_attention(model, step, 64, [TEXT[64:80]])


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_a_token_keep_their_size(name):
    x = np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32)
    x[7] *= 1000
    x[8] = 0
    error = np.abs(NUMBERS[name](x) - x).max(axis=1) / np.maximum(np.abs(x).max(axis=1), 1e-9)
    worst = {"float32": 0, "bf16": 2**-8, "fp8_e4m3": 2**-4, "int8": 0.006, "int4": 0.1}[name]
    assert error.max() <= worst
    assert NUMBERS[name](x).dtype == np.float32


def test_short_text_is_refused(model):
    with pytest.raises(ValueError, match="text must have at least 20 tokens, not 2"):
        evaluate(model, TEXT[:130], [Case("numbers", Variant())], SIZES)


def test_plot(figures, tmp_path):
    from moska.host.llm import chart

    for name in ("a.svg", "b.svg", "c.png"):
        chart.plot(figures, tmp_path / "new" / name)
    first, second, picture = (tmp_path / "new" / n for n in ("a.svg", "b.svg", "c.png"))
    assert first.read_bytes() == second.read_bytes()
    assert "submean:4, 32 tokens a chunk" in first.read_text()
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_command(model, tokenizer, tmp_path, monkeypatch):
    model.save_pretrained(str(tmp_path))
    tokenizer.save_pretrained(str(tmp_path))
    words = "the ferry sails at noon, the keeper sees it. nobody else does: it is dark. "
    (tmp_path / "text.txt").write_text(words * 6)
    monkeypatch.setattr(evaluation, "ROUTERS", ("mean",))
    result = CliRunner().invoke(
        main,
        [
            "eval", "--quick", "--model", str(tmp_path), "--document", str(tmp_path / "text.txt"),
            "--document-tokens", "128", "--json", str(tmp_path / "out" / "eval.json"),
            "--plot", str(tmp_path / "out" / "eval.svg"),
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert [case["router"] for case in figures["cases"]] == ["minmax", "minmax", "submean:4"]
    assert re.search(r"submean:4, 25 % +0\.50", result.output)
    assert (tmp_path / "out" / "eval.svg").exists()


def test_command_refuses_a_plot_of_another_kind():
    result = CliRunner().invoke(main, ["eval", "--plot", "eval.gif"])
    assert result.exit_code == 2
    assert "plot must be a .png or .svg file, not eval.gif" in result.output
