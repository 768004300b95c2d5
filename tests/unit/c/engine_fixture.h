/* engine_fixture.h: an engine without devices and threads, one ENI and tunnels, and packets through it. */
#ifndef ENGINE_FIXTURE_H
#define ENGINE_FIXTURE_H

#include "packets.h"

enum {
  INSIDE_ADDRESS = 0xc6120002, /* 198.18.0.2, of every environment */
  ENI_ADDRESS = 0xc0000201,    /* 192.0.2.1 */
  REMOTE_ADDRESS = 0xcb007101, /* 203.0.113.1 */
  ENI = 1,
  TUNNEL = 2 /* the first */
};

typedef struct lab {
  hp_engine *engine;
  hp_error error;
  uint64_t now;
  uint8_t data[70000];
  hp_packet packet; /* the last one */
} lab;

#define MUST(lab, call) ((call) >= 0 ? (void)0 : broken((lab)->error.text, __FILE__, __LINE__))

static inline uint32_t add_eni(lab *l, const hp_eni_config *config) {
  int eni = hp_eni_add(l->engine, config, -1, &l->error);
  MUST(l, eni);
  MUST(l, hp_eni_rules(l->engine, (uint32_t)eni, &(hp_rule){.protocol = 0}, 1, &l->error));
  return (uint32_t)eni;
}

static inline uint32_t add_tunnel(lab *l, uint32_t eni, uint32_t max_flows) {
  hp_tunnel_config config = {.eni = eni, .address = INSIDE_ADDRESS, .mtu = 1500, .max_flows = max_flows};
  int tunnel = hp_tunnel_add(l->engine, &config, -1, &l->error);
  MUST(l, tunnel);
  return (uint32_t)tunnel;
}

/* NULL: the smallest that does; one ENI with one address, one tunnel. */
static inline lab *new_lab(const hp_config *config, const hp_eni_config *eni) {
  static const hp_config small = {.max_flows = 100, .max_links = 10, .max_addresses = 4, .seed = 1};
  static const hp_eni_config plain = {.addresses = {ENI_ADDRESS}, .address_count = 1, .mtu = 1500};
  lab *l = calloc(1, sizeof *l);
  HOLD(l);
  l->engine = hp_engine_new(config ? config : &small, &l->error);
  if (!l->engine)
    broken(l->error.text, __FILE__, __LINE__);
  l->now = 1000000;
  for (uint32_t i = 0; i < l->engine->config.workers; i++)
    l->engine->workers[i].now = l->engine->workers[i].swept_at = l->now;
  HOLD(add_eni(l, eni ? eni : &plain) == ENI);
  HOLD(add_tunnel(l, ENI, 0) == TUNNEL);
  return l;
}

/* The tables are sound in the end. */
static inline void free_lab(lab *l) {
  hp_links_collect(l->engine);
  check_engine(l->engine);
  hp_engine_free(l->engine);
  free(l);
}

/* One packet through the engine; the verdict. l->packet is what came of it. */
static inline int pass(lab *l, uint32_t link, const recipe *r) {
  l->packet = (hp_packet){.data = l->data, .capacity = sizeof l->data, .link = link};
  l->packet.length = make_packet(l->data, r);
  MUST(l, hp_translate(l->engine, &l->packet, 1, l->now, &l->error));
  HOLD(l->packet.verdict == HP_DROP || (ip_checksum_right(l->data + VNET) && transport_checksum_right(l->data)));
  return l->packet.verdict;
}

static inline recipe from_inside(uint8_t protocol, uint16_t source_port, uint16_t destination_port) {
  return (recipe){.source = INSIDE_ADDRESS,
                  .destination = REMOTE_ADDRESS,
                  .source_port = source_port,
                  .destination_port = destination_port,
                  .protocol = protocol,
                  .flags = protocol == HP_TCP    ? HP_SYN
                           : protocol == HP_ICMP ? HP_ICMP_ECHO
                                                 : 0};
}

/* What the receiver of the last packet answers. */
static inline recipe answer_to_last(const lab *l, uint8_t flags) {
  const uint8_t *ip = l->data + VNET, *l4 = ip + (ip[0] & 15) * 4;
  recipe r = {.source = hp_get32(ip + 16),
              .destination = hp_get32(ip + 12),
              .source_port = hp_get16(l4 + 2),
              .destination_port = hp_get16(l4),
              .protocol = ip[9],
              .flags = flags};
  if (r.protocol == HP_ICMP) {
    r.flags = HP_ICMP_ECHO_REPLY;
    r.source_port = hp_get16(l4 + 4);
  }
  return r;
}

/* The outside port (ICMP: the id) of a packet that has just left. */
static inline uint16_t outside_port(const lab *l) {
  const uint8_t *ip = l->data + VNET, *l4 = ip + (ip[0] & 15) * 4;
  return hp_get16(ip[9] == HP_ICMP ? l4 + 4 : l4);
}

static inline uint32_t live_flows(const lab *l) {
  uint32_t live = 0;
  for (uint32_t i = 0; i < l->engine->config.workers; i++)
    live += l->engine->workers[i].flows.control->live;
  return live;
}

static inline uint32_t sweep(lab *l, uint64_t after) {
  l->now += after;
  int ended = hp_sweep(l->engine, l->now, &l->error);
  MUST(l, ended);
  return (uint32_t)ended;
}

#endif
