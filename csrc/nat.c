/* nat.c: a batch of packets, in three stages so that memory is waited for once per batch, not once per
 * packet: all are parsed and hashed and their index lines prefetched; then the tags are compared and the
 * flow lines prefetched; then each is translated, in order of arrival.
 *
 * Most packets are steady (steady.h): they are of a flow that is there, and need nothing but their rewrite. They have a
 * short way of their own through the stages, which changes nothing before it is sure; all others, and those that turn
 * out to be something else, take the way for everything. From there one without a flow goes to admit.c, an ICMP error
 * to icmp.c, a TCP segment that opens, closes or resets to tcp.c.
 */
#include "nat.h"

#include "handover.h"
#include "reset.h"
#include "steady.h"
#include "tcp.h"

/* ---- stage 1 ---- */

/* The key that the flow of this packet would have, ICMP ids in the place of the inside's port. */
static void make_key(hp_item *item, uint32_t link) {
  const hp_headers *h = &item->headers;
  uint16_t source_port = h->source_port, destination_port = h->destination_port;
  if (h->protocol == HP_ICMP && item->side == HP_OUTSIDE) {
    destination_port = h->source_port;
    source_port = 0;
  }
  item->key = (hp_key){.link = link << 8 | h->protocol,
                       .source = h->source,
                       .destination = h->destination,
                       .ports = (uint32_t)source_port << 16 | destination_port};
}

/* An echo request passes outwards, a reply inwards; the other way nobody has asked. */
static bool echo_runs_backwards(const hp_item *item) {
  const hp_headers *h = &item->headers;
  return h->protocol == HP_ICMP && (h->icmp_type == HP_ICMP_ECHO) != (item->side == HP_INSIDE);
}

static inline void hash_item(const hp_flow_table *flows, hp_item *item) {
  const hp_index *index = &flows->index[item->side];
  item->hash = hp_key_hash(flows, &item->key);
  item->home = &index->buckets[hp_index_home(index, item->hash)];
  __builtin_prefetch(item->home);
}

/* False: nothing has been done. */
static inline bool classify_steady(const hp_flow_table *flows, uint32_t gate, hp_link_stats *stats, hp_packet *packet,
                                   hp_item *item) {
  uint32_t length = packet->length;
  hp_steady steady;
  if (!gate || !hp_steady_parse(packet->data, length, &steady))
    return false;
  stats->packets_in++;
  stats->bytes_in += length - HP_VNET_HEADER;
  packet->length = HP_VNET_HEADER + steady.total; /* padding ends here */
  item->headers.total = (uint16_t)steady.total;
  item->side = gate >> 16 == HP_LINK_TUNNEL ? HP_INSIDE : HP_OUTSIDE;
  item->lookup = HP_LOOKUP_STEADY;
  const uint64_t key[2] = {steady.addresses | packet->link << 8 | steady.protocol, steady.remote};
  memcpy(&item->key, key, sizeof key);
  hash_item(flows, item);
  return true;
}

__attribute__((noinline)) static void classify(hp_worker *worker, hp_packet *packet, hp_item *item) {
  const hp_engine *engine = worker->engine;
  item->lookup = HP_LOOKUP_NONE;
  packet->verdict = HP_DROP;
  packet->reason = HP_REASON_NONE;
  const hp_link *link = &engine->links[packet->link];
  hp_link_stats *stats = hp_stats(worker, packet->link);
  hp_reason reason = hp_parse(packet->data, packet->length, &item->headers);
  stats->packets_in += reason == HP_REASON_NONE ? item->headers.segments : 1;
  stats->bytes_in += packet->length > HP_VNET_HEADER ? packet->length - HP_VNET_HEADER : 0;
  item->side = link->kind == HP_LINK_TUNNEL ? HP_INSIDE : HP_OUTSIDE;
  if (link->kind == HP_LINK_FREE || hp_link_draining(link))
    reason = HP_LINK_DETACHED;
  else if (reason == HP_REASON_NONE && link->drain == HP_DRAIN_RESET) {
    hp_detached_packet(worker, packet, item, link);
    return;
  } else if (reason == HP_REASON_NONE && echo_runs_backwards(item) && !item->headers.icmp_error)
    reason = HP_NO_FLOW;
  if (reason != HP_REASON_NONE) {
    hp_unfit_packet(worker, packet, item, reason);
    return;
  }
  packet->length = HP_VNET_HEADER + item->headers.total; /* padding ends here */
  if (item->headers.icmp_error)
    return;
  make_key(item, packet->link);
  item->lookup = HP_LOOKUP_PARSED;
  hash_item(&worker->flows, item);
}

/* ---- stage 2 ---- */

/* Every flow whose tag fits is fetched: one packet's in twenty would else come second and be waited for. */
static inline void probe(hp_worker *worker, const hp_packet *packet, hp_item *item) {
  const hp_flow_table *flows = &worker->flows;
  const hp_bucket *home = item->home;
  uint32_t bits = hp_bucket_match(home, hp_index_tag(item->hash));
  item->near = NULL;
  if (!bits) {
    if (item->side == HP_INSIDE)
      hp_admit_expect(worker, packet, item);
    return;
  }
  item->near = &flows->flows[(home->slot[__builtin_ctz(bits)] & HP_NUMBER_MASK) - 1].half[item->side];
  __builtin_prefetch(item->near, 1);
  while (bits &= bits - 1)
    __builtin_prefetch(&flows->flows[(home->slot[__builtin_ctz(bits)] & HP_NUMBER_MASK) - 1].half[item->side], 1);
}

/* ---- stage 3 ---- */

/* Beyond the first whose tag fits, or when the batch has changed what is there. */
__attribute__((noinline)) static hp_half *find_half(const hp_flow_table *flows, const hp_item *item) {
  uint32_t number = hp_flow_find(flows, item->side, &item->key, item->hash);
  return number == HP_NONE ? NULL : &flows->flows[number].half[item->side];
}

bool hp_nat_may_leave(hp_worker *worker, hp_packet *packet, const hp_item *item, const hp_link *out) {
  const hp_headers *h = &item->headers;
  if (out->kind == HP_LINK_FREE || hp_link_draining(out) || out->drain == HP_DRAIN_RESET) {
    hp_detached_packet(worker, packet, item, out);
    return false;
  }
  if (h->ttl <= 1) {
    hp_answer_packet(worker, packet, h, HP_TTL_EXCEEDED, HP_ICMP_TIME_EXCEEDED, 0, 0);
    return false;
  }
  /* Without DF it goes on whole: a TUN takes any size, and the receiving kernel fragments where it must. */
  if (h->segment > out->mtu && packet->data[HP_VNET_HEADER + 6] & 0x40) {
    hp_answer_packet(worker, packet, h, HP_FRAGMENTATION_NEEDED, HP_ICMP_UNREACHABLE, HP_ICMP_FRAGMENTATION_NEEDED,
                     out->mtu);
    return false;
  }
  return true;
}

void hp_nat_leave(hp_worker *worker, hp_packet *packet, const hp_headers *h, uint32_t number) {
  hp_link_stats *out = hp_stats(worker, number);
  out->packets_out += h->segments;
  out->bytes_out += h->total;
  packet->link = number;
  packet->verdict = HP_FORWARD;
}

void hp_nat_hop(uint8_t *ip, uint16_t delta) {
  ip[8]--;
  hp_checksum_apply(ip + 10, hp_delta_add(delta, HP_TTL_STEP));
}

/* The transport checksum of a packet whose address and port change. */
static void fix_transport(uint8_t *l4, const hp_headers *h, const hp_half *half) {
  uint8_t *checksum = l4 + (h->protocol == HP_ICMP ? 2 : hp_checksum_offset(h->protocol));
  if (h->partial)
    hp_partial_apply(checksum, half->delta_address);
  else
    hp_checksum_translate(checksum, h->protocol, half->delta_full);
}

/* Keeps of the virtio_net_hdr what parse_vnet() checked, and nothing else. The length of the headers is a hint about
 * super-segments (virtio 1.2 5.1.6.2). */
static void clean_vnet(uint8_t *data, const hp_headers *h) {
  struct virtio_net_hdr vnet, clean = {0};
  memcpy(&vnet, data, sizeof vnet);
  if (h->partial)
    clean = (struct virtio_net_hdr){.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                    .gso_type = vnet.gso_type,
                                    .csum_start = vnet.csum_start,
                                    .csum_offset = vnet.csum_offset};
  if (clean.gso_type != VIRTIO_NET_HDR_GSO_NONE) {
    clean.hdr_len = (uint16_t)(h->header + h->transport);
    clean.gso_size = vnet.gso_size;
  }
  memcpy(data, &clean, sizeof clean);
}

static void rewrite(hp_packet *packet, const hp_item *item, const hp_half *half) {
  const hp_headers *h = &item->headers;
  uint8_t *ip = packet->data + HP_VNET_HEADER, *l4 = ip + h->header;
  if (h->header > HP_IPV4_HEADER)
    hp_blank_options(ip);
  hp_put32(ip + (item->side == HP_INSIDE ? 12 : 16), half->address);
  if (h->protocol == HP_ICMP)
    hp_put16(l4 + 4, half->port);
  else
    hp_put16(l4 + (item->side == HP_INSIDE ? 0 : 2), half->port);
  fix_transport(l4, h, half);
  hp_nat_hop(ip, half->delta_address);
  clean_vnet(packet->data, h);
}

/* TCP beyond the steady path: the flow to go on with, HP_NONE when the packet is dropped. */
static uint32_t track(hp_worker *worker, hp_packet *packet, const hp_item *item, uint32_t number) {
  hp_flow *flow = &worker->flows.flows[number];
  switch (hp_tcp_track(flow, item->side, packet->data, &item->headers)) {
  case HP_TCP_PASS:
    return number;
  case HP_TCP_REFUSE:
    hp_drop_packet(worker, packet, &item->headers, HP_NO_FLOW);
    return HP_NONE;
  case HP_TCP_REOPEN:
    return hp_reopen(worker, packet, item, number);
  case HP_TCP_CHANGED:
    break;
  }
  hp_half *half = &flow->half[item->side];
  half->last_seen = (uint32_t)worker->now;
  hp_flow_due(&worker->flows, number, hp_flow_latest(worker->engine->links, flow, worker->now));
  return number;
}

static void clamp(hp_worker *worker, hp_packet *packet, const hp_item *item, const hp_link *out) {
  uint32_t in_mtu = worker->engine->links[packet->link].mtu;
  uint32_t mtu = in_mtu < out->mtu ? in_mtu : out->mtu;
  uint32_t mss = mtu - HP_IPV4_HEADER - HP_TCP_HEADER;
  hp_clamp_mss(packet->data, &item->headers, (uint16_t)(mss > 0xffff ? 0xffff : mss));
}

static void forward(hp_worker *worker, hp_packet *packet, const hp_item *item, uint32_t number) {
  hp_half *half = &worker->flows.flows[number].half[item->side];
  const hp_headers *h = &item->headers;
  const hp_link *out = &worker->engine->links[half->out_link];
  if (!hp_nat_may_leave(worker, packet, item, out))
    return;
  if (h->protocol == HP_TCP) {
    if (h->tcp_flags & (HP_SYN | HP_FIN | HP_RST) || half->flags & HP_ATTENTION) {
      number = track(worker, packet, item, number);
      if (number == HP_NONE)
        return;
      half = &worker->flows.flows[number].half[item->side];
    }
    hp_tcp_acknowledged(half, packet->data + HP_VNET_HEADER + h->header, h->tcp_flags);
    if (h->tcp_flags & HP_SYN)
      clamp(worker, packet, item, out);
  }
  rewrite(packet, item, half);
  half->last_seen = (uint32_t)worker->now;
  half->packets += h->segments;
  half->bytes += h->total;
  hp_nat_leave(worker, packet, h, half->out_link);
}

/* A steady packet of a flow that is there and open. False: it is not, and nothing has been done. */
static inline bool forward_steady(const hp_flow_table *flows, const hp_engine *engine, hp_link_stats *stats,
                                  uint32_t now, hp_packet *packet, const hp_item *item) {
  hp_half *half = item->near;
  if (!half || !hp_key_equal(&half->key, &item->key))
    half = find_half(flows, item);
  if (!half)
    return false;
  const uint32_t gate = hp_gate(engine, half->out_link);
  uint8_t *ip = packet->data + HP_VNET_HEADER;
  const uint32_t total = item->headers.total;
  if (!gate || ip[8] <= 1 || total > (gate & 0xffff) || half->flags & HP_ATTENTION)
    return false;
  const uint32_t tcp = (uint8_t)item->key.link == HP_TCP;
  if (tcp)
    hp_tcp_acknowledged(half, ip + HP_IPV4_HEADER, ip[HP_IPV4_HEADER + 13]);
  half->last_seen = now;
  half->packets++;
  half->bytes += total;
  stats[half->out_link].packets_out++;
  stats[half->out_link].bytes_out += total;
  packet->link = half->out_link;
  packet->verdict = HP_FORWARD;
  packet->reason = HP_REASON_NONE;
  hp_steady_rewrite(packet->data, tcp, item->side, half->address, half->port, half->delta_address, half->delta_full);
  return true;
}

__attribute__((noinline)) static void translate(hp_worker *worker, hp_packet *packet, hp_item *item) {
  if (item->lookup == HP_LOOKUP_STEADY) { /* from here on as all others: this finds no fault */
    hp_parse(packet->data, packet->length, &item->headers);
    packet->verdict = HP_DROP;
    packet->reason = HP_REASON_NONE;
  }
  if (!item->lookup) {
    if (packet->reason == HP_REASON_NONE)
      hp_icmp_error(worker, packet, item);
    return;
  }
  uint32_t number = hp_flow_find(&worker->flows, item->side, &item->key, item->hash);
  if (number == HP_NONE && item->side == HP_OUTSIDE) {
    if (worker->workers == 1 || !hp_hand_over(worker, packet, &item->headers))
      hp_drop_packet(worker, packet, &item->headers, HP_NO_FLOW);
    return;
  }
  if (number == HP_NONE)
    number = hp_admit(worker, packet, item);
  if (number != HP_NONE)
    forward(worker, packet, item, number);
}

/* ---- the stages: functions of their own, so that each has the registers to itself ---- */

__attribute__((noinline)) static void classify_all(hp_worker *worker, hp_packet *packets, uint32_t count) {
  const hp_engine *engine = worker->engine;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t link = packets[i].link;
    if (!classify_steady(&worker->flows, hp_gate(engine, link), &worker->stats[link], &packets[i], &worker->items[i]))
      classify(worker, &packets[i], &worker->items[i]);
  }
}

__attribute__((noinline)) static void probe_all(hp_worker *worker, const hp_packet *packets, uint32_t count) {
  for (uint32_t i = 0; i < count; i++)
    if (worker->items[i].lookup)
      probe(worker, &packets[i], &worker->items[i]);
}

__attribute__((noinline)) static void translate_all(hp_worker *worker, hp_packet *packets, uint32_t count) {
  const hp_engine *engine = worker->engine;
  uint32_t now = (uint32_t)worker->now;
  for (uint32_t i = 0; i < count; i++) {
    hp_item *item = &worker->items[i];
    if (item->lookup != HP_LOOKUP_STEADY ||
        !forward_steady(&worker->flows, engine, worker->stats, now, &packets[i], item))
      translate(worker, &packets[i], item);
  }
}

void hp_nat_batch(hp_worker *worker, hp_packet *packets, uint32_t count) {
  classify_all(worker, packets, count);
  probe_all(worker, packets, count);
  translate_all(worker, packets, count);
}
