/* Vectors, reset, faults and the end of the simulation, for Armv6-M to Armv8.1-M. */
#include "harness.h"

#ifdef __arm__

extern uint32_t harness_stack_top[];
extern const uint32_t harness_data_load[];
extern uint32_t harness_data_start[], harness_data_end[], harness_bss_start[], harness_bss_end[];

void harness_main(void);
void harness_reset(void);
void harness_fault(void);
void harness_report_fault(const uint32_t *frame);

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define CPACR REGISTER(0xE000ED88u) /* access to the floating-point unit */
#define CCR REGISTER(0xE000ED14u)
#define AIRCR REGISTER(0xE000ED0Cu)

void harness_reset(void) {
#ifdef __ARM_FP
  CPACR |= 0xFu << 20;
#ifdef __ARM_ARCH_8_1M_MAIN__
  CCR |= 1u << 19; /* low-overhead loops */
#endif
  __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
  /* Volatile, so that these loops do not become calls of memcpy and memset. */
  const uint32_t *from = harness_data_load;
  for (volatile uint32_t *to = harness_data_start; to < harness_data_end; ++to) *to = *from++;
  for (volatile uint32_t *to = harness_bss_start; to < harness_bss_end; ++to) *to = 0;
  harness_main();
  harness_exit();
}

/* The reset that this asks for makes QEMU (-no-reboot) stop. */
__attribute__((noinline, used)) void harness_exit(void) {
  __asm__ volatile("" ::: "memory");
  AIRCR = 0x05FA0004u;
  for (;;) __asm__ volatile("nop");
}

/* frame: r0-r3, r12, lr, pc, xpsr, as the core stacked them (Armv7-M manual, B1.5.6). */
__attribute__((used)) void harness_report_fault(const uint32_t *frame) {
  volatile harness_mailbox *mailbox = (volatile harness_mailbox *)harness_map.mailbox_origin;
  mailbox->fault_lr = frame[5];
  mailbox->fault_pc = frame[6];
  mailbox->status = HARNESS_FAULT;
  harness_exit();
}

/* The stack may be what ran out, so it starts again at its top. */
__attribute__((naked)) void harness_fault(void) {
  __asm__ volatile("mov r0, sp\n\t"
                   "ldr r1, 1f\n\t"
                   "mov sp, r1\n\t"
                   "ldr r1, 2f\n\t"
                   "bx r1\n\t"
                   ".balign 4\n"
                   "1: .word harness_stack_top\n"
                   "2: .word harness_report_fault\n");
}

typedef void (*harness_handler)(void);

typedef struct {
  uint32_t *stack;
  harness_handler handlers[15];
} harness_vector_table;

__attribute__((section(".harness_vectors"), used)) static const harness_vector_table harness_vectors = {
    harness_stack_top,
    {harness_reset, harness_fault, harness_fault, harness_fault, harness_fault, harness_fault, harness_fault, harness_fault,
     harness_fault, harness_fault, harness_fault, harness_fault, harness_fault, harness_fault, harness_fault}};

#endif
