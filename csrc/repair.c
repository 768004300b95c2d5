/* repair.c: what a successor does with the state of a process that died at any instruction.
 *
 * The links and the flows are the truth. A link is whole when it is `ready`; another one was being made or freed,
 * and is freed. Slices are leased to whom the shared table names. A flow is whole when it is live and not in transition
 * (flow.h). Everything else is derived: both indices, free lists, mappings and what refers to them, taken ports, counts
 * of flows and tunnels. Of the quarantine an entry may be lost: its port is given out early. A link that was being
 * removed goes on draining.
 *
 * Nothing that is found here is trusted: a number that leads out of its table, or a flow that does not fit its links,
 * is taken out, as if it had been half made.
 */
#include <string.h>

#include "nat.h"
#include "reset.h"
#include "slices.h"

/* ---- links ---- */

static bool has_address(const hp_engine *engine, uint32_t address, uint32_t eni) {
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    const hp_ports *ports = &engine->workers[i].ports;
    if (address >= ports->count || ports->addresses[address].eni != eni ||
        ports->addresses[address].address != engine->workers[0].ports.addresses[address].address)
      return false;
  }
  return true;
}

static bool eni_is_whole(const hp_engine *engine, uint32_t number) {
  const hp_link *link = &engine->links[number];
  if (link->kind != HP_LINK_ENI || link->ready != 1 || link->address_count < 1 ||
      link->address_count > HP_ENI_ADDRESSES || link->worker)
    return false;
  for (uint32_t i = 0; i < link->address_count; i++)
    if (!has_address(engine, link->addresses[i], number))
      return false;
  return true;
}

/* ENIs have been looked at. */
static bool tunnel_is_whole(const hp_engine *engine, uint32_t number) {
  const hp_link *link = &engine->links[number];
  return link->kind == HP_LINK_TUNNEL && link->ready == 1 && link->address_count == 0 &&
         link->eni < engine->links_used && engine->links[link->eni].kind == HP_LINK_ENI &&
         link->pool < engine->links[link->eni].address_count && link->worker < engine->config.workers;
}

static void clear_link(hp_link *link) {
  uint64_t since = link->since;
  memset(link, 0, sizeof *link);
  link->since = since;
}

static void repair_links(hp_engine *engine) {
  for (uint32_t number = 1; number < engine->links_used; number++)
    if (engine->links[number].kind != HP_LINK_TUNNEL && !eni_is_whole(engine, number))
      clear_link(&engine->links[number]);
  for (uint32_t number = 1; number < engine->links_used; number++)
    if (engine->links[number].kind == HP_LINK_TUNNEL && !tunnel_is_whole(engine, number))
      clear_link(&engine->links[number]);
}

static bool lists(const hp_link *eni, uint32_t address) {
  for (uint32_t i = 0; i < eni->address_count; i++)
    if (eni->addresses[i] == address)
      return true;
  return false;
}

/* Nothing is touched that was never used, nor any after it. */
static bool never_used(const hp_ports *ports, uint32_t number) {
  const hp_address *address = &ports->addresses[number];
  return address->address == 0 && address->eni == 0;
}

/* Frees the addresses that no ENI has, and has the others' ports claimed anew. */
static void repair_addresses(hp_worker *worker) {
  const hp_engine *engine = worker->engine;
  hp_ports *ports = &worker->ports;
  for (uint32_t number = 0; number < ports->count && !never_used(ports, number); number++) {
    hp_address *address = &ports->addresses[number];
    if (address->eni >= engine->links_used || engine->links[address->eni].kind != HP_LINK_ENI ||
        !lists(&engine->links[address->eni], number))
      address->eni = 0;
    if (address->eni)
      hp_ports_clear(ports, number);
  }
}

/* By now every worker has what it had leased. */
static void repair_leases(hp_engine *engine) {
  hp_lease *leases = engine->workers[0].ports.leases;
  for (uint32_t number = 0; number < engine->config.max_addresses; number++) {
    if (never_used(&engine->workers[0].ports, number) && leases[number].eni == 0)
      break;
    uint32_t eni = engine->workers[0].ports.addresses[number].eni;
    leases[number].eni = eni;
    leases[number].wanted = 0;
    for (uint32_t i = 0; eni && i < engine->config.workers; i++)
      if (engine->workers[i].ports.addresses[number].leased == 0)
        hp_slice_lease(&engine->workers[i].ports, number);
  }
}

/* ---- flows ---- */

/* The number of an ENI's address, or HP_NONE. */
static uint32_t address_of(const hp_engine *engine, const hp_link *eni, uint32_t address) {
  for (uint32_t i = 0; i < eni->address_count; i++)
    if (engine->workers[0].ports.addresses[eni->addresses[i]].address == address)
      return eni->addresses[i];
  return HP_NONE;
}

/* Whether the halves tell the same story, and one of links that are there. */
static bool flow_fits(const hp_worker *worker, const hp_flow *flow) {
  const hp_engine *engine = worker->engine;
  const hp_half *in = &flow->half[HP_INSIDE], *out = &flow->half[HP_OUTSIDE];
  uint32_t tunnel = out->out_link, eni = in->out_link;
  uint8_t protocol = (uint8_t)in->key.link;
  if (tunnel >= engine->links_used || eni >= engine->links_used || engine->links[tunnel].kind != HP_LINK_TUNNEL ||
      engine->links[eni].kind != HP_LINK_ENI || engine->links[tunnel].eni != eni ||
      engine->links[tunnel].worker != worker->number || engine->links[tunnel].address != in->key.source)
    return false;
  if (protocol != HP_TCP && protocol != HP_UDP && protocol != HP_ICMP)
    return false;
  return in->key.link == (tunnel << 8 | protocol) && out->key.link == (eni << 8 | protocol) &&
         in->key.source == out->address && in->key.ports >> 16 == out->port && in->address == out->key.destination &&
         in->port == (uint16_t)out->key.ports && in->key.destination == out->key.source &&
         (uint16_t)in->key.ports == out->key.ports >> 16 && in->port >= HP_PORT_FIRST &&
         address_of(engine, &engine->links[eni], in->address) != HP_NONE;
}

static void repair_flows(hp_worker *worker) {
  hp_flow_table *table = &worker->flows;
  for (uint32_t number = 0; number < table->control->used; number++) {
    hp_flow *flow = &table->flows[number];
    if (hp_flow_live(flow) && !flow_fits(worker, flow))
      flow->half[HP_INSIDE].key.link = 0; /* not live: hp_flow_repair() makes it free */
  }
  hp_flow_repair(table);
}

/* ---- mappings and ports ---- */

static void repair_mapping(hp_worker *worker, hp_flow *flow) {
  const hp_engine *engine = worker->engine;
  hp_half *in = &flow->half[HP_INSIDE], *out = &flow->half[HP_OUTSIDE];
  const hp_mapping mapping = {.link = in->key.link,
                              .inside = in->key.source,
                              .inside_port = out->port,
                              .outside_port = in->port,
                              .address = address_of(engine, &engine->links[in->out_link], in->address)};
  if (hp_mapping_restore(&worker->mappings, out->sequence, &mapping))
    hp_port_claim(&worker->ports, mapping.address, (uint8_t)mapping.link == HP_ICMP ? HP_PORTS_ICMP : HP_PORTS_UDP,
                  mapping.outside_port);
  else
    out->sequence = HP_NONE; /* it goes on with a port that it may share */
}

static void repair_mappings(hp_worker *worker) {
  hp_mapping_clear(&worker->mappings);
  for (uint32_t number = 0; number < worker->flows.control->used; number++) {
    hp_flow *flow = &worker->flows.flows[number];
    if (!hp_flow_live(flow))
      continue;
    if (flow->half[HP_OUTSIDE].sequence != HP_NONE)
      repair_mapping(worker, flow);
    if (worker->workers > 1)
      hp_slices_count(worker, &flow->half[HP_OUTSIDE].key, 1);
  }
  hp_mapping_restored(&worker->mappings);
  for (uint32_t number = 0; number < worker->ports.count && !never_used(&worker->ports, number); number++)
    if (worker->ports.addresses[number].eni)
      hp_ports_restored(&worker->ports, number);
}

/* ---- counts ---- */

/* A flow that came or went when the process died may have been counted on one link, on both or on none. */
static void settle(hp_link_stats *link, uint32_t refusal_rate) {
  if (link->flows_created - link->flows_ended < link->flows || link->flows_ended > link->flows_created)
    link->flows_created = link->flows_ended + link->flows;
  else
    link->flows_ended = link->flows_created - link->flows;
  if (link->tokens > refusal_rate * 1000)
    link->tokens = refusal_rate * 1000;
}

/* Whether a worker counts that link: nothing is touched that was not. */
static bool counts(const hp_worker *worker, uint32_t number) {
  const hp_link *link = &worker->engine->links[number];
  return link->kind != HP_LINK_TUNNEL || link->worker == worker->number;
}

static void recount_flows(hp_worker *worker) {
  const hp_engine *engine = worker->engine;
  for (uint32_t number = 1; number < engine->links_used; number++)
    if (counts(worker, number))
      hp_stats(worker, number)->flows = 0;
  for (uint32_t number = 0; number < worker->flows.control->used; number++) {
    const hp_flow *flow = &worker->flows.flows[number];
    if (!hp_flow_live(flow))
      continue;
    hp_stats(worker, flow->half[HP_INSIDE].out_link)->flows++;
    hp_stats(worker, flow->half[HP_OUTSIDE].out_link)->flows++;
  }
  for (uint32_t number = 1; number < engine->links_used; number++)
    if (counts(worker, number))
      settle(hp_stats(worker, number), engine->config.refusal_rate);
}

static void recount_tunnels(hp_engine *engine) {
  hp_link *links = engine->links;
  for (uint32_t number = 1; number < engine->links_used; number++)
    links[number].tunnels = 0;
  for (uint32_t number = 1; number < engine->links_used; number++)
    if (links[number].kind == HP_LINK_TUNNEL && !links[number].draining) {
      links[links[number].eni].tunnels++;
      engine->workers[links[number].worker].tunnels++;
    }
}

void hp_deadlines_check(hp_worker *worker) {
  const hp_link *links = worker->engine->links;
  for (uint32_t number = 0; number < worker->flows.control->used; number++) {
    const hp_flow *flow = &worker->flows.flows[number];
    if (!hp_flow_live(flow))
      continue;
    uint32_t deadline = worker->flows.cold[number].deadline;
    uint32_t latest = hp_flow_latest(links, flow, worker->now);
    if (flow->half[HP_INSIDE].flags & HP_TOLD)
      latest = (uint32_t)worker->now + HP_RESET_GRACE;
    if ((int32_t)(deadline - latest) > 0)
      hp_flow_due(&worker->flows, number, latest);
  }
}

/* The workers that have to end a removed link's flows make a new pass, which sees all of them. */
static void leave_again(hp_engine *engine, uint32_t number) {
  const hp_link *link = &engine->links[number];
  bool tunnel = link->kind == HP_LINK_TUNNEL;
  uint32_t first = tunnel ? link->worker : 0, count = tunnel ? 1 : engine->config.workers;
  engine->local[number].awaiting = count;
  for (uint32_t i = first; i < first + count; i++)
    engine->workers[i].leaving[engine->workers[i].leaving_count++] = (hp_leaving){.link = number, .pass = 1};
  engine->draining++;
}

/* What this process keeps about links. */
static void derive_links(hp_engine *engine) {
  engine->free_count = engine->draining = engine->returned = 0;
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    hp_worker *worker = &engine->workers[i];
    worker->cursor = worker->leaving_count = 0;
    worker->pass = 0;
  }
  for (uint32_t number = engine->links_used; --number > 0;) {
    hp_link *link = &engine->links[number];
    engine->local[number] = (hp_link_local){.fd = -1};
    hp_gate_set(engine, number);
    if (link->kind == HP_LINK_FREE)
      engine->free_links[engine->free_count++] = number;
    if (link->draining)
      leave_again(engine, number);
  }
}

/* ---- the rest ---- */

/* Records are numbered before they are written: what was not finished is none, and the last number is that of the last
 * that was. */
static void repair_drops(hp_engine *engine) {
  uint64_t *last = &engine->shared->drop_count, length = engine->drop_mask + 1;
  for (uint64_t left = length; left && *last && engine->drops[*last & engine->drop_mask].number != *last; left--)
    engine->drops[(*last)-- & engine->drop_mask].number = 0;
  for (uint64_t number = *last > length ? *last - length + 1 : 1; number < *last; number++) {
    hp_drop *drop = &engine->drops[number & engine->drop_mask];
    if (drop->number != number)
      *drop = (hp_drop){.number = number, .reason = HP_REASONS};
  }
}

void hp_engine_repair(hp_engine *engine) {
  hp_shared *shared = engine->shared;
  repair_links(engine);
  for (uint32_t i = 0; i < engine->config.workers; i++)
    repair_addresses(&engine->workers[i]);
  repair_leases(engine);
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    hp_worker *worker = &engine->workers[i];
    repair_flows(worker);
    repair_mappings(worker);
    recount_flows(worker);
    hp_deadlines_check(worker); /* of a flow whose state has changed and its deadline not yet */
    worker->tunnels = 0;
  }
  recount_tunnels(engine);
  derive_links(engine);
  hp_resets_recount(engine);
  repair_drops(engine);
  shared->config = engine->config;
  shared->running = 0;
  shared->io = HP_IO_AUTO;
}
