/* The four functions that compilers call on their own (GCC manual, "Standards"; a board's C library has faster ones). */
#include <stddef.h>
#include <stdint.h>

typedef uint32_t __attribute__((may_alias)) word;

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *left, const void *right, size_t bytes);

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
  uint8_t *d = to;
  const uint8_t *s = from;
  if ((((uintptr_t)d | (uintptr_t)s) & 3u) == 0) {
    for (; bytes >= 16; bytes -= 16, d += 16, s += 16) {
      const word a = ((const word *)s)[0], b = ((const word *)s)[1], c = ((const word *)s)[2], e = ((const word *)s)[3];
      ((word *)d)[0] = a, ((word *)d)[1] = b, ((word *)d)[2] = c, ((word *)d)[3] = e;
    }
    for (; bytes >= 4; bytes -= 4, d += 4, s += 4) *(word *)d = *(const word *)s;
  }
  for (; bytes > 0; --bytes) *d++ = *s++;
  return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
  uint8_t *d = to;
  const uint8_t *s = from;
  /* Not by memcpy: that one's blocks may not overlap in either direction. */
  if ((uintptr_t)d - (uintptr_t)s >= bytes) {
    for (; bytes > 0; --bytes) *d++ = *s++;
    return to;
  }
  while (bytes > 0) {
    --bytes;
    d[bytes] = s[bytes];
  }
  return to;
}

void *memset(void *to, int value, size_t bytes) {
  uint8_t *d = to;
  const uint8_t byte = (uint8_t)value;
  for (; bytes > 0 && ((uintptr_t)d & 3u) != 0; --bytes) *d++ = byte;
  const word four = byte * 0x01010101u;
  for (; bytes >= 4; bytes -= 4, d += 4) *(word *)d = four;
  for (; bytes > 0; --bytes) *d++ = byte;
  return to;
}

int memcmp(const void *left, const void *right, size_t bytes) {
  const uint8_t *a = left, *b = right;
  for (; bytes > 0; --bytes, ++a, ++b)
    if (*a != *b) return *a - *b;
  return 0;
}
