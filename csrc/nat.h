/* nat.h: the packet's way: classify, look up, admit, create, rewrite, verdict.
 *
 *   nat.c     a batch, its stages, the rewrite
 *   admit.c   a packet from inside without a flow: may it have one, and which port
 *   refuse.c  drops, and what the sender is told
 *   icmp.c    ICMP errors, about packets that flows have sent
 *   expire.c  what ends a flow
 *   reset.c   the end of a tunnel and its flows
 */
#ifndef HP_NAT_H
#define HP_NAT_H

#include "engine.h"

/* Translates up to HP_BATCH packets in place and sets their verdicts. worker->now is the time. */
void hp_nat_batch(hp_worker *worker, hp_packet *packets, uint32_t count);
/* TTL and MTU of the next link (RFC 1812 5.3.1, RFC 1191); false: it is dropped and answered. */
bool hp_nat_may_leave(hp_worker *worker, hp_packet *packet, const hp_item *item, const hp_link *out);
/* Counts a packet as leaving by a link and sets its verdict. */
void hp_nat_leave(hp_worker *worker, hp_packet *packet, const hp_headers *headers, uint32_t link);
/* Decrements the TTL; the header's checksum changes by that and by `delta`. */
void hp_nat_hop(uint8_t *ip, uint16_t delta);

/* ---- admit.c ---- */
/* A packet from inside seems to be the first of a flow: draws a port for it, and has memory fetched that hp_admit()
 * will want. Nothing comes of it when there is a flow after all. */
void hp_admit_expect(hp_worker *worker, const hp_packet *packet, hp_item *item);
/* The new flow of a packet from inside, or HP_NONE: then it is dropped and the sender told. */
uint32_t hp_admit(hp_worker *worker, hp_packet *packet, const hp_item *item);
/* A flow for a packet from inside with an outside key that is given, and nobody else's; HP_NONE when the table is
 * full. */
uint32_t hp_flow_open(hp_worker *worker, const hp_packet *packet, const hp_item *item, const hp_key *outside);
/* A SYN over a flow that is closing or reset: ends that and makes a new one with the same ports (RFC 6191),
 * or HP_NONE: then it is dropped and the sender told. */
uint32_t hp_reopen(hp_worker *worker, hp_packet *packet, const hp_item *item, uint32_t number);

/* ---- refuse.c ---- */
/* Counts the drop and writes its record. What is for its own link only is counted as HP_LINK_LOCAL instead, whatever
 * else is wrong with it, and has no record. */
void hp_drop_packet(hp_worker *worker, hp_packet *packet, const hp_headers *headers, hp_reason reason);
/* The same, and tells the sender (RST, or ICMP administratively prohibited) unless the ENI is silent or
 * its rate is used up. */
void hp_refuse_packet(hp_worker *worker, hp_packet *packet, const hp_headers *headers, hp_reason reason);
/* The same with an RST, whatever the rate: only for TCP. */
void hp_reset_packet(hp_worker *worker, hp_packet *packet, const hp_headers *headers, hp_reason reason);
/* The same with an ICMP error, from the ENI's address; not subject to "silent". */
void hp_answer_packet(hp_worker *worker, hp_packet *packet, const hp_headers *headers, hp_reason reason, uint8_t type,
                      uint8_t code, uint32_t extra);

/* The same for what hp_parse() turned away, or for an echo that runs backwards. From inside, what is sound and not
 * translated is told to its sender as other refusals are. */
void hp_unfit_packet(hp_worker *worker, hp_packet *packet, const hp_item *item, hp_reason reason);

/* ---- icmp.c ---- */
void hp_icmp_error(hp_worker *worker, hp_packet *packet, const hp_item *item);

/* ---- expire.c ---- */
/* Ends a flow: indices, mapping, port, counts. */
void hp_flow_end(hp_worker *worker, uint32_t number);
/* How long a flow in its present state may be idle, ms. */
uint32_t hp_flow_timeout(const hp_link *links, const hp_flow *flow);
/* When the sweep has to look at a flow at the latest, low 32 bits of ms: when it ends if nothing more is seen. Any
 * segment may establish an opening connection, which moves no deadline, and whose timer may then be the shorter one. */
uint32_t hp_flow_latest(const hp_link *links, const hp_flow *flow, uint64_t now);
/* When a flow was last refreshed, low 32 bits of ms. */
uint32_t hp_flow_refreshed(const hp_flow *flow, uint64_t now);
/* Looks at `budget` flow numbers at most, one pass at most; ends those that are idle or whose link is
 * gone. Returns how many ended. */
uint32_t hp_expire(hp_worker *worker, uint32_t budget);
/* The part of a pass that is due in this turn of the loop. */
void hp_expire_turn(hp_worker *worker);
/* Sets the worker's time. A flow keeps 32 bits of it: when the clock has jumped by more than those can tell
 * (the host was suspended for weeks), every flow is idle for longer than any timer and ends: at once, or in the turns
 * that follow when the worker runs. */
void hp_clock_set(hp_worker *worker, uint64_t now);

#endif
