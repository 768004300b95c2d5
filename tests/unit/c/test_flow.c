/* test_flow.c: the flow table against a plain list, and under the eyes of readers. test_crash.c has its repair. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#include "flows_fixture.h"

static hp_flow_table new_table(uint32_t capacity) {
  hp_flow_table table;
  hp_error error;
  assert_int_equal(hp_flow_table_new(&table, capacity, 1 + capacity, false, &error), 0);
  return table;
}

typedef struct model {
  hp_flow_table table;
  uint32_t capacity, live, stamp;
  uint32_t *stamps; /* by number; 0: free */
  uint64_t *ids;    /* of the last life of each number */
  uint64_t random;
} model;

static void add(model *m) {
  uint32_t stamp = ++m->stamp, number = add_stamp(&m->table, stamp);
  if (m->live == m->capacity) {
    HOLD(number == HP_NONE);
    return;
  }
  HOLD(number < m->capacity && m->stamps[number] == 0);
  m->stamps[number] = stamp;
  m->live++;
  uint64_t id = hp_flow_id(&m->table.flows[number], number);
  HOLD((uint32_t)id == number && id > m->ids[number]); /* never two flows with one id */
  m->ids[number] = id;
  HOLD(find_stamp(&m->table, stamp, HP_INSIDE) == number && find_stamp(&m->table, stamp, HP_OUTSIDE) == number);
}

static void end(model *m, uint32_t number) {
  hp_flow copy;
  hp_flow_cold cold;
  uint32_t stamp = m->stamps[number];
  HOLD(hp_flow_read(&m->table, number, &copy, &cold) && flow_is_of_stamp(&copy, stamp));
  HOLD(cold.started == stamp && cold.deadline == stamp + 1000);
  hp_flow_remove(&m->table, number);
  HOLD(find_stamp(&m->table, stamp, HP_INSIDE) == HP_NONE && find_stamp(&m->table, stamp, HP_OUTSIDE) == HP_NONE);
  HOLD(!hp_flow_read(&m->table, number, &copy, &cold));
  m->stamps[number] = 0;
  m->live--;
}

static void check(const model *m) {
  check_flow_table(&m->table);
  HOLD(m->table.control->live == m->live);
  for (uint32_t number = 0; number < m->table.control->used; number++)
    HOLD(m->stamps[number] ? flow_is_of_stamp(&m->table.flows[number], m->stamps[number])
                           : !hp_flow_live(&m->table.flows[number]));
}

static void churn(model *m, uint32_t operations, uint32_t keep) {
  for (uint32_t i = 0; i < operations; i++) {
    uint32_t number = random_below(&m->random, m->capacity);
    if (random_below(&m->random, 100) < keep)
      add(m);
    else if (m->stamps[number])
      end(m, number);
  }
  check(m);
}

static void run_model(uint32_t capacity) {
  model m = {.table = new_table(capacity), .capacity = capacity, .random = capacity};
  m.stamps = calloc(capacity, sizeof *m.stamps);
  m.ids = calloc(capacity, sizeof *m.ids);
  assert_true(m.stamps && m.ids);
  uint32_t operations = capacity < 1000 ? 5000 : 2 * capacity;
  for (int round = 0; round < 2; round++) {
    while (m.live < capacity)
      add(&m);
    add(&m); /* full */
    check(&m);
    churn(&m, operations, 70);
    churn(&m, operations, 30);
    for (uint32_t number = 0; number < capacity; number++)
      if (m.stamps[number])
        end(&m, number);
    check(&m);
    assert_int_equal(m.table.control->used, capacity);
  }
  hp_flow_table_free(&m.table);
  free(m.stamps);
  free(m.ids);
}

static void test_model_at_any_capacity(void **state) {
  (void)state;
  const uint32_t capacities[] = {1, 2, 7, 1000, 100000};
  for (unsigned i = 0; i < sizeof capacities / sizeof *capacities; i++)
    run_model(capacities[i]);
}

static void test_discarded_number_is_free_again_and_was_never_found(void **state) {
  (void)state;
  hp_flow_table table = new_table(1);
  hp_flow copy;
  hp_flow_cold cold;
  for (int life = 0; life < 3; life++) {
    uint32_t number = hp_flow_take(&table);
    assert_int_equal(number, 0);
    assert_int_equal(hp_flow_take(&table), HP_NONE);
    fill_flow_from_stamp(&table.flows[number], 5);
    assert_int_equal(find_stamp(&table, 5, HP_INSIDE), HP_NONE);
    assert_false(hp_flow_read(&table, number, &copy, &cold));
    hp_flow_discard(&table, number);
    check_flow_table(&table);
    assert_false(hp_flow_read(&table, number, &copy, &cold));
  }
  uint32_t number = add_stamp(&table, 6);
  assert_int_equal(hp_flow_id(&table.flows[number], number) >> 32, 4); /* a life was used up by each */
  hp_flow_table_free(&table);
}

/* Not to be had with real flows, since an index has more slots than flows: strangers fill it. */
static void fill_index(hp_index *index, uint64_t random) {
  while (hp_index_insert(index, next_random(&random), HP_MAX_FLOWS - 1))
    ;
}

static void test_publishing_into_a_full_index_leaves_no_trace(void **state) {
  (void)state;
  for (int full = 0; full < 2; full++) {
    hp_flow_table table = new_table(20);
    fill_index(&table.index[full], 1);
    hp_index *other = &table.index[!full];
    uint32_t number = hp_flow_take(&table);
    fill_flow_from_stamp(&table.flows[number], 9);
    assert_false(hp_flow_publish(&table, number, 0, 1000));
    assert_int_equal(table.control->live, 0);
    assert_int_equal(table.control->journal, 0);
    for (uint64_t bucket = 0; bucket < other->count; bucket++)
      for (int slot = 0; slot < HP_SLOTS; slot++)
        assert_int_equal(other->buckets[bucket].slot[slot], 0);
    check_free_flow(&table.flows[number]);
    assert_int_equal(hp_flow_take(&table), number);
    hp_flow_table_free(&table);
  }
}

static void test_keys_of_both_sides_are_apart(void **state) {
  (void)state;
  hp_flow_table table = new_table(10);
  uint32_t number = add_stamp(&table, 1);
  hp_key inside = key_of_stamp(1, HP_INSIDE), outside = key_of_stamp(1, HP_OUTSIDE);
  assert_int_equal(hp_flow_find(&table, HP_INSIDE, &inside, hp_key_hash(&table, &inside)), number);
  assert_int_equal(hp_flow_find(&table, HP_OUTSIDE, &inside, hp_key_hash(&table, &inside)), HP_NONE);
  assert_int_equal(hp_flow_find(&table, HP_INSIDE, &outside, hp_key_hash(&table, &outside)), HP_NONE);
  hp_flow_table_free(&table);
}

/* Every bit of a key counts. */
static void test_neighbouring_keys_are_not_found(void **state) {
  (void)state;
  hp_flow_table table = new_table(100);
  uint32_t number = add_stamp(&table, 77);
  hp_key key = key_of_stamp(77, HP_INSIDE);
  for (unsigned bit = 0; bit < 128; bit++) {
    uint32_t words[4];
    hp_key other;
    memcpy(words, &key, sizeof words);
    words[bit / 32] ^= 1u << bit % 32;
    memcpy(&other, words, sizeof other);
    assert_int_equal(hp_flow_find(&table, HP_INSIDE, &other, hp_key_hash(&table, &other)), HP_NONE);
    /* also when the hash is the same */
    assert_int_equal(hp_flow_find(&table, HP_INSIDE, &other, hp_key_hash(&table, &key)), HP_NONE);
  }
  assert_int_equal(find_stamp(&table, 77, HP_INSIDE), number);
  hp_flow_table_free(&table);
}

/* ---- readers ---- */

/* Few flows, so that reads and writes meet; reading ends when many a flow has changed under the reader's eyes. */
enum { READ_CAPACITY = 2, CHANGES = 20000, MAX_WRITES = 3000000 };

typedef struct reading {
  hp_flow_table table;
  uint32_t read, torn, reused, changes;
  bool done, written; /* by the reader; by the writer */
} reading;

static void *reader(void *argument) {
  reading *r = argument;
  uint64_t ids[READ_CAPACITY] = {0};
  uint32_t stamps[READ_CAPACITY] = {0};
  for (uint32_t i = 0; r->changes < CHANGES && !__atomic_load_n(&r->written, __ATOMIC_ACQUIRE); i++) {
    uint32_t number = i % READ_CAPACITY;
    hp_flow copy;
    hp_flow_cold cold;
    if (!hp_flow_read(&r->table, number, &copy, &cold))
      continue;
    uint32_t stamp = copy.half[HP_INSIDE].key.source;
    r->read++;
    r->torn += !flow_is_of_stamp(&copy, stamp) || cold.started != stamp;
    uint64_t id = hp_flow_id(&copy, number);
    r->reused += id < ids[number] || (id == ids[number] && stamp != stamps[number]);
    r->changes += id != ids[number];
    ids[number] = id;
    stamps[number] = stamp;
  }
  __atomic_store_n(&r->done, true, __ATOMIC_RELEASE);
  return NULL;
}

static void test_a_reader_never_sees_a_torn_flow(void **state) {
  (void)state;
  reading r = {.table = new_table(READ_CAPACITY)};
  pthread_t thread;
  uint64_t random = 1;
  uint32_t numbers[READ_CAPACITY] = {HP_NONE, HP_NONE}, stamp = 0, writes = 0;
  assert_int_equal(pthread_create(&thread, NULL, reader, &r), 0);
  while (!__atomic_load_n(&r.done, __ATOMIC_ACQUIRE) && writes++ < MAX_WRITES) {
    uint32_t i = random_below(&random, READ_CAPACITY);
    if (numbers[i] == HP_NONE) {
      numbers[i] = add_stamp(&r.table, ++stamp);
    } else {
      hp_flow_remove(&r.table, numbers[i]);
      numbers[i] = HP_NONE;
    }
  }
  __atomic_store_n(&r.written, true, __ATOMIC_RELEASE);
  pthread_join(thread, NULL);
  check_flow_table(&r.table);
  assert_int_equal(r.torn, 0);
  assert_int_equal(r.reused, 0);
  assert_true(r.read > 0);
  hp_flow_table_free(&r.table);
}

/* ---- memory ---- */

static void test_memory_is_sealed_and_zero(void **state) {
  (void)state;
  hp_region region;
  hp_error error;
  assert_int_equal(hp_region_new(&region, "hp-test", 5000, false, &error), 0);
  assert_int_equal(region.bytes, 8192);
  for (size_t i = 0; i < region.bytes; i++)
    HOLD(((const char *)region.at)[i] == 0);
  assert_int_not_equal(ftruncate(region.fd, 4096), 0);
  assert_int_not_equal(ftruncate(region.fd, 16384), 0);
  hp_region_free(&region);
  assert_int_equal(hp_region_new(&region, "hp-test", 3 << 20, true, &error), 0);
  assert_int_equal(region.bytes, 4 << 20);
  assert_int_equal((uintptr_t)region.at % HP_HUGE_PAGE, 0);
  hp_region_free(&region);
}

static void test_memory_that_cannot_be_had_is_an_error(void **state) {
  (void)state;
  hp_region region;
  hp_error error = {0};
  assert_int_equal(hp_region_new(&region, "hp-test", 1ull << 62, false, &error), -1);
  assert_int_not_equal(error.code, 0);
  assert_non_null(strstr(error.text, "lower max_flows"));
  assert_null(region.at);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_model_at_any_capacity),
      cmocka_unit_test(test_discarded_number_is_free_again_and_was_never_found),
      cmocka_unit_test(test_publishing_into_a_full_index_leaves_no_trace),
      cmocka_unit_test(test_keys_of_both_sides_are_apart),
      cmocka_unit_test(test_neighbouring_keys_are_not_found),
      cmocka_unit_test(test_a_reader_never_sees_a_torn_flow),
      cmocka_unit_test(test_memory_is_sealed_and_zero),
      cmocka_unit_test(test_memory_that_cannot_be_had_is_an_error),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
