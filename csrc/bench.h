/* bench.h: what the benchmarks in memory share: flows, and the packets of them.
 *
 * Everything about a flow follows from its number, so that writing its packets costs no look-up, and the flows of
 * the engine and of the bare table are the same ones. Packets are drawn at random from both directions.
 */
#ifndef HP_BENCH_H
#define HP_BENCH_H

#include "engine.h"

enum {
  HP_BENCH_TUNNELS = 1024,
  HP_BENCH_STRIDE = 128, /* of buffers: what is touched of a packet is its headers */
  HP_BENCH_ENI = 1,      /* its link number; the tunnels' follow */
  HP_BENCH_REMOTE = 0xc6130100,
  HP_BENCH_REMOTE_PORT = 9000,
  HP_BENCH_INSIDE = 0xc6120002,
  HP_BENCH_OUTSIDE = 0xc613000a
};

typedef struct hp_traffic {
  uint32_t flows;
  uint32_t tunnels; /* a power of two */
  uint32_t shift;   /* 1 << shift flows for each remote address */
  bool tcp;         /* established connections: data segments and ACKs; else UDP */
  uint32_t mask;
  uint32_t *ids; /* packet i is of flow ids[i & mask] / 2, from outside when odd */
  uint8_t (*buffers)[HP_BENCH_STRIDE];
  hp_packet packets[HP_BATCH];
} hp_traffic;

/* Returns 0, or -1 with *error filled. */
int hp_traffic_new(hp_traffic *traffic, uint32_t flows, uint32_t shift, bool tcp, hp_error *error);
void hp_traffic_free(hp_traffic *traffic);
/* The packet of a flow from inside, or outside when the id is odd. */
void hp_traffic_write(const hp_traffic *traffic, uint32_t id, hp_packet *packet);
/* The next HP_BATCH of them, from packet `first` on. */
void hp_traffic_write_batch(hp_traffic *traffic, uint32_t first);
/* ns of CLOCK_MONOTONIC */
double hp_bench_clock(void);

static inline uint32_t hp_traffic_tunnel(const hp_traffic *traffic, uint32_t flow) {
  return HP_BENCH_ENI + 1 + (flow & (traffic->tunnels - 1));
}
static inline uint32_t hp_traffic_remote(const hp_traffic *traffic, uint32_t flow) {
  return HP_BENCH_REMOTE + (flow >> traffic->shift);
}
/* Inside and outside, so that a flow can be published with it. */
static inline uint16_t hp_traffic_port(const hp_traffic *traffic, uint32_t flow) {
  return (uint16_t)(1024 + (flow & ((1u << traffic->shift) - 1)));
}

/* ---- bench_table.c: the rival ---- */
typedef struct hp_bare hp_bare;
hp_bare *hp_bare_new(const hp_traffic *traffic, bool huge, hp_error *error);
void hp_bare_free(hp_bare *bare);
void hp_bare_translate(hp_bare *bare, hp_traffic *traffic);
/* Packets that found no flow. */
uint64_t hp_bare_missed(const hp_bare *bare);

/* ---- bench.c ---- */
/* With the ENI and the tunnels of the traffic. */
hp_engine *hp_bench_engine(uint32_t flows, uint32_t tunnels, bool huge, hp_error *error);
/* All flows of the traffic. */
int hp_bench_open_flows(hp_engine *engine, const hp_traffic *traffic, hp_error *error);

#endif
