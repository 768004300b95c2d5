/* test_options.c: IPv4 options that carry addresses are blanked, and nothing else is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "packets.h"

/* A header with these options in an allocation of its length, so that a sanitizer sees a byte too much. */
static uint8_t *header_with(const uint8_t *options, uint32_t length) {
  uint8_t *ip = calloc(1, 20 + length);
  HOLD(ip && length % 4 == 0);
  ip[0] = (uint8_t)(0x40 | (20 + length) / 4);
  hp_put16(ip + 2, (uint16_t)(20 + length));
  ip[8] = 64;
  ip[9] = HP_UDP;
  hp_put32(ip + 12, 0xc6120002);
  hp_put32(ip + 16, 0xcb007101);
  if (length)
    memcpy(ip + 20, options, length);
  write_ip_checksum(ip);
  return ip;
}

static void test_what_becomes_of_options(void **state) {
  (void)state;
  const struct {
    uint8_t before[12], after[12];
  } cases[] = {
      {{7, 7, 4, 1, 2, 3, 4, 0}, {1, 1, 1, 1, 1, 1, 1, 0}},                           /* record route */
      {{68, 12, 5, 1, 1, 2, 3, 4, 0, 0, 0, 9}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}}, /* time stamps */
      {{82, 12, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}}, /* traceroute */
      {{131, 7, 4, 1, 2, 3, 4, 0}, {1, 1, 1, 1, 1, 1, 1, 0}},                         /* loose source route, quoted */
      {{137, 7, 4, 1, 2, 3, 4, 0}, {1, 1, 1, 1, 1, 1, 1, 0}},                         /* strict */
      {{147, 10, 1, 2, 3, 4, 1, 2, 3, 4, 0}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0}},      /* address extension */
      {{149, 6, 1, 2, 3, 4, 0}, {1, 1, 1, 1, 1, 1, 0}},                               /* directed broadcast */
      {{148, 4, 0, 0, 7, 3, 4, 130, 3, 9, 0}, {148, 4, 0, 0, 1, 1, 1, 130, 3, 9, 0}}, /* between others */
      {{1, 1, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7}, {1, 1, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7}},   /* behind their end */
      {{25, 8, 7, 7, 7, 7, 7, 7, 0}, {25, 8, 7, 7, 7, 7, 7, 7, 0}},                   /* inside another */
      {{7, 13, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},  /* one byte too long */
      {{68, 0, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},  /* of no length */
      {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 7}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},   /* without a length */
      {{222, 13, 7, 3, 4, 1, 1, 1, 7, 3, 4, 1}, {222, 13, 7, 3, 4, 1, 1, 1, 7, 3, 4, 1}}, /* another that lies */
  };
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    uint8_t *ip = header_with(cases[i].before, 12), *expected = header_with(cases[i].after, 12);
    hp_blank_options(ip);
    assert_memory_equal(ip, expected, 32);
    free(ip);
    free(expected);
  }
}

static void test_no_options(void **state) {
  (void)state;
  uint8_t *ip = header_with(NULL, 0), *same = header_with(NULL, 0);
  hp_blank_options(ip);
  assert_memory_equal(ip, same, 20);
  free(ip);
  free(same);
}

static void test_any_options(void **state) {
  (void)state;
  static const uint8_t likely[] = {0, 1, 1, 2, 3, 4, 7, 8, 11, 12, 25, 68, 82, 131, 137, 147, 148, 149};
  uint64_t random = 11;
  for (int round = 0; round < 200000; round++) {
    uint8_t options[40];
    uint32_t length = 4 * random_below(&random, 11);
    for (uint32_t i = 0; i < length; i++)
      options[i] =
          random_below(&random, 4) ? likely[random_below(&random, sizeof likely)] : (uint8_t)next_random(&random);
    uint8_t *ip = header_with(options, length), before[60];
    bool shown = shows_addresses(ip);
    memcpy(before, ip, 20 + length);
    hp_blank_options(ip);
    HOLD(ip_checksum_right(ip) && !shows_addresses(ip));
    HOLD(shown != (memcmp(before, ip, 20 + length) == 0));
    for (uint32_t i = 0; i < 20 + length; i++)
      HOLD(ip[i] == before[i] || i == 10 || i == 11 || (i >= 20 && ip[i] == 1));
    free(ip);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_what_becomes_of_options),
      cmocka_unit_test(test_no_options),
      cmocka_unit_test(test_any_options),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
