/* A block hook for Unicorn, on the host: how often each block ran, inside of which layer, and how often its end jumped.
   unicorn_child.py has the same in Python, for machines without a C compiler; the two must count alike. C99.

   Counting begins at the entry of harness_run and ends where it returns to. A layer is active from its entry to its return
   address, which the link register holds at the entry; layers called by layers are kept on a small stack. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH = 64, LARGEST_BLOCK = 4096, NO_LAYER = -1, IS_RUN = -2, NOT_AN_ENTRY = -3 };

typedef struct {
  uint64_t address, hits, taken;
  uint32_t size, instructions;
  int32_t layer;  /* that was active, or NO_LAYER */
  int32_t enters; /* the layer whose entry this is, IS_RUN or NOT_AN_ENTRY */
} slot;

typedef int (*memory_reader)(void *uc, uint64_t address, void *bytes, uint64_t size);
typedef int (*register_reader)(void *uc, int id, void *value);

static memory_reader read_memory;
static register_reader read_register;
static int link_register;
static int is_riscv; /* else Thumb */

static const uint64_t *entries; /* of the layers */
static uint32_t entry_count;
static uint64_t run_entry;

static slot *slots;
static uint32_t slot_count, slot_capacity; /* the capacity is a power of two */

static struct {
  uint64_t back;
  int32_t layer;
} frames[DEPTH];
static int32_t depth;

static uint64_t *runs;
static uint32_t run_count, run_capacity;
static uint64_t run_instructions;
static int64_t last_slot = -1;
static uint64_t last_end;
static int failed;

int counter_start(memory_reader memory, register_reader registers, int lr, uint64_t run, const uint64_t *layers, uint32_t count,
                  int riscv) {
  read_memory = memory, read_register = registers, link_register = lr, is_riscv = riscv;
  run_entry = run, entries = layers, entry_count = count;
  slot_capacity = 1u << 14;
  run_capacity = 1u << 10;
  slots = calloc(slot_capacity, sizeof *slots);
  runs = calloc(run_capacity, sizeof *runs);
  return slots == NULL || runs == NULL;
}

static uint32_t place(const slot *table, uint32_t capacity, uint64_t address, uint32_t size, int32_t layer) {
  uint32_t at = ((uint32_t)(address >> 1) * 2654435761u ^ (uint32_t)layer * 40503u) & (capacity - 1);
  while (table[at].size != 0 && (table[at].address != address || table[at].size != size || table[at].layer != layer))
    at = (at + 1) & (capacity - 1);
  return at;
}

static int grow(void) {
  const uint32_t capacity = slot_capacity * 2;
  slot *table = calloc(capacity, sizeof *table);
  if (table == NULL) return 1;
  for (uint32_t i = 0; i < slot_capacity; ++i)
    if (slots[i].size != 0) table[place(table, capacity, slots[i].address, slots[i].size, slots[i].layer)] = slots[i];
  free(slots);
  slots = table, slot_capacity = capacity;
  last_slot = -1;
  return 0;
}

static int is_long(const uint8_t *code) { return is_riscv ? (code[0] & 3) == 3 : code[1] >> 3 >= 29; }

static uint32_t count_instructions(void *uc, uint64_t address, uint32_t size) {
  uint8_t code[LARGEST_BLOCK];
  if (size > LARGEST_BLOCK || read_memory(uc, address, code, size) != 0) {
    failed = 1;
    return 0;
  }
  uint32_t count = 0;
  for (uint32_t at = 0; at + 2 <= size; ++count) at += is_long(code + at) ? 4 : 2;
  return count;
}

static int32_t entered(uint64_t address) {
  if (address == run_entry) return IS_RUN;
  for (uint32_t i = 0; i < entry_count; ++i)
    if (entries[i] == address) return (int32_t)i;
  return NOT_AN_ENTRY;
}

static int32_t active(void) { return depth == 0 ? NO_LAYER : frames[depth - 1].layer; }

static slot *find(void *uc, uint64_t address, uint32_t size) {
  uint32_t at = place(slots, slot_capacity, address, size, active());
  if (slots[at].size == 0) {
    if (++slot_count > slot_capacity / 2) {
      if (grow() != 0) {
        failed = 1;
        return NULL;
      }
      at = place(slots, slot_capacity, address, size, active());
    }
    const slot fresh = {address, 0, 0, size, count_instructions(uc, address, size), active(), entered(address)};
    slots[at] = fresh;
  }
  return &slots[at];
}

static void enter(void *uc, int32_t layer) {
  uint32_t lr = 0;
  if (read_register(uc, link_register, &lr) != 0) failed = 1;
  lr &= ~1u;
  /* A leaf function may begin with a loop, and jump to its own entry. */
  if (depth > 0 && frames[depth - 1].layer == layer && frames[depth - 1].back == lr) return;
  if (depth == DEPTH) failed = 1;
  if (failed) return;
  frames[depth].back = lr;
  frames[depth].layer = layer;
  ++depth;
}

static void finish_run(void) {
  if (run_count == run_capacity) {
    uint64_t *longer = realloc(runs, sizeof *runs * run_capacity * 2);
    if (longer == NULL) {
      failed = 1;
      return;
    }
    runs = longer, run_capacity *= 2;
  }
  runs[run_count++] = run_instructions;
  run_instructions = 0;
  last_slot = -1;
}

void counter_block(void *uc, uint64_t address, uint32_t size, void *user) {
  (void)user;
  if (failed || size == 0) return;
  if (depth == 0 && address != run_entry) return;
  if (last_slot >= 0 && address != last_end) ++slots[last_slot].taken;
  last_slot = -1;
  if (depth > 0 && address == frames[depth - 1].back) {
    while (depth > 0 && address == frames[depth - 1].back) --depth;
    if (depth == 0) {
      finish_run();
      return;
    }
  }
  if (depth == 0) enter(uc, NO_LAYER);
  slot *block = find(uc, address, size);
  if (block != NULL && block->enters >= 0) {
    enter(uc, block->enters);
    block = find(uc, address, size);
  }
  if (block == NULL) return;
  ++block->hits;
  run_instructions += block->instructions;
  last_slot = block - slots;
  last_end = address + size;
}

int counter_failed(void) { return failed; }
const slot *counter_slots(void) { return slots; }
uint32_t counter_slot_capacity(void) { return slot_capacity; }
const uint64_t *counter_runs(void) { return runs; }
uint32_t counter_run_count(void) { return run_count; }
