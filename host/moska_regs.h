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
#define MOSKA_VERSION_MAP_VALUE 0x1u
#define MOSKA_VERSION_GENERATOR_SHIFT 16
#define MOSKA_VERSION_GENERATOR_MASK 0xFFFF0000u
#define MOSKA_VERSION_GENERATOR_VALUE 0x1u

/* Starts jobs and enables the interrupt. */
#define MOSKA_CONTROL 0x8u
#define MOSKA_CONTROL_START_SHIFT 0
#define MOSKA_CONTROL_START_MASK 0x1u
#define MOSKA_CONTROL_IRQ_ENABLE_SHIFT 1
#define MOSKA_CONTROL_IRQ_ENABLE_MASK 0x2u

/* State of the unit and of the last job. */
#define MOSKA_STATUS 0xCu
#define MOSKA_STATUS_BUSY_SHIFT 0
#define MOSKA_STATUS_BUSY_MASK 0x1u
#define MOSKA_STATUS_DONE_SHIFT 1
#define MOSKA_STATUS_DONE_MASK 0x2u
#define MOSKA_STATUS_ERROR_SHIFT 2
#define MOSKA_STATUS_ERROR_MASK 0x4u
#define MOSKA_STATUS_ERROR_CODE_SHIFT 8
#define MOSKA_STATUS_ERROR_CODE_MASK 0xF00u

/* Byte address of the job's descriptor, bits 31:0. */
#define MOSKA_DESCRIPTOR_LO 0x10u

/* Byte address of the job's descriptor, bits 63:32. */
#define MOSKA_DESCRIPTOR_HI 0x14u

/* Has no effect on the unit; for tests of the register port. */
#define MOSKA_SCRATCH 0x18u

/* Byte address of the access or object that caused the last error, bits 31:0. */
#define MOSKA_ERROR_ADDRESS_LO 0x20u

/* Byte address of the access or object that caused the last error, bits 63:32. */
#define MOSKA_ERROR_ADDRESS_HI 0x24u

/* Elements of a query, key or value row (D). */
#define MOSKA_HEAD_DIM 0x40u

/* Beats of the arrays per token (F). */
#define MOSKA_FOLD 0x44u

/* Query rows that the arrays hold at once (Mt). */
#define MOSKA_QUERY_TILE 0x48u

/* Bytes of a beat of the memory port. */
#define MOSKA_BUS_BYTES 0x4Cu

/* Query rows of the largest job (M). */
#define MOSKA_MAX_ROWS 0x50u

/* Chunks of the largest job. */
#define MOSKA_MAX_CHUNKS 0x54u

/* Tokens of a softmax block (T). */
#define MOSKA_BLOCK_TOKENS 0x58u

/* Bits of a query element. */
#define MOSKA_Q_BITS 0x5Cu

/* Tokens of a slot of the chunk buffer. */
#define MOSKA_BUFFER_TOKENS 0x60u

/* Slots of the chunk buffer. */
#define MOSKA_BUFFER_SLOTS 0x64u

/* Cycles from start to done. SCORE_ACTIVE and all STALL counters add up to it. */
#define MOSKA_CYCLES 0x80u

/* Cycles in which a beat enters the score array. */
#define MOSKA_SCORE_ACTIVE 0x84u

/* Cycles of waiting for the descriptor or the queries. */
#define MOSKA_STALL_LOAD 0x88u

/* Cycles in which the score array waits for keys or scales from memory. */
#define MOSKA_STALL_MEMORY 0x8Cu

/* Cycles in which the score array waits for a query tile. */
#define MOSKA_STALL_QUERY 0x90u

/* Cycles in which the score array waits for room in the score buffer. */
#define MOSKA_STALL_SOFTMAX 0x94u

/* Cycles in which the score array waits for chunk selection. */
#define MOSKA_STALL_SELECT 0x98u

/* Cycles after the last token was issued, while value array and merge finish. */
#define MOSKA_STALL_DRAIN 0x9Cu

/* Cycles in which results are normalised and written. */
#define MOSKA_STALL_FINISH 0xA0u

/* Cycles in which a beat enters the value array. */
#define MOSKA_VALUE_ACTIVE 0xA4u

/* Data beats read on the memory port. */
#define MOSKA_READ_BEATS 0xA8u

/* Data beats written on the memory port. */
#define MOSKA_WRITE_BEATS 0xACu

/* Chunks read from memory. */
#define MOSKA_CHUNKS_READ 0xB0u

/* Chunks that no row selected, so that they were not read. */
#define MOSKA_CHUNKS_SKIPPED 0xB4u

#endif /* MOSKA_REGS_H */
