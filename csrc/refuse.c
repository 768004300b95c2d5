/* refuse.c: drops, and what the sender is told about them.
 *
 * Whoever is refused inside learns it at once instead of waiting for a timeout: a TCP sender gets an RST, others ICMP
 * "administratively prohibited" (RFC 5508 REQ-8, RFC 1812 5.2.7.1), those of a protocol that is not translated
 * "protocol unreachable" (RFC 792, RFC 1122 3.2.2.1). The answer is written over the packet in its own buffer and goes
 * back by the link it came from. Each link has a token bucket for answers.
 *
 * What kernels and their daemons say to their own link, for as long as it is there, is no drop: nobody wants it to be
 * delivered elsewhere, and it would hide the packets that somebody does.
 */
#include "nat.h"

enum { DHCP_SERVER = 67 };

/* A record's place is written by one at a time: whoever finds it in another's hands, who has been stopped for as long
 * as the whole ring took, does without. */
static void record(const hp_worker *worker, uint32_t link, uint32_t length, hp_reason reason, const hp_headers *h) {
  uint64_t count = __atomic_add_fetch(&worker->shared->drop_count, 1, __ATOMIC_RELAXED);
  hp_drop *drop = &worker->engine->drops[count & worker->engine->drop_mask];
  uint64_t before = __atomic_load_n(&drop->number, __ATOMIC_RELAXED);
  if (before == HP_DROP_WRITING || before > count ||
      !__atomic_compare_exchange_n(&drop->number, &before, HP_DROP_WRITING, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
    return;
  __atomic_thread_fence(__ATOMIC_RELEASE); /* a reader sees that it is being written */
  drop->time = worker->now;
  drop->link = link;
  drop->source = h->source;
  drop->destination = h->destination;
  drop->source_port = h->protocol == HP_ICMP ? h->icmp_type : h->source_port;
  drop->destination_port = h->destination_port;
  drop->length = (uint16_t)(length > 0xffff ? 0xffff : length);
  drop->protocol = h->protocol;
  drop->reason = (uint8_t)reason;
  __atomic_store_n(&drop->number, count, __ATOMIC_RELEASE);
}

/* Multicast of interface or link scope (RFC 4291 2.7: router and neighbor solicitations, MLD, mDNS, DHCPv6), or
 * fe80::/10.
 */
static bool is_link_local6(const hp_packet *packet) {
  const uint8_t *ip = packet->data + HP_VNET_HEADER, *to = ip + 24;
  if (packet->length < HP_VNET_HEADER + 40 || ip[0] >> 4 != 6)
    return false;
  return (to[0] == 0xff && (to[1] & 15) <= 2) || (to[0] == 0xfe && (to[1] & 0xc0) == 0x80);
}

/* 224.0.0.0/24 (RFC 5771 4: IGMP, mDNS, LLMNR, ICMP router solicitations), and a DHCP client that asks everybody
 * (RFC 2131 4.1). Other broadcasts are somebody's who expects an answer. */
static bool is_link_local4(const hp_headers *h) {
  return h->destination >> 8 == 0xe00000 ||
         (h->destination == 0xffffffff && h->protocol == HP_UDP && h->destination_port == DHCP_SERVER);
}

/* Only what has been found sound as far as was looked. */
static bool is_link_local(const hp_packet *packet, const hp_headers *h, hp_reason reason) {
  switch (reason) {
  case HP_FRAGMENT:
  case HP_UNSUPPORTED_IPV6:
  case HP_UNSUPPORTED_PROTOCOL:
  case HP_UNSUPPORTED_ICMP:
  case HP_SPOOFED_SOURCE:
  case HP_INVALID_DESTINATION:
  case HP_NO_FLOW:
  case HP_LINK_DETACHED:
    return h->protocol ? is_link_local4(h) : is_link_local6(packet);
  default:
    return false;
  }
}

void hp_drop_packet(hp_worker *worker, hp_packet *packet, const hp_headers *headers, hp_reason reason) {
  uint32_t length = packet->length > HP_VNET_HEADER ? packet->length - HP_VNET_HEADER : 0;
  if (is_link_local(packet, headers, reason))
    reason = HP_LINK_LOCAL;
  else
    record(worker, packet->link, length, reason, headers);
  hp_stats(worker, packet->link)->drops[reason]++;
  packet->verdict = HP_DROP;
  packet->reason = (uint16_t)reason;
}

/* One token, a thousand to the answer, refilled by the ms; a second's worth may be saved up. */
static bool may_tell(const hp_worker *worker, uint32_t number) {
  hp_link_stats *link = hp_stats(worker, number);
  uint64_t rate = worker->engine->config.refusal_rate, most = rate * 1000;
  uint64_t tokens = link->tokens + ((uint32_t)worker->now - link->tokens_at) * rate;
  link->tokens_at = (uint32_t)worker->now;
  link->tokens = (uint32_t)(tokens < most ? tokens : most);
  if (link->tokens < 1000)
    return false;
  link->tokens -= 1000;
  return true;
}

static void reply(hp_worker *worker, hp_packet *packet, uint32_t length) {
  if (length == 0)
    return;
  hp_link_stats *link = hp_stats(worker, packet->link);
  packet->length = length;
  packet->verdict = HP_REPLY;
  link->refusals_sent++;
  link->packets_out++;
  link->bytes_out += length - HP_VNET_HEADER;
}

static const hp_link *eni_of(const hp_worker *worker, uint32_t link) {
  const hp_link *links = worker->engine->links;
  return links[link].kind == HP_LINK_TUNNEL ? &links[links[link].eni] : &links[link];
}

void hp_answer_packet(hp_worker *worker, hp_packet *packet, const hp_headers *h, hp_reason reason, uint8_t type,
                      uint8_t code, uint32_t extra) {
  hp_drop_packet(worker, packet, h, reason);
  if (hp_may_answer(h) && may_tell(worker, packet->link))
    reply(worker, packet,
          hp_reply_icmp(packet->data, packet->capacity, h, eni_of(worker, packet->link)->address, type, code, extra));
}

/* An RST is never answered. */
static bool may_reset(const hp_packet *packet, const hp_headers *h) {
  return !(h->tcp_flags & HP_RST) && hp_may_answer(h) && packet->capacity >= HP_SEGMENT;
}

void hp_reset_packet(hp_worker *worker, hp_packet *packet, const hp_headers *h, hp_reason reason) {
  hp_drop_packet(worker, packet, h, reason);
  if (may_reset(packet, h))
    reply(worker, packet, hp_reply_rst(packet->data, h));
}

void hp_refuse_packet(hp_worker *worker, hp_packet *packet, const hp_headers *h, hp_reason reason) {
  if (h->protocol != HP_TCP && !eni_of(worker, packet->link)->silent) {
    hp_answer_packet(worker, packet, h, reason, HP_ICMP_UNREACHABLE, HP_ICMP_ADMIN_PROHIBITED, 0);
    return;
  }
  hp_drop_packet(worker, packet, h, reason);
  if (!eni_of(worker, packet->link)->silent && may_reset(packet, h) && may_tell(worker, packet->link))
    reply(worker, packet, hp_reply_rst(packet->data, h));
}

/* The code of the ICMP "destination unreachable" that tells the sender, or 0. */
static uint8_t unfit_code(hp_reason reason) {
  switch (reason) {
  case HP_UNSUPPORTED_PROTOCOL:
    return HP_ICMP_PROTOCOL_UNREACHABLE;
  case HP_SOURCE_ROUTE:
    return HP_ICMP_SOURCE_ROUTE_FAILED; /* RFC 1812 5.2.7.1 */
  case HP_UNSUPPORTED_ICMP:
  case HP_FRAGMENT:
    return HP_ICMP_ADMIN_PROHIBITED;
  default:
    return 0;
  }
}

/* No later fragment is answered, and of ICMP only what asks (RFC 1122 3.2.2), whose type hp_parse() may not have come
 * to. */
static bool may_tell_unfit(const hp_worker *worker, const hp_packet *packet, const hp_item *item) {
  const hp_headers *h = &item->headers;
  const hp_link *link = &worker->engine->links[packet->link];
  const uint8_t *ip = packet->data + HP_VNET_HEADER;
  if (item->side != HP_INSIDE || h->source != link->address || worker->engine->links[link->eni].silent)
    return false;
  if (hp_get16(ip + 6) & 0x1fff)
    return false;
  return h->protocol != HP_ICMP || (h->total > h->header && hp_icmp_asks(ip[h->header]));
}

void hp_unfit_packet(hp_worker *worker, hp_packet *packet, const hp_item *item, hp_reason reason) {
  uint8_t code = unfit_code(reason);
  if (code && may_tell_unfit(worker, packet, item))
    hp_answer_packet(worker, packet, &item->headers, reason, HP_ICMP_UNREACHABLE, code, 0);
  else
    hp_drop_packet(worker, packet, &item->headers, reason);
}
