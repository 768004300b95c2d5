/* repair.c: what a successor does with the state of a process that died at any instruction.
 *
 * The links and the flows are the truth. A link is whole when it is `ready`; another one was being made or freed,
 * and is freed. A flow is whole when it is live and not in transition (flow.h). Everything else is derived: both
 * indices, free lists, mappings and what refers to them, taken ports, counts of flows and tunnels. Of the quarantine
 * an entry may be lost: its port is given out early. A link that was being removed goes on draining.
 *
 * Nothing that is found here is trusted: a number that leads out of its table, or a flow that does not fit its links,
 * is taken out, as if it had been half made.
 */
#include <string.h>

#include "nat.h"
#include "reset.h"

/* ---- links ---- */

static bool eni_is_whole(const hp_engine *engine, uint32_t number) {
  const hp_link *link = &engine->links[number];
  const hp_ports *ports = &engine->worker.ports;
  if (link->kind != HP_LINK_ENI || link->ready != 1 || link->address_count < 1 ||
      link->address_count > HP_ENI_ADDRESSES)
    return false;
  for (uint32_t i = 0; i < link->address_count; i++)
    if (link->addresses[i] >= ports->count || ports->addresses[link->addresses[i]].eni != number)
      return false;
  return true;
}

/* ENIs have been looked at. */
static bool tunnel_is_whole(const hp_engine *engine, uint32_t number) {
  const hp_link *link = &engine->links[number];
  return link->kind == HP_LINK_TUNNEL && link->ready == 1 && link->address_count == 0 &&
         link->eni < engine->links_used && engine->links[link->eni].kind == HP_LINK_ENI &&
         link->pool < engine->links[link->eni].address_count;
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

/* Frees the addresses that no ENI has, and has the others' ports claimed anew. */
static void repair_addresses(hp_engine *engine) {
  hp_ports *ports = &engine->worker.ports;
  for (uint32_t number = 0; number < ports->count; number++) {
    hp_address *address = &ports->addresses[number];
    if (address->address == 0 && address->eni == 0)
      break; /* never used, nor any after it: nothing is touched that was not */
    if (address->eni >= engine->links_used || engine->links[address->eni].kind != HP_LINK_ENI ||
        !lists(&engine->links[address->eni], number))
      address->eni = 0;
    if (address->eni)
      hp_ports_clear(ports, number);
  }
}

/* ---- flows ---- */

/* The number of an ENI's address, or HP_NONE. */
static uint32_t address_of(const hp_engine *engine, const hp_link *eni, uint32_t address) {
  for (uint32_t i = 0; i < eni->address_count; i++)
    if (engine->worker.ports.addresses[eni->addresses[i]].address == address)
      return eni->addresses[i];
  return HP_NONE;
}

/* Whether the halves tell the same story, and one of links that are there. */
static bool flow_fits(const hp_engine *engine, const hp_flow *flow) {
  const hp_half *in = &flow->half[HP_INSIDE], *out = &flow->half[HP_OUTSIDE];
  uint32_t tunnel = out->out_link, eni = in->out_link;
  uint8_t protocol = (uint8_t)in->key.link;
  if (tunnel >= engine->links_used || eni >= engine->links_used || engine->links[tunnel].kind != HP_LINK_TUNNEL ||
      engine->links[eni].kind != HP_LINK_ENI || engine->links[tunnel].eni != eni ||
      engine->links[tunnel].address != in->key.source)
    return false;
  if (protocol != HP_TCP && protocol != HP_UDP && protocol != HP_ICMP)
    return false;
  return in->key.link == (tunnel << 8 | protocol) && out->key.link == (eni << 8 | protocol) &&
         in->key.source == out->address && in->key.ports >> 16 == out->port && in->address == out->key.destination &&
         in->port == (uint16_t)out->key.ports && in->key.destination == out->key.source &&
         (uint16_t)in->key.ports == out->key.ports >> 16 && in->port >= HP_PORT_FIRST &&
         address_of(engine, &engine->links[eni], in->address) != HP_NONE;
}

static void repair_flows(hp_engine *engine) {
  hp_flow_table *table = &engine->worker.flows;
  for (uint32_t number = 0; number < table->control->used; number++) {
    hp_flow *flow = &table->flows[number];
    if (hp_flow_live(flow) && !flow_fits(engine, flow))
      flow->half[HP_INSIDE].key.link = 0; /* not live: hp_flow_repair() makes it free */
  }
  hp_flow_repair(table);
}

/* ---- mappings and ports ---- */

static void repair_mapping(hp_engine *engine, hp_flow *flow) {
  hp_worker *worker = &engine->worker;
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

static void repair_mappings(hp_engine *engine) {
  hp_worker *worker = &engine->worker;
  hp_mapping_clear(&worker->mappings);
  for (uint32_t number = 0; number < worker->flows.control->used; number++) {
    hp_flow *flow = &worker->flows.flows[number];
    if (hp_flow_live(flow) && flow->half[HP_OUTSIDE].sequence != HP_NONE)
      repair_mapping(engine, flow);
  }
  hp_mapping_restored(&worker->mappings);
  for (uint32_t number = 0; number < worker->ports.count; number++) {
    const hp_address *address = &worker->ports.addresses[number];
    if (address->address == 0 && address->eni == 0)
      break;
    if (address->eni)
      hp_ports_restored(&worker->ports, number);
  }
}

/* ---- counts ---- */

/* A flow that came or went when the process died may have been counted on one link, on both or on none. */
static void settle(hp_link *link, uint32_t refusal_rate) {
  if (link->flows_created - link->flows_ended < link->flows || link->flows_ended > link->flows_created)
    link->flows_created = link->flows_ended + link->flows;
  else
    link->flows_ended = link->flows_created - link->flows;
  if (link->tokens > refusal_rate * 1000)
    link->tokens = refusal_rate * 1000;
}

static void recount(hp_engine *engine) {
  hp_link *links = engine->links;
  const hp_flow_table *table = &engine->worker.flows;
  for (uint32_t number = 1; number < engine->links_used; number++)
    links[number].flows = links[number].tunnels = 0;
  for (uint32_t number = 0; number < table->control->used; number++) {
    const hp_flow *flow = &table->flows[number];
    if (!hp_flow_live(flow))
      continue;
    links[flow->half[HP_INSIDE].out_link].flows++;
    links[flow->half[HP_OUTSIDE].out_link].flows++;
  }
  for (uint32_t number = 1; number < engine->links_used; number++) {
    settle(&links[number], engine->config.refusal_rate);
    if (links[number].kind == HP_LINK_TUNNEL && !links[number].draining)
      links[links[number].eni].tunnels++;
  }
}

void hp_deadlines_check(hp_engine *engine) {
  hp_worker *worker = &engine->worker;
  for (uint32_t number = 0; number < worker->flows.control->used; number++) {
    const hp_flow *flow = &worker->flows.flows[number];
    if (!hp_flow_live(flow))
      continue;
    uint32_t deadline = worker->flows.cold[number].deadline;
    uint32_t latest = hp_flow_refreshed(flow, worker->now) + hp_flow_timeout(engine->links, flow);
    if (flow->half[HP_INSIDE].flags & HP_TOLD)
      latest = (uint32_t)worker->now + HP_RESET_GRACE;
    if ((int32_t)(deadline - latest) > 0)
      hp_flow_due(&worker->flows, number, latest);
  }
}

/* What this process keeps about links. Sweeping begins with a new pass, which sees all flows. */
static void derive_links(hp_engine *engine) {
  engine->free_count = engine->draining = 0;
  engine->worker.cursor = 0;
  engine->worker.pass = 0;
  for (uint32_t number = engine->links_used; --number > 0;) {
    hp_link *link = &engine->links[number];
    engine->local[number] = (hp_link_local){.fd = -1};
    if (link->kind == HP_LINK_FREE)
      engine->free_links[engine->free_count++] = number;
    if (link->draining) {
      link->drain_pass = 1;
      engine->draining++;
    }
  }
}

/* ---- the rest ---- */

/* A record is written before it is counted. */
static void repair_drops(hp_worker *worker) {
  uint64_t next = worker->shared->drop_count + 1;
  if (worker->drops[next & worker->drop_mask].number == next)
    worker->shared->drop_count = next;
}

void hp_engine_repair(hp_engine *engine) {
  hp_shared *shared = engine->shared;
  repair_links(engine);
  repair_addresses(engine);
  repair_flows(engine);
  repair_mappings(engine);
  recount(engine);
  hp_deadlines_check(engine); /* of a flow whose state has changed and its deadline not yet */
  derive_links(engine);
  hp_resets_recount(engine);
  repair_drops(&engine->worker);
  shared->config = engine->config;
  shared->running = 0;
  shared->io = HP_IO_AUTO;
}
