/* index.c: inserting into and removing from an index. See index.h. */
#include "index.h"

#include <stdio.h>
#include <string.h>

enum { HP_LAST = HP_SLOTS - 1 };

int hp_index_open(hp_index *index, const hp_given *given, const char *name, uint32_t capacity, bool huge,
                  hp_error *error) {
  char passed[HP_REGION_NAME];
  snprintf(passed, sizeof passed, "%s-passed", name);
  *index = (hp_index){0};
  index->count = (uint64_t)capacity * 8 / (HP_SLOTS * 5) + 1; /* load 5/8 */
  if (hp_region_open(&index->bucket_region, given, name, index->count * sizeof(hp_bucket), huge, error))
    return -1;
  if (hp_region_open(&index->passed_region, given, passed, index->count * sizeof(uint16_t), false, error)) {
    hp_region_free(&index->bucket_region);
    return -1;
  }
  index->buckets = index->bucket_region.at;
  index->passed = index->passed_region.at;
  return 0;
}

void hp_index_free(hp_index *index) {
  hp_region_free(&index->bucket_region);
  hp_region_free(&index->passed_region);
  *index = (hp_index){0};
}

void hp_index_clear(hp_index *index) {
  memset(index->buckets, 0, index->count * sizeof(hp_bucket));
  memset(index->passed, 0, index->count * sizeof(uint16_t));
}

static void publish(uint32_t *slot, uint32_t value) { __atomic_store_n(slot, value, __ATOMIC_RELEASE); }

static uint64_t following(const hp_index *index, uint64_t bucket) {
  return bucket + 1 == index->count ? 0 : bucket + 1;
}

/* The first slot of a bucket that can be filled, or -1. */
static int free_slot(const hp_bucket *bucket) {
  uint32_t bits = hp_bucket_equal(bucket, ~0u, 0);
  if (bits)
    return __builtin_ctz(bits);
  return bucket->slot[HP_LAST] == HP_TOMBSTONE ? HP_LAST : -1;
}

bool hp_index_insert(hp_index *index, uint64_t hash, uint32_t number) {
  uint64_t home = hp_index_home(index, hash), bucket = home;
  int slot;
  while ((slot = free_slot(&index->buckets[bucket])) < 0) {
    bucket = following(index, bucket);
    if (bucket == home)
      return false;
  }
  for (uint64_t b = home; b != bucket; b = following(index, b))
    index->passed[b]++;
  publish(&index->buckets[bucket].slot[slot], hp_index_tag(hash) | (number + 1));
  return true;
}

/* Where a number stands, its bucket from its home on; false when it does not. */
static bool locate(const hp_index *index, uint64_t hash, uint32_t number, uint64_t *bucket, int *slot) {
  const uint32_t want = hp_index_tag(hash) | (number + 1);
  *bucket = hp_index_home(index, hash);
  for (uint64_t left = index->count; left; left--, *bucket = following(index, *bucket)) {
    const hp_bucket *here = &index->buckets[*bucket];
    uint32_t bits = hp_bucket_equal(here, ~0u, want);
    *slot = bits ? __builtin_ctz(bits) : 0;
    if (bits)
      return true;
    if (here->slot[HP_LAST] == 0)
      return false;
  }
  return false;
}

bool hp_index_remove(hp_index *index, uint64_t hash, uint32_t number) {
  uint64_t bucket;
  int slot;
  if (!locate(index, hash, number, &bucket, &slot))
    return false;
  publish(&index->buckets[bucket].slot[slot], slot == HP_LAST && index->passed[bucket] ? HP_TOMBSTONE : 0);
  for (uint64_t b = hp_index_home(index, hash); b != bucket; b = following(index, b)) {
    index->passed[b]--;
    if (index->passed[b] == 0 && index->buckets[b].slot[HP_LAST] == HP_TOMBSTONE)
      publish(&index->buckets[b].slot[HP_LAST], 0);
  }
  return true;
}
