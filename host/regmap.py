"""Byte offsets and fields of the registers.

Generated from hw/regs.rdl by moska.gen.registers; do not edit.
"""

# Tells that this is the unit.
ID = 0x0
ID_VALUE = 0x4B534F4D

# Versions of the register map and of the generator.
VERSION = 0x4
VERSION_MAP_SHIFT = 0
VERSION_MAP_MASK = 0xFFFF
VERSION_MAP_VALUE = 0x2
VERSION_GENERATOR_SHIFT = 16
VERSION_GENERATOR_MASK = 0xFFFF0000
VERSION_GENERATOR_VALUE = 0x1

# Runs the ring of descriptors.
CONTROL = 0x8
CONTROL_ENABLE_SHIFT = 0
CONTROL_ENABLE_MASK = 0x1

# State of the unit.
STATUS = 0xC
STATUS_BUSY_SHIFT = 0
STATUS_BUSY_MASK = 0x1
STATUS_JOBS_SHIFT = 8
STATUS_JOBS_MASK = 0xFF00
STATUS_READ_FAULT_SHIFT = 16
STATUS_READ_FAULT_MASK = 0x10000
STATUS_WRITE_FAULT_SHIFT = 17
STATUS_WRITE_FAULT_MASK = 0x20000

# Byte address of the ring of descriptors, bits 31:0; a multiple of 64. Change it only while
# CONTROL.enable is 0 and STATUS.busy is 0.
RING_LO = 0x10

# Byte address of the ring of descriptors, bits 63:32.
RING_HI = 0x14

# Byte address of the ring of completions, bits 31:0; a multiple of 64. Change it only while
# CONTROL.enable is 0 and STATUS.busy is 0.
COMPLETION_LO = 0x18

# Byte address of the ring of completions, bits 63:32.
COMPLETION_HI = 0x1C

# Size of both rings.
RING_SIZE = 0x20

# Doorbell: descriptors announced since CONTROL.enable was set, modulo 2**16. When it is more than
# the size of the ring ahead of COMPLETED, the write counts as an error and nothing is fetched
# until a good one.
TAIL = 0x24

# Descriptors fetched since CONTROL.enable was set, modulo 2**16.
HEAD = 0x28

# Completions written since CONTROL.enable was set, modulo 2**16.
COMPLETED = 0x2C

# Events. Write 1 to clear one; an event in the same cycle wins.
EVENT = 0x30
EVENT_DONE_SHIFT = 0
EVENT_DONE_MASK = 0x1
EVENT_ERROR_SHIFT = 1
EVENT_ERROR_MASK = 0x2

# Which events make the interrupt active.
MASK = 0x34
MASK_DONE_SHIFT = 0
MASK_DONE_MASK = 0x1
MASK_ERROR_SHIFT = 1
MASK_ERROR_MASK = 0x2

# Cycles that a job may take, counted from the completion before it, or from its start when the
# unit was idle; 0: no limit. A job that takes longer is ended with an error.
TIMEOUT = 0x38

# Has no effect on the unit; for tests of the register port.
SCRATCH = 0x3C

# The first error since EVENT.error was clear.
ERROR = 0x40
ERROR_CODE_SHIFT = 0
ERROR_CODE_MASK = 0xF

# Sequence number of the job of that error; 0 when it was none of a job.
ERROR_SEQUENCE = 0x44

# Byte address of the access or field that caused that error, bits 31:0.
ERROR_ADDRESS_LO = 0x48

# Byte address of the access or field that caused that error, bits 63:32.
ERROR_ADDRESS_HI = 0x4C

# First byte that may be read, bits 31:0.
READ_BASE_LO = 0x50

# First byte that may be read, bits 63:32.
READ_BASE_HI = 0x54

# Last byte that may be read, bits 31:0.
READ_LIMIT_LO = 0x58

# Last byte that may be read, bits 63:32.
READ_LIMIT_HI = 0x5C

# First byte that may be written, bits 31:0.
WRITE_BASE_LO = 0x60

# First byte that may be written, bits 63:32.
WRITE_BASE_HI = 0x64

# Last byte that may be written, bits 31:0.
WRITE_LIMIT_LO = 0x68

# Last byte that may be written, bits 63:32.
WRITE_LIMIT_HI = 0x6C

# Freezes the windows until reset.
LOCK = 0x70

# Elements of a query, key or value row (D).
HEAD_DIM = 0x80

# Beats of the arrays per token (F).
FOLD = 0x84

# Query rows that the arrays hold at once (Mt).
QUERY_TILE = 0x88

# Bytes of a beat of the memory port.
BUS_BYTES = 0x8C

# Query rows of the largest job (M).
MAX_ROWS = 0x90

# Chunks of the largest job.
MAX_CHUNKS = 0x94

# Tokens of a softmax block (T).
BLOCK_TOKENS = 0x98

# Bits of a query element.
Q_BITS = 0x9C

# Tokens of a slot of the chunk buffer.
BUFFER_TOKENS = 0xA0

# Slots of the chunk buffer.
BUFFER_SLOTS = 0xA4

# Jobs that may be under way at once.
CONTEXTS = 0xA8

# Read ports of the memory side; with 2, values have a port of their own.
READ_PORTS = 0xAC

# Cycles. SCORE_ACTIVE and all STALL counters add up to it.
CYCLES = 0xC0

# Cycles in which a beat enters the score array.
SCORE_ACTIVE = 0xC4

# Cycles of waiting for the descriptor or the queries.
STALL_LOAD = 0xC8

# Cycles in which the score array waits for keys or scales from memory.
STALL_MEMORY = 0xCC

# Cycles in which the score array waits for a query tile.
STALL_QUERY = 0xD0

# Cycles in which the score array waits for room in the score buffer.
STALL_SOFTMAX = 0xD4

# Cycles in which the score array waits for chunk selection.
STALL_SELECT = 0xD8

# Cycles after the last token was issued, while value array and merge finish.
STALL_DRAIN = 0xDC

# Cycles in which results are normalised and written.
STALL_FINISH = 0xE0

# Cycles in which a beat enters the value array.
VALUE_ACTIVE = 0xE4

# Data beats read on the memory port.
READ_BEATS = 0xE8

# Data beats written on the memory port.
WRITE_BEATS = 0xEC

# Chunks read from memory.
CHUNKS_READ = 0xF0

# Chunks that no row selected, so that they were not read.
CHUNKS_SKIPPED = 0xF4

# Completions since reset, modulo 2**32.
JOBS = 0xF8

# Completions with an error since reset, modulo 2**32.
ERRORS = 0xFC

# Where the unit may read and write: from base to limit, the limit included. Frozen by LOCK.
WINDOW = {
    "read_base_lo": READ_BASE_LO,
    "read_base_hi": READ_BASE_HI,
    "read_limit_lo": READ_LIMIT_LO,
    "read_limit_hi": READ_LIMIT_HI,
    "write_base_lo": WRITE_BASE_LO,
    "write_base_hi": WRITE_BASE_HI,
    "write_limit_lo": WRITE_LIMIT_LO,
    "write_limit_hi": WRITE_LIMIT_HI,
    "lock": LOCK,
}

# Parameters of the build.
PARAMETERS = {
    "head_dim": HEAD_DIM,
    "fold": FOLD,
    "query_tile": QUERY_TILE,
    "bus_bytes": BUS_BYTES,
    "max_rows": MAX_ROWS,
    "max_chunks": MAX_CHUNKS,
    "block_tokens": BLOCK_TOKENS,
    "q_bits": Q_BITS,
    "buffer_tokens": BUFFER_TOKENS,
    "buffer_slots": BUFFER_SLOTS,
    "contexts": CONTEXTS,
    "read_ports": READ_PORTS,
}

# Counters of the last completion: of the time since the one before, or since the unit was idle.
COUNTERS = {
    "cycles": CYCLES,
    "score_active": SCORE_ACTIVE,
    "stall_load": STALL_LOAD,
    "stall_memory": STALL_MEMORY,
    "stall_query": STALL_QUERY,
    "stall_softmax": STALL_SOFTMAX,
    "stall_select": STALL_SELECT,
    "stall_drain": STALL_DRAIN,
    "stall_finish": STALL_FINISH,
    "value_active": VALUE_ACTIVE,
    "read_beats": READ_BEATS,
    "write_beats": WRITE_BEATS,
    "chunks_read": CHUNKS_READ,
    "chunks_skipped": CHUNKS_SKIPPED,
    "jobs": JOBS,
    "errors": ERRORS,
}
