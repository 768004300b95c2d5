/* icmp.c: ICMP errors, in both directions (RFC 5508 REQ-3 to REQ-5, RFC 5382 REQ-9).
 *
 * An error quotes the packet that caused it. That packet was sent by a flow, so turning the quote's
 * addresses and ports around gives the key of that flow's other direction. The quote is translated back
 * to what its sender had sent, with its checksums, then the outer header; options that carry addresses are blanked in
 * both. Errors refresh no timer and end no flow (RFC 4787 REQ-12, RFC 5382 REQ-10).
 */
#include "handover.h"

/* The key under which answers to the quoted packet arrive at `side`. */
static hp_key key_of_quote(const hp_quoted *q, int side, uint32_t link) {
  uint16_t source = q->destination_port, destination = q->source_port;
  if (q->protocol == HP_ICMP && side == HP_INSIDE) {
    source = q->source_port; /* an echo id stands for the inside's port */
    destination = 0;
  }
  return (hp_key){.link = link << 8 | q->protocol,
                  .source = q->destination,
                  .destination = q->source,
                  .ports = (uint32_t)source << 16 | destination};
}

/* Translates the quoted packet: from outside its source, from inside its destination. */
static void rewrite_quote(const hp_quoted *q, const hp_half *half, int side) {
  hp_blank_options(q->ip);
  hp_put32(q->ip + (side == HP_OUTSIDE ? 12 : 16), half->address);
  hp_checksum_apply(q->ip + 10, half->delta_address);
  if (q->protocol == HP_ICMP) {
    hp_put16(q->transport + 4, half->port);
    hp_checksum_apply(q->transport + 2, half->delta_full);
    return;
  }
  hp_put16(q->transport + (side == HP_OUTSIDE ? 0 : 2), half->port);
  uint32_t at = hp_checksum_offset(q->protocol);
  if (at + 2 <= q->available)
    hp_checksum_translate(q->transport + at, q->protocol, half->delta_full);
}

void hp_icmp_error(hp_worker *worker, hp_packet *packet, const hp_item *item) {
  hp_engine *engine = worker->engine;
  const hp_headers *h = &item->headers;
  hp_quoted quoted;
  if (item->side == HP_INSIDE && h->source != engine->links[packet->link].address) {
    hp_drop_packet(worker, packet, h, HP_SPOOFED_SOURCE);
    return;
  }
  hp_reason reason = hp_parse_quoted(packet->data, h, &quoted);
  if (reason != HP_REASON_NONE) {
    hp_drop_packet(worker, packet, h, reason);
    return;
  }
  hp_key key = key_of_quote(&quoted, item->side, packet->link);
  uint32_t number = hp_flow_find(&worker->flows, item->side, &key, hp_key_hash(&worker->flows, &key));
  /* An environment answers whoever sent the quoted packet; to anybody else this would be a way round the
   * security groups. From outside any router on the path may speak. */
  bool stray = item->side == HP_INSIDE && h->destination != quoted.source;
  if (number == HP_NONE && item->side == HP_OUTSIDE && worker->workers > 1 && hp_hand_over(worker, packet, h))
    return;
  if (number == HP_NONE || stray) {
    hp_drop_packet(worker, packet, h, HP_ICMP_NO_FLOW);
    return;
  }
  const hp_half *half = &worker->flows.flows[number].half[item->side];
  if (!hp_nat_may_leave(worker, packet, item, &engine->links[half->out_link]))
    return;
  uint8_t *ip = packet->data + HP_VNET_HEADER, *icmp = ip + h->header;
  uint8_t *outer = ip + (item->side == HP_INSIDE ? 12 : 16);
  uint16_t delta = hp_delta32(hp_get32(outer), half->address);
  rewrite_quote(&quoted, half, item->side);
  hp_put16(icmp + 2, 0);
  hp_put16(icmp + 2, (uint16_t)~hp_fold(hp_sum(icmp, (size_t)h->total - h->header)));
  hp_blank_options(ip);
  hp_put32(outer, half->address);
  hp_nat_hop(ip, delta);
  memset(packet->data, 0, HP_VNET_HEADER);
  hp_nat_leave(worker, packet, h, half->out_link);
}
