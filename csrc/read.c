/* read.c: looking at an engine from outside its worker, or its process: flows, drops, counters. Nothing here stops the
 * worker or makes it wait; what is copied is consistent by sequence numbers (flows, drop records) or word
 * by word (counters). A reader in another process trusts no number that it finds: it may be that of a link that
 * is not there. */
#include <errno.h>
#include <string.h>

#include "engine.h"
#include "nat.h"
#include "tcp.h"

static const char *const reason_names[HP_REASON_COUNT] = {
    [HP_REASON_NONE] = "none",
    [HP_MALFORMED_IP] = "malformed_ip",
    [HP_MALFORMED_L4] = "malformed_l4",
    [HP_BAD_VNET_HEADER] = "bad_vnet_header",
    [HP_BAD_CHECKSUM] = "bad_checksum",
    [HP_TRUNCATED] = "truncated",
    [HP_FRAGMENT] = "fragment",
    [HP_UNSUPPORTED_IPV6] = "unsupported_ipv6",
    [HP_UNSUPPORTED_PROTOCOL] = "unsupported_protocol",
    [HP_UNSUPPORTED_ICMP] = "unsupported_icmp",
    [HP_SPOOFED_SOURCE] = "spoofed_source",
    [HP_INVALID_DESTINATION] = "invalid_destination",
    [HP_SECURITY_GROUP] = "security_group",
    [HP_NO_FLOW] = "no_flow",
    [HP_ICMP_NO_FLOW] = "icmp_no_flow",
    [HP_TCP_OUT_OF_STATE] = "tcp_out_of_state",
    [HP_FLOW_TABLE_FULL] = "flow_table_full",
    [HP_FLOW_QUOTA] = "flow_quota",
    [HP_PORTS_EXHAUSTED] = "ports_exhausted",
    [HP_TTL_EXCEEDED] = "ttl_exceeded",
    [HP_FRAGMENTATION_NEEDED] = "fragmentation_needed",
    [HP_LINK_DETACHED] = "link_detached",
    [HP_OUTPUT_FULL] = "output_full",
    [HP_OUTPUT_ERROR] = "output_error",
    [HP_SOURCE_ROUTE] = "source_route",
};

const char *hp_reason_name(int reason) { return reason >= 0 && reason < HP_REASON_COUNT ? reason_names[reason] : ""; }

/* A 64-bit time from its low 32 bits; it lies at most 24 days from now. */
static uint64_t widen(uint64_t now, uint32_t low) { return now + (uint64_t)(int64_t)(int32_t)(low - (uint32_t)now); }

static void describe(const hp_engine *engine, uint32_t number, const hp_flow *flow, const hp_flow_cold *cold,
                     hp_flow_info *info) {
  const hp_half *inside = &flow->half[HP_INSIDE], *outside = &flow->half[HP_OUTSIDE];
  uint64_t now = __atomic_load_n(&engine->shared->now, __ATOMIC_RELAXED);
  uint64_t seen_inside = widen(now, inside->last_seen), seen_outside = widen(now, outside->last_seen);
  *info = (hp_flow_info){.id = hp_flow_id(flow, number),
                         .packets_out = inside->packets,
                         .bytes_out = inside->bytes,
                         .packets_in = outside->packets,
                         .bytes_in = outside->bytes,
                         .started = cold->started,
                         .last_seen = seen_inside > seen_outside ? seen_inside : seen_outside,
                         .expires = widen(now, hp_flow_refreshed(flow, now)) + hp_flow_timeout(engine->links, flow),
                         .tunnel = outside->out_link,
                         .eni = inside->out_link,
                         .inside = inside->key.source,
                         .outside = inside->address,
                         .remote = inside->key.destination,
                         .inside_port = (uint16_t)(inside->key.ports >> 16),
                         .outside_port = inside->port,
                         .remote_port = (uint16_t)inside->key.ports,
                         .protocol = (uint8_t)inside->key.link,
                         .state = hp_flow_state(flow)};
}

static uint32_t links_used(const hp_engine *engine) {
  uint32_t used = __atomic_load_n(&engine->shared->links_used, __ATOMIC_ACQUIRE);
  return used <= engine->config.max_links ? used : engine->config.max_links + 1;
}

static bool is_possible(const hp_engine *engine, const hp_flow *flow) {
  uint8_t protocol = (uint8_t)flow->half[HP_INSIDE].key.link;
  return flow->half[HP_INSIDE].out_link <= engine->config.max_links &&
         flow->half[HP_OUTSIDE].out_link <= engine->config.max_links &&
         (protocol == HP_TCP || protocol == HP_UDP || protocol == HP_ICMP);
}

/* A removed link's flows are over, though the sweep has yet to take them out. */
static bool is_draining(const hp_engine *engine, const hp_flow *flow) {
  return engine->links[flow->half[HP_INSIDE].out_link].draining ||
         engine->links[flow->half[HP_OUTSIDE].out_link].draining;
}

uint32_t hp_flows(hp_engine *engine, uint32_t *cursor, hp_flow_info *flows, uint32_t room) {
  const hp_flow_table *table = &engine->worker.flows;
  uint32_t used = __atomic_load_n(&table->control->used, __ATOMIC_ACQUIRE), count = 0;
  used = used < engine->config.max_flows ? used : engine->config.max_flows;
  for (; *cursor < used && count < room; ++*cursor) {
    hp_flow flow;
    hp_flow_cold cold;
    if (hp_flow_read(table, *cursor, &flow, &cold) && is_possible(engine, &flow) && !is_draining(engine, &flow))
      describe(engine, *cursor, &flow, &cold, &flows[count++]);
  }
  return count;
}

uint32_t hp_drops(hp_engine *engine, uint64_t *cursor, hp_drop *drops, uint32_t room) {
  const hp_worker *worker = &engine->worker;
  uint64_t last = __atomic_load_n(&worker->shared->drop_count, __ATOMIC_ACQUIRE), length = worker->drop_mask + 1;
  uint64_t next = *cursor + 1;
  uint32_t count = 0;
  if (last > INT64_MAX)
    return 0; /* nobody drops that many packets */
  if (last > length && next < last - length + 1)
    next = last - length + 1; /* the rest has been overwritten */
  for (; next <= last && count < room; next++) {
    const hp_drop *drop = &worker->drops[next & worker->drop_mask];
    if (__atomic_load_n(&drop->number, __ATOMIC_ACQUIRE) != next)
      continue;
    drops[count] = *drop;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (__atomic_load_n(&drop->number, __ATOMIC_ACQUIRE) == next && drops[count].reason < HP_REASON_COUNT)
      count++;
  }
  *cursor = next - 1;
  return count;
}

int hp_link_counters(hp_engine *engine, uint32_t number, hp_counters *counters, hp_error *error) {
  if (number == 0 || number >= links_used(engine) || engine->links[number].kind == HP_LINK_FREE)
    return hp_fail(error, ENOENT, "there is no link %u", number);
  const hp_link *link = &engine->links[number];
  *counters = (hp_counters){.packets_in = link->packets_in,
                            .bytes_in = link->bytes_in,
                            .packets_out = link->packets_out,
                            .bytes_out = link->bytes_out,
                            .flows_created = link->flows_created,
                            .flows_ended = link->flows_ended,
                            .flows = link->flows,
                            .refusals_sent = link->refusals_sent,
                            .gone = link->gone != 0};
  for (int reason = 0; reason < HP_REASON_COUNT; reason++)
    counters->drops[reason] = link->drops[reason];
  return 0;
}

uint32_t hp_link_flows(hp_engine *engine, uint32_t number) {
  return number < links_used(engine) ? __atomic_load_n(&engine->links[number].flows, __ATOMIC_RELAXED) : 0;
}

uint64_t hp_link_since(hp_engine *engine, uint32_t number) {
  return number < links_used(engine) ? __atomic_load_n(&engine->links[number].since, __ATOMIC_RELAXED) : 0;
}

void hp_engine_status(hp_engine *engine, hp_status *status) {
  const hp_worker *worker = &engine->worker;
  const hp_shared *shared = engine->shared;
  *status = (hp_status){.flows = worker->flows.control->live,
                        .flows_high = worker->flows.control->used,
                        .mappings = worker->mappings.control->live,
                        .dense_destinations = worker->ports.shown->dense,
                        .loops = shared->loops,
                        .batches = shared->batches,
                        .packets = shared->io_counters.packets,
                        .writes = shared->io_counters.writes,
                        .no_buffers = shared->io_counters.no_buffers,
                        .io = shared->io,
                        .running = shared->running};
}

void hp_engine_memory(hp_engine *engine, hp_memory *memory) { *memory = engine->shared->memory; }

void hp_all_regions(const hp_engine *engine, const hp_region *regions[HP_REGIONS]) {
  const hp_worker *w = &engine->worker;
  const hp_region *const all[HP_REGIONS] = {&w->flows.flow_region,
                                            &w->flows.cold_region,
                                            &w->flows.index[0].bucket_region,
                                            &w->flows.index[0].passed_region,
                                            &w->flows.index[1].bucket_region,
                                            &w->flows.index[1].passed_region,
                                            &w->flows.control_region,
                                            &w->mappings.region,
                                            &w->mappings.index.bucket_region,
                                            &w->mappings.index.passed_region,
                                            &w->ports.region,
                                            &w->drop_region,
                                            &engine->link_region,
                                            &engine->shared_region};
  memcpy(regions, all, sizeof all);
}
