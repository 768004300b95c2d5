/* test_mapping.c: mappings and their reference counts against a plain list. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "invariants.h"

static const uint64_t seed[4] = {0x1234567890abcdef, 0xfedcba0987654321, 0x0f1e2d3c4b5a6978, 0x1122334455667788};

static hp_mapping_table new_table(uint32_t capacity) {
  hp_mapping_table table;
  hp_error error;
  assert_int_equal(hp_mapping_table_new(&table, capacity, seed, &error), 0);
  return table;
}

/* Endpoints that differ in one part only are next to each other. */
static hp_mapping endpoint(uint32_t number) {
  return (hp_mapping){.link = (1 + number / 2 % 3) << 8 | (number % 2 ? HP_UDP : HP_ICMP),
                      .inside = 0xc6120000 + number / 6 % 3,
                      .inside_port = (uint16_t)(number / 18),
                      .outside_port = (uint16_t)(HP_PORT_FIRST + number),
                      .address = number % 5};
}

static uint32_t find(const hp_mapping_table *table, uint32_t number) {
  hp_mapping m = endpoint(number);
  return hp_mapping_find(table, m.link, m.inside, m.inside_port);
}

enum { ENDPOINTS = 3000 };

typedef struct model {
  hp_mapping_table table;
  uint32_t capacity, live;
  uint32_t numbers[ENDPOINTS], flows[ENDPOINTS]; /* by endpoint; 0 flows: no mapping */
  uint64_t random;
} model;

/* What a new flow does. */
static void hold(model *m, uint32_t of) {
  uint32_t number = find(&m->table, of);
  HOLD(number == (m->flows[of] ? m->numbers[of] : HP_NONE));
  if (number == HP_NONE) {
    hp_mapping mapping = endpoint(of);
    mapping.flows = 99; /* of no account */
    number = hp_mapping_new(&m->table, &mapping);
    HOLD((number == HP_NONE) == (m->live == m->capacity));
    if (number == HP_NONE)
      return;
    m->numbers[of] = number;
    m->live++;
  }
  hp_mapping_hold(&m->table, number);
  m->flows[of]++;
}

/* What the end of a flow does. */
static void drop(model *m, uint32_t of) {
  hp_mapping ended = {0}, expected = endpoint(of);
  bool last = --m->flows[of] == 0;
  HOLD(hp_mapping_drop(&m->table, m->numbers[of], &ended) == last);
  HOLD((find(&m->table, of) == HP_NONE) == last);
  if (!last)
    return;
  m->live--;
  HOLD(ended.link == expected.link && ended.inside == expected.inside && ended.inside_port == expected.inside_port);
  HOLD(ended.outside_port == expected.outside_port && ended.address == expected.address && ended.flows == 0);
}

static void check(const model *m) {
  check_mappings(&m->table);
  HOLD(m->table.control->live == m->live);
  for (uint32_t of = 0; of < ENDPOINTS; of++)
    HOLD(m->flows[of] == 0 || m->table.mappings[m->numbers[of]].flows == m->flows[of]);
}

static void run_model(uint32_t capacity) {
  static model m;
  memset(&m, 0, sizeof m);
  m.table = new_table(capacity);
  m.capacity = capacity;
  m.random = capacity;
  const uint32_t keep[] = {90, 40, 60, 5};
  for (int round = 0; round < 8; round++) {
    for (uint32_t i = 0; i < 4 * ENDPOINTS; i++) {
      uint32_t of = random_below(&m.random, ENDPOINTS);
      if (random_below(&m.random, 100) < keep[round % 4])
        hold(&m, of);
      else if (m.flows[of])
        drop(&m, of);
    }
    check(&m);
  }
  for (uint32_t of = 0; of < ENDPOINTS; of++)
    while (m.flows[of])
      drop(&m, of);
  check(&m);
  hp_mapping_table_free(&m.table);
}

static void test_model_at_any_capacity(void **state) {
  (void)state;
  const uint32_t capacities[] = {1, 2, 7, 1000, ENDPOINTS, 100000};
  for (unsigned i = 0; i < sizeof capacities / sizeof *capacities; i++)
    run_model(capacities[i]);
}

static void test_endpoints_that_differ_in_one_part_are_apart(void **state) {
  (void)state;
  hp_mapping_table table = new_table(10);
  hp_mapping m = {.link = 5 << 8 | HP_UDP, .inside = 0xc6120002, .inside_port = 4000, .outside_port = 2000};
  uint32_t number = hp_mapping_new(&table, &m);
  assert_int_equal(hp_mapping_find(&table, m.link, m.inside, m.inside_port), number);
  assert_int_equal(hp_mapping_find(&table, 5 << 8 | HP_ICMP, m.inside, m.inside_port), HP_NONE);
  assert_int_equal(hp_mapping_find(&table, 6 << 8 | HP_UDP, m.inside, m.inside_port), HP_NONE);
  assert_int_equal(hp_mapping_find(&table, m.link, m.inside + 1, m.inside_port), HP_NONE);
  assert_int_equal(hp_mapping_find(&table, m.link, m.inside, 4001), HP_NONE);
  hp_mapping_table_free(&table);
}

static void test_mapping_without_flows_can_be_freed(void **state) {
  (void)state;
  hp_mapping_table table = new_table(1);
  hp_mapping m = endpoint(3);
  assert_int_equal(hp_mapping_new(&table, &m), 0);
  assert_int_equal(table.mappings[0].flows, 0);
  hp_mapping other = endpoint(4);
  assert_int_equal(hp_mapping_new(&table, &other), HP_NONE);
  hp_mapping_free(&table, 0);
  check_mappings(&table);
  assert_int_equal(hp_mapping_new(&table, &other), 0);
  assert_int_equal(find(&table, 3), HP_NONE);
  assert_int_equal(find(&table, 4), 0);
  hp_mapping_table_free(&table);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_model_at_any_capacity),
      cmocka_unit_test(test_endpoints_that_differ_in_one_part_are_apart),
      cmocka_unit_test(test_mapping_without_flows_can_be_freed),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
