/* memory.c: memfd regions and error values. See memory.h. */
#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* asm-generic/mman-common.h from 6.1 */
#endif

int hp_fail(hp_error *error, int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  error->code = code;
  vsnprintf(error->text, sizeof error->text, format, arguments);
  va_end(arguments);
  return -1;
}

/* Maps at a multiple of HP_HUGE_PAGE: reserves one huge page more than needed, cuts off both ends. */
static void *map_aligned(int fd, size_t bytes) {
  char *reserved = mmap(NULL, bytes + HP_HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved == MAP_FAILED)
    return MAP_FAILED;
  size_t before = (HP_HUGE_PAGE - (uintptr_t)reserved % HP_HUGE_PAGE) % HP_HUGE_PAGE;
  char *start = reserved + before;
  if (before)
    munmap(reserved, before);
  if (before < HP_HUGE_PAGE)
    munmap(start + bytes, HP_HUGE_PAGE - before);
  return mmap(start, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
}

/* Collapses page by page, so that what can be had is had; returns the bytes on huge pages. */
static size_t collapse(char *at, size_t bytes) {
  size_t huge = 0;
  for (size_t offset = 0; offset < bytes; offset += HP_HUGE_PAGE) {
    if (madvise(at + offset, HP_HUGE_PAGE, MADV_COLLAPSE))
      break;
    huge += HP_HUGE_PAGE;
  }
  return huge;
}

int hp_region_new(hp_region *region, const char *name, uint64_t bytes, bool huge, hp_error *error) {
  *region = (hp_region){.fd = -1};
  uint64_t unit = huge && bytes >= HP_HUGE_PAGE ? HP_HUGE_PAGE : (uint64_t)sysconf(_SC_PAGESIZE);
  bytes = (bytes + unit - 1) / unit * unit;
  if (bytes == 0)
    bytes = unit;
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0)
    return hp_fail(error, errno, "memory for %s: memfd_create: %s", name, strerror(errno));
  if (ftruncate(fd, (off_t)bytes) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
    int code = errno;
    close(fd);
    return hp_fail(error, code, "memory for %s: %llu bytes: %s; lower max_flows", name, (unsigned long long)bytes,
                   strerror(code));
  }
  void *at = map_aligned(fd, bytes);
  if (at == MAP_FAILED) {
    int code = errno;
    close(fd);
    return hp_fail(error, code, "memory for %s: cannot map %llu bytes: %s; lower max_flows", name,
                   (unsigned long long)bytes, strerror(code));
  }
  *region = (hp_region){.at = at, .bytes = bytes, .fd = fd};
  if (unit == HP_HUGE_PAGE)
    region->huge = collapse(at, bytes);
  return 0;
}

void hp_region_free(hp_region *region) {
  if (region->at) {
    munmap(region->at, region->bytes);
    close(region->fd);
  }
  *region = (hp_region){.fd = -1};
}
