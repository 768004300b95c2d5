/* bench_create.c: what the first packet of a connection costs: admission, port, flow, translation.
 *
 * SYNs in batches, into a table that holds `flows` others. After each batch as many flows end, chosen at random and off
 * the clock: so the table stays as full as it is, and new flows get numbers from all over it, whose memory is cold.
 */
#include <errno.h>
#include <stdlib.h>

#include "bench.h"
#include "nat.h"

enum {
  ROUNDS = 5,
  SHIFT = 13, /* flows of the table for each remote: 8,192, an eighth of the ports */
  HOT = 0xc6140001,
  HOT_FLOWS = HP_PORT_COUNT / 10 * 9,
  NEW_PORT = 20000, /* inside ports of new flows: the table's end below */
  NEW_PORTS = 40000
};

typedef struct creation {
  hp_traffic traffic;
  hp_engine *engine;
  bool dense;
  uint32_t made;
  hp_random random;
  uint32_t *hot; /* numbers of the flows towards HOT */
  uint32_t hot_count;
} creation;

static void write_syn(creation *c, hp_packet *packet) {
  const hp_traffic *t = &c->traffic;
  uint32_t made = c->made++, port = NEW_PORT + made / t->tunnels % NEW_PORTS;
  uint32_t remote = c->dense ? (uint32_t)HOT : hp_traffic_remote(t, hp_random_below(&c->random, t->flows));
  hp_segment syn = {.source = HP_BENCH_INSIDE,
                    .destination = remote,
                    .source_port = (uint16_t)port,
                    .destination_port = HP_BENCH_REMOTE_PORT,
                    .sequence = made,
                    .flags = HP_SYN};
  packet->length = hp_write_segment(packet->data, &syn);
  packet->capacity = HP_BENCH_STRIDE;
  packet->link = hp_traffic_tunnel(t, made);
}

/* ns; the packets say what became of them. */
static double create_batch(creation *c) {
  hp_packet *packets = c->traffic.packets;
  for (uint32_t i = 0; i < HP_BATCH; i++) {
    packets[i].data = c->traffic.buffers[i];
    write_syn(c, &packets[i]);
  }
  double start = hp_bench_clock();
  hp_nat_batch(c->engine->workers, packets, HP_BATCH);
  return hp_bench_clock() - start;
}

static uint32_t number_of(const creation *c, const hp_packet *packet) {
  const uint8_t *ip = packet->data + HP_VNET_HEADER;
  const hp_flow_table *flows = &c->engine->workers->flows;
  hp_key key = {HP_BENCH_ENI << 8 | HP_TCP, hp_get32(ip + 16), hp_get32(ip + 12),
                HP_BENCH_REMOTE_PORT << 16 | hp_get16(ip + HP_IPV4_HEADER)};
  return hp_flow_find(flows, HP_OUTSIDE, &key, hp_key_hash(flows, &key));
}

static void end_some(creation *c) {
  hp_flow_table *flows = &c->engine->workers->flows;
  for (uint32_t i = 0; i < HP_BATCH; i++) {
    uint32_t at = hp_random_below(&c->random, c->dense ? c->hot_count : flows->control->used), number = at;
    if (c->dense) {
      number = c->hot[at];
      c->hot[at] = c->hot[--c->hot_count];
    }
    while (!hp_flow_live(&flows->flows[number]))
      number = hp_random_below(&c->random, flows->control->used);
    hp_flow_end(c->engine->workers, number);
  }
}

static int check_batch(creation *c, hp_error *error) {
  for (uint32_t i = 0; i < HP_BATCH; i++) {
    const hp_packet *packet = &c->traffic.packets[i];
    if (packet->verdict != HP_FORWARD)
      return hp_fail(error, 0, "a flow was not made: %s", hp_reason_name(packet->reason));
    if (c->dense)
      c->hot[c->hot_count++] = number_of(c, packet);
  }
  return 0;
}

static double measure(creation *c, uint32_t creations, hp_error *error) {
  double best = 1e18;
  uint32_t batches = creations / HP_BATCH / ROUNDS + 1;
  for (int round = 0; round < ROUNDS; round++) {
    double elapsed = 0;
    for (uint32_t batch = 0; batch < batches; batch++) {
      end_some(c);
      elapsed += create_batch(c);
      if (check_batch(c, error))
        return -1;
    }
    best = elapsed < best ? elapsed : best;
  }
  return best / ((double)batches * HP_BATCH);
}

static int fill_hot(creation *c, hp_error *error) {
  while (c->dense && c->hot_count < HOT_FLOWS) {
    create_batch(c);
    if (check_batch(c, error))
      return -1;
  }
  return 0;
}

double hp_bench_create(uint32_t flows, int dense, uint32_t creations, int huge_pages, hp_error *error) {
  if (flows < HP_BATCH || flows > HP_MAX_FLOWS / 2)
    return hp_fail(error, EINVAL, "flows is %u; it must be %d to %d", flows, HP_BATCH, HP_MAX_FLOWS / 2);
  creation c = {.dense = dense != 0};
  double result = -1;
  if (hp_traffic_new(&c.traffic, flows, SHIFT, true, error))
    return -1;
  c.hot = calloc(HOT_FLOWS + 2 * HP_BATCH, sizeof *c.hot);
  hp_random_init(&c.random, 1);
  uint32_t room = flows + 2 * HP_BATCH + (dense ? HOT_FLOWS : 0);
  c.engine = hp_bench_engine(room, c.traffic.tunnels, huge_pages != 0, error);
  if (c.hot && c.engine && hp_bench_open_flows(c.engine, &c.traffic, error) == 0 && fill_hot(&c, error) == 0)
    result = measure(&c, creations, error);
  hp_engine_free(c.engine);
  hp_traffic_free(&c.traffic);
  free(c.hot);
  return result;
}
