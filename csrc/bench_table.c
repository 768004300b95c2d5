/* bench_table.c: the bare table: what any translation of these packets must do at least, written for nothing but speed.
 *
 * An arena of flows of two cache lines and an index for each direction, as the flow table has it: look the flow up,
 * rewrite address and port, adjust both checksums, count. No more than that: packets are believed, the hash has no
 * key, nothing is converted to host byte order, there are no links, no time to live, no segments, no other protocol,
 * no removal.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

typedef struct line {
  uint64_t key[2];
  uint32_t address;
  uint16_t port, delta_address, delta_full, reserved;
  uint32_t link, seen;
  uint64_t packets, bytes;
} __attribute__((aligned(64))) line;
_Static_assert(sizeof(line) == 64, "a direction is a cache line");

struct hp_bare {
  line *lines; /* two for each flow */
  hp_bucket *index[2];
  uint64_t buckets;
  uint32_t seen;
  uint64_t missed;
  hp_region arena, indices[2];
};

/* CRC32C of the key, spread over 64 bits. The instruction is part of every x86-64 processor since 2008, though not of
 * what compilers assume; elsewhere one multiplication does. */
#ifdef __x86_64__
#define FASTEST __attribute__((target("sse4.2")))
FASTEST static inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t h = __builtin_ia32_crc32di(__builtin_ia32_crc32di(0x1234567, a), b) * 0x9e3779b97f4a7c15u;
  return h ^ h >> 29;
}
#else
#define FASTEST
static inline uint64_t mix(uint64_t a, uint64_t b) {
  unsigned __int128 product = (unsigned __int128)(a ^ 0x9e3779b97f4a7c15u) * (b ^ 0xbf58476d1ce4e5b9u);
  return (uint64_t)product ^ (uint64_t)(product >> 64);
}
#endif
static inline uint64_t bucket_of(const hp_bare *bare, uint64_t hash) {
  return (uint64_t)(((unsigned __int128)hash * bare->buckets) >> 64);
}

/* Source and link, destination and ports, as they lie in the packet. */
static inline uint64_t first_of(const hp_packet *packet) {
  return (uint64_t)packet->link << 32 | hp_load32(packet->data + HP_VNET_HEADER + 12);
}
static inline uint64_t second_of(const hp_packet *packet) { return hp_load64(packet->data + HP_VNET_HEADER + 16); }

static inline uint16_t fix(uint16_t checksum, uint32_t delta) {
  uint32_t sum = (uint16_t)~checksum + delta;
  sum = (sum & 0xffff) + (sum >> 16);
  return (uint16_t) ~(sum + (sum >> 16));
}

static inline void rewrite(const hp_packet *packet, line *flow, uint32_t side, uint32_t checksum) {
  uint8_t *ip = packet->data + HP_VNET_HEADER;
  uint16_t header = fix(hp_load16(ip + 10), flow->delta_address),
           full = fix(hp_load16(ip + checksum), flow->delta_full);
  memcpy(ip + 12 + 4 * side, &flow->address, 4);
  memcpy(ip + 20 + 2 * side, &flow->port, 2);
  memcpy(ip + 10, &header, 2);
  memcpy(ip + checksum, &full, 2);
}

static inline line *line_of(const hp_bare *bare, uint32_t slot, uint32_t side) {
  return &bare->lines[((slot & HP_NUMBER_MASK) - 1) * 2ul + side];
}

/* Looks on in further buckets. */
FASTEST static line *search(const hp_bare *bare, uint64_t first, uint64_t second, uint32_t side) {
  uint64_t hash = mix(first, second);
  for (uint64_t bucket = bucket_of(bare, hash);; bucket = bucket + 1 == bare->buckets ? 0 : bucket + 1) {
    const hp_bucket *slots = &bare->index[side][bucket];
    for (uint32_t bits = hp_bucket_match(slots, hp_index_tag(hash)); bits; bits &= bits - 1) {
      line *flow = line_of(bare, slots->slot[__builtin_ctz(bits)], side);
      if (flow->key[0] == first && flow->key[1] == second)
        return flow;
    }
    if (slots->slot[HP_SLOTS - 1] == 0)
      return NULL;
  }
}

/* All hashed and their index lines fetched; then tags compared and the flows' lines fetched; then rewritten. */
FASTEST void hp_bare_translate(hp_bare *bare, hp_traffic *t) {
  uint64_t hashes[HP_BATCH];
  uint32_t candidates[HP_BATCH];
  const uint32_t checksum = t->tcp ? 36 : 26, seen = ++bare->seen;
  for (uint32_t i = 0; i < HP_BATCH; i++) {
    hashes[i] = mix(first_of(&t->packets[i]), second_of(&t->packets[i]));
    __builtin_prefetch(&bare->index[t->packets[i].link == HP_BENCH_ENI][bucket_of(bare, hashes[i])]);
  }
  for (uint32_t i = 0; i < HP_BATCH; i++) {
    uint32_t side = t->packets[i].link == HP_BENCH_ENI;
    const hp_bucket *slots = &bare->index[side][bucket_of(bare, hashes[i])];
    candidates[i] = hp_bucket_match(slots, hp_index_tag(hashes[i]));
    if (candidates[i])
      __builtin_prefetch(line_of(bare, slots->slot[__builtin_ctz(candidates[i])], side), 1);
  }
  for (uint32_t i = 0; i < HP_BATCH; i++) {
    uint32_t side = t->packets[i].link == HP_BENCH_ENI;
    uint64_t first = first_of(&t->packets[i]), second = second_of(&t->packets[i]);
    const hp_bucket *slots = &bare->index[side][bucket_of(bare, hashes[i])];
    line *flow = NULL;
    for (uint32_t bits = candidates[i]; bits && !flow; bits &= bits - 1) {
      line *candidate = line_of(bare, slots->slot[__builtin_ctz(bits)], side);
      flow = candidate->key[0] == first && candidate->key[1] == second ? candidate : NULL;
    }
    if (!flow && !(flow = search(bare, first, second, side))) {
      bare->missed++;
      continue;
    }
    rewrite(&t->packets[i], flow, side, checksum);
    flow->seen = seen;
    flow->packets++;
    flow->bytes += t->packets[i].length;
    t->packets[i].link = flow->link;
  }
}

uint64_t hp_bare_missed(const hp_bare *bare) { return bare->missed; }

/* ---- its flows ---- */

FASTEST static void insert(const hp_bare *bare, uint32_t number, uint32_t side) {
  const line *flow = &bare->lines[number * 2ul + side];
  uint64_t hash = mix(flow->key[0], flow->key[1]);
  for (uint64_t bucket = bucket_of(bare, hash);; bucket = bucket + 1 == bare->buckets ? 0 : bucket + 1)
    for (int slot = 0; slot < HP_SLOTS; slot++)
      if (bare->index[side][bucket].slot[slot] == 0) {
        bare->index[side][bucket].slot[slot] = hp_index_tag(hash) | (number + 1);
        return;
      }
}

static void fill(hp_bare *bare, const hp_traffic *t) {
  uint8_t buffer[HP_BENCH_STRIDE];
  hp_packet packet = {.data = buffer};
  for (uint32_t id = 0; id < 2 * t->flows; id++) {
    line *flow = &bare->lines[id];
    bool outside = id & 1;
    hp_traffic_write(t, id, &packet);
    flow->key[0] = first_of(&packet);
    flow->key[1] = second_of(&packet);
    flow->address = __builtin_bswap32(outside ? HP_BENCH_INSIDE : HP_BENCH_OUTSIDE);
    flow->port = __builtin_bswap16(hp_traffic_port(t, id / 2));
    uint16_t delta =
        outside ? hp_delta32(HP_BENCH_OUTSIDE, HP_BENCH_INSIDE) : hp_delta32(HP_BENCH_INSIDE, HP_BENCH_OUTSIDE);
    flow->delta_address = flow->delta_full = __builtin_bswap16(delta); /* the port stays the same */
    flow->link = outside ? hp_traffic_tunnel(t, id / 2) : HP_BENCH_ENI;
    insert(bare, id / 2, outside);
  }
}

hp_bare *hp_bare_new(const hp_traffic *t, bool huge, hp_error *error) {
  hp_bare *bare = calloc(1, sizeof *bare);
  if (!bare) {
    hp_fail(error, ENOMEM, "no memory for the bare table");
    return NULL;
  }
  bare->buckets = (uint64_t)t->flows * 8 / (HP_SLOTS * 5) + 1; /* load 5/8, as the engine's */
  uint64_t index = bare->buckets * sizeof(hp_bucket);
  if (hp_region_new(&bare->arena, "bare-flows", 2ull * t->flows * sizeof(line), huge, error) ||
      hp_region_new(&bare->indices[0], "bare-inside", index, huge, error) ||
      hp_region_new(&bare->indices[1], "bare-outside", index, huge, error)) {
    hp_bare_free(bare);
    return NULL;
  }
  bare->lines = bare->arena.at;
  bare->index[0] = bare->indices[0].at;
  bare->index[1] = bare->indices[1].at;
  fill(bare, t);
  return bare;
}

void hp_bare_free(hp_bare *bare) {
  if (!bare)
    return;
  hp_region_free(&bare->arena);
  hp_region_free(&bare->indices[0]);
  hp_region_free(&bare->indices[1]);
  free(bare);
}
