import dataclasses
import itertools

import pytest

from moska.gen.config import BUS_WIDTHS, HEAD_DIMS, SCORE_BLOCKS, STORES, Config, preset_names
from moska.hw.control.score_issue import SCORE_BANKS

TINY = Config.load("tiny").parameters()
NAME_RULE = "name must be a lower-case letter and up to 31 letters, digits or underscores"


def refusal(kind=ValueError, **changes):
    """Return the message with which the tiny preset refuses ``changes``."""
    with pytest.raises(kind) as error:
        Config(**{**TINY, **changes})
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 24}, "head_dim must be one of 16, 32, 64, 128, 256, not 24"),
        ({"head_dim": 512}, "head_dim must be one of 16, 32, 64, 128, 256, not 512"),
        ({"fold": 0}, "fold must be a power of two from 1 to head_dim / 2 (8), not 0"),
        ({"fold": 3}, "fold must be a power of two from 1 to head_dim / 2 (8), not 3"),
        ({"fold": 16}, "fold must be a power of two from 1 to head_dim / 2 (8), not 16"),
        ({"query_tile": 1}, "query_tile must be a power of two from 2 to 32, not 1"),
        ({"query_tile": 12}, "query_tile must be a power of two from 2 to 32, not 12"),
        ({"query_tile": 64}, "query_tile must be a power of two from 2 to 32, not 64"),
        ({"bus_width": 32}, "bus_width must be one of 64, 128, 256, 512, not 32"),
        (
            {"bus_width": 256},
            "bus_width must divide a row of head_dim bytes (128 bits), not 256",
        ),
        (
            {"query_tile": 32},
            "max_rows must be a power of two from query_tile (32) to 512, not 16",
        ),
        ({"max_rows": 24}, "max_rows must be a power of two from query_tile (2) to 512, not 24"),
        (
            {"max_rows": 1024},
            "max_rows must be a power of two from query_tile (2) to 512, not 1024",
        ),
        ({"buffer_tokens": 16}, "buffer_tokens must be a power of two from 32 to 256, not 16"),
        ({"buffer_tokens": 96}, "buffer_tokens must be a power of two from 32 to 256, not 96"),
        ({"buffer_tokens": 512}, "buffer_tokens must be a power of two from 32 to 256, not 512"),
        ({"buffer_slots": 1}, "buffer_slots must be a power of two from 2 to 32, not 1"),
        ({"buffer_slots": 6}, "buffer_slots must be a power of two from 2 to 32, not 6"),
        ({"buffer_slots": 64}, "buffer_slots must be a power of two from 2 to 32, not 64"),
        ({"contexts": 1}, "contexts must be one of 2, 4, not 1"),
        ({"contexts": 3}, "contexts must be one of 2, 4, not 3"),
        ({"read_ports": 3}, "read_ports must be one of 1, 2, not 3"),
        (
            {"fold": 1, "query_tile": 16},
            (
                "select_width must be at least query_tile (16) when fold is less than "
                "query_tile, not 8"
            ),
        ),
        ({"select_width": 4}, "select_width must be a power of two from 8 to 64, not 4"),
        ({"select_width": 128}, "select_width must be a power of two from 8 to 64, not 128"),
        (
            {"select_width": 32},
            "max_chunks must be a power of two from select_width (32) to 4096, not 16",
        ),
        (
            {"max_chunks": 24},
            "max_chunks must be a power of two from select_width (8) to 4096, not 24",
        ),
        (
            {"max_chunks": 8192},
            "max_chunks must be a power of two from select_width (8) to 4096, not 8192",
        ),
        ({"q_bits": 8}, "q_bits must be 16, the width that the number formats specify, not 8"),
        ({"kv_format": "fp8_e4m3"}, "kv_format must be int8, not fp8_e4m3"),
        (
            {"max_in_flight": 448},
            "max_in_flight must be a multiple of 64 from 512 to 65536, not 448",
        ),
        (
            {"max_in_flight": 1000},
            "max_in_flight must be a multiple of 64 from 512 to 65536, not 1000",
        ),
        (
            {"max_in_flight": 65600},
            "max_in_flight must be a multiple of 64 from 512 to 65536, not 65600",
        ),
        (
            {"memory_bytes_per_cycle": 0},
            "memory_bytes_per_cycle must be from 1 to bus bytes (8), not 0",
        ),
        (
            {"memory_bytes_per_cycle": 9},
            "memory_bytes_per_cycle must be from 1 to bus bytes (8), not 9",
        ),
        ({"clock_mhz": 0}, "clock_mhz must be from 1 to 1000, not 0"),
        ({"clock_mhz": 1001}, "clock_mhz must be from 1 to 1000, not 1001"),
        ({"name": "My unit"}, f"{NAME_RULE}, not 'My unit'"),
        ({"name": ""}, f"{NAME_RULE}, not ''"),
    ],
)
def test_value_is_refused(changes, message):
    assert refusal(**changes) == message


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_wrong_type_is_refused(field):
    if field.type is int:
        assert refusal(TypeError, **{field.name: "4"}) == (
            f"{field.name} must be an integer, not '4'"
        )
        assert refusal(TypeError, **{field.name: 4.0}) == (
            f"{field.name} must be an integer, not 4.0"
        )
        assert refusal(TypeError, **{field.name: True}) == (
            f"{field.name} must be an integer, not True"
        )
    else:
        assert refusal(TypeError, **{field.name: 4}) == f"{field.name} must be a string, not 4"


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config)])
def test_missing_parameter_is_named(name):
    values = {key: value for key, value in TINY.items() if key != name}
    with pytest.raises(ValueError, match=rf"^{name} must be set$"):
        Config.from_dict(values)


def test_all_missing_parameters_are_named():
    values = {key: value for key, value in TINY.items() if key not in ("fold", "clock_mhz")}
    with pytest.raises(ValueError, match=r"^fold, clock_mhz must be set$"):
        Config.from_dict(values)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("headdim", "parameters must be known ones, not 'headdim'; did you mean 'head_dim'?"),
        ("folds", "parameters must be known ones, not 'folds'; did you mean 'fold'?"),
        ("zzz", "parameters must be known ones, not 'zzz'"),
    ],
)
def test_unknown_parameter_is_refused(key, message):
    with pytest.raises(ValueError, match=r"must be known") as error:
        Config.from_dict({**TINY, key: 1})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("source", "ending"),
    [("ulx3", "not 'ulx3'; did you mean 'ulx3s'?"), ("nothing", "not 'nothing'")],
)
def test_unknown_preset_is_refused(source, ending):
    with pytest.raises(ValueError, match=r"^config must be") as error:
        Config.load(source)
    assert str(error.value) == (
        f"config must be a preset (sim64, tiny, u55c, ulx3s) or a .toml file, {ending}"
    )


def test_unreadable_file_is_refused(tmp_path):
    path = tmp_path / "none.toml"
    with pytest.raises(ValueError, match=r"^config must be a readable file: .*none\.toml: No such"):
        Config.load(path)


@pytest.mark.parametrize("content", [b"fold = ", b"name = '\xff'"])
def test_broken_file_is_refused(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^config must be valid TOML: .*broken\.toml: "):
        Config.load(path)


def test_nested_table_is_refused(tmp_path):
    path = tmp_path / "nested.toml"
    path.write_text("[unit]\nfold = 1\n")
    with pytest.raises(ValueError, match=r"^parameters must be known ones, not 'unit'"):
        Config.load(path)


def test_file_gives_the_same_as_a_dictionary(tmp_path):
    path = tmp_path / "copy.toml"
    path.write_text(
        "\n".join(
            f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
            for key, value in TINY.items()
        )
    )
    assert Config.load(path) == Config.load(str(path)) == Config.load("tiny")


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config.load("tiny").fold = 2


def test_presets():
    assert preset_names() == ["sim64", "tiny", "u55c", "ulx3s"]
    for name in preset_names():
        config = Config.load(name)
        assert config.name == name
        assert Config.from_dict(config.parameters()) == config


# Worked out by hand from the presets.
@pytest.mark.parametrize(
    ("name", "derived"),
    [
        (
            "tiny",
            {
                "beat_dim": 4,
                "lane_rows": 2,
                "n_lanes": 1,
                "merge_lanes": 1,
                "bus_bytes": 8,
                "macs": 16,
                "dot_width": 28,
                "q_store_bits": 2 * 16 * (16 * 16 + 16),
                "query_bank_bits": 2 * 2 * 16 * 16,
                "kv_buffer_bits": 2 * 32 * 2 * (16 * 8 + 16),
                "score_buffer_bits": 4 * 32 * 2 * 24,
                "accumulator_bits": 2 * 2 * 16 * 30,
                "state_bits": 2 * 16 * (16 * 48 + 39 + 13 + 14),
                "key_store_bits": 16 * 16 * 16,
                "selection_bits": 2 * 16 * 16,
            },
        ),
        (
            "ulx3s",
            {
                "beat_dim": 8,
                "lane_rows": 8,
                "n_lanes": 1,
                "merge_lanes": 2,
                "bus_bytes": 8,
                "score_macs": 64,
                "value_macs": 64,
                "macs": 128,
                "dot_width": 30,
                "kv_buffer_bits": 16 * 32 * 2 * (64 * 8 + 16),
                "state_bits": 4 * 64 * (64 * 48 + 66),
            },
        ),
        (
            "u55c",
            {
                "beat_dim": 128,
                "lane_rows": 1,
                "n_lanes": 16,
                "merge_lanes": 64,
                "bus_bytes": 64,
                "macs": 4096,
                "dot_width": 31,
            },
        ),
        (
            "sim64",
            {
                "beat_dim": 64,
                "lane_rows": 1,
                "n_lanes": 16,
                "merge_lanes": 32,
                "bus_bytes": 64,
                "macs": 2048,
                "dot_width": 30,
                "score_width": 24,
                "p_width": 16,
                "pv_width": 17,
                "block_o_width": 30,
                "o_state_width": 48,
                "l_state_width": 39,
                "key_width": 16,
            },
        ),
    ],
)
def test_derived(name, derived):
    config = Config.load(name)
    assert {key: getattr(config, key) for key in derived} == derived


def test_memory_bits_is_the_sum_of_the_stores():
    config = Config.load("tiny")
    assert config.memory_bits == 8704 + 1024 + 18432 + 6144 + 1920 + 26688 + 4096 + 512
    assert sorted(STORES) == sorted(
        name for name in vars(Config) if name.endswith("_bits") and name != "memory_bits"
    )


def test_score_buffer_is_that_of_the_hardware():
    # Stated twice: the configuration does not import Amaranth, so that `moska` starts fast.
    assert SCORE_BLOCKS == SCORE_BANKS


def test_shapes_fit_together_in_every_configuration():
    checked = 0
    tiles = (2, 4, 8, 16, 32)
    for head_dim, bus_width, query_tile in itertools.product(HEAD_DIMS, BUS_WIDTHS, tiles):
        if head_dim * 8 % bus_width:
            continue
        fold = 1
        while fold <= head_dim // 2:
            config = Config(
                **{
                    **TINY,
                    "head_dim": head_dim,
                    "bus_width": bus_width,
                    "query_tile": query_tile,
                    "max_rows": 32,
                    "select_width": 32,
                    "max_chunks": 32,
                    "fold": fold,
                }
            )
            assert config.beat_dim * fold == head_dim
            assert config.n_lanes * config.lane_rows == query_tile
            assert config.beat_dim % config.merge_lanes == 0
            # A block is merged no slower than the next one accumulates.
            assert query_tile * head_dim <= config.merge_lanes * fold * 32
            fold *= 2
            checked += 1
    # Tiles times, for each head_dim, bus widths that divide a row times folds.
    assert checked == 5 * (2 * 4 + 3 * 5 + 4 * 6 + 4 * 7 + 4 * 8)
