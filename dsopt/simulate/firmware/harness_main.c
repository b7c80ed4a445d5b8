/* Serves the mailbox: for each run copies the inputs in, runs the model, and copies the outputs out. */
#include "harness.h"

#define STACK_FILL 0xA5A5A5A5u

#ifdef __riscv
#define RETURN "ret"
#define READ_STACK_POINTER "mv %0, sp"
#else
#define RETURN "bx lr"
#define READ_STACK_POINTER "mov %0, sp"
#endif

extern uint32_t harness_stack_limit[];

void harness_main(void);

/* One instruction: what harness_measure and its stack frame cost by themselves is what they say of this function. */
__attribute__((naked, noinline, used)) static int harness_empty(void) { __asm__ volatile(RETURN); }

typedef struct {
  uint64_t ticks;
  uint32_t depth; /* from the stack pointer of harness_measure to the lowest word that was written */
  int code;
} measurement;

static uint32_t *stack_pointer(void) {
  uint32_t *value;
  __asm__ volatile(READ_STACK_POINTER : "=r"(value));
  return value;
}

/* Fills the free stack before the run, and looks after it how much of that was overwritten. Both only where asked for: they take
   longer than a small model. Calls no function while it fills, so that all below the stack pointer is free. */
__attribute__((noinline)) static void harness_measure(int (*run)(void), measurement *result, int fills, int looks) {
  uint32_t *const top = stack_pointer();
  if (fills)
    for (volatile uint32_t *word = harness_stack_limit; word < top; ++word) *word = STACK_FILL;
  const uint64_t before = harness_counter_ticks();
  result->code = run();
  const uint64_t after = harness_counter_ticks();
  const uint64_t mask = harness_map.timer_kind == HARNESS_TIMER_CMSDK ? 0xFFFFFFFFu : ~(uint64_t)0;
  result->ticks = (after - before) & mask;
  result->depth = 0;
  if (looks) {
    const volatile uint32_t *lowest = harness_stack_limit;
    while (lowest < top && *lowest == STACK_FILL) ++lowest;
    result->depth = (uint32_t)((const volatile uint8_t *)top - (const volatile uint8_t *)lowest);
  }
}

static uint32_t padded(uint32_t bytes) { return (bytes + 7u) & ~7u; }

static uint32_t total(const harness_span *spans, uint32_t count) {
  uint32_t bytes = 0;
  for (uint32_t i = 0; i < count; ++i) bytes += padded(spans[i].bytes);
  return bytes;
}

/* Byte by byte and volatile: spans have any alignment, and memcpy would be linked, and counted, for the model. */
static void copy(volatile uint8_t *to, const volatile uint8_t *from, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; ++i) to[i] = from[i];
}

void harness_main(void) {
  volatile harness_mailbox *const mailbox = (volatile harness_mailbox *)harness_map.mailbox_origin;
  volatile uint8_t *const base = (volatile uint8_t *)mailbox;
  mailbox->status = HARNESS_STARTED;
  const uint32_t input_bytes = total(harness_inputs, harness_input_count);
  const uint32_t output_bytes = total(harness_outputs, harness_output_count);
  if (mailbox->magic != HARNESS_MAGIC || mailbox->version != HARNESS_VERSION || mailbox->input_bytes != input_bytes ||
      mailbox->output_bytes != output_bytes) {
    mailbox->status = HARNESS_REFUSED;
    return;
  }
  harness_counter_start();
  measurement nothing, run;
  harness_measure(harness_empty, &nothing, 1, 1);
  mailbox->empty_ticks = (uint32_t)nothing.ticks;
  harness_init();
  volatile uint8_t *inputs = base + mailbox->inputs_offset;
  volatile uint8_t *outputs = base + mailbox->outputs_offset;
  volatile harness_result *results = (volatile harness_result *)(base + mailbox->results_offset);
  const uint32_t run_count = mailbox->run_count;
  for (uint32_t done = 0; done < run_count; ++done) {
    for (uint32_t i = 0; i < harness_input_count; ++i) {
      copy(harness_inputs[i].address, inputs, harness_inputs[i].bytes);
      inputs += padded(harness_inputs[i].bytes);
    }
    harness_measure(harness_run, &run, done == 0, done + 1 == run_count);
    if (done + 1 == run_count && harness_stack_limit[0] != STACK_FILL) {
      mailbox->status = HARNESS_OVERFLOW;
      return;
    }
    if (run.code != 0) {
      mailbox->code = (uint32_t)run.code;
      mailbox->status = HARNESS_CODE;
      return;
    }
    for (uint32_t i = 0; i < harness_output_count; ++i) {
      copy(outputs, harness_outputs[i].address, harness_outputs[i].bytes);
      outputs += padded(harness_outputs[i].bytes);
    }
    results[done].ticks = run.ticks;
    results[done].stack_bytes = run.depth > nothing.depth ? run.depth - nothing.depth : 0;
    mailbox->runs_done = done + 1;
  }
  mailbox->status = HARNESS_DONE;
}
