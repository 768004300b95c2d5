/* random.c: see random.h. */
#include "random.h"

#include <stdlib.h>
#include <sys/random.h>

void hp_random_init(hp_random *random, uint64_t seed) { *random = (hp_random){.state = seed}; }

/* splitmix64 */
static uint32_t reproducible(uint64_t *state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (uint32_t)((z ^ (z >> 31)) >> 32);
}

uint32_t hp_random_next(hp_random *random) {
  if (random->state)
    return reproducible(&random->state);
  if (random->left == 0) {
    /* Over 256 bytes a signal may cut the answer short; it cannot fail otherwise once seeded. */
    ssize_t got = getrandom(random->block, sizeof random->block, 0);
    if (got < (ssize_t)sizeof(uint32_t))
      abort();
    random->left = (uint32_t)((size_t)got / sizeof(uint32_t));
  }
  return random->block[--random->left];
}
