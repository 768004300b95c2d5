/* bench.c: the cost of translation in memory, next to the cost of the bare table under it.
 *
 * Both runs see the same random packets, of both directions, over the same UDP flows: 64-byte IPv4 packets
 * of 1,024 tunnels and one ENI. Every batch is written anew, since translation changes packets in place;
 * a run without translation measures what that costs, and it is taken off. The best of several rounds
 * counts: what disturbs a round makes it slower, never faster. Writing and translating are kept out of line:
 * inlined into one loop they are compiled together, and the bare table came out half as slow again.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "nat.h"

enum {
  TUNNELS = 1024,
  LENGTH = 64,
  STRIDE = 128,
  ROUNDS = 5,
  IDS = 1 << 20,
  PER_REMOTE = 60000, /* flows towards one remote address: fewer than an ENI address has ports */
  REMOTE_PORT = 9000
};
static const uint32_t inside_address = 0xc6120002, remote_base = 0xc6130100, eni_address = 0xc613000a;

typedef struct traffic {
  uint32_t flows, tunnels;
  uint32_t *ids;   /* packet i is of flow ids[i] / 2, from outside when odd */
  uint16_t *ports; /* outside port by flow */
  uint32_t *links; /* tunnel's link number by index */
  uint32_t eni;
  uint8_t (*buffers)[STRIDE];
  hp_packet packets[HP_BATCH];
} traffic;

static double now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void traffic_free(traffic *t) {
  free(t->ids);
  free(t->ports);
  free(t->links);
  free(t->buffers);
}

static int traffic_new(traffic *t, uint32_t flows, hp_error *error) {
  *t = (traffic){.flows = flows, .tunnels = flows < TUNNELS ? flows : TUNNELS};
  t->ids = calloc(IDS, sizeof *t->ids);
  t->ports = calloc(flows, sizeof *t->ports);
  t->links = calloc(t->tunnels, sizeof *t->links);
  t->buffers = aligned_alloc(64, (size_t)HP_BATCH * STRIDE);
  if (!t->ids || !t->ports || !t->links || !t->buffers) {
    traffic_free(t);
    hp_fail(error, ENOMEM, "no memory for the packets of %u flows", flows);
    return -1;
  }
  hp_random random;
  hp_random_init(&random, 88172645463325252u);
  for (uint32_t i = 0; i < IDS; i++)
    t->ids[i] = hp_random_below(&random, 2 * flows);
  return 0;
}

/* The packet of a flow, from inside or outside, with a right IPv4 checksum. */
static void write_packet(const traffic *t, uint32_t id, hp_packet *packet) {
  uint32_t flow = id >> 1;
  uint32_t remote = remote_base + flow / PER_REMOTE;
  uint16_t inside_port = (uint16_t)(1024 + flow % PER_REMOTE);
  bool outside = id & 1;
  uint32_t source = outside ? remote : inside_address, destination = outside ? eni_address : remote;
  uint8_t *ip = packet->data + HP_VNET_HEADER;
  memset(packet->data, 0, HP_VNET_HEADER);
  hp_put32(ip, 0x45000000 | LENGTH);
  hp_put32(ip + 4, 0x4000);
  hp_put32(ip + 8, 0x40110000);
  hp_put32(ip + 12, source);
  hp_put32(ip + 16, destination);
  uint64_t sum = 0x4500ull + LENGTH + 0x4000 + 0x4011 + (source >> 16) + (source & 0xffff) + (destination >> 16) +
                 (destination & 0xffff);
  hp_put16(ip + 10, (uint16_t)~hp_fold(sum));
  hp_put16(ip + 20, outside ? REMOTE_PORT : inside_port);
  hp_put16(ip + 22, outside ? t->ports[flow] : REMOTE_PORT);
  hp_put32(ip + 24, (LENGTH - HP_IPV4_HEADER) << 16 | 0x1234);
  packet->link = outside ? t->eni : t->links[flow % t->tunnels];
  packet->length = HP_VNET_HEADER + LENGTH;
  packet->capacity = STRIDE;
}

__attribute__((noinline)) static void write_batch(traffic *t, uint32_t first) {
  for (uint32_t i = 0; i < HP_BATCH; i++) {
    t->packets[i].data = t->buffers[i];
    write_packet(t, t->ids[(first + i) & (IDS - 1)], &t->packets[i]);
  }
}

/* ns per packet that `translate` costs beyond writing the packets. */
static double measure(traffic *t, uint32_t packets, void (*translate)(void *, traffic *), void *context) {
  double best = 1e18, best_writing = 1e18;
  uint32_t batches = packets / HP_BATCH + 1;
  for (int round = 0; round < 2 * ROUNDS; round++) {
    double start = now_ns();
    for (uint32_t batch = 0; batch < batches; batch++) {
      write_batch(t, batch * HP_BATCH);
      if (round & 1)
        translate(context, t);
      else
        __asm__ volatile("" : : "r"(t->buffers), "r"(t->packets) : "memory");
    }
    double elapsed = now_ns() - start;
    double *least = round & 1 ? &best : &best_writing;
    if (elapsed < *least)
      *least = elapsed;
  }
  return (best - best_writing) / ((double)batches * HP_BATCH);
}

/* ---- the engine ---- */

static int open_flows(hp_engine *engine, traffic *t, hp_error *error) {
  uint8_t buffer[STRIDE];
  for (uint32_t flow = 0; flow < t->flows; flow++) {
    hp_packet packet = {.data = buffer};
    write_packet(t, flow << 1, &packet);
    hp_nat_batch(engine->workers, &packet, 1);
    if (packet.verdict != HP_FORWARD)
      return hp_fail(error, 0, "flow %u of %u was not made: %s", flow, t->flows, hp_reason_name(packet.reason));
    t->ports[flow] = hp_get16(buffer + HP_VNET_HEADER + HP_IPV4_HEADER);
  }
  return 0;
}

__attribute__((noinline)) static void translate_with_engine(void *context, traffic *t) {
  hp_engine *engine = context;
  hp_nat_batch(engine->workers, t->packets, HP_BATCH);
}

static hp_engine *engine_for(traffic *t, int huge_pages, hp_error *error) {
  hp_config config = {.max_flows = t->flows + t->flows / 16 + 1,
                      .max_links = TUNNELS + 1,
                      .max_addresses = 1,
                      .huge_pages = (uint32_t)huge_pages,
                      .seed = 1};
  hp_engine *engine = hp_engine_new(&config, error);
  if (!engine)
    return NULL;
  hp_eni_config eni = {
      .addresses = {eni_address}, .address_count = 1, .mtu = 1500, .udp_mapping = HP_UDP_ENDPOINT_DEPENDENT};
  hp_rule everything = {0};
  int number = hp_eni_add(engine, &eni, -1, error);
  if (number > 0 && hp_eni_rules(engine, (uint32_t)number, &everything, 1, error) == 0) {
    t->eni = (uint32_t)number;
    hp_tunnel_config tunnel = {.eni = t->eni, .address = inside_address, .mtu = 1500};
    for (uint32_t i = 0; i < t->tunnels && number > 0; i++) {
      number = hp_tunnel_add(engine, &tunnel, -1, error);
      t->links[i] = (uint32_t)number;
    }
    if (number > 0)
      return engine;
  }
  hp_engine_free(engine);
  return NULL;
}

double hp_bench_translate(uint32_t flows, uint32_t packets, int huge_pages, hp_error *error) {
  traffic t;
  double result = -1;
  if (flows == 0 || flows > HP_MAX_FLOWS / 2)
    return hp_fail(error, EINVAL, "flows is %u; it must be 1 to %d", flows, HP_MAX_FLOWS / 2);
  if (traffic_new(&t, flows, error))
    return -1;
  hp_engine *engine = engine_for(&t, huge_pages, error);
  if (engine && open_flows(engine, &t, error) == 0) {
    result = measure(&t, packets, translate_with_engine, engine);
    if (engine->shared->drop_count)
      result = hp_fail(error, 0, "packets were dropped: the measurement is void");
  }
  hp_engine_free(engine);
  traffic_free(&t);
  return result;
}

/* ---- the bare table ---- */

static hp_key bare_key(const hp_packet *packet) {
  const uint8_t *ip = packet->data + HP_VNET_HEADER;
  return (hp_key){.link = packet->link << 8 | ip[9],
                  .source = hp_get32(ip + 12),
                  .destination = hp_get32(ip + 16),
                  .ports = hp_get32(ip + 20)};
}

static void bare_rewrite(const hp_packet *packet, hp_half *half, int side) {
  uint8_t *ip = packet->data + HP_VNET_HEADER;
  hp_put32(ip + (side == HP_INSIDE ? 12 : 16), half->address);
  hp_put16(ip + (side == HP_INSIDE ? 20 : 22), half->port);
  hp_checksum_apply(ip + 10, half->delta_address);
  hp_checksum_apply(ip + 26, half->delta_full);
  half->last_seen++;
  half->packets++;
  half->bytes += LENGTH;
}

typedef struct bare {
  hp_flow_table table;
  uint32_t eni;
  uint64_t missed;
} bare;

__attribute__((noinline)) static void translate_with_table(void *context, traffic *t) {
  bare *b = context;
  hp_key keys[HP_BATCH];
  uint64_t hashes[HP_BATCH];
  uint32_t bits[HP_BATCH];
  for (uint32_t i = 0; i < HP_BATCH; i++) {
    const hp_index *index = &b->table.index[t->packets[i].link == b->eni];
    keys[i] = bare_key(&t->packets[i]);
    hashes[i] = hp_key_hash(&b->table, &keys[i]);
    __builtin_prefetch(&index->buckets[hp_index_home(index, hashes[i])]);
  }
  for (uint32_t i = 0; i < HP_BATCH; i++) {
    int side = t->packets[i].link == b->eni;
    const hp_index *index = &b->table.index[side];
    const hp_bucket *bucket = &index->buckets[hp_index_home(index, hashes[i])];
    bits[i] = hp_bucket_match(bucket, hp_index_tag(hashes[i]));
    uint32_t number = bits[i] ? hp_slot_number(bucket->slot[__builtin_ctz(bits[i])]) : HP_NONE;
    if (number != HP_NONE)
      __builtin_prefetch(&b->table.flows[number].half[side], 1);
  }
  for (uint32_t i = 0; i < HP_BATCH; i++) {
    int side = t->packets[i].link == b->eni;
    const hp_index *index = &b->table.index[side];
    const hp_bucket *bucket = &index->buckets[hp_index_home(index, hashes[i])];
    uint32_t number = HP_NONE;
    for (uint32_t left = bits[i]; left && number == HP_NONE; left &= left - 1) {
      uint32_t candidate = hp_slot_number(bucket->slot[__builtin_ctz(left)]);
      if (candidate != HP_NONE && hp_key_equal(&b->table.flows[candidate].half[side].key, &keys[i]))
        number = candidate;
    }
    if (number == HP_NONE)
      number = hp_flow_find(&b->table, side, &keys[i], hashes[i]);
    if (number == HP_NONE)
      b->missed++;
    else
      bare_rewrite(&t->packets[i], &b->table.flows[number].half[side], side);
  }
}

static int fill_table(bare *b, traffic *t, hp_error *error) {
  uint8_t buffer[STRIDE];
  for (uint32_t i = 0; i < t->tunnels; i++)
    t->links[i] = i + 2;
  t->eni = b->eni;
  for (uint32_t flow = 0; flow < t->flows; flow++) {
    hp_packet packet = {.data = buffer};
    uint32_t number = hp_flow_take(&b->table);
    if (number == HP_NONE)
      return hp_fail(error, 0, "the table is too small for %u flows", t->flows);
    t->ports[flow] = (uint16_t)(1024 + flow % PER_REMOTE);
    for (uint32_t side = 0; side < 2; side++) {
      hp_half *half = &b->table.flows[number].half[side];
      write_packet(t, flow << 1 | side, &packet);
      half->key = bare_key(&packet);
      half->address = side == HP_INSIDE ? eni_address : inside_address;
      half->port = t->ports[flow];
    }
    if (!hp_flow_publish(&b->table, number, 0, 1))
      return hp_fail(error, 0, "the index is too small for %u flows", t->flows);
  }
  return 0;
}

double hp_bench_table(uint32_t flows, uint32_t packets, int huge_pages, hp_error *error) {
  traffic t;
  double result = -1;
  if (flows == 0 || flows > HP_MAX_FLOWS / 2)
    return hp_fail(error, EINVAL, "flows is %u; it must be 1 to %d", flows, HP_MAX_FLOWS / 2);
  if (traffic_new(&t, flows, error))
    return -1;
  bare b = {.eni = 1};
  if (hp_flow_table_new(&b.table, flows + flows / 16 + 1, 1, huge_pages != 0, error) == 0) {
    if (fill_table(&b, &t, error) == 0)
      result = measure(&t, packets, translate_with_table, &b);
    if (b.missed)
      result = hp_fail(error, 0, "%llu packets found no flow: the measurement is void", (unsigned long long)b.missed);
    hp_flow_table_free(&b.table);
  }
  traffic_free(&t);
  return result;
}
