/* memory.h: the memfds that hold all state, and nothing but state: numbers, never pointers, so that a
 * successor process can map them anywhere, and another one read them.
 *
 * Every region is one memfd with a name, sealed against shrinking and growing, mapped shared. Its maker maps it
 * by hp_region_new(); whoever has been given the descriptors maps it by hp_region_open(), which trusts nobody. Pages
 * come when they are touched, so a large capacity costs little until it is used. Huge pages are asked for with
 * MADV_COLLAPSE, which needs no privilege and works where shmem_enabled is "never" (kernel 6.1).
 */
#ifndef HP_MEMORY_H
#define HP_MEMORY_H

#include <stdbool.h>

#include "hyperplane.h"

/* A function that copies what a worker is writing, by design: a sequence number tells whether the copy is whole, or
 * each word stands for itself. ThreadSanitizer is not to look at it. */
#define HP_LOOKS_ON __attribute__((no_sanitize("thread")))

enum { HP_HUGE_PAGE = 2 << 20 };

typedef struct hp_region {
  void *at;
  size_t bytes; /* mapped: a multiple of HP_HUGE_PAGE when it is that large, else of a page */
  size_t huge;  /* of these on huge pages */
  int fd;       /* -1: mapped read-only */
  char name[HP_REGION_NAME];
} hp_region;

/* What another process has made: hp_region_open() finds a region by its name here. */
typedef struct hp_given {
  const hp_region_fd *regions;
  uint32_t count;
  bool read_only;
} hp_given;

/* Maps the region of that name, or makes a new one, all zero, when given is NULL. A given descriptor is
 * duplicated; one of another size, without seals, or that is no memfd is an error.
 * Returns 0, or -1 with *error filled. */
int hp_region_open(hp_region *region, const hp_given *given, const char *name, uint64_t bytes, bool huge,
                   hp_error *error);
static inline int hp_region_new(hp_region *region, const char *name, uint64_t bytes, bool huge, hp_error *error) {
  return hp_region_open(region, NULL, name, bytes, huge, error);
}
void hp_region_free(hp_region *region);

/* Fills an error; code is an errno or 0. Returns -1, so that callers can return it. */
int hp_fail(hp_error *error, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
