/* index.h: from a hash to a number: buckets of one cache line, 16 slots of 32 bits.
 *
 * A slot is a 7-bit tag of the hash, never 0, over a 25-bit number + 1; 0 is free. The bucket of a hash is a
 * multiply-shift, so the number of buckets is no power of two. A full bucket overflows to the next.
 * Slot 15 is filled last, so "slot 15 is not free" means that a search must go on; `passed` counts
 * for each bucket the numbers that were placed beyond it, so that removing the one in slot 15 leaves a
 * tombstone only as long as something lies beyond. A removal moves nothing. Publishing or
 * withdrawing a number is one aligned 32-bit store: a reader in another process sees it or does not.
 */
#ifndef HP_INDEX_H
#define HP_INDEX_H

#include <stdbool.h>

#include "memory.h"

enum { HP_SLOTS = 16, HP_TAG_SHIFT = 25 };
#define HP_NUMBER_MASK 0x1ffffffu
#define HP_TOMBSTONE 0x1ffffffu /* tag 0, number HP_MAX_FLOWS + 0: never given out */
#define HP_NONE 0xffffffffu     /* "no such number" */

typedef struct hp_bucket {
  uint32_t slot[HP_SLOTS];
} __attribute__((aligned(64))) hp_bucket;
_Static_assert(sizeof(hp_bucket) == 64, "a bucket is a cache line");

typedef struct hp_index {
  hp_bucket *buckets;
  uint16_t *passed;
  uint64_t count;
  hp_region bucket_region;
  hp_region passed_region;
} hp_index;

/* For `capacity` numbers at a load of 0.625. */
int hp_index_open(hp_index *index, const hp_given *given, const char *name, uint32_t capacity, bool huge,
                  hp_error *error);
static inline int hp_index_new(hp_index *index, const char *name, uint32_t capacity, bool huge, hp_error *error) {
  return hp_index_open(index, NULL, name, capacity, huge, error);
}
/* Takes all numbers out. */
void hp_index_clear(hp_index *index);
void hp_index_free(hp_index *index);

static inline uint64_t hp_index_home(const hp_index *index, uint64_t hash) {
  return (uint64_t)(((unsigned __int128)hash * index->count) >> 64);
}
/* Never 0: that is the tag of free slots and tombstones. */
static inline uint32_t hp_index_tag(uint64_t hash) {
  uint32_t tag = (uint32_t)(hash & 0x7f);
  return (tag + (tag == 0)) << HP_TAG_SHIFT;
}

/* The slots of a bucket that equal `want` in the bits of `mask`, one bit each. */
#ifdef __SSE2__
#include <emmintrin.h>
static inline uint32_t hp_bucket_equal(const hp_bucket *bucket, uint32_t mask, uint32_t want) {
  const __m128i *four = (const __m128i *)(const void *)bucket->slot;
  const __m128i wanted = _mm_set1_epi32((int)want), masked = _mm_set1_epi32((int)mask);
  __m128i a = _mm_cmpeq_epi32(_mm_and_si128(_mm_load_si128(four), masked), wanted);
  __m128i b = _mm_cmpeq_epi32(_mm_and_si128(_mm_load_si128(four + 1), masked), wanted);
  __m128i c = _mm_cmpeq_epi32(_mm_and_si128(_mm_load_si128(four + 2), masked), wanted);
  __m128i d = _mm_cmpeq_epi32(_mm_and_si128(_mm_load_si128(four + 3), masked), wanted);
  return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d)));
}
#else
static inline uint32_t hp_bucket_equal(const hp_bucket *bucket, uint32_t mask, uint32_t want) {
  uint32_t bits = 0;
  for (uint32_t i = 0; i < HP_SLOTS; i++)
    bits |= (uint32_t)((bucket->slot[i] & mask) == want) << i;
  return bits;
}
#endif
/* Those whose tag fits: numbers all of them. */
static inline uint32_t hp_bucket_match(const hp_bucket *bucket, uint32_t tag) {
  return hp_bucket_equal(bucket, ~HP_NUMBER_MASK, tag);
}
/* The number in a slot, or HP_NONE when it is free or a tombstone. */
static inline uint32_t hp_slot_number(uint32_t slot) {
  uint32_t number = slot & HP_NUMBER_MASK;
  return number == 0 || slot == HP_TOMBSTONE ? HP_NONE : number - 1;
}

/* Walks all numbers that may belong to a hash: hp_index_begin(), then hp_index_next() until HP_NONE. */
typedef struct hp_walk {
  uint64_t bucket;
  uint64_t left; /* buckets that may still be looked at: a walk ends after one round */
  uint32_t tag;
  uint32_t bits;
} hp_walk;
static inline void hp_index_begin(const hp_index *index, uint64_t hash, hp_walk *walk) {
  walk->bucket = hp_index_home(index, hash);
  walk->left = index->count;
  walk->tag = hp_index_tag(hash);
  walk->bits = hp_bucket_match(&index->buckets[walk->bucket], walk->tag);
}
static inline uint32_t hp_index_next(const hp_index *index, hp_walk *walk) {
  for (;;) {
    const hp_bucket *bucket = &index->buckets[walk->bucket];
    if (walk->bits) {
      uint32_t i = (uint32_t)__builtin_ctz(walk->bits);
      walk->bits &= walk->bits - 1;
      return (bucket->slot[i] & HP_NUMBER_MASK) - 1;
    }
    if (bucket->slot[HP_SLOTS - 1] == 0 || --walk->left == 0)
      return HP_NONE;
    if (++walk->bucket == index->count)
      walk->bucket = 0;
    walk->bits = hp_bucket_match(&index->buckets[walk->bucket], walk->tag);
  }
}

/* False when no slot is left anywhere. The caller knows that the number is not in yet. */
bool hp_index_insert(hp_index *index, uint64_t hash, uint32_t number);
/* False when the number is not there. */
bool hp_index_remove(hp_index *index, uint64_t hash, uint32_t number);

#endif
