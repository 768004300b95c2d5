/* random.h: unpredictable numbers for ports (RFC 6056 3.1), fetched from the kernel in blocks; a
 * reproducible sequence instead when a seed is given, for tests. */
#ifndef HP_RANDOM_H
#define HP_RANDOM_H

#include <stdint.h>

typedef struct hp_random {
  uint64_t state; /* reproducible: not 0 */
  uint32_t left;
  uint32_t block[256];
} hp_random;

void hp_random_init(hp_random *random, uint64_t seed);
uint32_t hp_random_next(hp_random *random);
/* 0 <= result < limit; limit is at least 1. */
static inline uint32_t hp_random_below(hp_random *random, uint32_t limit) {
  return (uint32_t)(((uint64_t)hp_random_next(random) * limit) >> 32);
}

#endif
