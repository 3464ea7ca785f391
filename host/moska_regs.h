/* Generated from hw/regs.rdl by moska.gen.registers; do not edit. */
#ifndef MOSKA_REGS_H
#define MOSKA_REGS_H

/* Tells that this is the unit. */
#define MOSKA_ID 0x0u
#define MOSKA_ID_VALUE 0x4B534F4Du

/* Versions of the register map and of the generator. */
#define MOSKA_VERSION 0x4u
#define MOSKA_VERSION_MAP_SHIFT 0
#define MOSKA_VERSION_MAP_MASK 0xFFFFu
#define MOSKA_VERSION_MAP_VALUE 0x2u
#define MOSKA_VERSION_GENERATOR_SHIFT 16
#define MOSKA_VERSION_GENERATOR_MASK 0xFFFF0000u
#define MOSKA_VERSION_GENERATOR_VALUE 0x1u

/* Runs the ring of descriptors. */
#define MOSKA_CONTROL 0x8u
#define MOSKA_CONTROL_ENABLE_SHIFT 0
#define MOSKA_CONTROL_ENABLE_MASK 0x1u

/* State of the unit. */
#define MOSKA_STATUS 0xCu
#define MOSKA_STATUS_BUSY_SHIFT 0
#define MOSKA_STATUS_BUSY_MASK 0x1u
#define MOSKA_STATUS_JOBS_SHIFT 8
#define MOSKA_STATUS_JOBS_MASK 0xFF00u
#define MOSKA_STATUS_READ_FAULT_SHIFT 16
#define MOSKA_STATUS_READ_FAULT_MASK 0x10000u
#define MOSKA_STATUS_WRITE_FAULT_SHIFT 17
#define MOSKA_STATUS_WRITE_FAULT_MASK 0x20000u

/* Byte address of the ring of descriptors, bits 31:0; a multiple of 64. Change it only while CONTROL.enable is 0 and STATUS.busy is 0. */
#define MOSKA_RING_LO 0x10u

/* Byte address of the ring of descriptors, bits 63:32. */
#define MOSKA_RING_HI 0x14u

/* Byte address of the ring of completions, bits 31:0; a multiple of 64. Change it only while CONTROL.enable is 0 and STATUS.busy is 0. */
#define MOSKA_COMPLETION_LO 0x18u

/* Byte address of the ring of completions, bits 63:32. */
#define MOSKA_COMPLETION_HI 0x1Cu

/* Size of both rings. */
#define MOSKA_RING_SIZE 0x20u

/* Doorbell: descriptors announced since CONTROL.enable was set, modulo 2**16. When it is more than the size of the ring ahead of COMPLETED, the write counts as an error and nothing is fetched until a good one. */
#define MOSKA_TAIL 0x24u

/* Descriptors fetched since CONTROL.enable was set, modulo 2**16. */
#define MOSKA_HEAD 0x28u

/* Completions written since CONTROL.enable was set, modulo 2**16. */
#define MOSKA_COMPLETED 0x2Cu

/* Events. Write 1 to clear one; an event in the same cycle wins. */
#define MOSKA_EVENT 0x30u
#define MOSKA_EVENT_DONE_SHIFT 0
#define MOSKA_EVENT_DONE_MASK 0x1u
#define MOSKA_EVENT_ERROR_SHIFT 1
#define MOSKA_EVENT_ERROR_MASK 0x2u

/* Which events make the interrupt active. */
#define MOSKA_MASK 0x34u
#define MOSKA_MASK_DONE_SHIFT 0
#define MOSKA_MASK_DONE_MASK 0x1u
#define MOSKA_MASK_ERROR_SHIFT 1
#define MOSKA_MASK_ERROR_MASK 0x2u

/* Cycles that a job may take, counted from the completion before it, or from its start when the unit was idle; 0: no limit. A job that takes longer is ended with an error. */
#define MOSKA_TIMEOUT 0x38u

/* Has no effect on the unit; for tests of the register port. */
#define MOSKA_SCRATCH 0x3Cu

/* The first error since EVENT.error was clear. */
#define MOSKA_ERROR 0x40u
#define MOSKA_ERROR_CODE_SHIFT 0
#define MOSKA_ERROR_CODE_MASK 0xFu

/* Sequence number of the job of that error; 0 when it was none of a job. */
#define MOSKA_ERROR_SEQUENCE 0x44u

/* Byte address of the access or field that caused that error, bits 31:0. */
#define MOSKA_ERROR_ADDRESS_LO 0x48u

/* Byte address of the access or field that caused that error, bits 63:32. */
#define MOSKA_ERROR_ADDRESS_HI 0x4Cu

/* First byte that may be read, bits 31:0. */
#define MOSKA_READ_BASE_LO 0x50u

/* First byte that may be read, bits 63:32. */
#define MOSKA_READ_BASE_HI 0x54u

/* Last byte that may be read, bits 31:0. */
#define MOSKA_READ_LIMIT_LO 0x58u

/* Last byte that may be read, bits 63:32. */
#define MOSKA_READ_LIMIT_HI 0x5Cu

/* First byte that may be written, bits 31:0. */
#define MOSKA_WRITE_BASE_LO 0x60u

/* First byte that may be written, bits 63:32. */
#define MOSKA_WRITE_BASE_HI 0x64u

/* Last byte that may be written, bits 31:0. */
#define MOSKA_WRITE_LIMIT_LO 0x68u

/* Last byte that may be written, bits 63:32. */
#define MOSKA_WRITE_LIMIT_HI 0x6Cu

/* Freezes the windows until reset. */
#define MOSKA_LOCK 0x70u

/* Elements of a query, key or value row (D). */
#define MOSKA_HEAD_DIM 0x80u

/* Beats of the arrays per token (F). */
#define MOSKA_FOLD 0x84u

/* Query rows that the arrays hold at once (Mt). */
#define MOSKA_QUERY_TILE 0x88u

/* Bytes of a beat of the memory port. */
#define MOSKA_BUS_BYTES 0x8Cu

/* Query rows of the largest job (M). */
#define MOSKA_MAX_ROWS 0x90u

/* Chunks of the largest job. */
#define MOSKA_MAX_CHUNKS 0x94u

/* Tokens of a softmax block (T). */
#define MOSKA_BLOCK_TOKENS 0x98u

/* Bits of a query element. */
#define MOSKA_Q_BITS 0x9Cu

/* Tokens of a slot of the chunk buffer. */
#define MOSKA_BUFFER_TOKENS 0xA0u

/* Slots of the chunk buffer. */
#define MOSKA_BUFFER_SLOTS 0xA4u

/* Jobs that may be under way at once. */
#define MOSKA_CONTEXTS 0xA8u

/* Read ports of the memory side; with 2, values have a port of their own. */
#define MOSKA_READ_PORTS 0xACu

/* Cycles. SCORE_ACTIVE and all STALL counters add up to it. */
#define MOSKA_CYCLES 0xC0u

/* Cycles in which a beat enters the score array. */
#define MOSKA_SCORE_ACTIVE 0xC4u

/* Cycles of waiting for the descriptor or the queries. */
#define MOSKA_STALL_LOAD 0xC8u

/* Cycles in which the score array waits for keys or scales from memory. */
#define MOSKA_STALL_MEMORY 0xCCu

/* Cycles in which the score array waits for a query tile. */
#define MOSKA_STALL_QUERY 0xD0u

/* Cycles in which the score array waits for room in the score buffer. */
#define MOSKA_STALL_SOFTMAX 0xD4u

/* Cycles in which the score array waits for chunk selection. */
#define MOSKA_STALL_SELECT 0xD8u

/* Cycles after the last token was issued, while value array and merge finish. */
#define MOSKA_STALL_DRAIN 0xDCu

/* Cycles in which results are normalised and written. */
#define MOSKA_STALL_FINISH 0xE0u

/* Cycles in which a beat enters the value array. */
#define MOSKA_VALUE_ACTIVE 0xE4u

/* Data beats read on the memory port. */
#define MOSKA_READ_BEATS 0xE8u

/* Data beats written on the memory port. */
#define MOSKA_WRITE_BEATS 0xECu

/* Chunks read from memory. */
#define MOSKA_CHUNKS_READ 0xF0u

/* Chunks that no row selected, so that they were not read. */
#define MOSKA_CHUNKS_SKIPPED 0xF4u

/* Completions since reset, modulo 2**32. */
#define MOSKA_JOBS 0xF8u

/* Completions with an error since reset, modulo 2**32. */
#define MOSKA_ERRORS 0xFCu

#endif /* MOSKA_REGS_H */
