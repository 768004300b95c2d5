/* test_memory.c: regions get huge pages wherever the kernel has some for memfds. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/mman.h>
#include <unistd.h>

#include "invariants.h"

enum { COLLAPSE = 25 /* MADV_COLLAPSE */ };

/* Whether a page of a memfd that is all there can be made a huge one. */
static bool kernel_can(void) {
  int fd = memfd_create("probe", 0);
  HOLD(fd >= 0 && ftruncate(fd, HP_HUGE_PAGE) == 0);
  char *room = mmap(NULL, 2 * HP_HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  HOLD(room != MAP_FAILED);
  char *at = room + (HP_HUGE_PAGE - (uintptr_t)room % HP_HUGE_PAGE) % HP_HUGE_PAGE;
  HOLD(mmap(at, HP_HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == at);
  memset(at, 1, HP_HUGE_PAGE);
  bool can = madvise(at, HP_HUGE_PAGE, COLLAPSE) == 0;
  munmap(room, 2 * HP_HUGE_PAGE);
  close(fd);
  return can;
}

/* Nothing has been touched in it before: the kernel alone would refuse. */
static void test_a_new_region_is_on_huge_pages(void **state) {
  (void)state;
  hp_region region;
  hp_error error;
  if (!kernel_can())
    skip();
  assert_int_equal(hp_region_new(&region, "hp-huge", 3 * HP_HUGE_PAGE, true, &error), 0);
  assert_int_equal(region.huge, 3 * HP_HUGE_PAGE);
  const uint8_t *bytes = region.at;
  for (size_t i = 0; i < region.bytes; i += 512)
    HOLD(bytes[i] == 0);
  hp_region_free(&region);
}

static void test_small_regions_and_those_not_asked_for_are_not(void **state) {
  (void)state;
  hp_region region;
  hp_error error;
  assert_int_equal(hp_region_new(&region, "hp-small", HP_HUGE_PAGE - 1, true, &error), 0);
  assert_int_equal(region.huge, 0);
  hp_region_free(&region);
  assert_int_equal(hp_region_new(&region, "hp-plain", 2 * HP_HUGE_PAGE, false, &error), 0);
  assert_int_equal(region.huge, 0);
  hp_region_free(&region);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_a_new_region_is_on_huge_pages),
      cmocka_unit_test(test_small_regions_and_those_not_asked_for_are_not),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
