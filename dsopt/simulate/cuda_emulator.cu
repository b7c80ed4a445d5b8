// A GPU that is not there: runs the kernels of an artifact on the host, one thread after another, in a process of its own.
//
// A host C++ compiler builds this file together with the very text that the CUDA compiler gets (kernels.cu), so what is emulated is
// the program itself: its indices, launches, buffers and their lives. What is not: warps, caches, time, and the last bit of a float.
//
// Each argument of a launch is a copy that ends at a page nobody may touch, so an index beyond a buffer stops the launch and is
// reported; so is a write to an argument that the launch only reads. Fresh memory is full of NaN. Kernels must not use shared memory.
//
// Commands come on stdin and answers leave on stdout, both in the host's byte order; dsopt/simulate/cuda_host.py is the other end.
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_on_host.h"

// ---- fences ----

struct Argument {
  uint64_t pointer, bytes;
};
struct Fenced {
  char *map, *data;
  size_t map_bytes;
};
enum { MOST_ARGUMENTS = 64, ALIGNMENT = 16 };
static Fenced fences[MOST_ARGUMENTS];
static uint32_t fence_count;
static sigjmp_buf back;
static int fault_signal;
static char *fault_address;

static void on_fault(int number, siginfo_t *info, void *) {
  fault_signal = number;
  fault_address = (char *)info->si_addr;
  siglongjmp(back, 1);
}

static bool fence(Argument argument, bool readonly) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  const size_t padded = (argument.bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  const size_t inner = (padded + page - 1) / page * page;
  Fenced &made = fences[fence_count];
  made.map_bytes = inner + 2 * page;
  made.map = (char *)mmap(0, made.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (made.map == MAP_FAILED) return false;
  ++fence_count;
  char *start = made.map + page;
  made.data = start + inner - padded;
  if (mprotect(start, inner, PROT_READ | PROT_WRITE)) return false;
  memcpy(made.data, (const void *)argument.pointer, argument.bytes);
  return !readonly || !mprotect(start, inner, PROT_READ);
}

// ---- the other end ----

static void take(void *into, size_t bytes) {
  if (bytes && fread(into, bytes, 1, stdin) != 1) exit(0);  // the other end has gone
}
static uint64_t take_u64() {
  uint64_t value;
  take(&value, sizeof value);
  return value;
}
static void give(const void *from, size_t bytes) {
  if (bytes && fwrite(from, bytes, 1, stdout) != 1) exit(1);
}
static void give_u64(uint64_t value) { give(&value, sizeof value); }

enum Status { DONE, NO_MEMORY, FAULT, WRONG_ARITY };

static void launch() {
  const uint64_t number = take_u64(), blocks = take_u64(), threads = take_u64();
  const uint64_t reads = take_u64(), reverse = take_u64(), count = take_u64();
  static Argument arguments[MOST_ARGUMENTS];
  static void *values[MOST_ARGUMENTS];
  take(arguments, count * sizeof(Argument));
  if ((int)count != kernels[number].arity) return give_u64(WRONG_ARITY);
  uint64_t status = DONE, culprit = 0, offset = 0;
  fence_count = 0;
  for (uint64_t i = 0; i < count && status == DONE; ++i) {
    if (!fence(arguments[i], i < reads)) status = NO_MEMORY;
    else values[i] = &fences[i].data;
  }
  gridDim = Dim{(unsigned)blocks, 1, 1};
  blockDim = Dim{(unsigned)threads, 1, 1};
  if (status == DONE) {
    if (!sigsetjmp(back, 1)) {
      kernels[number].run(values, reverse != 0);
      for (uint64_t i = reads; i < count; ++i) memcpy((void *)arguments[i].pointer, fences[i].data, arguments[i].bytes);
    } else {
      status = FAULT;
      culprit = count;
      for (uint64_t i = 0; i < count; ++i) {
        if (fault_address < fences[i].map || fault_address >= fences[i].map + fences[i].map_bytes) continue;
        culprit = i;
        offset = (uint64_t)(fault_address - fences[i].data);
      }
    }
  }
  while (fence_count) --fence_count, munmap(fences[fence_count].map, fences[fence_count].map_bytes);
  give_u64(status);
  if (status == FAULT) give_u64(culprit), give_u64(offset), give_u64((uint64_t)fault_signal);
}

int main() {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, 0);
  sigaction(SIGBUS, &action, 0);
  sigaction(SIGFPE, &action, 0);
  for (;;) {
    const uint64_t command = take_u64();
    if (command == 'A') {
      const uint64_t bytes = take_u64();
      void *made = malloc(bytes);
      if (made) memset(made, 0xff, bytes);
      give_u64((uint64_t)made);
    } else if (command == 'W') {
      const uint64_t pointer = take_u64(), bytes = take_u64();
      take((void *)pointer, bytes);
      give_u64(DONE);
    } else if (command == 'R') {
      const uint64_t pointer = take_u64(), bytes = take_u64();
      give((const void *)pointer, bytes);
    } else if (command == 'L') {
      launch();
    } else {
      return 0;
    }
    fflush(stdout);
  }
}
