/* read.c: looking at an engine from outside its workers, or its process: flows, drops, counters. Nothing here stops a
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
    [HP_HANDOVER_FULL] = "handover_full",
    [HP_READ_FAILED] = "read_failed",
    [HP_LINK_LOCAL] = "link_local",
};

const char *hp_reason_name(int reason) { return reason >= 0 && reason < HP_REASON_COUNT ? reason_names[reason] : ""; }

/* A 64-bit time from its low 32 bits; it lies at most 24 days from now. */
static uint64_t widen(uint64_t now, uint32_t low) { return now + (uint64_t)(int64_t)(int32_t)(low - (uint32_t)now); }

static uint64_t latest(const hp_engine *engine) {
  uint64_t latest = 0;
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    uint64_t now = __atomic_load_n(&engine->workers[i].words->now, __ATOMIC_RELAXED);
    latest = now > latest ? now : latest;
  }
  return latest;
}

static void describe(const hp_engine *engine, uint32_t number, const hp_flow *flow, const hp_flow_cold *cold,
                     hp_flow_info *info) {
  const hp_half *inside = &flow->half[HP_INSIDE], *outside = &flow->half[HP_OUTSIDE];
  uint64_t now = latest(engine);
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
HP_LOOKS_ON static bool is_draining(const hp_engine *engine, const hp_flow *flow) {
  return engine->links[flow->half[HP_INSIDE].out_link].draining ||
         engine->links[flow->half[HP_OUTSIDE].out_link].draining;
}

/* A flow's public number tells its worker too: those of worker w begin at w * flows_each. */
uint32_t hp_flows(hp_engine *engine, uint32_t *cursor, hp_flow_info *flows, uint32_t room) {
  uint32_t each = engine->flows_each, count = 0;
  while (count < room && *cursor / each < engine->config.workers) {
    const hp_flow_table *table = &engine->workers[*cursor / each].flows;
    uint32_t number = *cursor % each, first = *cursor - number;
    if (number >= __atomic_load_n(&table->control->used, __ATOMIC_ACQUIRE)) {
      if (first / each + 1 == engine->config.workers)
        break; /* where flows may come yet */
      *cursor = first + each;
      continue;
    }
    hp_flow flow;
    hp_flow_cold cold;
    if (hp_flow_read(table, number, &flow, &cold) && is_possible(engine, &flow) && !is_draining(engine, &flow))
      describe(engine, *cursor, &flow, &cold, &flows[count++]);
    ++*cursor;
  }
  return count;
}

/* Records are numbered before they are written: one that is not there yet is waited for, unless it seems that it
 * never comes. */
HP_LOOKS_ON uint32_t hp_drops(hp_engine *engine, uint64_t *cursor, hp_drop *drops, uint32_t room) {
  uint64_t last = __atomic_load_n(&engine->shared->drop_count, __ATOMIC_ACQUIRE), length = engine->drop_mask + 1;
  uint64_t next = *cursor + 1;
  uint32_t count = 0;
  if (last > INT64_MAX)
    return 0; /* nobody drops that many packets */
  if (last > length && next < last - length + 1)
    next = last - length + 1; /* the rest has been overwritten */
  for (; next <= last && count < room; next++) {
    const hp_drop *drop = &engine->drops[next & engine->drop_mask];
    uint64_t number = __atomic_load_n(&drop->number, __ATOMIC_ACQUIRE);
    if ((number < next || number == HP_DROP_WRITING) && last - next < length / 2)
      break;
    if (number != next)
      continue;
    drops[count] = *drop;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (__atomic_load_n(&drop->number, __ATOMIC_ACQUIRE) == next && drops[count].reason < HP_REASON_COUNT)
      count++;
  }
  *cursor = next - 1;
  return count;
}

/* The workers that count a link: an ENI's all, a tunnel's one. */
HP_LOOKS_ON static uint32_t counting(const hp_engine *engine, uint32_t number, const hp_worker **first) {
  const hp_link *link = &engine->links[number];
  bool one = link->kind != HP_LINK_ENI && link->worker < engine->config.workers;
  *first = &engine->workers[one ? link->worker : 0];
  return one ? 1 : engine->config.workers;
}

HP_LOOKS_ON static void add_stats(hp_counters *counters, const hp_link_stats *stats) {
  counters->packets_in += stats->packets_in;
  counters->bytes_in += stats->bytes_in;
  counters->packets_out += stats->packets_out;
  counters->bytes_out += stats->bytes_out;
  counters->flows_created += stats->flows_created;
  counters->flows_ended += stats->flows_ended;
  counters->flows += stats->flows;
  counters->refusals_sent += stats->refusals_sent;
  for (int reason = 0; reason < HP_REASON_COUNT; reason++)
    counters->drops[reason] += stats->drops[reason];
}

HP_LOOKS_ON int hp_link_counters(hp_engine *engine, uint32_t number, hp_counters *counters, hp_error *error) {
  if (number == 0 || number >= links_used(engine) || engine->links[number].kind == HP_LINK_FREE)
    return hp_fail(error, ENOENT, "there is no link %u", number);
  const hp_worker *worker;
  const hp_link *link = &engine->links[number];
  *counters = (hp_counters){.gone = link->gone != 0, .read_error = link->read_error, .mended = link->mended};
  for (uint32_t left = counting(engine, number, &worker); left; left--, worker++)
    add_stats(counters, hp_stats(worker, number));
  return 0;
}

HP_LOOKS_ON uint32_t hp_link_flows(hp_engine *engine, uint32_t number) {
  const hp_worker *worker;
  uint32_t flows = 0;
  if (number >= links_used(engine))
    return 0;
  for (uint32_t left = counting(engine, number, &worker); left; left--, worker++)
    flows += __atomic_load_n(&hp_stats(worker, number)->flows, __ATOMIC_RELAXED);
  return flows;
}

HP_LOOKS_ON uint64_t hp_link_since(hp_engine *engine, uint32_t number) {
  return number < links_used(engine) ? __atomic_load_n(&engine->links[number].since, __ATOMIC_RELAXED) : 0;
}

HP_LOOKS_ON void hp_engine_status(hp_engine *engine, hp_status *status) {
  *status =
      (hp_status){.workers = engine->config.workers, .io = engine->shared->io, .running = engine->shared->running};
  status->mended = engine->shared->mended;
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    const hp_worker *worker = &engine->workers[i];
    const hp_worker_words *words = worker->words;
    const hp_worker_status one = {.flows = worker->flows.control->live,
                                  .loops = words->loops,
                                  .batches = words->batches,
                                  .packets = words->io_counters.packets,
                                  .writes = words->io_counters.writes,
                                  .handed_over = words->handed_over,
                                  .taken_over = words->taken_over};
    status->worker[i] = one;
    status->flows += one.flows;
    status->flows_high += worker->flows.control->used;
    status->mappings += worker->mappings.control->live;
    status->dense_destinations += worker->ports.shown->dense;
    status->loops += one.loops;
    status->batches += one.batches;
    status->packets += one.packets;
    status->writes += one.writes;
    status->no_buffers += words->io_counters.no_buffers;
    status->unreadable += words->io_counters.unreadable;
    status->failing += words->io_counters.failing;
  }
}

void hp_engine_memory(hp_engine *engine, hp_memory *memory) { *memory = engine->shared->memory; }

void hp_worker_regions(const hp_worker *w, const hp_region *regions[HP_WORKER_REGIONS]) {
  const hp_region *const all[HP_WORKER_REGIONS] = {&w->flows.flow_region,
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
                                                   &w->stats_region};
  memcpy(regions, all, sizeof all);
}

uint32_t hp_all_regions(const hp_engine *engine, const hp_region *regions[HP_MAX_REGIONS]) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < engine->config.workers; i++, count += HP_WORKER_REGIONS)
    hp_worker_regions(&engine->workers[i], regions + count);
  const hp_region *const shared[HP_ENGINE_REGIONS] = {&engine->workers[0].ports.lease_region, &engine->drop_region,
                                                      &engine->link_region, &engine->shared_region};
  memcpy(regions + count, shared, sizeof shared);
  return count + HP_ENGINE_REGIONS;
}
