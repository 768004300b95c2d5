/* invariants.h: what is true of the engine's tables between any two packets. For unit tests and fuzzing: a
 * condition that does not hold ends the process with its text. */
#ifndef INVARIANTS_H
#define INVARIANTS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nat.h"
#include "reset.h"

#define HOLD(condition) ((condition) ? (void)0 : broken(#condition, __FILE__, __LINE__))

__attribute__((noreturn)) static inline void broken(const char *condition, const char *file, int line) {
  fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, condition);
  abort();
}

/* Of structures whose padding counts, too: it has been 0 from the start. */
static inline bool same_bytes(const void *a, const void *b, size_t length) { return memcmp(a, b, length) == 0; }

/* splitmix64: reproducible numbers */
static inline uint64_t next_random(uint64_t *state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
static inline uint32_t random_below(uint64_t *state, uint32_t limit) {
  return (uint32_t)(((next_random(state) >> 32) * limit) >> 32);
}

/* ---- an index ---- */

typedef uint64_t hash_of_number(const void *context, uint32_t number);

static inline uint64_t bucket_after(const hp_index *index, uint64_t bucket) {
  return bucket + 1 == index->count ? 0 : bucket + 1;
}

/* Every search reaches every number, and `passed` counts what it says. Returns how many numbers there are. */
static inline uint32_t check_index(const hp_index *index, hash_of_number *hash, const void *context) {
  uint16_t *passed = calloc(index->count, sizeof *passed);
  uint32_t numbers = 0;
  HOLD(passed != NULL);
  for (uint64_t at = 0; at < index->count; at++) {
    for (int slot = 0; slot < HP_SLOTS; slot++) {
      uint32_t value = index->buckets[at].slot[slot], number = hp_slot_number(value);
      HOLD(value != HP_TOMBSTONE || (slot == HP_SLOTS - 1 && index->passed[at]));
      HOLD(number != HP_NONE || value == 0 || value == HP_TOMBSTONE);
      if (number == HP_NONE)
        continue;
      numbers++;
      uint64_t of = hash(context, number);
      HOLD((value & ~HP_NUMBER_MASK) == hp_index_tag(of));
      for (uint64_t b = hp_index_home(index, of); b != at; b = bucket_after(index, b)) {
        HOLD(index->buckets[b].slot[HP_SLOTS - 1] != 0);
        passed[b]++;
      }
    }
  }
  HOLD(memcmp(passed, index->passed, index->count * sizeof *passed) == 0);
  free(passed);
  return numbers;
}

/* ---- the flow table ---- */

static inline uint64_t hash_of_inside(const void *table, uint32_t number) {
  const hp_flow_table *t = table;
  return hp_key_hash(t, &t->flows[number].half[HP_INSIDE].key);
}
static inline uint64_t hash_of_outside(const void *table, uint32_t number) {
  const hp_flow_table *t = table;
  return hp_key_hash(t, &t->flows[number].half[HP_OUTSIDE].key);
}

/* A live flow is found by its keys from both sides: so it is in both indices, and no other flow has them. */
static inline void check_found(const hp_flow_table *table, uint32_t number) {
  for (int side = 0; side < 2; side++) {
    const hp_key *key = &table->flows[number].half[side].key;
    HOLD(hp_flow_find(table, side, key, hp_key_hash(table, key)) == number);
  }
}

static inline void check_free_flow(const hp_flow *flow) {
  static const hp_flow nothing;
  HOLD(same_bytes(flow, &nothing, offsetof(hp_half, sequence)));
  HOLD(flow->half[HP_INSIDE].packets == 0 && flow->half[HP_INSIDE].bytes == 0);
  HOLD(same_bytes(&flow->half[HP_OUTSIDE], &nothing.half[HP_OUTSIDE], sizeof(hp_half)));
}

/* No number is between free and live. */
static inline void check_flow_table(const hp_flow_table *table) {
  const hp_flow_control *control = table->control;
  uint32_t live = 0, listed = 0;
  HOLD(control->journal == 0 && control->used <= control->capacity);
  for (uint32_t number = 0; number < control->used; number++) {
    const hp_flow *flow = &table->flows[number];
    HOLD((flow->half[HP_INSIDE].sequence & 1) == 0);
    if (hp_flow_live(flow)) {
      check_found(table, number);
      live++;
    } else {
      check_free_flow(flow);
    }
  }
  HOLD(live == control->live);
  for (uint32_t next = control->free_head; next; next = table->cold[next - 1].next_free) {
    HOLD(next <= control->used && !hp_flow_live(&table->flows[next - 1]));
    HOLD(++listed <= control->used - live); /* else it goes round in a circle */
  }
  HOLD(listed == control->used - live);
  HOLD(check_index(&table->index[HP_INSIDE], hash_of_inside, table) == live);
  HOLD(check_index(&table->index[HP_OUTSIDE], hash_of_outside, table) == live);
}

/* ---- mappings ---- */

static inline uint64_t hash_of_mapping(const void *context, uint32_t number) {
  const hp_mapping_table *table = context;
  const hp_mapping *m = &table->mappings[number];
  return hp_hash(table->seed, (uint64_t)m->link << 32 | m->inside, m->inside_port);
}

static inline void check_mappings(const hp_mapping_table *table) {
  uint32_t live = 0, listed = 0;
  HOLD(table->control->used <= table->capacity);
  for (uint32_t number = 0; number < table->control->used; number++) {
    const hp_mapping *m = &table->mappings[number];
    live += m->link != 0;
    HOLD(m->link == 0 || hp_mapping_find(table, m->link, m->inside, m->inside_port) == number);
  }
  HOLD(live == table->control->live);
  for (uint32_t next = table->control->free_head; next; next = table->mappings[next - 1].next_free) {
    HOLD(next <= table->control->used && table->mappings[next - 1].link == 0);
    HOLD(++listed <= table->control->used - live);
  }
  HOLD(listed == table->control->used - live);
  HOLD(check_index(&table->index, hash_of_mapping, table) == live);
}

/* ---- ports ---- */

static inline bool port_taken(const uint64_t *words, uint32_t port) {
  return words[(port - HP_PORT_FIRST) / 64] >> ((port - HP_PORT_FIRST) % 64) & 1;
}

static inline bool dense_is_free(const hp_ports *ports, uint32_t number) {
  for (uint32_t next = ports->dense_free; next; next = ports->dense[next - 1].next_free)
    if (next - 1 == number)
      return true;
  return false;
}

/* A port that a bitmap calls taken has a flow: else "exhausted" would come too early. */
static inline void check_dense(const hp_ports *ports, const hp_flow_table *flows) {
  uint32_t live = 0;
  for (uint32_t number = 0; number < ports->dense_used; number++) {
    const hp_dense *dense = &ports->dense[number];
    uint32_t known = 0;
    if (dense_is_free(ports, number))
      continue;
    live++;
    for (uint32_t port = HP_PORT_FIRST; port <= 0xffff; port++) {
      if (!port_taken(dense->taken, port))
        continue;
      hp_key key = dense->destination;
      key.ports |= port;
      HOLD(hp_flow_find(flows, HP_OUTSIDE, &key, hp_key_hash(flows, &key)) != HP_NONE);
      known++;
    }
    HOLD(known && known == dense->known);
  }
  HOLD(live == ports->dense_live);
}

/* A worker chooses from the slices that are its own, or waits until it can give them back. */
static inline void check_slices(const hp_ports *ports, uint32_t number) {
  const hp_address *address = &ports->addresses[number];
  bool seen[HP_SLICES] = {false};
  uint64_t owned = 0;
  HOLD(address->leased >= 1 && address->leased <= HP_SLICES);
  for (uint32_t i = 0; i < address->leased; i++) {
    uint8_t slice = address->slices[i];
    HOLD(slice < HP_SLICES && !seen[slice] && (address->chosen >> slice & 1));
    seen[slice] = true;
  }
  for (uint32_t slice = 0; slice < HP_SLICES; slice++)
    owned |= (uint64_t)(hp_slice_owner(ports, number, slice) == ports->worker + 1) << slice;
  HOLD((address->chosen & address->retiring) == 0 && (address->chosen | address->retiring) == owned);
  HOLD((uint32_t)__builtin_popcountll(address->chosen) == address->leased);
}

/* An exclusive port is taken by a mapping or rests in quarantine, never both, and no other bit is set. */
static inline void check_exclusive(const hp_ports *ports, const hp_mapping_table *mappings, uint32_t number) {
  const hp_address *address = &ports->addresses[number];
  static uint64_t expected[2][HP_PORT_WORDS];
  memset(expected, 0, sizeof expected);
  for (uint32_t i = 0; i < mappings->control->used; i++) {
    const hp_mapping *m = &mappings->mappings[i];
    if (m->link == 0 || m->address != number)
      continue;
    uint64_t *words = expected[(uint8_t)m->link == HP_ICMP ? HP_PORTS_ICMP : HP_PORTS_UDP];
    HOLD(m->outside_port >= HP_PORT_FIRST && !port_taken(words, m->outside_port));
    words[(m->outside_port - HP_PORT_FIRST) / 64] |= 1ull << (m->outside_port - HP_PORT_FIRST) % 64;
  }
  for (int kind = 0; kind < 2; kind++) {
    HOLD(address->tail[kind] - address->head[kind] <= HP_QUARANTINE);
    for (uint32_t at = address->head[kind]; at != address->tail[kind]; at++) {
      uint32_t port = address->quarantine[kind][at % HP_QUARANTINE].port;
      HOLD(port >= HP_PORT_FIRST && !port_taken(expected[kind], port));
      expected[kind][(port - HP_PORT_FIRST) / 64] |= 1ull << (port - HP_PORT_FIRST) % 64;
    }
  }
  HOLD(memcmp(expected, address->taken, sizeof expected) == 0);
}

/* ---- the engine ---- */

/* What each live flow says agrees with its links, its mapping and its timer. */
static inline void check_flow(const hp_worker *worker, uint32_t number, uint32_t *mapping_flows) {
  const hp_engine *engine = worker->engine;
  const hp_flow *flow = &worker->flows.flows[number];
  const hp_half *inside = &flow->half[HP_INSIDE], *outside = &flow->half[HP_OUTSIDE];
  uint32_t tunnel = inside->key.link >> 8, eni = outside->key.link >> 8, mapping = outside->sequence;
  uint8_t protocol = (uint8_t)inside->key.link;
  HOLD(outside->out_link == tunnel && inside->out_link == eni && (uint8_t)outside->key.link == protocol);
  HOLD(engine->links[tunnel].kind == HP_LINK_TUNNEL && engine->links[eni].kind == HP_LINK_ENI);
  HOLD(engine->links[tunnel].eni == eni && engine->links[tunnel].address == inside->key.source);
  HOLD(outside->address == inside->key.source && outside->port == inside->key.ports >> 16);
  HOLD(inside->address == outside->key.destination && inside->port == (uint16_t)outside->key.ports);
  HOLD(outside->key.source == inside->key.destination && (uint16_t)inside->key.ports == outside->key.ports >> 16);
  HOLD(inside->port >= HP_PORT_FIRST && engine->links[tunnel].worker == worker->number);
  uint32_t latest = hp_flow_refreshed(flow, worker->now) + hp_flow_timeout(engine->links, flow);
  if (inside->flags & HP_TOLD) /* it ends when the grace of its RSTs is over, whatever its timer says */
    latest = (uint32_t)worker->now + HP_RESET_GRACE;
  HOLD((int32_t)(worker->flows.cold[number].deadline - latest) <= 0);
  const hp_flow_sweep *sweep = &worker->flows.sweep;
  HOLD((int32_t)(sweep->soonest[number / HP_CHUNK] - worker->flows.cold[number].deadline) <= 0);
  HOLD(sweep->owners[number] == hp_flow_owner(tunnel));
  if (mapping == HP_NONE)
    return;
  const hp_mapping *m = &worker->mappings.mappings[mapping];
  HOLD(mapping < worker->mappings.control->used && m->link == inside->key.link && m->inside == inside->key.source);
  HOLD(m->inside_port == outside->port && m->outside_port == inside->port);
  HOLD(worker->ports.addresses[m->address].address == inside->address);
  mapping_flows[mapping]++;
}

static inline void check_counts(const hp_worker *worker, const uint32_t *flows) {
  const hp_engine *engine = worker->engine;
  uint32_t resetting = 0;
  for (uint32_t number = 1; number < engine->links_used; number++) {
    const hp_link *link = &engine->links[number];
    const hp_link_stats *stats = hp_stats(worker, number);
    HOLD(stats->flows == flows[number]);
    if (link->kind == HP_LINK_TUNNEL && link->worker != worker->number)
      continue;
    HOLD(stats->flows_created - stats->flows_ended == stats->flows);
    HOLD(link->kind != HP_LINK_FREE || stats->flows == 0);
    HOLD(stats->tokens <= engine->config.refusal_rate * 1000);
    HOLD(!link->max_flows || stats->flows <= link->max_flows);
    resetting += link->drain == HP_DRAIN_RESET && stats->flows;
  }
  HOLD(resetting == worker->resetting);
}

static inline void check_links(const hp_engine *engine) {
  uint32_t draining = 0;
  for (uint32_t number = 1; number < engine->links_used; number++) {
    const hp_link *link = &engine->links[number];
    uint32_t tunnels = 0;
    HOLD(link->kind != HP_LINK_FREE || !link->draining || engine->returned);
    draining += link->draining;
    for (uint32_t other = 1; link->kind == HP_LINK_ENI && other < engine->links_used; other++)
      tunnels += engine->links[other].kind == HP_LINK_TUNNEL && !engine->links[other].draining &&
                 engine->links[other].eni == number;
    HOLD(link->tunnels == tunnels);
    for (uint32_t i = 0; i < link->address_count; i++)
      HOLD(engine->workers[0].ports.leases[link->addresses[i]].eni == number);
  }
  HOLD(draining == engine->draining);
  for (uint32_t i = 0; i < engine->free_count; i++)
    HOLD(engine->links[engine->free_links[i]].kind == HP_LINK_FREE);
}

static inline void check_worker(const hp_worker *worker) {
  uint32_t *flows = calloc(worker->engine->links_used, sizeof *flows);
  uint32_t *mapping_flows = calloc(worker->mappings.capacity, sizeof *mapping_flows);
  HOLD(flows && mapping_flows);
  check_flow_table(&worker->flows);
  check_mappings(&worker->mappings);
  for (uint32_t number = 0; number < worker->flows.control->used; number++) {
    const hp_flow *flow = &worker->flows.flows[number];
    HOLD(hp_flow_live(flow) || worker->flows.sweep.owners[number] == 0);
    if (!hp_flow_live(flow))
      continue;
    check_flow(worker, number, mapping_flows);
    flows[flow->half[HP_INSIDE].out_link]++;
    flows[flow->half[HP_OUTSIDE].out_link]++;
  }
  for (uint32_t number = 0; number < worker->mappings.control->used; number++)
    HOLD(worker->mappings.mappings[number].flows == mapping_flows[number] &&
         (mapping_flows[number] != 0) == (worker->mappings.mappings[number].link != 0));
  check_counts(worker, flows);
  for (uint32_t number = 0; number < worker->ports.count; number++) {
    if (worker->ports.addresses[number].eni == 0)
      continue;
    check_slices(&worker->ports, number);
    check_exclusive(&worker->ports, &worker->mappings, number);
  }
  check_dense(&worker->ports, &worker->flows);
  free(flows);
  free(mapping_flows);
}

static inline void check_engine(const hp_engine *engine) {
  for (uint32_t i = 0; i < engine->config.workers; i++)
    check_worker(&engine->workers[i]);
  check_links(engine);
}

#endif
