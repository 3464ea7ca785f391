"""Parameters of one unit: a frozen, validated dataclass read from TOML."""

import dataclasses
import difflib
import os
import pathlib
import re
import sys

from moska.golden.formats import (
    BLOCK_TOKENS,
    KEY_WIDTH,
    KV_BITS,
    L_STATE_WIDTH,
    M_WIDTH,
    MAX_ROWS,
    O_EXP_WIDTH,
    O_STATE_WIDTH,
    P_WIDTH,
    PV_WIDTH,
    Q_BITS,
    SCALE_BITS,
    SCORE_WIDTH,
    block_o_width,
    dot_width,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESET_DIR = pathlib.Path(__file__).parent / "presets"
HEAD_DIMS = (16, 32, 64, 128, 256)
BUS_WIDTHS = (64, 128, 256, 512)
KV_FORMATS = ("int8",)
CONTEXTS = (2, 4)
READ_PORTS = (1, 2)
MAX_CHUNKS = 4096
SCORE_BLOCKS = 4  # blocks of scores that a softmax lane holds


def _parameter(meaning: str):
    """Return a field that carries its meaning, which `moska info` prints."""
    return dataclasses.field(metadata={"meaning": meaning})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters of one unit, and the sizes that follow from them.

    Widths of numbers are part of the specification (:mod:`moska.golden.formats`), not of the
    configuration: no parameter changes a bit of a result.

    Raises
    ------
    TypeError
        when a parameter has the wrong type.
    ValueError
        when a parameter is out of range or does not go with another one.
    """

    name: str = _parameter("name of the configuration and of the generated module's files")
    head_dim: int = _parameter("elements of a query, key or value row (D)")
    fold: int = _parameter("beats of the arrays per token (F)")
    query_tile: int = _parameter("query rows that the arrays hold at once (Mt)")
    bus_width: int = _parameter("bits of a beat of the memory port")
    max_rows: int = _parameter("query rows of the largest job (M)")
    max_chunks: int = _parameter("chunks of the largest job")
    buffer_tokens: int = _parameter("tokens of a slot of the chunk buffer")
    buffer_slots: int = _parameter("slots of the chunk buffer")
    contexts: int = _parameter("jobs that may be under way at once")
    select_width: int = _parameter("chunks that the selector reads per cycle")
    q_bits: int = _parameter("bits of a query element")
    kv_format: str = _parameter("format of stored keys and values")
    read_ports: int = _parameter("read ports of the memory side; with 2, values have their own")
    max_in_flight: int = _parameter("bytes of reads in flight, for each read port")
    memory_bytes_per_cycle: int = _parameter(
        "bytes per cycle and port that the board's memory gives, for bounds"
    )
    clock_mhz: int = _parameter("clock in MHz, for reports")

    def __post_init__(self):
        """Check every parameter alone, then those that depend on others."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # bool is a subclass of int: `fold = true` is refused as well.
            if type(value) is not field.type:
                kind = "an integer" if field.type is int else "a string"
                raise TypeError(f"{field.name} must be {kind}, not {value!r}")

        if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", self.name):
            raise ValueError(
                "name must be a lower-case letter and up to 31 letters, digits or underscores, "
                f"not {self.name!r}"
            )
        self._check_choice("head_dim", HEAD_DIMS)
        self._check_power_of_two("fold", 1, self.head_dim // 2, "head_dim / 2")
        self._check_power_of_two("query_tile", 2, 32)
        self._check_choice("bus_width", BUS_WIDTHS)
        if self.head_dim * KV_BITS % self.bus_width:
            raise ValueError(
                f"bus_width must divide a row of head_dim bytes ({self.head_dim * KV_BITS} bits), "
                f"not {self.bus_width}"
            )
        self._check_power_of_two("max_rows", self.query_tile, MAX_ROWS, low_name="query_tile")
        self._check_power_of_two("buffer_tokens", BLOCK_TOKENS, 256)
        self._check_power_of_two("buffer_slots", 2, 32)
        self._check_choice("contexts", CONTEXTS)
        self._check_power_of_two("select_width", 8, 64)
        if self.n_lanes > 1 and self.select_width < self.query_tile:
            raise ValueError(
                f"select_width must be at least query_tile ({self.query_tile}) when fold is less "
                f"than query_tile, not {self.select_width}"
            )
        self._check_power_of_two(
            "max_chunks", self.select_width, MAX_CHUNKS, low_name="select_width"
        )
        if self.q_bits != Q_BITS:
            raise ValueError(
                f"q_bits must be {Q_BITS}, the width that the number formats specify, "
                f"not {self.q_bits}"
            )
        self._check_choice("kv_format", KV_FORMATS)
        if self.max_in_flight % 64 or not 512 <= self.max_in_flight <= 65536:
            raise ValueError(
                f"max_in_flight must be a multiple of 64 from 512 to 65536, "
                f"not {self.max_in_flight}"
            )
        self._check_choice("read_ports", READ_PORTS)
        self._check_range("memory_bytes_per_cycle", 1, self.bus_bytes, "bus bytes")
        self._check_range("clock_mhz", 1, 1000)

    def _check_choice(self, name, choices):
        value = getattr(self, name)
        if value not in choices:
            listed = ", ".join(str(choice) for choice in choices)
            raise ValueError(
                f"{name} must be {'one of ' if len(choices) > 1 else ''}{listed}, not {value}"
            )

    def _check_range(self, name, low, high, high_name=None):
        value = getattr(self, name)
        if not low <= value <= high:
            limit = f"{high_name} ({high})" if high_name else high
            raise ValueError(f"{name} must be from {low} to {limit}, not {value}")

    def _check_power_of_two(self, name, low, high, high_name=None, low_name=None):
        value = getattr(self, name)
        if not low <= value <= high or value & (value - 1):
            first = f"{low_name} ({low})" if low_name else low
            last = f"{high_name} ({high})" if high_name else high
            raise ValueError(f"{name} must be a power of two from {first} to {last}, not {value}")

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """Build a configuration from a dictionary; refuse unknown and missing parameters."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(
                    f"parameters must be known ones, not {key!r}{_suggest(key, names)}"
                )
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"{', '.join(missing)} must be set")
        return cls(**values)

    @classmethod
    def load(cls, source: str | os.PathLike) -> "Config":
        """Read a configuration: ``source`` is a preset's name or the path of a TOML file.

        Raises
        ------
        ValueError, TypeError
            when ``source`` names neither, is not valid TOML, or a parameter is refused.
        """
        path = pathlib.Path(source)
        if str(source) in preset_names():
            path = PRESET_DIR / f"{source}.toml"
        elif path.suffix != ".toml":
            presets = preset_names()
            raise ValueError(
                f"config must be a preset ({', '.join(presets)}) or a .toml file, "
                f"not {str(source)!r}{_suggest(str(source), presets)}"
            )
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"config must be a readable file: {path}: {error.strerror}") from error
        except ValueError as error:  # not TOML, or not UTF-8
            raise ValueError(f"config must be valid TOML: {path}: {error}") from error
        return cls.from_dict(values)

    def parameters(self) -> dict:
        """Return the parameters as a dictionary that :meth:`from_dict` takes back."""
        return dataclasses.asdict(self)

    # Shapes ------------------------------------------------------------------------------------

    @property
    def beat_dim(self) -> int:
        """Elements of a row that enter an array per cycle (D / F)."""
        return self.head_dim // self.fold

    @property
    def lane_rows(self) -> int:
        """Query rows served by one softmax lane."""
        return min(self.fold, self.query_tile)

    @property
    def n_lanes(self) -> int:
        """Softmax lanes."""
        return self.query_tile // self.lane_rows

    @property
    def merge_lanes(self) -> int:
        """Elements of a block result merged into the row state per cycle."""
        # Never more than beat_dim, because query_tile <= BLOCK_TOKENS.
        return max(1, self.head_dim * self.query_tile // (self.fold * BLOCK_TOKENS))

    @property
    def bus_bytes(self) -> int:
        """Bytes of a beat of the memory port."""
        return self.bus_width // 8

    @property
    def score_macs(self) -> int:
        """Multiply-accumulates per cycle of the score array."""
        return self.query_tile * self.beat_dim

    @property
    def value_macs(self) -> int:
        """Multiply-accumulates per cycle of the value array."""
        return self.query_tile * self.beat_dim

    @property
    def macs(self) -> int:
        """Multiply-accumulates per cycle of both arrays."""
        return self.score_macs + self.value_macs

    # Widths in bits ----------------------------------------------------------------------------

    @property
    def dot_width(self) -> int:
        """Dot product of a query and a key, signed."""
        return dot_width(self.head_dim)

    @property
    def score_width(self) -> int:
        """Score in the log2 domain, signed."""
        return SCORE_WIDTH

    @property
    def p_width(self) -> int:
        """Probability, unsigned."""
        return P_WIDTH

    @property
    def pv_width(self) -> int:
        """Probability times V scale, unsigned."""
        return PV_WIDTH

    @property
    def block_o_width(self) -> int:
        """Sum of a block's products in the value array, signed."""
        return block_o_width()

    @property
    def o_state_width(self) -> int:
        """Element of a row's running output, signed."""
        return O_STATE_WIDTH

    @property
    def l_state_width(self) -> int:
        """A row's running sum of probabilities, unsigned."""
        return L_STATE_WIDTH

    @property
    def key_width(self) -> int:
        """Selection key of a chunk, signed."""
        return KEY_WIDTH

    # Memories in bits --------------------------------------------------------------------------

    @property
    def kv_buffer_bits(self) -> int:
        """Chunk buffer: K and V rows with their scales, all slots."""
        token_bits = 2 * (self.head_dim * KV_BITS + SCALE_BITS)
        return self.buffer_slots * self.buffer_tokens * token_bits

    @property
    def q_store_bits(self) -> int:
        """Query rows with their scales, of all contexts."""
        return self.contexts * self.max_rows * (self.head_dim * self.q_bits + SCALE_BITS)

    @property
    def state_bits(self) -> int:
        """Running state of all rows of all contexts: outputs, sums and references."""
        row_bits = self.head_dim * O_STATE_WIDTH + L_STATE_WIDTH + M_WIDTH + O_EXP_WIDTH
        return self.contexts * self.max_rows * row_bits

    @property
    def accumulator_bits(self) -> int:
        """Accumulators of the value array, two banks."""
        return 2 * self.query_tile * self.head_dim * self.block_o_width

    @property
    def query_bank_bits(self) -> int:
        """Query tiles inside the score array, two banks."""
        return 2 * self.query_tile * self.head_dim * self.q_bits

    @property
    def score_buffer_bits(self) -> int:
        """Scores that wait for their block's maximum."""
        return SCORE_BLOCKS * BLOCK_TOKENS * self.query_tile * SCORE_WIDTH

    @property
    def key_store_bits(self) -> int:
        """Selection keys of every row for every chunk."""
        return self.max_rows * self.max_chunks * KEY_WIDTH

    @property
    def selection_bits(self) -> int:
        """Selected rows of every chunk, one bit each, of all contexts."""
        return self.contexts * self.max_rows * self.max_chunks

    @property
    def memory_bits(self) -> int:
        """All the stores together."""
        return sum(getattr(self, store) for store in STORES)


STORES = (
    "q_store_bits",
    "query_bank_bits",
    "kv_buffer_bits",
    "score_buffer_bits",
    "accumulator_bits",
    "state_bits",
    "key_store_bits",
    "selection_bits",
)


def preset_names() -> list[str]:
    """Return the names of the presets, sorted."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.toml"))


def _suggest(word: str, known: list[str]) -> str:
    """Return "; did you mean x?" when a known word is close to ``word``, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
