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
VERSION_MAP_VALUE = 0x1
VERSION_GENERATOR_SHIFT = 16
VERSION_GENERATOR_MASK = 0xFFFF0000
VERSION_GENERATOR_VALUE = 0x1

# Starts jobs and enables the interrupt.
CONTROL = 0x8
CONTROL_START_SHIFT = 0
CONTROL_START_MASK = 0x1
CONTROL_IRQ_ENABLE_SHIFT = 1
CONTROL_IRQ_ENABLE_MASK = 0x2

# State of the unit and of the last job.
STATUS = 0xC
STATUS_BUSY_SHIFT = 0
STATUS_BUSY_MASK = 0x1
STATUS_DONE_SHIFT = 1
STATUS_DONE_MASK = 0x2
STATUS_ERROR_SHIFT = 2
STATUS_ERROR_MASK = 0x4
STATUS_ERROR_CODE_SHIFT = 8
STATUS_ERROR_CODE_MASK = 0xF00

# Byte address of the job's descriptor, bits 31:0.
DESCRIPTOR_LO = 0x10

# Byte address of the job's descriptor, bits 63:32.
DESCRIPTOR_HI = 0x14

# Has no effect on the unit; for tests of the register port.
SCRATCH = 0x18

# Byte address of the access or object that caused the last error, bits 31:0.
ERROR_ADDRESS_LO = 0x20

# Byte address of the access or object that caused the last error, bits 63:32.
ERROR_ADDRESS_HI = 0x24

# Elements of a query, key or value row (D).
HEAD_DIM = 0x40

# Beats of the arrays per token (F).
FOLD = 0x44

# Query rows that the arrays hold at once (Mt).
QUERY_TILE = 0x48

# Bytes of a beat of the memory port.
BUS_BYTES = 0x4C

# Query rows of the largest job (M).
MAX_ROWS = 0x50

# Chunks of the largest job.
MAX_CHUNKS = 0x54

# Tokens of a softmax block (T).
BLOCK_TOKENS = 0x58

# Bits of a query element.
Q_BITS = 0x5C

# Tokens of a slot of the chunk buffer.
BUFFER_TOKENS = 0x60

# Slots of the chunk buffer.
BUFFER_SLOTS = 0x64

# Cycles from start to done. SCORE_ACTIVE and all STALL counters add up to it.
CYCLES = 0x80

# Cycles in which a beat enters the score array.
SCORE_ACTIVE = 0x84

# Cycles of waiting for the descriptor or the queries.
STALL_LOAD = 0x88

# Cycles in which the score array waits for keys or scales from memory.
STALL_MEMORY = 0x8C

# Cycles in which the score array waits for a query tile.
STALL_QUERY = 0x90

# Cycles in which the score array waits for room in the score buffer.
STALL_SOFTMAX = 0x94

# Cycles in which the score array waits for chunk selection.
STALL_SELECT = 0x98

# Cycles after the last token was issued, while value array and merge finish.
STALL_DRAIN = 0x9C

# Cycles in which results are normalised and written.
STALL_FINISH = 0xA0

# Cycles in which a beat enters the value array.
VALUE_ACTIVE = 0xA4

# Data beats read on the memory port.
READ_BEATS = 0xA8

# Data beats written on the memory port.
WRITE_BEATS = 0xAC

# Chunks read from memory.
CHUNKS_READ = 0xB0

# Chunks that no row selected, so that they were not read.
CHUNKS_SKIPPED = 0xB4

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
}

# Counters of the last job.
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
}
