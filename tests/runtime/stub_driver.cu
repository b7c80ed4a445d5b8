// Stands in for libcuda.so.1: the part of the driver's interface that dsopt calls, on the host's memory, with the kernels compiled
// for the host. Strict where a real driver would be: nothing works before cuInit, without a current context or after a release.
// Set by environment variables when called: STUB_GPUS, STUB_CAPABILITY (as 90), STUB_BYTES of memory, STUB_IMAGE_STATUS,
// STUB_LAUNCH_STATUS. stub_live() counts what has not been given back.
#include <stdlib.h>
#include <sys/types.h>

#include "cuda_on_host.h"

typedef int Status;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

static bool initialized;
static int retained, depth, streams, modules, allocations;
static size_t used_bytes;
static char image_start[8];

static long setting(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text ? atol(text) : otherwise;
}
static bool is_current() { return initialized && retained > 0 && depth > 0; }

extern "C" {
int stub_live() { return retained + depth + streams + modules + allocations; }
const char *stub_image() { return image_start; }

Status cuInit(unsigned flags) {
  if (flags) return INVALID_VALUE;
  if (!setting("STUB_GPUS", 1)) return NO_DEVICE;
  initialized = true;
  return OK;
}
Status cuDriverGetVersion(int *version) { return *version = 12040, OK; }
Status cuGetErrorName(Status, const char **text) { return *text = "CUDA_ERROR_OF_THE_STUB", OK; }
Status cuGetErrorString(Status, const char **text) { return *text = "as the test asked", OK; }
Status cuDeviceGet(int *device, int ordinal) {
  if (!initialized) return NOT_INITIALIZED;
  return ordinal ? INVALID_VALUE : (*device = 7, OK);
}
Status cuDeviceGetName(char *name, int bytes, int device) {
  if (device != 7 || bytes < 8) return INVALID_VALUE;
  return strcpy(name, "Stub"), OK;
}
Status cuDeviceGetAttribute(int *value, int which, int device) {
  const long capability = setting("STUB_CAPABILITY", 90);
  if (device != 7 || (which != 75 && which != 76)) return INVALID_VALUE;
  return *value = (int)(which == 75 ? capability / 10 : capability % 10), OK;
}
Status cuDevicePrimaryCtxRetain(void **context, int device) {
  if (device != 7) return INVALID_VALUE;
  return ++retained, *context = &retained, OK;
}
Status cuDevicePrimaryCtxRelease_v2(int device) { return device != 7 || !retained ? INVALID_CONTEXT : (--retained, OK); }
Status cuCtxPushCurrent_v2(void *context) { return context != &retained || !retained ? INVALID_CONTEXT : (++depth, OK); }
Status cuCtxPopCurrent_v2(void **context) { return !depth ? INVALID_CONTEXT : (--depth, *context = &retained, OK); }
Status cuStreamCreate(void **stream, unsigned flags) {
  if (!is_current() || flags != 1) return INVALID_CONTEXT;
  return ++streams, *stream = &streams, OK;
}
Status cuStreamDestroy_v2(void *stream) { return !is_current() || stream != &streams ? INVALID_CONTEXT : (--streams, OK); }
Status cuStreamSynchronize(void *stream) { return !is_current() || stream != &streams ? INVALID_CONTEXT : OK; }
Status cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
  *total_bytes = (size_t)setting("STUB_BYTES", 1 << 30);
  return *free_bytes = *total_bytes - used_bytes, is_current() ? OK : INVALID_CONTEXT;
}
Status cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
  if (!is_current()) return INVALID_CONTEXT;
  if (!bytes) return INVALID_VALUE;
  if (used_bytes + bytes > (size_t)setting("STUB_BYTES", 1 << 30)) return OUT_OF_MEMORY;
  size_t *made = (size_t *)aligned_alloc(256, 256 + (bytes + 255) / 256 * 256);
  *made = bytes;
  used_bytes += bytes, ++allocations;
  return *pointer = (uint64_t)made + 256, OK;
}
Status cuMemFree_v2(uint64_t pointer) {
  if (!is_current()) return INVALID_CONTEXT;
  size_t *made = (size_t *)(pointer - 256);
  used_bytes -= *made, --allocations;
  return free(made), OK;
}
Status cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  if (!is_current() || stream != &streams) return INVALID_CONTEXT;
  return memcpy((void *)to, from, bytes), OK;
}
Status cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  if (!is_current() || stream != &streams) return INVALID_CONTEXT;
  return memcpy(to, (const void *)from, bytes), OK;
}
Status cuModuleLoadData(void **module, const void *image) {
  if (!is_current()) return INVALID_CONTEXT;
  const Status asked = (Status)setting("STUB_IMAGE_STATUS", OK);
  if (asked) return asked;
  strncpy(image_start, (const char *)image, sizeof image_start - 1);
  return ++modules, *module = &modules, OK;
}
Status cuModuleUnload(void *module) { return !is_current() || module != &modules ? INVALID_CONTEXT : (--modules, OK); }
Status cuModuleGetFunction(void **function, void *module, const char *name) {
  if (!is_current() || module != &modules) return INVALID_CONTEXT;
  for (const Kernel &kernel : kernels)
    if (!strcmp(kernel.name, name)) return *function = (void *)&kernel, OK;
  return NOT_FOUND;
}
Status cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                      void *stream, void **arguments, void **extra) {
  if (!is_current() || stream != &streams) return INVALID_CONTEXT;
  if (gy != 1 || gz != 1 || by != 1 || bz != 1 || shared || arguments) return INVALID_VALUE;
  if ((size_t)extra[0] != 1 || (size_t)extra[2] != 2 || extra[4]) return INVALID_VALUE;
  const Kernel *kernel = (const Kernel *)function;
  char *parameters = (char *)extra[1];
  if (*(size_t *)extra[3] != (size_t)kernel->arity * 8) return INVALID_VALUE;
  void *addresses[64];
  for (int i = 0; i < kernel->arity; ++i) addresses[i] = parameters + 8 * i;
  const Status asked = (Status)setting("STUB_LAUNCH_STATUS", OK);
  if (asked) return asked;
  gridDim = Dim{gx, 1, 1}, blockDim = Dim{bx, 1, 1};
  return kernel->run(addresses, false), OK;
}
}
