/* The timer of the QEMU boards. With -icount it advances by a fixed time for each instruction, so it counts instructions. */
#include "harness.h"

#define REGISTER(offset) (*(volatile uint32_t *)(harness_map.timer_origin + (offset)))

/* CMSDK timer (Arm DDI 0479, 4.5): control, value that counts down, reload. SSE-300 counter (Arm 101773): control, low, high. */
#define CMSDK_CONTROL REGISTER(0x0u)
#define CMSDK_VALUE REGISTER(0x4u)
#define CMSDK_RELOAD REGISTER(0x8u)
#define SSE_CONTROL REGISTER(0x0u)
#define SSE_LOW REGISTER(0x8u)
#define SSE_HIGH REGISTER(0xCu)

void harness_counter_start(void) {
  if (harness_map.timer_kind == HARNESS_TIMER_CMSDK) {
    CMSDK_CONTROL = 0;
    CMSDK_RELOAD = 0xFFFFFFFFu;
    CMSDK_VALUE = 0xFFFFFFFFu;
    CMSDK_CONTROL = 1;
  } else if (harness_map.timer_kind == HARNESS_TIMER_SSE) {
    SSE_CONTROL = 1;
  }
}

/* CMSDK: 32 bits that wrap, so only differences modulo 2^32 mean something; the caller takes them that way for both. */
__attribute__((noinline)) uint64_t harness_counter_ticks(void) {
  if (harness_map.timer_kind == HARNESS_TIMER_CMSDK) return 0xFFFFFFFFu - CMSDK_VALUE;
  if (harness_map.timer_kind != HARNESS_TIMER_SSE) return 0;
  for (;;) {
    const uint32_t high = SSE_HIGH, low = SSE_LOW;
    if (high == SSE_HIGH) return (uint64_t)high << 32 | low;
  }
}
