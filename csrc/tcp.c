/* tcp.c: see tcp.h for the rules. */
#include "tcp.h"

uint8_t hp_flow_state(const hp_flow *flow) {
  uint8_t protocol = (uint8_t)flow->half[HP_INSIDE].key.link;
  uint8_t inside = flow->half[HP_INSIDE].flags, outside = flow->half[HP_OUTSIDE].flags;
  if (protocol != HP_TCP)
    return HP_STATE_ACTIVE;
  if ((inside | outside) & HP_SEEN_RST)
    return HP_STATE_RESET;
  if (inside & outside & HP_SEEN_FIN)
    return HP_STATE_CLOSING;
  return inside & outside & HP_SEEN_SYN && inside & HP_SEEN_ACK ? HP_STATE_ESTABLISHED : HP_STATE_OPENING;
}

static void note_syn(hp_flow *flow, int side, const uint8_t *data, const hp_headers *h) {
  hp_half *half = &flow->half[side], *other = &flow->half[!side];
  if (side == HP_OUTSIDE &&
      !(half->flags & HP_SEEN_SYN)) /* whatever the inside has acknowledged, it was not this SYN */
    other->flags &= (uint8_t)~HP_SEEN_ACK;
  half->flags |= HP_SEEN_SYN;
  half->scale = hp_window_scale(data, h);
  if (!(other->flags & HP_SEEN_ACK)) /* what the other will acknowledge first */
    other->acknowledged = hp_get32(data + HP_VNET_HEADER + h->header + 4) + 1;
}

void hp_tcp_open(hp_flow *flow, const uint8_t *data, const hp_headers *h) {
  for (int side = 0; side < 2; side++) {
    flow->half[side].flags = 0;
    flow->half[side].scale = 0;
    flow->half[side].acknowledged = 0;
  }
  note_syn(flow, HP_INSIDE, data, h);
}

/* RFC 5961 3.2, with the largest window that the receiver can have announced. A receiver that has
 * acknowledged nothing yet is still opening: its own check of the RST's ACK number protects it. */
static bool rst_in_window(const hp_half *receiver, const uint8_t *segment) {
  if (!(receiver->flags & HP_SEEN_ACK))
    return true;
  uint32_t sequence = hp_get32(segment + 4);
  return sequence - receiver->acknowledged <= 0xffffu << receiver->scale;
}

hp_tcp_verdict hp_tcp_track(hp_flow *flow, int side, const uint8_t *data, const hp_headers *h) {
  hp_half *half = &flow->half[side], *other = &flow->half[!side];
  const uint8_t *segment = data + HP_VNET_HEADER + h->header;
  bool ended = (half->flags & HP_ATTENTION) != 0;
  if (h->tcp_flags & HP_RST) {
    if (!rst_in_window(other, segment))
      return HP_TCP_PASS;
    half->flags |= HP_SEEN_RST;
  } else if (h->tcp_flags & HP_SYN) {
    if (ended && !(h->tcp_flags & HP_ACK))
      return side == HP_INSIDE ? HP_TCP_REOPEN : HP_TCP_REFUSE;
    if (!ended)
      note_syn(flow, side, data, h);
    return HP_TCP_CHANGED;
  } else if (h->tcp_flags & HP_FIN) {
    half->flags |= HP_SEEN_FIN;
  }
  if (ended || hp_flow_state(flow) < HP_STATE_CLOSING)
    return HP_TCP_PASS;
  half->flags |= HP_ATTENTION;
  other->flags |= HP_ATTENTION;
  return HP_TCP_CHANGED;
}
