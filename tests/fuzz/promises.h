/* promises.h: what the engine promises of every packet that it has translated. */
#ifndef PROMISES_H
#define PROMISES_H

#include "../unit/c/packets.h"

typedef struct sent {
  uint8_t *original; /* the packet before its translation */
  uint32_t length, link;
} sent;

/* What a receiver's sum over the segment gives: a right checksum stays right, and a wrong one is not repaired. */
static inline uint32_t residue(const uint8_t *data) {
  const uint8_t *ip = data + VNET, *l4 = ip + (ip[0] & 15u) * 4;
  uint32_t length = hp_get16(ip + 2) - (uint32_t)(l4 - ip);
  return plain_sum(l4, length, ip[9] == HP_ICMP ? 0 : pseudo_sum(ip, length)) % 0xffff;
}

static inline void check_checksums(const uint8_t *before, const uint8_t *after, const hp_headers *h) {
  const uint8_t *l4 = after + VNET + h->header;
  HOLD(ip_checksum_right(after + VNET));
  if (h->icmp_error) {
    HOLD(transport_checksum_right(after));
  } else if (h->partial) {
    HOLD(transport_checksum_right(before) == transport_checksum_right(after));
  } else if (h->protocol == HP_UDP && hp_get16(before + VNET + h->header + 6) == 0) {
    HOLD(hp_get16(l4 + 6) == 0);
  } else {
    HOLD(residue(before) == residue(after));
    HOLD(h->protocol != HP_UDP || hp_get16(l4 + 6) != 0);
  }
}

/* The packet is one of a live flow, as its receiver sees it. */
static inline void check_belongs(const hp_engine *engine, const hp_packet *p, const sent *s, const hp_headers *h) {
  bool outwards = engine->links[s->link].kind == HP_LINK_TUNNEL;
  uint32_t tunnel = outwards ? s->link : p->link;
  const hp_flow_table *table = &engine->workers[engine->links[tunnel].worker].flows;
  uint16_t remote = outwards ? h->destination_port : h->source_port, own = outwards ? h->source_port : 0;
  if (h->protocol != HP_ICMP && !outwards)
    own = h->destination_port;
  if (h->protocol == HP_ICMP) {
    own = h->source_port;
    remote = 0;
  }
  hp_key key = {.link = p->link << 8 | h->protocol};
  key.source = outwards ? h->destination : h->source;
  key.destination = outwards ? h->source : h->destination;
  key.ports = (uint32_t)remote << 16 | own;
  if (!outwards) { /* its answer would come from inside */
    uint32_t turn = key.source;
    key.source = key.destination;
    key.destination = turn;
    key.ports = (uint32_t)own << 16 | remote;
  }
  int side = outwards ? HP_OUTSIDE : HP_INSIDE;
  HOLD(hp_flow_find(table, side, &key, hp_key_hash(table, &key)) != HP_NONE);
  HOLD(!outwards || own >= HP_PORT_FIRST);
}

static inline void check_forwarded(const hp_engine *engine, const hp_packet *p, const sent *s) {
  const hp_link *in = &engine->links[s->link], *out = &engine->links[p->link];
  hp_headers before, after;
  HOLD(p->reason == HP_REASON_NONE && !in->draining && !out->draining);
  HOLD(in->drain != HP_DRAIN_RESET && out->drain != HP_DRAIN_RESET);
  HOLD(hp_parse(s->original, s->length, &before) == HP_REASON_NONE);
  HOLD(hp_parse(p->data, p->length, &after) == HP_REASON_NONE);
  HOLD(p->length == VNET + (uint32_t)before.total && after.total == before.total && after.ttl == before.ttl - 1);
  HOLD(after.segments == before.segments && after.partial == before.partial && after.tcp_flags == before.tcp_flags);
  HOLD(out->mtu >= after.segment || (p->data[VNET + 6] & 0x40) == 0);
  check_checksums(s->original, p->data, &after);
  if (in->kind == HP_LINK_TUNNEL) {
    HOLD(in->eni == p->link && before.source == in->address && after.destination == before.destination);
  } else {
    HOLD(out->kind == HP_LINK_TUNNEL && out->eni == s->link && after.destination == out->address);
    HOLD(after.source == before.source);
  }
  HOLD(!shows_addresses(p->data + VNET));
  if (after.icmp_error) {
    hp_quoted quoted;
    HOLD(hp_parse_quoted(p->data, &after, &quoted) == HP_REASON_NONE && !shows_addresses(quoted.ip));
    return;
  }
  HOLD(before.destination_port == after.destination_port || in->kind == HP_LINK_ENI);
  uint32_t payload = VNET + (uint32_t)after.header + after.transport;
  HOLD(memcmp(s->original + payload, p->data + payload, after.payload) == 0);
  check_belongs(engine, p, s, &after);
}

/* What is not translated is told to an environment, when it is its own packet and no later fragment: with the code of
 * "destination unreachable". 0: about that nothing is told. */
static inline uint8_t code_about(const hp_engine *engine, const sent *s, const hp_headers *asked, hp_reason reason) {
  const hp_link *link = &engine->links[s->link];
  const uint8_t *ip = s->original + VNET;
  if (link->kind != HP_LINK_TUNNEL || asked->source != link->address || engine->links[link->eni].silent ||
      (hp_get16(ip + 6) & 0x1fff))
    return 0;
  if (asked->protocol == HP_ICMP && !memchr((const uint8_t[]){8, 13, 15, 17, 42}, ip[asked->header], 5))
    return 0;
  return reason == HP_UNSUPPORTED_PROTOCOL                        ? 2
         : reason == HP_SOURCE_ROUTE                              ? 5
         : reason == HP_UNSUPPORTED_ICMP || reason == HP_FRAGMENT ? 13
                                                                  : 0;
}

/* RFC 1122 3.2.2: to whom it may concern, never about an error, and small. */
static inline void check_reply(const hp_engine *engine, const hp_packet *p, const sent *s) {
  hp_headers asked, answer;
  hp_reason reason = hp_parse(s->original, s->length, &asked);
  HOLD(hp_parse(p->data, p->length, &answer) == HP_REASON_NONE);
  if (reason != HP_REASON_NONE) {
    const uint8_t *icmp = p->data + VNET + 20;
    HOLD(p->reason == reason && answer.protocol == HP_ICMP && icmp[0] == HP_ICMP_UNREACHABLE);
    HOLD(icmp[1] != 0 && icmp[1] == code_about(engine, s, &asked, reason));
  }
  HOLD(p->link == s->link && answer.destination == asked.source && !asked.icmp_error);
  HOLD(ip_checksum_right(p->data + VNET) && transport_checksum_right(p->data));
  HOLD(p->length == VNET + (uint32_t)answer.total && answer.total <= 576);
  if (answer.protocol == HP_TCP)
    HOLD((answer.tcp_flags & HP_RST) && !(asked.tcp_flags & HP_RST) && answer.source == asked.destination);
  else
    HOLD(memcmp(p->data + VNET + 28, s->original + VNET, answer.payload) == 0);
}

static inline void check_packet(const hp_engine *engine, const hp_packet *p, const sent *s) {
  HOLD(p->length <= p->capacity && p->verdict <= HP_REPLY && p->reason < HP_REASON_COUNT);
  HOLD((p->verdict == HP_FORWARD) == (p->reason == HP_REASON_NONE));
  if (p->verdict == HP_FORWARD)
    check_forwarded(engine, p, s);
  if (p->verdict == HP_REPLY)
    check_reply(engine, p, s);
}

#endif
