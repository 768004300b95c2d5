/* admit.c: a packet from inside that has no flow: may it have one, with which outside port, and the flow.
 *
 * UDP and ICMP echo take an endpoint-independent mapping while ports last (RFC 4787 REQ-1, RFC 5508
 * REQ-1): its port is this mapping's alone. TCP, DNS, and UDP when ports are short, share ports: a port
 * is free as long as no flow uses it towards the same destination (RFC 7857 section 3.2).
 */
#include "nat.h"

#include "security.h"
#include "slices.h"
#include "tcp.h"

enum { RECLAIM_PROBES = 64, RECLAIM_AGE = 2000 /* ms: an ended flow rests that long */ };

static bool valid_destination(const hp_worker *worker, const hp_link *eni, uint32_t destination) {
  if (destination >> 28 >= 14 || destination >> 24 == 127 || destination >> 24 == 0)
    return false;
  for (uint32_t i = 0; i < eni->address_count; i++)
    if (worker->ports.addresses[eni->addresses[i]].address == destination)
      return false;
  return true;
}

/* Whether a packet from inside may open a flow, and else why not. */
static hp_reason admission(const hp_worker *worker, const hp_packet *packet, const hp_item *item) {
  const hp_engine *engine = worker->engine;
  const hp_link *tunnel = &engine->links[packet->link], *eni = &engine->links[tunnel->eni];
  const hp_rules *rules = __atomic_load_n(&engine->local[tunnel->eni].rules, __ATOMIC_ACQUIRE);
  const hp_headers *h = &item->headers;
  if (h->source != tunnel->address)
    return HP_SPOOFED_SOURCE;
  if (!valid_destination(worker, eni, h->destination))
    return HP_INVALID_DESTINATION;
  if (h->protocol == HP_TCP && (h->tcp_flags & (HP_SYN | HP_ACK | HP_RST | HP_FIN)) != HP_SYN)
    return HP_TCP_OUT_OF_STATE;
  if (tunnel->drain)
    return HP_LINK_DETACHED;
  if (!rules || !hp_security_allows(rules->rules, rules->count, h))
    return HP_SECURITY_GROUP;
  return HP_REASON_NONE;
}

static bool endpoint_independent(const hp_link *eni, const hp_key *inside) {
  uint8_t protocol = (uint8_t)inside->link;
  if (protocol == HP_ICMP)
    return true;
  return protocol == HP_UDP && (uint16_t)inside->ports != HP_DNS_PORT &&
         eni->udp_mapping == HP_UDP_ENDPOINT_INDEPENDENT;
}

/* The outside key but for its own end. */
static hp_key outside_of(uint32_t eni, const hp_key *inside) {
  return (hp_key){
      .link = eni << 8 | (uint8_t)inside->link, .source = inside->destination, .ports = inside->ports << 16};
}

void hp_admit_expect(hp_worker *worker, const hp_packet *packet, hp_item *item) {
  const hp_link *links = worker->engine->links;
  const hp_link *tunnel = &links[packet->link], *eni = &links[tunnel->eni];
  item->port = 0;
  if (endpoint_independent(eni, &item->key)) {
    hp_mapping_fetch(&worker->mappings, item->key.link, item->key.source, (uint16_t)(item->key.ports >> 16));
    return;
  }
  uint32_t address = eni->addresses[tunnel->pool];
  hp_key outside = outside_of(tunnel->eni, &item->key);
  outside.destination = worker->ports.addresses[address].address;
  item->port = hp_port_guess(&worker->ports, address, &worker->flows, &outside);
}

static int kind_of(const hp_headers *h) { return h->protocol == HP_ICMP ? HP_PORTS_ICMP : HP_PORTS_UDP; }

/* The mapping of this inside endpoint, made when there is none; HP_NONE when ports or mappings are short. */
static uint32_t mapping_for(hp_worker *worker, const hp_link *tunnel, const hp_link *eni, const hp_item *item) {
  uint16_t inside_port = (uint16_t)(item->key.ports >> 16);
  uint32_t number = hp_mapping_find(&worker->mappings, item->key.link, item->key.source, inside_port);
  if (number != HP_NONE)
    return number;
  hp_mapping mapping = {.link = item->key.link,
                        .inside = item->key.source,
                        .inside_port = inside_port,
                        .address = eni->addresses[tunnel->pool]};
  int kind = kind_of(&item->headers);
  mapping.outside_port = hp_port_take(&worker->ports, mapping.address, kind, inside_port, worker->now);
  if (mapping.outside_port == 0)
    return HP_NONE;
  number = hp_mapping_new(&worker->mappings, &mapping);
  if (number == HP_NONE)
    hp_port_give(&worker->ports, mapping.address, kind, mapping.outside_port, worker->now);
  return number;
}

/* Fills in the outside key from a mapping; false when ports must be shared instead. */
static bool use_mapping(hp_worker *worker, const hp_link *tunnel, const hp_link *eni, const hp_item *item, hp_key *key,
                        uint32_t *number) {
  *number = mapping_for(worker, tunnel, eni, item);
  if (*number == HP_NONE)
    return false;
  const hp_mapping *mapping = &worker->mappings.mappings[*number];
  key->destination = worker->ports.addresses[mapping->address].address;
  key->ports = (key->ports & 0xffff0000u) | mapping->outside_port;
  if (hp_flow_find(&worker->flows, HP_OUTSIDE, key, hp_key_hash(&worker->flows, key)) == HP_NONE)
    return true;
  /* A flow with a shared port was there first. */
  if (mapping->flows == 0) {
    hp_port_give(&worker->ports, mapping->address, kind_of(&item->headers), mapping->outside_port, worker->now);
    hp_mapping_free(&worker->mappings, *number);
  }
  return false;
}

/* When every port towards a destination is taken, one of a connection that is over may be used again before
 * its closing timer ends: better than refusing. */
static bool reclaim(hp_worker *worker, uint32_t address, hp_key *key) {
  for (int i = 0; i < RECLAIM_PROBES && worker->ports.addresses[address].leased; i++) {
    key->ports = (key->ports & 0xffff0000u) | hp_port_random(&worker->ports, address);
    uint32_t number = hp_flow_find(&worker->flows, HP_OUTSIDE, key, hp_key_hash(&worker->flows, key));
    if (number == HP_NONE)
      return true;
    const hp_flow *flow = &worker->flows.flows[number];
    uint8_t state = hp_flow_state(flow);
    bool over = state == HP_STATE_CLOSING || state == HP_STATE_RESET;
    if (over && (uint32_t)worker->now - hp_flow_refreshed(flow, worker->now) >= RECLAIM_AGE) {
      hp_flow_end(worker, number);
      return true;
    }
  }
  return false;
}

/* TCP may go over to a further address of the ENI; UDP and ICMP stay with theirs (RFC 4787 REQ-2). */
static bool use_shared_port(hp_worker *worker, const hp_link *tunnel, const hp_link *eni, const hp_item *item,
                            hp_key *key) {
  bool tcp = item->headers.protocol == HP_TCP;
  for (uint32_t i = 0; i < (tcp ? eni->address_count : 1); i++) {
    uint32_t address = eni->addresses[(tunnel->pool + i) % eni->address_count];
    key->destination = worker->ports.addresses[address].address;
    /* hp_admit_expect() was asked about packets for which nothing was near, and guessed for the first address. */
    uint16_t guess = i == 0 && !item->near ? item->port : 0;
    if (hp_port_choose(&worker->ports, address, &worker->flows, key, guess))
      return true;
  }
  if (!tcp)
    return false;
  uint32_t address = eni->addresses[tunnel->pool];
  key->destination = worker->ports.addresses[address].address;
  return reclaim(worker, address, key);
}

static void fill_flow(const hp_worker *worker, hp_flow *flow, const hp_item *item, const hp_key *outside,
                      uint32_t tunnel, uint32_t mapping) {
  uint16_t inside_port = (uint16_t)(item->key.ports >> 16), outside_port = (uint16_t)outside->ports;
  uint16_t ports_out = hp_delta16(inside_port, outside_port), ports_in = hp_delta16(outside_port, inside_port);
  uint16_t out = hp_delta32(item->key.source, outside->destination);
  uint16_t in = hp_delta32(outside->destination, item->key.source);
  bool pseudo = item->headers.protocol != HP_ICMP; /* ICMP's checksum covers no address */
  hp_half *inward = &flow->half[HP_OUTSIDE];
  *inward = (hp_half){.key = *outside,
                      .address = item->key.source,
                      .port = inside_port,
                      .delta_address = in,
                      .delta_full = pseudo ? hp_delta_add(in, ports_in) : ports_in,
                      .out_link = tunnel,
                      .last_seen = (uint32_t)worker->now,
                      .sequence = mapping};
  const hp_half outward = {.key = item->key,
                           .address = outside->destination,
                           .port = outside_port,
                           .delta_address = out,
                           .delta_full = pseudo ? hp_delta_add(out, ports_out) : ports_out,
                           .out_link = outside->link >> 8,
                           .last_seen = (uint32_t)worker->now};
  /* Up to the sequence, which must not be anything but odd for a moment: a reader, or a successor after a
   * crash, would take the flow for finished. The counters behind it are 0 already. */
  memcpy(&flow->half[HP_INSIDE], &outward, offsetof(hp_half, sequence));
}

/* Makes the taken flow one that its packets find. */
static hp_reason open_flow(hp_worker *worker, const hp_packet *packet, const hp_item *item, uint32_t number,
                           const hp_key *outside, uint32_t mapping) {
  const hp_link *links = worker->engine->links;
  hp_link_stats *tunnel = hp_stats(worker, packet->link), *eni = hp_stats(worker, outside->link >> 8);
  hp_flow *flow = &worker->flows.flows[number];
  fill_flow(worker, flow, item, outside, packet->link, mapping);
  if (mapping != HP_NONE)
    hp_mapping_hold(&worker->mappings, mapping);
  if (!hp_flow_publish(&worker->flows, number, worker->now, hp_flow_timeout(links, flow))) {
    hp_mapping ended;
    if (mapping != HP_NONE && hp_mapping_drop(&worker->mappings, mapping, &ended))
      hp_port_give(&worker->ports, ended.address, kind_of(&item->headers), ended.outside_port, worker->now);
    hp_port_ended(&worker->ports, &worker->flows, outside);
    return HP_FLOW_TABLE_FULL;
  }
  if (item->headers.protocol == HP_TCP)
    hp_tcp_open(flow, packet->data, &item->headers);
  if (worker->workers > 1)
    hp_slices_count(worker, outside, 1);
  tunnel->flows++;
  tunnel->flows_created++;
  eni->flows++;
  eni->flows_created++;
  return HP_REASON_NONE;
}

static hp_reason create(hp_worker *worker, const hp_packet *packet, const hp_item *item, uint32_t *number) {
  const hp_link *links = worker->engine->links;
  const hp_link *tunnel = &links[packet->link], *eni = &links[tunnel->eni];
  if (tunnel->max_flows && hp_stats(worker, packet->link)->flows >= tunnel->max_flows)
    return HP_FLOW_QUOTA;
  *number = hp_flow_take(&worker->flows);
  if (*number == HP_NONE)
    return HP_FLOW_TABLE_FULL;
  hp_key outside = outside_of(tunnel->eni, &item->key);
  uint32_t mapping = HP_NONE;
  if (!endpoint_independent(eni, &item->key) || !use_mapping(worker, tunnel, eni, item, &outside, &mapping)) {
    mapping = HP_NONE;
    if (!use_shared_port(worker, tunnel, eni, item, &outside)) {
      hp_flow_discard(&worker->flows, *number);
      return HP_PORTS_EXHAUSTED;
    }
  }
  return open_flow(worker, packet, item, *number, &outside, mapping);
}

uint32_t hp_flow_open(hp_worker *worker, const hp_packet *packet, const hp_item *item, const hp_key *outside) {
  uint32_t number = hp_flow_take(&worker->flows);
  if (number == HP_NONE || open_flow(worker, packet, item, number, outside, HP_NONE) != HP_REASON_NONE)
    return HP_NONE;
  return number;
}

uint32_t hp_reopen(hp_worker *worker, hp_packet *packet, const hp_item *item, uint32_t number) {
  hp_reason reason = admission(worker, packet, item);
  if (reason == HP_REASON_NONE) {
    const hp_key outside = worker->flows.flows[number].half[HP_OUTSIDE].key;
    hp_flow_end(worker, number);
    number = hp_flow_take(&worker->flows); /* there is one: the one just given back */
    reason = open_flow(worker, packet, item, number, &outside, HP_NONE);
  }
  if (reason == HP_REASON_NONE)
    return number;
  hp_refuse_packet(worker, packet, &item->headers, reason);
  return HP_NONE;
}

uint32_t hp_admit(hp_worker *worker, hp_packet *packet, const hp_item *item) {
  const hp_headers *h = &item->headers;
  uint32_t number = HP_NONE;
  hp_reason reason = admission(worker, packet, item);
  if (reason == HP_SPOOFED_SOURCE) { /* a forger learns nothing */
    hp_drop_packet(worker, packet, h, reason);
    return HP_NONE;
  }
  /* Before a flow is made for it: traceroute's probes end here. */
  const hp_link *tunnel = &worker->engine->links[packet->link];
  if (reason == HP_REASON_NONE && !hp_nat_may_leave(worker, packet, item, &worker->engine->links[tunnel->eni]))
    return HP_NONE;
  if (reason == HP_REASON_NONE)
    reason = create(worker, packet, item, &number);
  if (reason != HP_REASON_NONE) {
    hp_refuse_packet(worker, packet, h, reason);
    return HP_NONE;
  }
  return number;
}
