/* expire.c: what ends a flow: its idle timer, or the end of a link that it uses.
 *
 * A sweep goes round the flow numbers, a little in every turn of the loop, once a second or so in all. It
 * reads one 32-bit deadline per flow, in a row; a flow is looked at only when that has passed. Traffic does
 * not move the deadline: the sweep finds the flow refreshed then and sets the next one.
 */
#include "nat.h"

#include "reset.h"
#include "slices.h"
#include "tcp.h"

enum { LONGEST_TIMER = INT32_MAX / 2 /* ms; engine.c accepts no longer one */ };

HP_LOOKS_ON static uint32_t timer(const uint32_t *timer) { return __atomic_load_n(timer, __ATOMIC_RELAXED); }

uint32_t hp_flow_timeout(const hp_link *links, const hp_flow *flow) {
  const hp_half *half = &flow->half[HP_INSIDE];
  const hp_timers *timers = &links[half->out_link].timers;
  switch ((uint8_t)half->key.link) {
  case HP_ICMP:
    return timer(&timers->icmp);
  case HP_UDP:
    return timer((half->key.ports & 0xffff) == HP_DNS_PORT ? &timers->dns : &timers->udp);
  default:
    break;
  }
  switch (hp_flow_state(flow)) {
  case HP_STATE_OPENING:
    return timer(&timers->tcp_transitory);
  case HP_STATE_ESTABLISHED:
    return timer(&timers->tcp_established);
  default:
    return timer(&timers->tcp_closing);
  }
}

uint32_t hp_flow_refreshed(const hp_flow *flow, uint64_t now) {
  uint32_t inside = flow->half[HP_INSIDE].last_seen, outside = flow->half[HP_OUTSIDE].last_seen;
  if ((uint8_t)flow->half[HP_INSIDE].key.link == HP_UDP)
    return inside; /* RFC 4787 REQ-6: an outsider cannot keep a mapping alive */
  /* By age: one side may have been silent for so long that it seems to lie ahead of the other. */
  return (uint32_t)now - outside < (uint32_t)now - inside ? outside : inside;
}

void hp_flow_end(hp_worker *worker, uint32_t number) {
  const hp_flow *flow = &worker->flows.flows[number];
  hp_key outside = flow->half[HP_OUTSIDE].key;
  uint32_t mapping = flow->half[HP_OUTSIDE].sequence, link = flow->half[HP_OUTSIDE].out_link;
  hp_link_stats *tunnel = hp_stats(worker, link), *eni = hp_stats(worker, flow->half[HP_INSIDE].out_link);
  worker->resetting -= worker->engine->links[link].drain == HP_DRAIN_RESET && tunnel->flows == 1;
  hp_flow_remove(&worker->flows, number);
  hp_mapping ended;
  if (mapping != HP_NONE && hp_mapping_drop(&worker->mappings, mapping, &ended)) {
    int kind = (uint8_t)ended.link == HP_ICMP ? HP_PORTS_ICMP : HP_PORTS_UDP;
    hp_port_give(&worker->ports, ended.address, kind, ended.outside_port, worker->now);
  }
  hp_port_ended(&worker->ports, &worker->flows, &outside);
  if (worker->workers > 1)
    hp_slices_count(worker, &outside, -1);
  tunnel->flows--;
  tunnel->flows_ended++;
  eni->flows--;
  eni->flows_ended++;
}

/* 32 bits of ms reach back for 49 days. A side that has been silent for longer would look new: it is moved up. */
static void keep_in_reach(hp_half *half, uint64_t now) {
  if ((uint32_t)now - half->last_seen > LONGEST_TIMER)
    half->last_seen = (uint32_t)now - LONGEST_TIMER;
}

/* Whether a flow that is due has really ended; sets its next deadline when not. */
static bool is_over(hp_worker *worker, uint32_t number) {
  const hp_link *links = worker->engine->links;
  hp_flow *flow = &worker->flows.flows[number];
  if (!hp_flow_live(flow))
    return false;
  const hp_link *tunnel = &links[flow->half[HP_OUTSIDE].out_link], *eni = &links[flow->half[HP_INSIDE].out_link];
  if (tunnel->drain == HP_DRAIN_RESET)
    return hp_reset_flow(worker, number) || hp_link_draining(tunnel) || hp_link_draining(eni);
  if (hp_link_draining(tunnel) || hp_link_draining(eni))
    return true;
  keep_in_reach(&flow->half[HP_INSIDE], worker->now);
  keep_in_reach(&flow->half[HP_OUTSIDE], worker->now);
  uint32_t deadline = hp_flow_refreshed(flow, worker->now) + hp_flow_timeout(links, flow);
  worker->flows.cold[number].deadline = deadline;
  return (int32_t)((uint32_t)worker->now - deadline) >= 0;
}

uint32_t hp_expire(hp_worker *worker, uint32_t budget) {
  uint32_t used = worker->flows.control->used, ended = 0;
  bool all = worker->leaving_count || worker->resetting;
  for (; budget && worker->cursor < used && !hp_resets_used_up(worker); budget--) {
    uint32_t number = worker->cursor++;
    bool due = (int32_t)((uint32_t)worker->now - worker->flows.cold[number].deadline) >= 0;
    if ((due || all) && is_over(worker, number)) {
      hp_flow_end(worker, number);
      ended++;
    }
  }
  worker->owed = worker->cursor < used ? budget : 0;
  if (worker->cursor >= used) {
    worker->cursor = 0;
    worker->pass++;
    if (worker->leaving_count)
      hp_links_left(worker);
  }
  return ended;
}

void hp_clock_set(hp_worker *worker, uint64_t now) {
  bool jumped = now - worker->now > LONGEST_TIMER;
  worker->now = now;
  __atomic_store_n(&worker->words->now, now, __ATOMIC_RELAXED); /* readers look at it */
  if (!jumped)
    return;
  for (uint32_t number = 0; number < worker->flows.control->used; number++)
    if (hp_flow_live(&worker->flows.flows[number]))
      hp_flow_end(worker, number);
}
