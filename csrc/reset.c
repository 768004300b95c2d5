/* reset.c: draining a tunnel.
 *
 * A tunnel that is drained takes no new flow: admit.c asks. When its flows are to be reset, its packets are dropped
 * from then on, in both directions, and the sweep (expire.c) comes here with each of its flows:
 *
 *   TCP, not over   both sides get an RST, and the flow stays for HP_RESET_GRACE
 *   told before     ends when the grace is over
 *   anything else   ends: UDP and ICMP know no end, and a connection whose FINs or RST have passed needs none. An
 *                   RST would take the TIME_WAIT of such a one away (RFC 1337).
 *
 * A receiver believes an RST when its number is exactly the one that it expects next (RFC 5961 3.2). That is the
 * highest acknowledgment number that it has sent, unless it has received something since and not yet said so. Then
 * it answers with a challenge ACK, which holds the number. For this the flow stays a while: a segment that arrives
 * for it is answered with the RST that it asks for.
 */
#include "reset.h"

#include <errno.h>

#include "tcp.h"

/* ---- the command ---- */

struct drain {
  uint32_t link;
  uint8_t how;
};

/* In the tunnel's worker. */
static int begin_drain(hp_worker *worker, void *arguments, hp_error *error) {
  (void)error;
  const struct drain *drain = arguments;
  hp_link *link = &worker->engine->links[drain->link];
  link->drain = drain->how;
  hp_gate_set(worker->engine, drain->link);
  if (link->drain == HP_DRAIN_RESET && hp_stats(worker, drain->link)->flows)
    worker->resetting++;
  return 0;
}

static int drain_link(hp_engine *engine, void *arguments, hp_error *error) {
  const struct drain *drain = arguments;
  uint32_t number = drain->link;
  if (number == 0 || number >= engine->links_used || engine->links[number].kind != HP_LINK_TUNNEL ||
      engine->links[number].draining)
    return hp_fail(error, ENOENT, "link %u is no tunnel", number);
  const hp_link *link = &engine->links[number];
  if (link->drain >= drain->how)
    return 0;
  return hp_worker_run(&engine->workers[link->worker], begin_drain, arguments, error);
}

int hp_link_drain(hp_engine *engine, uint32_t link, uint32_t how, hp_error *error) {
  if (how != HP_DRAIN_CLOSE && how != HP_DRAIN_RESET)
    return hp_fail(error, EINVAL, "drain is %u; it must be HP_DRAIN_CLOSE or HP_DRAIN_RESET", how);
  return hp_engine_run(engine, drain_link, &(struct drain){.link = link, .how = (uint8_t)how}, error);
}

void hp_resets_recount(hp_engine *engine) {
  for (uint32_t i = 0; i < engine->config.workers; i++)
    engine->workers[i].resetting = 0;
  for (uint32_t number = 1; number < engine->links_used; number++) {
    const hp_link *link = &engine->links[number];
    hp_worker *worker = &engine->workers[link->worker];
    worker->resetting += link->drain == HP_DRAIN_RESET && hp_stats(worker, number)->flows;
  }
}

/* ---- telling ---- */

/* What is expected next by one side is what the other may send: the highest number that this side has acknowledged
 * or, before its first ACK, what follows the other's SYN (tcp.c notes it). A side whose SYN has passed and no ACK may
 * be in SYN-SENT, where an RST counts when it acknowledges that SYN (RFC 9293 3.10.7.3), and with the sequence number
 * that it would expect if the SYN|ACK has reached it meanwhile, also in ESTABLISHED. A side from which nothing has
 * come is in SYN-RECEIVED and expects what follows the SYN, or has no connection and ignores it. */
static uint32_t write_rst(uint8_t *data, const hp_flow *flow, int to) {
  const hp_half *half = &flow->half[to], *from = &flow->half[!to];
  bool opening = (half->flags & (HP_SEEN_SYN | HP_SEEN_ACK)) == HP_SEEN_SYN;
  hp_segment rst = {.sequence = half->acknowledged,
                    .acknowledgment = opening ? from->acknowledged : 0,
                    .flags = opening ? HP_RST | HP_ACK : HP_RST};
  /* It goes as a packet from the other side would go, translated. */
  rst.source = to == HP_OUTSIDE ? from->address : from->key.source;
  rst.destination = to == HP_OUTSIDE ? from->key.destination : from->address;
  rst.source_port = to == HP_OUTSIDE ? from->port : (uint16_t)(from->key.ports >> 16);
  rst.destination_port = to == HP_OUTSIDE ? (uint16_t)from->key.ports : from->port;
  return hp_write_segment(data, &rst);
}

static void tell(hp_worker *worker, const hp_flow *flow, int to) {
  uint32_t number = flow->half[!to].out_link;
  const hp_link *link = &worker->engine->links[number];
  if (link->kind == HP_LINK_FREE || hp_link_draining(link)) /* removed meanwhile: its device is somebody else's now */
    return;
  uint8_t data[HP_SEGMENT];
  uint32_t length = write_rst(data, flow, to);
  hp_link_stats *stats = hp_stats(worker, number);
  stats->packets_out++;
  stats->bytes_out += length - HP_VNET_HEADER;
  if (worker->io)
    worker->io_ops->inject(worker->io, number, data, length);
}

bool hp_reset_flow(hp_worker *worker, uint32_t number) {
  hp_flow *flow = &worker->flows.flows[number];
  if (flow->half[HP_INSIDE].flags & HP_TOLD)
    return (int32_t)((uint32_t)worker->now - worker->flows.cold[number].deadline) >= 0;
  uint8_t state = hp_flow_state(flow);
  if (state != HP_STATE_OPENING && state != HP_STATE_ESTABLISHED)
    return true;
  tell(worker, flow, HP_OUTSIDE);
  tell(worker, flow, HP_INSIDE);
  worker->resets++;
  flow->half[HP_INSIDE].flags |= HP_TOLD;
  hp_flow_due(&worker->flows, number, (uint32_t)worker->now + HP_RESET_GRACE);
  return false;
}

bool hp_resets_used_up(const hp_worker *worker) { return worker->io && worker->resets >= HP_RESET_FLOWS; }

/* ---- packets that arrive meanwhile ---- */

void hp_detached_packet(hp_worker *worker, hp_packet *packet, const hp_item *item, const hp_link *link) {
  const hp_headers *h = &item->headers;
  bool resetting = link->kind == HP_LINK_TUNNEL && !hp_link_draining(link) && link->drain == HP_DRAIN_RESET;
  bool inside = item->side == HP_INSIDE, spoofed = inside && h->source != link->address;
  if (resetting && !spoofed && h->protocol == HP_TCP &&
      hp_stats(worker, (uint32_t)(link - worker->engine->links))->flows)
    hp_reset_packet(worker, packet, h, HP_LINK_DETACHED); /* not counted against the rate: there is an end to it */
  else if (resetting && !spoofed && inside)
    hp_refuse_packet(worker, packet, h, HP_LINK_DETACHED);
  else
    hp_drop_packet(worker, packet, h, HP_LINK_DETACHED);
}
