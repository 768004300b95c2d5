/* memory.h: the memfds that hold all state, and nothing but state: numbers, never pointers, so that a
 * successor process can map them anywhere.
 *
 * Every region is one memfd, sealed against shrinking and growing, mapped shared. Pages come when they
 * are touched, so a large capacity costs little until it is used. Huge pages are asked for with
 * MADV_COLLAPSE, which needs no privilege and works where shmem_enabled is "never" (kernel 6.1).
 */
#ifndef HP_MEMORY_H
#define HP_MEMORY_H

#include <stdbool.h>

#include "hyperplane.h"

enum { HP_HUGE_PAGE = 2 << 20 };

typedef struct hp_region {
  void *at;
  size_t bytes; /* mapped: a multiple of HP_HUGE_PAGE when it is that large, else of a page */
  size_t huge;  /* of these on huge pages */
  int fd;
} hp_region;

/* Returns 0, or -1 with *error filled. The memory is zero. */
int hp_region_new(hp_region *region, const char *name, uint64_t bytes, bool huge, hp_error *error);
void hp_region_free(hp_region *region);

/* Fills an error; code is an errno or 0. Returns -1, so that callers can return it. */
int hp_fail(hp_error *error, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
