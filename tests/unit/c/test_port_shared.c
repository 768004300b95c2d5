/* test_port_shared.c: ports shared per destination (RFC 7857 section 3.2): how many there are towards one, and that
 * "exhausted" means that every single one is taken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "invariants.h"

enum { MAX_FLOWS = 140000, ADDRESS = 0xc0000201, ENI = 1, PORTS = HP_PORT_COUNT };

typedef struct bench {
  hp_ports ports;
  hp_flow_table flows;
  uint32_t made; /* flows so far: makes inside keys */
  uint16_t latest;
  uint64_t random;
  uint32_t numbers[65536]; /* of the flows towards the first destination, by port */
} bench;

static bench *bench_new(void) {
  hp_error error;
  bench *b = calloc(1, sizeof *b);
  assert_non_null(b);
  b->random = 1;
  assert_int_equal(hp_ports_new(&b->ports, 2, MAX_FLOWS, 30000, 1, &error), 0);
  assert_int_equal(hp_flow_table_new(&b->flows, MAX_FLOWS, 1, false, &error), 0);
  assert_int_equal(hp_address_add(&b->ports, ENI, ADDRESS), 0);
  return b;
}

static void bench_free(bench *b) {
  hp_ports_free(&b->ports);
  hp_flow_table_free(&b->flows);
  free(b);
}

/* Opens a flow to a destination; its number, or HP_NONE when there is no port. */
static uint32_t open_flow(bench *b, uint32_t destination) {
  hp_key key = {.link = ENI << 8 | HP_TCP, .source = destination, .destination = ADDRESS, .ports = 443u << 16};
  /* As a packet alone, or as one of a batch: others may have been served since the guess. */
  uint16_t guess = b->made & 1 ? hp_port_guess(&b->ports, 0, &b->flows, &key) : 0;
  if (b->made % 4 == 3 && b->flows.control->live)
    guess = b->latest;
  uint16_t port = hp_port_choose(&b->ports, 0, &b->flows, &key, guess);
  if (port == 0)
    return HP_NONE;
  HOLD(port >= HP_PORT_FIRST && key.ports == (443u << 16 | port));
  HOLD(hp_flow_find(&b->flows, HP_OUTSIDE, &key, hp_key_hash(&b->flows, &key)) == HP_NONE);
  uint32_t number = hp_flow_take(&b->flows);
  HOLD(number != HP_NONE);
  hp_flow *flow = &b->flows.flows[number];
  flow->half[HP_OUTSIDE].key = key;
  flow->half[HP_INSIDE].key = (hp_key){.link = 2 << 8 | HP_TCP, .source = ++b->made};
  HOLD(hp_flow_publish(&b->flows, number, 0, 1000));
  b->latest = port;
  return number;
}

static void close_flow(bench *b, uint32_t number) {
  hp_key key = b->flows.flows[number].half[HP_OUTSIDE].key;
  hp_flow_remove(&b->flows, number);
  hp_port_ended(&b->ports, &b->flows, &key);
}

static uint16_t port_of(const bench *b, uint32_t number) {
  return (uint16_t)b->flows.flows[number].half[HP_OUTSIDE].key.ports;
}

/* Opens flows until there is no port, and keeps their numbers. */
static uint32_t fill(bench *b, uint32_t destination) {
  uint32_t count = 0;
  for (uint32_t number; (number = open_flow(b, destination)) != HP_NONE; count++)
    b->numbers[port_of(b, number)] = number;
  return count;
}

static void close_all(bench *b) {
  for (uint32_t number = 0; number < b->flows.control->used; number++)
    if (hp_flow_live(&b->flows.flows[number]))
      close_flow(b, number);
}

static void test_every_port_is_had_once_towards_each_destination(void **state) {
  (void)state;
  bench *b = bench_new();
  assert_int_equal(fill(b, 1), PORTS);
  assert_int_equal(fill(b, 2), PORTS); /* RFC 7857 section 3.2: the same ports again */
  assert_int_equal(open_flow(b, 1), HP_NONE);
  assert_int_equal(b->ports.dense_live, 2);
  assert_int_not_equal(open_flow(b, 3), HP_NONE);
  check_dense(&b->ports, &b->flows);
  check_slices(&b->ports, 0);
  close_all(b);
  assert_int_equal(b->ports.dense_live, 0);
  check_dense(&b->ports, &b->flows);
  bench_free(b);
}

static void test_the_one_port_that_is_free_is_found(void **state) {
  (void)state;
  bench *b = bench_new();
  assert_int_equal(fill(b, 1), PORTS);
  for (int i = 0; i < 1000; i++) {
    uint16_t port = (uint16_t)(HP_PORT_FIRST + random_below(&b->random, PORTS));
    close_flow(b, b->numbers[port]);
    uint32_t number = open_flow(b, 1);
    HOLD(number != HP_NONE && port_of(b, number) == port);
    b->numbers[port] = number;
    HOLD(open_flow(b, 1) == HP_NONE);
  }
  check_dense(&b->ports, &b->flows);
  bench_free(b);
}

/* Between nearly empty and full, up and down: the bitmap never says "taken" of a free port. */
static void test_bitmap_agrees_after_random_churn(void **state) {
  (void)state;
  bench *b = bench_new();
  uint32_t live = 0;
  memset(b->numbers, 0xff, sizeof b->numbers);
  for (int round = 0; round < 6; round++) {
    uint32_t keep = round % 2 ? 25 : 98;
    for (int i = 0; i < 100000; i++) {
      uint32_t port = HP_PORT_FIRST + random_below(&b->random, PORTS);
      if (random_below(&b->random, 100) < keep) {
        uint32_t number = open_flow(b, 1);
        HOLD((number == HP_NONE) == (live == PORTS));
        if (number != HP_NONE) {
          b->numbers[port_of(b, number)] = number;
          live++;
        }
      } else if (b->numbers[port] != HP_NONE) {
        close_flow(b, b->numbers[port]);
        b->numbers[port] = HP_NONE;
        live--;
      }
    }
    check_dense(&b->ports, &b->flows);
  }
  assert_true(b->ports.dense_live == 1);
  close_all(b);
  assert_int_equal(b->ports.dense_live, 0);
  assert_int_equal(fill(b, 1), PORTS);
  bench_free(b);
}

/* A flow that came otherwise (by a mapping) has a port of its destination: it is not given out there. */
static void test_ports_of_other_flows_are_avoided(void **state) {
  (void)state;
  bench *b = bench_new();
  for (uint16_t port = 30000; port < 40000; port++) {
    uint32_t number = hp_flow_take(&b->flows);
    hp_flow *flow = &b->flows.flows[number];
    flow->half[HP_OUTSIDE].key =
        (hp_key){.link = ENI << 8 | HP_TCP, .source = 1, .destination = ADDRESS, .ports = 443u << 16 | port};
    flow->half[HP_INSIDE].key = (hp_key){.link = 3 << 8 | HP_TCP, .source = port};
    HOLD(hp_flow_publish(&b->flows, number, 0, 1000));
  }
  assert_int_equal(fill(b, 1), PORTS - 10000);
  check_dense(&b->ports, &b->flows);
  close_all(b);
  assert_int_equal(b->ports.dense_live, 0);
  bench_free(b);
}

/* When no bitmap is left the search is not exact, but it still leases slices and finds what is not rare. */
static void test_without_a_bitmap_most_ports_are_found(void **state) {
  (void)state;
  bench *b = bench_new();
  b->ports.dense_capacity = 0;
  uint32_t count = fill(b, 1);
  assert_int_equal(b->ports.addresses[0].leased, HP_SLICES);
  assert_in_range(count, PORTS / 4 * 3, PORTS);
  bench_free(b);
}

static void test_bitmaps_are_reused(void **state) {
  (void)state;
  bench *b = bench_new();
  b->ports.dense_capacity = 1;
  for (uint32_t destination = 1; destination <= 3; destination++) {
    assert_int_equal(fill(b, destination), PORTS);
    assert_int_equal(b->ports.dense_used, 1);
    close_all(b);
    assert_int_equal(b->ports.dense_live, 0);
  }
  bench_free(b);
}

static void test_slices_of_other_workers_are_left_alone(void **state) {
  (void)state;
  for (uint32_t bitmaps = 0; bitmaps < 2; bitmaps++) {
    bench *b = bench_new();
    b->ports.dense_capacity = bitmaps;
    hp_address *address = &b->ports.addresses[0];
    for (uint32_t slice = 0; slice < HP_SLICES; slice++)
      if (b->ports.leases[0].owner[slice] == 0)
        b->ports.leases[0].owner[slice] = 2;
    uint32_t all = address->leased * HP_SLICE_PORTS, count = fill(b, 1);
    assert_true(bitmaps ? count == all : count > all / 4 * 3);
    for (uint32_t port = HP_PORT_FIRST; port <= 0xffff; port++)
      HOLD(!b->numbers[port] || b->ports.leases[0].owner[(port - HP_PORT_FIRST) / HP_SLICE_PORTS] == 1);
    bench_free(b);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_port_is_had_once_towards_each_destination),
      cmocka_unit_test(test_the_one_port_that_is_free_is_found),
      cmocka_unit_test(test_bitmap_agrees_after_random_churn),
      cmocka_unit_test(test_ports_of_other_flows_are_avoided),
      cmocka_unit_test(test_without_a_bitmap_most_ports_are_found),
      cmocka_unit_test(test_bitmaps_are_reused),
      cmocka_unit_test(test_slices_of_other_workers_are_left_alone),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
