/* test_index.c: the index against a plain list, at every load, with and without crowded buckets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "invariants.h"

typedef struct model {
  hp_index index;
  uint32_t capacity, live;
  uint64_t *hash;
  bool *present;
  uint32_t homes; /* hashes fall into that many buckets only; 0: anywhere */
  uint64_t random;
} model;

static uint64_t hash_of(const void *context, uint32_t number) { return ((const model *)context)->hash[number]; }

/* A hash whose home is that bucket. */
static uint64_t hash_at(const hp_index *index, uint64_t bucket, uint32_t low) {
  uint64_t width = UINT64_MAX / index->count;
  uint64_t hash = width * bucket + width / 2;
  hash = (hash & ~0x7full) | (low & 0x7f);
  assert_int_equal(hp_index_home(index, hash), bucket);
  return hash;
}

static void model_new(model *m, uint32_t capacity, uint32_t homes) {
  hp_error error;
  *m = (model){.capacity = capacity, .homes = homes, .random = capacity + homes};
  assert_int_equal(hp_index_new(&m->index, "hp-test", capacity, false, &error), 0);
  m->hash = calloc(capacity, sizeof *m->hash);
  m->present = calloc(capacity, sizeof *m->present);
  assert_true(m->hash && m->present);
}

static void model_free(model *m) {
  hp_index_free(&m->index);
  free(m->hash);
  free(m->present);
}

/* How often a search comes upon a number; every number that it comes upon is one that is in. */
static uint32_t times_found(const model *m, uint64_t hash, uint32_t number) {
  hp_walk walk;
  uint32_t found, times = 0;
  hp_index_begin(&m->index, hash, &walk);
  while ((found = hp_index_next(&m->index, &walk)) != HP_NONE) {
    HOLD(found < m->capacity && m->present[found]);
    times += found == number;
  }
  return times;
}

static void insert(model *m, uint32_t number) {
  uint64_t hash = next_random(&m->random);
  if (m->homes)
    hash = hash_at(&m->index, random_below(&m->random, m->homes) % m->index.count, (uint32_t)hash);
  m->hash[number] = hash;
  HOLD(times_found(m, hash, number) == 0);
  HOLD(!hp_index_remove(&m->index, hash, number));
  HOLD(hp_index_insert(&m->index, hash, number));
  m->present[number] = true;
  m->live++;
  HOLD(times_found(m, hash, number) == 1);
}

static void take_out(model *m, uint32_t number) {
  HOLD(times_found(m, m->hash[number], number) == 1);
  HOLD(hp_index_remove(&m->index, m->hash[number], number));
  m->present[number] = false;
  m->live--;
  HOLD(times_found(m, m->hash[number], number) == 0);
}

static void check(const model *m) { assert_int_equal(check_index(&m->index, hash_of, m), m->live); }

static void assert_empty(const model *m) {
  for (uint64_t bucket = 0; bucket < m->index.count; bucket++) {
    HOLD(m->index.passed[bucket] == 0);
    for (int slot = 0; slot < HP_SLOTS; slot++)
      HOLD(m->index.buckets[bucket].slot[slot] == 0);
  }
}

/* Random operations; `keep` of 100 numbers are in, on average. */
static void churn(model *m, uint32_t operations, uint32_t keep) {
  for (uint32_t i = 0; i < operations; i++) {
    uint32_t number = random_below(&m->random, m->capacity);
    bool wanted = random_below(&m->random, 100) < keep;
    if (wanted && !m->present[number])
      insert(m, number);
    else if (!wanted && m->present[number])
      take_out(m, number);
  }
  check(m);
}

static void run_model(uint32_t capacity, uint32_t homes) {
  model m;
  model_new(&m, capacity, homes);
  uint32_t operations = capacity < 1000 ? 5000 : capacity * (homes ? 5 : 3);
  for (uint32_t round = 0; round < 2; round++) {
    for (uint32_t number = 0; number < capacity; number++)
      if (!m.present[number])
        insert(&m, number); /* up to the last there is room */
    check(&m);
    churn(&m, operations, 95);
    churn(&m, operations, 50);
    churn(&m, operations, 5);
    for (uint32_t number = 0; number < capacity; number++)
      if (m.present[number])
        take_out(&m, number);
    assert_empty(&m);
  }
  model_free(&m);
}

static void test_model_at_any_capacity(void **state) {
  (void)state;
  const uint32_t capacities[] = {1, 2, 7, 9, 10, 11, 1000, 100000};
  for (unsigned i = 0; i < sizeof capacities / sizeof *capacities; i++)
    run_model(capacities[i], 0);
}

/* Hundreds of numbers whose home is one of three buckets: they fill the buckets that follow, over the end. */
static void test_model_with_crowded_buckets(void **state) {
  (void)state;
  run_model(7, 1);
  run_model(200, 1);
  run_model(500, 3);
}

static void test_overflow_wraps_round_to_the_first_bucket(void **state) {
  (void)state;
  model m;
  model_new(&m, 25, 0);
  assert_int_equal(m.index.count, 3);
  for (uint32_t number = 0; number < 25; number++) {
    m.hash[number] = hash_at(&m.index, 2, number);
    assert_true(hp_index_insert(&m.index, m.hash[number], number));
    m.present[number] = true;
    m.live++;
  }
  assert_int_equal(m.index.passed[2], 9);
  assert_int_equal(hp_slot_number(m.index.buckets[0].slot[8]), 24);
  for (uint32_t number = 0; number < 25; number++)
    assert_int_equal(times_found(&m, m.hash[number], number), 1);
  check(&m);
  model_free(&m);
}

static void test_full_index_refuses_and_is_unchanged(void **state) {
  (void)state;
  enum { SLOTS = 3 * HP_SLOTS };
  hp_index index;
  hp_error error;
  uint64_t random = 1;
  assert_int_equal(hp_index_new(&index, "hp-test", 25, false, &error), 0);
  for (uint32_t number = 0; number < SLOTS; number++)
    assert_true(hp_index_insert(&index, hash_at(&index, random_below(&random, 3), number), number));
  hp_bucket buckets[3];
  uint16_t passed[3];
  memcpy(buckets, index.buckets, sizeof buckets);
  memcpy(passed, index.passed, sizeof passed);
  for (uint64_t home = 0; home < 3; home++)
    assert_false(hp_index_insert(&index, hash_at(&index, home, 99), SLOTS));
  assert_memory_equal(buckets, index.buckets, sizeof buckets);
  assert_memory_equal(passed, index.passed, sizeof passed);
  /* What is not there ends a search of a full index after one round. */
  hp_walk walk;
  hp_index_begin(&index, hash_at(&index, 1, 100), &walk);
  assert_int_equal(hp_index_next(&index, &walk), HP_NONE);
  assert_false(hp_index_remove(&index, hash_at(&index, 1, 100), 7));
  hp_index_free(&index);
}

static void test_tombstone_lasts_as_long_as_something_lies_beyond(void **state) {
  (void)state;
  model m;
  model_new(&m, 25, 0);
  for (uint32_t number = 0; number < 18; number++) { /* 16 at home, 16 and 17 beyond */
    m.hash[number] = hash_at(&m.index, 0, number);
    assert_true(hp_index_insert(&m.index, m.hash[number], number));
    m.present[number] = true;
  }
  m.live = 18;
  const uint32_t *last = &m.index.buckets[0].slot[HP_SLOTS - 1];
  assert_int_equal(hp_slot_number(*last), 15);
  take_out(&m, 15);
  assert_int_equal(*last, HP_TOMBSTONE);
  assert_int_equal(times_found(&m, m.hash[17], 17), 1);
  take_out(&m, 16);
  assert_int_equal(*last, HP_TOMBSTONE);
  check(&m);
  take_out(&m, 17);
  assert_int_equal(*last, 0);
  check(&m);
  model_free(&m);
}

static void test_tombstone_is_filled_again(void **state) {
  (void)state;
  model m;
  model_new(&m, 25, 1);
  for (uint32_t number = 0; number < 17; number++)
    insert(&m, number);
  take_out(&m, 15);
  insert(&m, 20);
  assert_int_equal(hp_slot_number(m.index.buckets[0].slot[HP_SLOTS - 1]), 20);
  assert_int_equal(m.index.passed[0], 1);
  check(&m);
  take_out(&m, 16); /* what lay beyond goes first: then slot 15 just becomes free */
  take_out(&m, 20);
  assert_int_equal(m.index.buckets[0].slot[HP_SLOTS - 1], 0);
  model_free(&m);
}

/* A free slot looks like tag 0. */
static void test_tag_zero(void **state) {
  (void)state;
  model m;
  model_new(&m, 7, 0);
  uint64_t hash = hash_at(&m.index, 0, 0);
  assert_int_equal(times_found(&m, hash, 0), 0);
  for (uint32_t number = 0; number < 3; number++) {
    assert_true(hp_index_insert(&m.index, hash, number));
    m.hash[number] = hash;
    m.present[number] = true;
    m.live++;
  }
  take_out(&m, 1);
  assert_int_equal(times_found(&m, hash, 0), 1);
  assert_int_equal(times_found(&m, hash, 2), 1);
  check(&m);
  model_free(&m);
}

/* HP_MAX_FLOWS - 1 is the largest number; the one after it would be the tombstone. */
static void test_largest_number(void **state) {
  (void)state;
  hp_index index;
  hp_error error;
  hp_walk walk;
  assert_int_equal(hp_index_new(&index, "hp-test", 7, false, &error), 0);
  uint64_t hash = hash_at(&index, 0, 0);
  assert_true(hp_index_insert(&index, hash, HP_MAX_FLOWS - 1));
  hp_index_begin(&index, hash, &walk);
  assert_int_equal(hp_index_next(&index, &walk), HP_MAX_FLOWS - 1);
  assert_true(hp_index_remove(&index, hash, HP_MAX_FLOWS - 1));
  assert_int_equal(hp_slot_number(HP_TOMBSTONE), HP_NONE);
  hp_index_free(&index);
}

/* hp_bucket_match() against the definition, with every kind of slot. */
static void test_match_is_exact(void **state) {
  (void)state;
  uint64_t random = 3;
  for (int round = 0; round < 2000; round++) {
    hp_bucket bucket;
    uint32_t tag = hp_index_tag(next_random(&random)), expected = 0;
    for (uint32_t i = 0; i < HP_SLOTS; i++) {
      uint32_t number = (uint32_t)next_random(&random) & HP_NUMBER_MASK;
      bucket.slot[i] = random_below(&random, 2) ? tag | number : (uint32_t)next_random(&random);
      expected |= (uint32_t)((bucket.slot[i] & ~HP_NUMBER_MASK) == tag) << i;
    }
    HOLD(hp_bucket_match(&bucket, tag) == expected);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_model_at_any_capacity),
      cmocka_unit_test(test_model_with_crowded_buckets),
      cmocka_unit_test(test_overflow_wraps_round_to_the_first_bucket),
      cmocka_unit_test(test_full_index_refuses_and_is_unchanged),
      cmocka_unit_test(test_tombstone_lasts_as_long_as_something_lies_beyond),
      cmocka_unit_test(test_tombstone_is_filled_again),
      cmocka_unit_test(test_tag_zero),
      cmocka_unit_test(test_largest_number),
      cmocka_unit_test(test_match_is_exact),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
