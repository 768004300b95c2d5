/* memory.c: memfd regions and error values. See memory.h. */
#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* asm-generic/mman-common.h from 6.1 */
#endif

#define START_ANEW "start an engine without inheritance, its flows begin anew"

enum { SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL };

int hp_fail(hp_error *error, int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  error->code = code;
  vsnprintf(error->text, sizeof error->text, format, arguments);
  va_end(arguments);
  return -1;
}

/* Maps at a multiple of HP_HUGE_PAGE: reserves one huge page more than needed, cuts off both ends. */
static void *map_aligned(int fd, size_t bytes, int protection) {
  char *reserved = mmap(NULL, bytes + HP_HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved == MAP_FAILED)
    return MAP_FAILED;
  size_t before = (HP_HUGE_PAGE - (uintptr_t)reserved % HP_HUGE_PAGE) % HP_HUGE_PAGE;
  char *start = reserved + before;
  if (before)
    munmap(reserved, before);
  if (before < HP_HUGE_PAGE)
    munmap(start + bytes, HP_HUGE_PAGE - before);
  return mmap(start, bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0);
}

/* Collapses page by page, so that what can be had is had; returns the bytes on huge pages. The kernel collapses only
 * where a page table is: where nothing has been touched yet it says EINVAL. So each is read once before. */
static size_t collapse(char *at, size_t bytes) {
  size_t huge = 0;
  for (size_t offset = 0; offset < bytes; offset += HP_HUGE_PAGE) {
    (void)*(volatile char *)(at + offset);
    if (madvise(at + offset, HP_HUGE_PAGE, MADV_COLLAPSE))
      break;
    huge += HP_HUGE_PAGE;
  }
  return huge;
}

static uint64_t round_up(uint64_t bytes, uint64_t unit) { return bytes ? (bytes + unit - 1) / unit * unit : unit; }

static uint64_t page_size(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

/* Maps fd, which is closed when that fails. */
static int map(hp_region *region, int fd, const char *name, uint64_t bytes, int protection, hp_error *error) {
  void *at = map_aligned(fd, bytes, protection);
  if (at == MAP_FAILED) {
    int code = errno;
    close(fd);
    return hp_fail(error, code, "memory for %s: cannot map %llu bytes: %s; lower max_flows", name,
                   (unsigned long long)bytes, strerror(code));
  }
  *region = (hp_region){.at = at, .bytes = bytes, .fd = fd};
  snprintf(region->name, sizeof region->name, "%s", name);
  return 0;
}

static int make(hp_region *region, const char *name, uint64_t bytes, bool huge, hp_error *error) {
  bytes = round_up(bytes, huge ? HP_HUGE_PAGE : page_size());
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0)
    return hp_fail(error, errno, "memory for %s: memfd_create: %s", name, strerror(errno));
  if (ftruncate(fd, (off_t)bytes) || fcntl(fd, F_ADD_SEALS, SEALS)) {
    int code = errno;
    close(fd);
    return hp_fail(error, code, "memory for %s: %llu bytes: %s; lower max_flows", name, (unsigned long long)bytes,
                   strerror(code));
  }
  return map(region, fd, name, bytes, PROT_READ | PROT_WRITE, error);
}

static const hp_region_fd *find(const hp_given *given, const char *name) {
  for (uint32_t i = 0; i < given->count; i++)
    if (strncmp(given->regions[i].name, name, HP_REGION_NAME) == 0)
      return &given->regions[i];
  return NULL;
}

/* The size of a region that was given, or 0 with *error filled. Rounded up by its maker, who may have asked for
 * huge pages. */
static uint64_t given_size(int fd, const char *name, uint64_t bytes, hp_error *error) {
  struct stat file;
  int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || fstat(fd, &file)) {
    hp_fail(error, EBADMSG, "descriptor %d for %s is no memory of an engine: %s; " START_ANEW, fd, name,
            strerror(errno));
    return 0;
  }
  if ((seals & SEALS) != SEALS) {
    hp_fail(error, EBADMSG, "the memory for %s is not sealed: its size could change; " START_ANEW, name);
    return 0;
  }
  uint64_t size = (uint64_t)file.st_size;
  if (size != round_up(bytes, page_size()) && size != round_up(bytes, HP_HUGE_PAGE)) {
    hp_fail(error, EBADMSG, "%s has %llu bytes and should have %llu: another version or configuration; " START_ANEW,
            name, (unsigned long long)size, (unsigned long long)bytes);
    return 0;
  }
  return size;
}

static int take(hp_region *region, const hp_given *given, const char *name, uint64_t bytes, hp_error *error) {
  const hp_region_fd *one = find(given, name);
  if (!one)
    return hp_fail(error, EBADMSG, "the memory for %s is missing: another version; " START_ANEW, name);
  uint64_t size = given_size(one->fd, name, bytes, error);
  if (size == 0)
    return -1;
  int fd = fcntl(one->fd, F_DUPFD_CLOEXEC, 0);
  if (fd < 0)
    return hp_fail(error, errno, "memory for %s: %s; raise the limit of open files (ulimit -n)", name, strerror(errno));
  if (map(region, fd, name, size, given->read_only ? PROT_READ : PROT_READ | PROT_WRITE, error))
    return -1;
  if (given->read_only) { /* the map is enough: a reader of many engines saves descriptors */
    close(fd);
    region->fd = -1;
  }
  return 0;
}

int hp_region_open(hp_region *region, const hp_given *given, const char *name, uint64_t bytes, bool huge,
                   hp_error *error) {
  *region = (hp_region){.fd = -1};
  huge = huge && bytes >= HP_HUGE_PAGE;
  if (given ? take(region, given, name, bytes, error) : make(region, name, bytes, huge, error))
    return -1;
  if (huge && region->fd >= 0)
    region->huge = collapse(region->at, region->bytes / HP_HUGE_PAGE * HP_HUGE_PAGE);
  return 0;
}

void hp_region_free(hp_region *region) {
  if (region->at) {
    munmap(region->at, region->bytes);
    if (region->fd >= 0)
      close(region->fd);
  }
  *region = (hp_region){.fd = -1};
}
