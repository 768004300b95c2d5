/* bench.c: the cost of translation in memory, next to the cost of the bare table under it.
 *
 * Engine and bare table hold the same flows and see the same packets. Every batch is written anew, since translation
 * changes packets in place; rounds without translation measure what that costs, and it is taken off. The best of
 * several rounds counts: what disturbs a round makes it slower, never faster. Writing and translating are functions
 * of their own, in files of their own: inlined into one loop they would be compiled together.
 */
#include "bench.h"

#include <errno.h>
#include <stdlib.h>

#include "nat.h"

enum { ROUNDS = 5, REMOTE_SHIFT = 15 /* half of the ports of an address */ };

struct hp_bench {
  hp_traffic traffic;
  hp_engine *engine;
  hp_bare *bare;
};

static void translate_nothing(hp_bench *b) {
  __asm__ volatile("" : : "r"(b->traffic.buffers), "r"(b->traffic.packets) : "memory");
}

static double round_of(hp_bench *b, uint32_t batches, void (*translate)(hp_bench *)) {
  double start = hp_bench_clock();
  for (uint32_t batch = 0; batch < batches; batch++) {
    hp_traffic_write_batch(&b->traffic, batch * HP_BATCH);
    translate(b);
  }
  return (hp_bench_clock() - start) / ((double)batches * HP_BATCH);
}

/* ns per packet that `translate` costs beyond writing the packets. */
static double measure(hp_bench *b, uint32_t packets, void (*translate)(hp_bench *)) {
  double best = 1e18, best_writing = 1e18;
  for (int round = 0; round < ROUNDS; round++) {
    double writing = round_of(b, packets / HP_BATCH + 1, translate_nothing);
    double both = round_of(b, packets / HP_BATCH + 1, translate);
    best_writing = writing < best_writing ? writing : best_writing;
    best = both < best ? both : best;
  }
  return best - best_writing;
}

static void translate_with_engine(hp_bench *b) { hp_nat_batch(b->engine->workers, b->traffic.packets, HP_BATCH); }

double hp_bench_translate(hp_bench *b, uint32_t packets, hp_error *error) {
  double result = measure(b, packets, translate_with_engine);
  if (b->engine->shared->drop_count)
    return hp_fail(error, 0, "packets were dropped: the measurement is void");
  return result;
}

static void translate_with_table(hp_bench *b) { hp_bare_translate(b->bare, &b->traffic); }

double hp_bench_table(hp_bench *b, uint32_t packets, hp_error *error) {
  double result = measure(b, packets, translate_with_table);
  if (hp_bare_missed(b->bare))
    return hp_fail(error, 0, "packets found no flow: the measurement is void");
  return result;
}

void hp_bench_memory(hp_bench *b, hp_memory *memory) {
  const hp_flow_sweep *sweep = &b->engine->workers->flows.sweep;
  hp_engine_memory(b->engine, memory);
  memory->bytes += sweep->soonest_region.bytes + sweep->owner_region.bytes;
  memory->huge_bytes += sweep->soonest_region.huge + sweep->owner_region.huge;
}

/* ---- making them ---- */

/* The flow as admission would make it, but for its outside port, which is given. */
static int open_flow(hp_engine *engine, const hp_traffic *t, uint32_t flow, hp_error *error) {
  uint8_t buffer[HP_BENCH_STRIDE];
  hp_packet packet = {.data = buffer};
  hp_item item;
  hp_traffic_write(t, flow << 1, &packet);
  hp_parse(buffer, packet.length, &item.headers);
  const hp_headers *h = &item.headers;
  uint32_t ports = (uint32_t)h->destination_port << 16 | hp_traffic_port(t, flow);
  item.key = (hp_key){packet.link << 8 | h->protocol, h->source, h->destination,
                      (uint32_t)h->source_port << 16 | h->destination_port};
  const hp_key outside = {HP_BENCH_ENI << 8 | h->protocol, h->destination, HP_BENCH_OUTSIDE, ports};
  uint32_t number = hp_flow_open(engine->workers, &packet, &item, &outside);
  if (number == HP_NONE)
    return hp_fail(error, 0, "flow %u of %u was not made", flow, t->flows);
  if (t->tcp) /* established */
    for (int side = 0; side < 2; side++)
      engine->workers->flows.flows[number].half[side].flags = HP_SEEN_SYN | HP_SEEN_ACK;
  return 0;
}

static int add_links(hp_engine *engine, uint32_t tunnels, hp_error *error) {
  hp_eni_config eni = {
      .addresses = {HP_BENCH_OUTSIDE}, .address_count = 1, .mtu = 1500, .udp_mapping = HP_UDP_ENDPOINT_DEPENDENT};
  hp_rule everything = {0};
  if (hp_eni_add(engine, &eni, -1, error) != HP_BENCH_ENI || hp_eni_rules(engine, HP_BENCH_ENI, &everything, 1, error))
    return -1;
  hp_tunnel_config tunnel = {.eni = HP_BENCH_ENI, .address = HP_BENCH_INSIDE, .mtu = 1500};
  for (uint32_t i = 0; i < tunnels; i++)
    if (hp_tunnel_add(engine, &tunnel, -1, error) != (int)(HP_BENCH_ENI + 1 + i))
      return -1;
  return 0;
}

hp_engine *hp_bench_engine(uint32_t flows, uint32_t tunnels, bool huge, hp_error *error) {
  hp_config config = {.max_flows = flows, .max_links = tunnels + 1, .max_addresses = 1, .huge_pages = huge, .seed = 1};
  hp_engine *engine = hp_engine_new(&config, error);
  if (engine && add_links(engine, tunnels, error)) {
    hp_engine_free(engine);
    return NULL;
  }
  return engine;
}

int hp_bench_open_flows(hp_engine *engine, const hp_traffic *t, hp_error *error) {
  for (uint32_t flow = 0; flow < t->flows; flow++)
    if (open_flow(engine, t, flow, error))
      return -1;
  return 0;
}

hp_bench *hp_bench_new(uint32_t flows, uint32_t traffic, int huge_pages, hp_error *error) {
  if (flows < 1 || flows > HP_MAX_FLOWS / 2 || traffic > HP_BENCH_TCP) {
    hp_fail(error, EINVAL, "flows is %u and traffic %u; they must be 1 to %d, and one of HP_BENCH_*", flows, traffic,
            HP_MAX_FLOWS / 2);
    return NULL;
  }
  hp_bench *b = aligned_alloc(64, (sizeof *b + 63) / 64 * 64);
  if (!b || hp_traffic_new(&b->traffic, flows, REMOTE_SHIFT, traffic == HP_BENCH_TCP, error)) {
    free(b);
    return NULL;
  }
  b->engine = hp_bench_engine(flows, b->traffic.tunnels, huge_pages != 0, error);
  b->bare = hp_bare_new(&b->traffic, huge_pages != 0, error);
  if (b->engine && b->bare && hp_bench_open_flows(b->engine, &b->traffic, error) == 0)
    return b;
  hp_bench_free(b);
  return NULL;
}

void hp_bench_free(hp_bench *b) {
  if (!b)
    return;
  hp_engine_free(b->engine);
  hp_bare_free(b->bare);
  hp_traffic_free(&b->traffic);
  free(b);
}
