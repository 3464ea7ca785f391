"""Questions on the simulated Verilog and on the golden model: the same tokens."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

from moska import host
from moska.gen.cli import main
from moska.host.llm import chat
from moska.host.llm.chat import Options, divergence, prepare, run

pytestmark = [pytest.mark.llm, pytest.mark.xdist_group("llm-chat")]

DOCUMENT = "the ferry sails at noon. the keeper of the light is mary. " * 4
QUESTIONS = ["who keeps the light?", "when does the ferry sail?", "why?", "is it so, mary?"]
OPTIONS = Options(
    document_tokens=96, new_tokens=6, min_tokens=6, router="submean:4", chunk_tokens=16
)


@pytest.fixture(scope="module")
def conversation(model, tokenizer):
    return prepare(model, tokenizer, DOCUMENT, QUESTIONS, OPTIONS)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    """Return the folder with the small model."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def test_prompts_are_those_of_the_template(model, tokenizer, conversation):
    options = dataclasses.replace(OPTIONS, document_tokens=999)
    whole = prepare(model, tokenizer, DOCUMENT[:58], QUESTIONS[:1], options)
    assert len(conversation.document) == 96
    assert conversation.k.shape == (4, 2, 96, 16)
    for question, prompt in zip(QUESTIONS, conversation.prompts, strict=True):
        assert prompt[:96] == conversation.document
        message = {"role": "user", "content": f"{DOCUMENT}{chat.REQUEST}{question}"}
        expected = tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, return_dict=False
        )
        cut = conversation.left_out
        assert prompt == expected[:96] + expected[96 + cut :]
    assert len(whole.document) % 16 == 0
    assert whole.left_out < 16


def test_document_must_have_a_chunk(model, tokenizer):
    options = Options(document_tokens=16, chunk_tokens=32)
    with pytest.raises(ValueError, match="document must have at least a chunk of 32 tokens"):
        prepare(model, tokenizer, DOCUMENT, QUESTIONS, options)


def test_tokenizer_without_a_template(model, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    found = prepare(model, tokenizer, DOCUMENT, ["why?"], OPTIONS)
    assert tokenizer.decode(found.prompts[0]).replace(" ", "").endswith("why?\n\n<pad>nswer:")


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_simulated_verilog_and_golden_model_say_the_same(model, tokenizer, path, keep):
    options = dataclasses.replace(OPTIONS, keep=keep)
    found = prepare(model, tokenizer, DOCUMENT, QUESTIONS, options)
    outcomes = {}
    for uri in ("sim:tiny?memory=16M", "golden:tiny?memory=16M"):
        seen = []
        with host.open(uri) as device:
            outcomes[uri] = run(
                model, tokenizer, device, path, found, options, lambda o, s=seen: s.append(o)
            )
        assert len(seen) == 6
    simulated, golden = outcomes.values()
    assert simulated.answers == golden.answers
    assert len(set(map(tuple, golden.answers))) == 4
    assert [len(answer) for answer in golden.answers] == [6] * 4
    for outcome in outcomes.values():
        assert [step.prefill for step in outcome.steps] == [True] + [False] * 5
        for step in outcome.decode:
            assert step.report.rows == 4 * 3 * 4 * 2, "questions, heads, layers, KV heads"
            assert step.report.cycles > 0
            assert all(decision.unit for decision in step.report.decisions)
        assert outcome.tokens_per_second(outcome.decode) == pytest.approx(
            20 / (sum(s.report.cycles for s in outcome.decode) / (outcome.clock_mhz * 1e6))
        )
    skipped = sum(step.report.chunks_skipped for step in golden.steps)
    assert (skipped > 0) == (keep < 1)


def test_answers_end(model, tokenizer, device, path, conversation, monkeypatch):
    """What a model ends is no longer counted, and its end mark is no part of the answer."""
    options = dataclasses.replace(OPTIONS, min_tokens=0, new_tokens=8)
    first = run(model, tokenizer, device, path, conversation, options)
    stop = first.answers[0][2]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [stop, 1])
    outcome = run(model, tokenizer, device, path, conversation, options)
    expected = [  # token 1 ended answers before, too
        answer[: answer.index(stop)] if stop in answer else answer for answer in first.answers
    ]
    assert outcome.answers == expected
    assert outcome.ended == [
        stop in answer or ended
        for answer, ended in zip(first.answers, first.ended, strict=True)
    ]
    assert sum(step.new_tokens for step in outcome.steps) == sum(
        len(answer) + ended for answer, ended in zip(expected, outcome.ended, strict=True)
    )


def test_where_the_policy_says(model, tokenizer, device, path, conversation):
    options = dataclasses.replace(OPTIONS, where="auto", new_tokens=2)
    outcome = run(model, tokenizer, device, path, conversation, options)
    decisions = [decision for step in outcome.steps for decision in step.report.decisions]
    assert decisions
    assert all("a layer with the unit" in decision.reason for decision in decisions)


def test_divergence(model, device, path, conversation):
    """All chunks are near full attention, few are not, and a plain forward pass says the same."""
    answers = [[5, 9, 7], [4] * 5, [11], [8, 3]]
    found = divergence(
        model, device, path, conversation, answers, (1.0, 0.25), OPTIONS
    )
    assert 0 <= found[1.0]["kl"] < 1e-3
    assert found[0.25]["kl"] > 10 * found[1.0]["kl"]
    assert 0 <= found[0.25]["top1"] <= found[1.0]["top1"] <= 1


def invoke(*arguments):
    return CliRunner().invoke(main, ["chat", *map(str, arguments)])


@pytest.fixture
def options(folder, tmp_path):
    document = tmp_path / "document.txt"
    document.write_text(DOCUMENT)
    return (
        "--model", folder, "--document", document, "--document-tokens", 96, "--chunk", 16,
        "--tokens", 3, "--min-tokens", 3, "--ask", "who?", "--ask", "when?",
    )  # fmt: skip


def test_command_compares_two_devices(options, tmp_path):
    result = invoke(
        *options, "--device", "golden:tiny", "--check", "golden:tiny?memory=64M",
        "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "the same tokens (3, 3)" in result.output
    figures = json.loads((tmp_path / "out.json").read_text())
    assert list(figures["devices"]) == ["golden:tiny", "golden:tiny?memory=64M"]
    assert figures["against_full_attention"]["1.0"]["kl"] <= 1e-3
    assert len(figures["devices"]["golden:tiny"]["steps"]) == 3


def test_command_fails_when_tokens_differ(options, monkeypatch):
    def other(model, tokenizer, device, *arguments):
        outcome = run(model, tokenizer, device, *arguments)
        if "64M" in device.uri:
            outcome.answers[1][-1] += 1
        return outcome

    monkeypatch.setattr("moska.host.llm.command.run", other)
    result = invoke(*options, "--device", "golden:tiny", "--check", "golden:tiny?memory=64M")
    assert result.exit_code == 1
    assert "answer 2 of golden:tiny?memory=64M must be that of golden:tiny" in result.output


def test_command_fails_far_from_full_attention(options, monkeypatch):
    monkeypatch.setattr("moska.host.cli.MAX_KL", 1e-12)
    result = invoke(*options, "--device", "golden:tiny", "--check", "golden:tiny")
    assert result.exit_code == 1
    assert "KL of all chunks must be at most 1e-12" in result.output


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--device", "other:tiny"], "other"),
        (["--device", "golden:ulx3s"], "head_dim of the model must be the unit's (64), not 16"),
        (["--device", "golden:tiny", "--router", "best"], "router must be mean, minmax or"),
        (["--device", "golden:tiny", "--chunk", 24], "chunk_tokens must be"),
    ],
)
def test_command_refuses(options, more, line):
    result = invoke(*options, *more)
    assert result.exit_code == 2, result.output
    assert line in result.output
    assert "Traceback" not in result.output


def test_two_steps_at_once_do_not_mix(model, device, path, conversation):
    """Two batches of one model take turns: each step attends to its own context."""
    from moska.host.llm import Batch, register
    from moska.host.llm.chat import serving

    model.set_attn_implementation(register())
    with serving(model, device, path, conversation, OPTIONS) as orchestrator, torch.no_grad():
        alone = []
        for prompt in conversation.prompts[:2]:
            with Batch(orchestrator, [prompt]) as batch:
                alone.append(batch.forward(model).logits[0, -1])
        with (
            Batch(orchestrator, conversation.prompts[:1]) as one,
            Batch(orchestrator, conversation.prompts[1:2]) as two,
        ):
            mixed = [one.forward(model).logits[0, -1], two.forward(model).logits[0, -1]]
    for expected, found in zip(alone, mixed, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
