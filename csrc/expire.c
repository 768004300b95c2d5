/* expire.c: what ends a flow: its idle timer, or the end of a link that it uses.
 *
 * A sweep goes round the flow numbers, a little in every turn of the loop, once a second or so in all. It reads one
 * word for every 16 flows: the earliest that a deadline among them can be. Only when that has passed it reads the
 * deadlines, and looks at a flow only when its own has passed. Traffic does not move the deadline: the sweep finds the
 * flow refreshed then and sets the next one. So a flow costs a look for each of its timeouts, and hardly anything
 * between.
 *
 * The flows of a tunnel that is removed or reset are looked for by their owner, two bytes for each flow in a row.
 *
 * Looking at flows is what takes time, so there is a limit to it for each turn of the loop; the rest is owed to the
 * next one, which comes at once.
 */
#include <string.h>

#include "nat.h"
#include "reset.h"
#include "slices.h"
#include "tcp.h"

enum {
  LONGEST_TIMER = INT32_MAX / 2, /* ms; engine.c accepts no longer one */
  SWEEP_PERIOD = 1000,           /* ms that a pass takes */
  DRAIN_PERIOD = 100,            /* while flows are looked for */
  DRAIN_MOST = 20000,            /* numbers a ms then: a pass over more than two million flows takes longer */
  TOGETHER = 64,                 /* flows fetched, then looked at */
  MOST_LOOKS = 4 * TOGETHER      /* in a turn of the loop */
};

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

uint32_t hp_flow_latest(const hp_link *links, const hp_flow *flow, uint64_t now) {
  uint32_t latest = hp_flow_refreshed(flow, now) + hp_flow_timeout(links, flow);
  if (hp_flow_state(flow) != HP_STATE_OPENING)
    return latest;
  uint32_t established = (uint32_t)now + timer(&links[flow->half[HP_INSIDE].out_link].timers.tcp_established);
  return (int32_t)(established - latest) < 0 ? established : latest;
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
  if (number < worker->stale)
    return true;
  const hp_link *tunnel = &links[flow->half[HP_OUTSIDE].out_link], *eni = &links[flow->half[HP_INSIDE].out_link];
  if (tunnel->drain == HP_DRAIN_RESET)
    return hp_reset_flow(worker, number) || hp_link_draining(tunnel) || hp_link_draining(eni);
  if (hp_link_draining(tunnel) || hp_link_draining(eni))
    return true;
  keep_in_reach(&flow->half[HP_INSIDE], worker->now);
  keep_in_reach(&flow->half[HP_OUTSIDE], worker->now);
  uint32_t idle = (uint32_t)worker->now - hp_flow_refreshed(flow, worker->now);
  if ((int32_t)(idle - hp_flow_timeout(links, flow)) >= 0)
    return true;
  hp_flow_due(&worker->flows, number, hp_flow_latest(links, flow, worker->now));
  return false;
}

/* ---- the sweep ---- */

static bool has_passed(const hp_worker *worker, uint32_t time) { return (int32_t)((uint32_t)worker->now - time) >= 0; }

/* The link may be one that a caller makes just now, of which this worker cannot know anything yet: whatever it then
 * takes for true costs a look at some flows, no more. */
HP_LOOKS_ON static bool has_flows_to_end(const hp_worker *worker, uint32_t number) {
  const hp_link *link = &worker->engine->links[number];
  return hp_stats(worker, number)->flows && link->kind == HP_LINK_TUNNEL &&
         (hp_link_draining(link) || link->drain == HP_DRAIN_RESET);
}

/* Once for each pass, and when there seem to be others: whoever is missed is found in the next pass, before whose end
 * no number of a link is given out again. */
static void note_drained(hp_worker *worker) {
  const uint32_t now_for[2] = {worker->leaving_count, worker->resetting};
  if (worker->cursor && memcmp(now_for, worker->drained_for, sizeof now_for) == 0)
    return;
  memcpy(worker->drained_for, now_for, sizeof now_for);
  if (worker->drains)
    memset(worker->drained, 0, sizeof worker->drained);
  worker->drains = false;
  if (!worker->leaving_count && !worker->resetting)
    return;
  const uint32_t used = __atomic_load_n(&worker->shared->links_used, __ATOMIC_ACQUIRE);
  for (uint32_t number = 1; number < used; number++) {
    if (!has_flows_to_end(worker, number))
      continue;
    uint16_t owner = hp_flow_owner(number);
    worker->drained[owner / 64] |= 1ull << owner % 64;
    worker->drains = true;
  }
}

static bool is_sought(const hp_worker *worker, uint32_t number, uint16_t owner) {
  return (worker->drains && worker->drained[owner / 64] >> owner % 64 & 1) || number < worker->stale;
}

/* Notes the flows to look at among numbers of one chunk, and has them fetched. For the whole chunk `soonest` is made
 * exact, the noted ones left out: whoever looks at them sets it. */
static uint32_t gather(hp_worker *worker, uint32_t from, uint32_t to, uint32_t *noted) {
  hp_flow_table *flows = &worker->flows;
  uint32_t count = 0, soonest = (uint32_t)worker->now + LONGEST_TIMER;
  for (uint32_t number = from; number < to; number++) {
    uint32_t deadline = flows->cold[number].deadline;
    uint16_t owner = flows->sweep.owners[number];
    if (owner == 0)
      continue;
    if (has_passed(worker, deadline) || is_sought(worker, number, owner)) {
      __builtin_prefetch(&flows->flows[number].half[HP_INSIDE], 1);
      __builtin_prefetch(&flows->flows[number].half[HP_OUTSIDE], 1);
      noted[count++] = number;
    } else if ((int32_t)(deadline - soonest) < 0) {
      soonest = deadline;
    }
  }
  if (from % HP_CHUNK == 0 && (to % HP_CHUNK == 0 || to == flows->control->used))
    flows->sweep.soonest[from / HP_CHUNK] = soonest;
  return count;
}

/* Goes on from the cursor until TOGETHER flows may have been noted; returns how many have. */
static uint32_t gather_some(hp_worker *worker, uint32_t *budget, uint32_t *noted) {
  const uint32_t used = worker->flows.control->used;
  uint32_t count = 0;
  while (*budget && worker->cursor < used && count <= TOGETHER - HP_CHUNK) {
    uint32_t from = worker->cursor, left = used - from, to = from + HP_CHUNK - from % HP_CHUNK;
    left = *budget < left ? *budget : left;
    to = to - from > left ? from + left : to;
    if (has_passed(worker, worker->flows.sweep.soonest[from / HP_CHUNK]) || worker->drains || from < worker->stale)
      count += gather(worker, from, to, noted + count);
    worker->cursor = to;
    *budget -= to - from;
  }
  return count;
}

/* Returns how many flows have ended. When this turn may send no more RSTs the cursor goes back to where that was. */
static uint32_t look_at(hp_worker *worker, const uint32_t *noted, uint32_t count, uint32_t *budget) {
  uint32_t ended = 0, i = 0;
  for (; i < count && !hp_resets_used_up(worker); i++)
    if (is_over(worker, noted[i])) {
      hp_flow_end(worker, noted[i]);
      ended++;
    } else { /* whose deadline has perhaps been left as it was */
      hp_flow_due(&worker->flows, noted[i], worker->flows.cold[noted[i]].deadline);
    }
  if (i < count) {
    *budget += worker->cursor - noted[i];
    worker->cursor = noted[i];
  }
  for (; i < count; i++)
    hp_flow_due(&worker->flows, noted[i], worker->flows.cold[noted[i]].deadline);
  return ended;
}

uint32_t hp_expire(hp_worker *worker, uint32_t budget) {
  uint32_t noted[TOGETHER], ended = 0, looks = 0;
  note_drained(worker);
  while (budget && worker->cursor < worker->flows.control->used && !hp_resets_used_up(worker) &&
         (looks < MOST_LOOKS || !worker->io)) {
    uint32_t count = gather_some(worker, &budget, noted);
    ended += look_at(worker, noted, count, &budget);
    looks += count;
  }
  worker->owed = worker->cursor < worker->flows.control->used ? budget : 0;
  if (worker->cursor >= worker->flows.control->used) {
    worker->cursor = 0;
    worker->stale = 0;
    worker->pass++;
    if (worker->leaving_count)
      hp_links_left(worker);
  }
  return ended;
}

void hp_expire_turn(hp_worker *worker) {
  uint64_t elapsed = worker->now - worker->swept_at;
  worker->resets = 0;
  if (elapsed == 0 && !worker->owed)
    return;
  worker->swept_at = worker->now;
  bool drains = worker->leaving_count || worker->resetting;
  uint64_t numbers = worker->flows.control->used * elapsed / (drains ? DRAIN_PERIOD : SWEEP_PERIOD) + 1;
  if (drains && numbers > DRAIN_MOST * elapsed)
    numbers = DRAIN_MOST * elapsed;
  uint64_t budget = numbers + worker->owed;
  hp_expire(worker, (uint32_t)(budget < UINT32_MAX ? budget : UINT32_MAX));
}

void hp_clock_set(hp_worker *worker, uint64_t now) {
  bool jumped = now - worker->now > LONGEST_TIMER;
  worker->now = now;
  __atomic_store_n(&worker->words->now, now, __ATOMIC_RELAXED); /* readers look at it */
  if (!jumped)
    return;
  worker->stale = worker->flows.control->used;
  worker->cursor = 0;
  if (!worker->io) /* nobody waits for this turn to end */
    hp_expire(worker, UINT32_MAX);
}
