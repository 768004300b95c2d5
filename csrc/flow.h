/* flow.h: the flow, its two indices, and what ends it. Knows packets' keys, no packet and no socket.
 *
 * A flow is one object that never moves, found through two indices: by what a packet from inside
 * looks like, and by what one from outside looks like. It has one 64-byte half per direction; a
 * packet on the steady path reads and writes its own half only. A flow number is stable for the
 * life of the flow and the generation tells two lives of one number apart.
 *
 * The flows are the truth: indices, free list, mappings and port use can be rebuilt from them. After a
 * crash hp_flow_repair() does so for the first two, repair.c for the rest. `journal` names the one flow in
 * transition.
 *
 * Readers in other threads or processes copy a flow, and take the copy when its `sequence` was even
 * and the same before and after (a writer makes it odd first). Counters are single aligned words.
 */
#ifndef HP_FLOW_H
#define HP_FLOW_H

#include "index.h"

enum { HP_INSIDE = 0, HP_OUTSIDE = 1 }; /* where a packet comes from; the half and index it uses */

/* A packet's key. 16 bytes, compared at once. */
typedef struct hp_key {
  uint32_t link; /* link number << 8 | protocol */
  uint32_t source;
  uint32_t destination;
  uint32_t ports; /* source << 16 | destination; ICMP: the id stands for the inside's port */
} hp_key;
_Static_assert(sizeof(hp_key) == 16, "one 128-bit compare");

/* IPv6 flows get an arena and indices of their own, of 256-byte flows: its key is fixed here, its
 * translation is not built yet. */
typedef struct hp_key6 {
  uint32_t link;
  uint32_t ports;
  uint8_t source[16];
  uint8_t destination[16];
} hp_key6;
_Static_assert(sizeof(hp_key6) == 40, "half of a 128-byte half is left for the rewrite");

/* Flags of a half: what its direction has sent, and HP_ATTENTION. */
enum {
  HP_SEEN_SYN = 0x01,
  HP_SEEN_ACK = 0x02, /* .acknowledged was sent */
  HP_SEEN_FIN = 0x04,
  HP_SEEN_RST = 0x08,  /* a valid one */
  HP_ATTENTION = 0x10, /* packets leave the fast path: the flow is closing or reset */
  HP_TOLD = 0x20       /* inside half: the tunnel is drained, and both sides have got an RST from us */
};

typedef struct hp_half {
  hp_key key;
  /* the rewrite: inside -> outside changes the source, outside -> inside the destination */
  uint32_t address;
  uint16_t port;
  uint16_t delta_address; /* for checksums: of the address only (IPv4 header, partial checksums) */
  uint16_t delta_full;    /* of address and port (full checksums) */
  uint8_t flags;
  uint8_t scale; /* TCP window scale that this direction's SYN offered */
  uint32_t out_link;
  uint32_t last_seen;    /* low 32 bits of ms */
  uint32_t acknowledged; /* TCP: highest ACK number that this direction sent; before: the other's SYN's number + 1 */
  uint32_t sequence;     /* inside half: see above; outside half: the flow's mapping, or HP_NONE */
  uint64_t packets;
  uint64_t bytes;
} hp_half;
_Static_assert(sizeof(hp_half) == 64, "a half is a cache line");

typedef struct hp_flow {
  hp_half half[2];
} __attribute__((aligned(128))) hp_flow;
_Static_assert(sizeof(hp_flow) == 128, "a flow is two cache lines");

typedef struct hp_half6 {
  hp_key6 key;
  uint8_t address[16];
  uint16_t port;
  uint16_t delta_address;
  uint16_t delta_full;
  uint8_t flags;
  uint8_t scale;
  uint32_t out_link;
  uint32_t last_seen;
  uint32_t acknowledged;
  uint32_t sequence;
  uint64_t packets;
  uint64_t bytes;
  uint8_t reserved[32];
} hp_half6;
_Static_assert(sizeof(hp_half6) == 128, "an IPv6 half is two cache lines, the first with key and address");

/* What the steady path never touches, in an array beside the arena. */
typedef struct hp_flow_cold {
  uint32_t deadline; /* low 32 bits of ms: the sweep looks at the flow not before */
  uint32_t next_free;
  uint64_t started;
} hp_flow_cold;

/* The table's own words, in a region with the rest so that a successor finds them. */
typedef struct hp_flow_control {
  uint64_t journal; /* flow number + 1 in transition, 0 for none */
  uint64_t seed[4]; /* hash keys */
  uint32_t capacity;
  uint32_t used; /* flow numbers below this have been given out */
  uint32_t live;
  uint32_t free_head; /* flow number + 1 */
} hp_flow_control;

/* What the sweep goes by, so that it need not look at every flow. Derived from the flows, each process for itself. */
enum { HP_CHUNK = 16 }; /* flows with one word of `soonest` */
typedef struct hp_flow_sweep {
  uint32_t *soonest; /* by chunk: no deadline of its live flows is earlier */
  uint16_t *owners;  /* by flow: hp_flow_owner() of its tunnel, 0 when it is free */
  hp_region soonest_region;
  hp_region owner_region;
} hp_flow_sweep;

typedef struct hp_flow_table {
  hp_flow *flows;
  hp_flow_cold *cold;
  hp_flow_control *control;
  hp_index index[2];
  uint64_t seed[4];
  hp_flow_sweep sweep; /* empty for a reader */
  hp_region flow_region;
  hp_region cold_region;
  hp_region control_region;
} hp_flow_table;

/* given: the regions of another process's table, which must have that capacity; NULL makes a new one. */
int hp_flow_table_open(hp_flow_table *table, const hp_given *given, uint32_t capacity, uint64_t seed, bool huge,
                       hp_error *error);
static inline int hp_flow_table_new(hp_flow_table *table, uint32_t capacity, uint64_t seed, bool huge,
                                    hp_error *error) {
  return hp_flow_table_open(table, NULL, capacity, seed, huge, error);
}
void hp_flow_table_free(hp_flow_table *table);

/* NH, an almost universal hash (Black et al., UMAC, CRYPTO '99): without the key nobody can choose
 * packets that meet in a bucket. A plain CRC would not do: its collisions are the same under any key. */
static inline uint64_t hp_hash(const uint64_t seed[4], uint64_t a, uint64_t b) {
  unsigned __int128 product = (unsigned __int128)(a + seed[0]) * (b + seed[1]);
  uint64_t x = (uint64_t)product ^ (uint64_t)(product >> 64) ^ seed[2];
  product = (unsigned __int128)x * seed[3]; /* odd: see the table's */
  return (uint64_t)product ^ (uint64_t)(product >> 64);
}
/* Of the key's two words as they lie in memory: nothing has to be put together. */
static inline uint64_t hp_key_hash(const hp_flow_table *table, const hp_key *key) {
  uint64_t words[2];
  __builtin_memcpy(words, key, 16);
  return hp_hash(table->seed, words[0], words[1]);
}
static inline bool hp_key_equal(const hp_key *a, const hp_key *b) {
  uint64_t x[2], y[2];
  __builtin_memcpy(x, a, 16);
  __builtin_memcpy(y, b, 16);
  return ((x[0] ^ y[0]) | (x[1] ^ y[1])) == 0;
}

/* The flow that a packet from `side` belongs to, or HP_NONE. */
uint32_t hp_flow_find(const hp_flow_table *table, int side, const hp_key *key, uint64_t hash);

/* Takes a free number, HP_NONE when the table is full; the flow is all zero and not found by anyone
 * until hp_flow_publish(), before which it can be given back with hp_flow_discard(). */
uint32_t hp_flow_take(hp_flow_table *table);
void hp_flow_discard(hp_flow_table *table, uint32_t number);
/* Both halves must hold their keys. False when an index has no slot left: the flow is discarded. */
bool hp_flow_publish(hp_flow_table *table, uint32_t number, uint64_t now, uint32_t timeout);
/* Withdraws it from both indices and frees its number. */
void hp_flow_remove(hp_flow_table *table, uint32_t number);

/* Sets when the sweep looks at a flow next. */
static inline void hp_flow_due(hp_flow_table *table, uint32_t number, uint32_t deadline) {
  uint32_t *soonest = &table->sweep.soonest[number / HP_CHUNK];
  table->cold[number].deadline = deadline;
  if ((int32_t)(deadline - *soonest) < 0)
    *soonest = deadline;
}
/* 16 bits that tell nearly all tunnels apart; never 0. */
static inline uint16_t hp_flow_owner(uint32_t tunnel) { return (uint16_t)(tunnel % 0xffff + 1); }

static inline bool hp_flow_live(const hp_flow *flow) { return flow->half[HP_INSIDE].key.link != 0; }
/* generation << 32 | number */
static inline uint64_t hp_flow_id(const hp_flow *flow, uint32_t number) {
  return (uint64_t)(flow->half[HP_INSIDE].sequence >> 1) << 32 | number;
}
/* A consistent copy for a reader; false when the number holds no flow. */
bool hp_flow_read(const hp_flow_table *table, uint32_t number, hp_flow *copy, hp_flow_cold *cold);

/* After a crash: ends the flow that `journal` names and rebuilds indices and free list from the flows.
 * Returns the number of flows that were lost, 0 or 1. */
uint32_t hp_flow_repair(hp_flow_table *table);

#endif
