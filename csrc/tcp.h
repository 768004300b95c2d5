/* tcp.h: the state of a TCP flow as a NAT sees it (RFC 5382, RFC 7857 2, RFC 6146 3.5.2).
 *
 * There is no state variable: each half keeps what its direction has sent (SYN, FIN, RST), and the state
 * is read off both:
 *
 *   RST valid from either       reset        closing timer
 *   FIN from both               closing      closing timer
 *   SYN from both, and an ACK
 *   from inside after them      established  established timer; a half-close changes nothing
 *   anything less               opening      transitory timer
 *
 * A SYN|ACK alone establishes nothing: whoever scans with raw sockets answers none (RFC 5382 REQ-5: partially open
 * connections have the transitory timer). The ACK that does is an ordinary segment of the steady path, which notes it
 * in its half anyhow and moves no deadline: see hp_flow_latest().
 *
 * A SYN from inside reopens a closing or reset flow with the same port (RFC 6191: the peer decides by
 * sequence number or timestamp). An RST counts only when its sequence number lies in the window that the
 * other side has announced (RFC 5961 3.2); others are passed on and change nothing.
 */
#ifndef HP_TCP_H
#define HP_TCP_H

#include "flow.h"
#include "packet.h"

typedef enum hp_tcp_verdict {
  HP_TCP_PASS,    /* forward */
  HP_TCP_CHANGED, /* forward; the state may have a shorter timer now */
  HP_TCP_REOPEN,  /* a new connection over an ended one: a new flow */
  HP_TCP_REFUSE   /* from outside, a SYN for an ended flow: there is no way in */
} hp_tcp_verdict;

/* A segment with SYN, FIN or RST, or any segment of a half marked HP_ATTENTION. */
hp_tcp_verdict hp_tcp_track(hp_flow *flow, int side, const uint8_t *data, const hp_headers *headers);
/* A new flow's beginning: nothing seen but this SYN. */
void hp_tcp_open(hp_flow *flow, const uint8_t *data, const hp_headers *headers);
/* HP_STATE_* of any flow. */
uint8_t hp_flow_state(const hp_flow *flow);

/* Every segment: the highest acknowledgment number that this direction has sent. */
static inline void hp_tcp_acknowledged(hp_half *half, const uint8_t *segment, uint8_t flags) {
  if (!(flags & HP_ACK))
    return;
  uint32_t number = hp_get32(segment + 8);
  if (!(half->flags & HP_SEEN_ACK) || (int32_t)(number - half->acknowledged) > 0) {
    half->acknowledged = number;
    half->flags |= HP_SEEN_ACK;
  }
}

#endif
