"""A small model of the Llama architecture with random weights, and its tokenizer."""

import importlib.util

import pytest

# Without the extra `llm` there is nothing to collect.
collect_ignore_glob = [] if importlib.util.find_spec("transformers") else ["test_*.py"]

LETTERS = "abcdefghijklmnopqrstuvwxyz .,?:\n"
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="session")
def model():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 3,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer():
    """Make a token of each letter."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<bos>": 0, "<eos>": 1, "<pad>": 2} | {c: i + 3 for i, c in enumerate(LETTERS)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<eos>", pad_token="<pad>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="session")
def device():
    from moska import host

    with host.open("golden:tiny?memory=32M") as device:
        yield device


@pytest.fixture
def path():
    from moska.host import unique

    return unique.get("torch-cpu")
