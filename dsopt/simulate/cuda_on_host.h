// What CUDA C++ means to a host C++ compiler: one thread after another, plain functions for kernels, and a table of them.
//
// Includes kernels.cu, the text that the CUDA compiler gets too, and kernels.inc, a line KERNEL(name) for each of its kernels.
// No C++ library is needed.
#ifndef DSOPT_CUDA_ON_HOST_H
#define DSOPT_CUDA_ON_HOST_H

#include <math.h>
#include <stdint.h>
#include <string.h>

struct Dim {
  unsigned x, y, z;
};
static Dim blockIdx, threadIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static_assert(false, "the emulator has no shared memory");

// What CUDA has and a host's C++ has not.
static inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
static inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

#include "kernels.cu"

// A kernel is called as cuLaunchKernel calls it: with the address of each argument.
template <int... I>
struct Indices {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  typedef Indices<I...> type;
};
template <class... A, int... I>
static inline void call(void (*kernel)(A...), void **arguments, Indices<I...>) {
  kernel(*(A *)arguments[I]...);
}
template <class... A>
static constexpr int arity(void (*)(A...)) {
  return sizeof...(A);
}

template <class K>
static void sweep(K kernel, void **arguments, bool reverse) {
  const unsigned blocks = gridDim.x, threads = blockDim.x;
  for (unsigned b = 0; b < blocks; ++b) {
    blockIdx.x = reverse ? blocks - 1 - b : b;
    for (unsigned t = 0; t < threads; ++t) {
      threadIdx.x = reverse ? threads - 1 - t : t;
      kernel(arguments);
    }
  }
}

struct Kernel {
  const char *name;
  void (*run)(void **arguments, bool reverse);
  int arity;
};
#define KERNEL(name)                                                                                                       \
  {#name,                                                                                                                  \
   [](void **arguments, bool reverse) {                                                                                    \
     sweep([](void **a) { call(name, a, typename Count<arity(name)>::type()); }, arguments, reverse);                      \
   },                                                                                                                      \
   arity(name)},
static const Kernel kernels[] = {
#include "kernels.inc"
};

#endif
