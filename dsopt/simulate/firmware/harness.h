/* What the generated harness_tables.c defines, and the words that host and image exchange. See README.md. */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdint.h>

/* A block of memory that the host fills before a run or reads after it. */
typedef struct {
  void *address;
  uint32_t bytes;
} harness_span;

extern const harness_span harness_inputs[];
extern const uint32_t harness_input_count;
extern const harness_span harness_outputs[];
extern const uint32_t harness_output_count;

/* Prepares the model; called once, before the first run. */
void harness_init(void);

/* Runs the model once. Returns 0, or a code that ends the simulation. */
int harness_run(void);

/* Written by the linker script. The simulators read it from the image; harness_counter.c reads the timer from it. */
typedef struct {
  uint32_t magic; /* HARNESS_MAGIC */
  uint32_t version; /* HARNESS_VERSION */
  uint32_t flash_origin, flash_bytes;
  uint32_t ram_origin, ram_bytes;
  uint32_t mailbox_origin, mailbox_bytes;
  uint32_t timer_origin; /* of the QEMU board; 0 on a map that no board has */
  uint32_t timer_kind;
} harness_memory_map;

extern const harness_memory_map harness_map;

#define HARNESS_MAGIC 0x64736F70u
#define HARNESS_VERSION 1u
#define HARNESS_TIMER_CMSDK 1u
#define HARNESS_TIMER_SSE 2u

/* The head of the mailbox. The host writes the first part and the inputs, the image the second part, the outputs and the
   results. Offsets are in bytes from the start of the mailbox; run i has its inputs at inputs_offset + i * input_bytes. */
typedef struct {
  uint32_t magic, version;
  uint32_t run_count;
  uint32_t input_bytes, output_bytes; /* of one run: each span is followed by padding to 8 bytes */
  uint32_t inputs_offset, outputs_offset, results_offset;

  uint32_t status; /* HARNESS_STARTED ... HARNESS_OVERFLOW */
  uint32_t runs_done;
  uint32_t code;            /* what harness_run returned */
  uint32_t fault_pc, fault_lr;
  uint32_t empty_ticks; /* of a run that is one instruction: what the measurement itself costs */
  uint32_t reserved[2];
} harness_mailbox;

#define HARNESS_STARTED 1u
#define HARNESS_DONE 2u
#define HARNESS_REFUSED 3u /* the tables and the mailbox differ in the bytes of a run */
#define HARNESS_CODE 4u    /* harness_run returned a code */
#define HARNESS_FAULT 5u
#define HARNESS_OVERFLOW 6u /* the last word of the stack was written: a board may not fault below it */

/* What one run cost, as far as the image can tell. */
typedef struct {
  uint64_t ticks; /* of the board's timer; 0 without one */
  uint32_t stack_bytes; /* of this and all runs before it; 0 except in the last one */
  uint32_t reserved;
} harness_result;

/* harness_counter.c */
void harness_counter_start(void);
uint64_t harness_counter_ticks(void);

/* harness_start.c: ends the simulation. Unicorn stops at its address, QEMU at the reset that it asks for. */
void harness_exit(void);

#endif
