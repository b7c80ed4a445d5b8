/* Reset and the end of the simulation, for 32-bit RISC-V in machine mode. There is no trap handler: the emulator itself stops at a
   fault. */
#include "harness.h"

#ifdef __riscv

extern const uint32_t harness_data_load[];
extern uint32_t harness_data_start[], harness_data_end[], harness_bss_start[], harness_bss_end[];

void harness_main(void);
void harness_reset(void);
void harness_prepare(void);

/* The emulator sets the stack pointer; a board would have to do it here, so this does it too. */
__attribute__((naked)) void harness_reset(void) {
  __asm__ volatile(".option push\n\t"
                   ".option norelax\n\t"
                   "la sp, harness_stack_top\n\t"
                   ".option pop\n\t"
                   "j harness_prepare\n\t");
}

__attribute__((used)) void harness_prepare(void) {
#ifdef __riscv_flen
  const uint32_t initial = 1u << 13; /* FS of mstatus (Privileged ISA, 3.1.6): the floating-point unit is on */
  __asm__ volatile("csrs mstatus, %0" : : "r"(initial));
#endif
  /* Volatile, so that these loops do not become calls of memcpy and memset. */
  const uint32_t *from = harness_data_load;
  for (volatile uint32_t *to = harness_data_start; to < harness_data_end; ++to) *to = *from++;
  for (volatile uint32_t *to = harness_bss_start; to < harness_bss_end; ++to) *to = 0;
  harness_main();
  harness_exit();
}

__attribute__((noinline, used)) void harness_exit(void) {
  for (;;) __asm__ volatile("nop");
}

#endif
