/* engine.c: the engine's life, and the way commands take.
 *
 * Changes are made by callers, one at a time (hp_engine_run). What concerns what a worker owns is carried out by that
 * worker between two batches (command.c), and the caller waits for that; while the workers do not run, the caller
 * does it. So links need no lock, and a change never stops traffic: the other workers do not even notice.
 */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "links.h"
#include "nat.h"

enum { MAX_REFUSAL_RATE = 1000000, MAX_SPIN = 1000 };

uint64_t hp_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- life ---- */

static int check_config(const hp_config *c, hp_error *error) {
  if (c->max_flows < 1 || c->max_flows > HP_MAX_FLOWS)
    return hp_fail(error, EINVAL, "max_flows is %u; it must be 1 to %d", c->max_flows, HP_MAX_FLOWS);
  if (c->max_mappings > HP_MAX_FLOWS)
    return hp_fail(error, EINVAL, "max_mappings is %u; it must be 0 to %d", c->max_mappings, HP_MAX_FLOWS);
  if (c->max_links < 2 || c->max_links > HP_MAX_LINKS)
    return hp_fail(error, EINVAL, "max_links is %u; it must be 2 to %d", c->max_links, HP_MAX_LINKS);
  if (c->max_addresses < 1 || c->max_addresses > 65536)
    return hp_fail(error, EINVAL, "max_addresses is %u; it must be 1 to 65536", c->max_addresses);
  if (c->refusal_rate > MAX_REFUSAL_RATE)
    return hp_fail(error, EINVAL, "refusal_rate is %u; it must be 0 to %d", c->refusal_rate, MAX_REFUSAL_RATE);
  if (c->drop_records > 1u << 24)
    return hp_fail(error, EINVAL, "drop_records is %u; it must be 0 to %u", c->drop_records, 1u << 24);
  if (c->buffers & (c->buffers - 1) || c->buffers > 32768)
    return hp_fail(error, EINVAL, "buffers is %u; it must be a power of two, at most 32768", c->buffers);
  if (c->spin > MAX_SPIN)
    return hp_fail(error, EINVAL, "spin is %u; it must be 0 to %d microseconds", c->spin, MAX_SPIN);
  if (c->io > HP_IO_EPOLL)
    return hp_fail(error, EINVAL, "io is %u; it must be one of HP_IO_*", c->io);
  if (c->workers > HP_MAX_WORKERS)
    return hp_fail(error, EINVAL, "workers is %u; it must be 0 to %d", c->workers, HP_MAX_WORKERS);
  if (c->pin_count > HP_MAX_WORKERS)
    return hp_fail(error, EINVAL, "pin_count is %u; it must be 0 to %d", c->pin_count, HP_MAX_WORKERS);
  return 0;
}

static void fill_defaults(hp_config *c) {
  uint64_t most = 2ull * HP_PORT_COUNT * c->max_addresses; /* each mapping has a port, of UDP or ICMP, to itself */
  uint32_t mappings = most < c->max_flows ? (uint32_t)most : c->max_flows;
  c->max_mappings = c->max_mappings ? c->max_mappings : mappings;
  c->refusal_rate = c->refusal_rate ? c->refusal_rate : 100;
  c->port_quarantine = c->port_quarantine ? c->port_quarantine : 30000;
  c->buffers = c->buffers ? c->buffers : 256;
  c->workers = c->workers ? c->workers : 1;
  uint32_t records = 64;
  while (records < c->drop_records)
    records *= 2;
  c->drop_records = records;
}

/* The words that say what the other regions hold. */
static int open_shared(hp_engine *engine, const hp_given *given, hp_error *error) {
  hp_config *c = &engine->config;
  if (hp_region_open(&engine->shared_region, given, "hp-shared", sizeof(hp_shared), false, error))
    return -1;
  hp_shared *shared = engine->shared = engine->shared_region.at;
  if (!given) {
    shared->layout = HP_LAYOUT;
    shared->bytes = sizeof *shared;
    shared->config = *c;
    shared->links_used = 1; /* link 0 is never used: a key without link is an empty flow */
    return 0;
  }
  if (__atomic_load_n(&shared->magic, __ATOMIC_ACQUIRE) != HP_SHARED_MAGIC)
    return hp_fail(error, EBADMSG, "the memory given is not that of an engine; start one without inheritance");
  if (shared->layout != HP_LAYOUT || shared->bytes != sizeof *shared)
    return hp_fail(error, EBADMSG,
                   "the memory is laid out by version %u, this engine knows version %d; use the program "
                   "that made it, or start an engine without inheritance",
                   shared->layout, HP_LAYOUT);
  const hp_config *had = &shared->config;
  if (had->max_flows != c->max_flows || had->max_mappings != c->max_mappings || had->max_links != c->max_links ||
      had->max_addresses != c->max_addresses || had->drop_records != c->drop_records || had->workers != c->workers)
    return hp_fail(
        error, EINVAL,
        "the memory was made for max_flows %u, max_mappings %u, max_links %u, max_addresses %u, drop_records "
        "%u, workers %u; give the same configuration",
        had->max_flows, had->max_mappings, had->max_links, had->max_addresses, had->drop_records, had->workers);
  return 0;
}

/* Regions are opened by names that know no worker. Those of worker 0 bear them; of the others they end in its
 * number: "hp-flows.1". */
static uint32_t regions_of(uint32_t worker, const hp_given *given, hp_region_fd *own) {
  char suffix[8];
  uint32_t count = 0;
  snprintf(suffix, sizeof suffix, ".%u", worker);
  for (uint32_t i = 0; i < given->count && count < HP_MAX_REGIONS; i++) {
    const char *name = given->regions[i].name, *dot = memchr(name, '.', HP_REGION_NAME);
    if (worker == 0 ? dot != NULL : !dot || strncmp(dot, suffix, HP_REGION_NAME - (size_t)(dot - name)) != 0)
      continue;
    own[count] = given->regions[i];
    if (dot)
      own[count].name[dot - name] = 0;
    count++;
  }
  return count;
}

static void name_regions(hp_worker *worker) {
  const hp_region *regions[HP_MAX_REGIONS];
  hp_worker_regions(worker, regions);
  for (int i = 0; i < HP_WORKER_REGIONS; i++) {
    hp_region *region = (hp_region *)(uintptr_t)regions[i];
    size_t length = strnlen(region->name, HP_REGION_NAME);
    snprintf(region->name + length, HP_REGION_NAME - length, ".%u", worker->number);
  }
}

static int open_tables(hp_worker *worker, const hp_given *given, hp_error *error) {
  const hp_engine *engine = worker->engine;
  const hp_config *c = &engine->config;
  bool huge = c->huge_pages && !(given && given->read_only);
  uint64_t seed = c->seed ? c->seed + worker->number : 0;
  uint32_t mappings = (c->max_mappings + c->workers - 1) / c->workers;
  const hp_ports *first = worker->number ? &engine->workers[0].ports : NULL;
  uint64_t stats = sizeof(hp_worker_words) + (c->max_links + 1ull) * sizeof(hp_link_stats);
  if (hp_flow_table_open(&worker->flows, given, engine->flows_each, seed, huge, error) ||
      hp_mapping_table_open(&worker->mappings, given, mappings, worker->flows.seed, error) ||
      hp_ports_open(&worker->ports, given, first, c->max_addresses, engine->flows_each, c->port_quarantine, seed,
                    error) ||
      hp_region_open(&worker->stats_region, given, "hp-counters", stats, false, error))
    return -1;
  worker->words = worker->stats_region.at;
  worker->stats = (void *)(worker->words + 1);
  worker->ports.worker = worker->number;
  worker->ports.workers = c->workers;
  return 0;
}

static int worker_open(hp_worker *worker, const hp_given *given, hp_error *error) {
  hp_region_fd own[HP_MAX_REGIONS];
  hp_given given_own;
  if (given)
    given_own =
        (hp_given){.regions = own, .count = regions_of(worker->number, given, own), .read_only = given->read_only};
  int result = open_tables(worker, given ? &given_own : NULL, error);
  if (result == 0 && worker->number)
    name_regions(worker);
  if (result || worker->engine->read_only)
    return result;
  const hp_config *c = &worker->engine->config;
  worker->leaving = calloc(c->max_links + 1, sizeof *worker->leaving);
  if (!worker->leaving)
    return hp_fail(error, ENOMEM, "no memory for %u links; lower max_links", c->max_links);
  worker->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (worker->wake < 0)
    return hp_fail(error, errno, "eventfd: %s; raise the limit of open files (ulimit -n)", strerror(errno));
  if (!given)
    __atomic_store_n(&worker->words->now, hp_now(), __ATOMIC_RELAXED);
  worker->now = worker->swept_at = worker->words->now;
  return 0;
}

static void worker_free(hp_worker *worker) {
  hp_region_free(&worker->stats_region);
  hp_ports_free(&worker->ports);
  hp_mapping_table_free(&worker->mappings);
  hp_flow_table_free(&worker->flows);
  if (worker->wake >= 0)
    close(worker->wake);
  free(worker->leaving);
  sem_destroy(&worker->started);
}

static void measure(hp_engine *engine) {
  const hp_region *regions[HP_MAX_REGIONS];
  uint32_t count = hp_all_regions(engine, regions);
  hp_memory memory = {.regions = count};
  uint64_t flows = 0;
  for (uint32_t i = 0; i < count; i++) {
    memory.bytes += regions[i]->bytes;
    memory.huge_bytes += regions[i]->huge;
    if (i < HP_WORKER_REGIONS * engine->config.workers && i % HP_WORKER_REGIONS < HP_FLOW_REGIONS)
      flows += regions[i]->bytes;
  }
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    const hp_flow_sweep *sweep = &engine->workers[i].flows.sweep;
    flows += sweep->soonest_region.bytes + sweep->owner_region.bytes; /* not among the regions: derived */
  }
  memory.bytes_per_flow = (uint32_t)(flows / engine->config.max_flows);
  engine->shared->memory = memory;
}

static int open_links(hp_engine *engine, const hp_given *given, hp_error *error) {
  const hp_config *c = &engine->config;
  engine->local = calloc(c->max_links + 1, sizeof *engine->local);
  engine->free_links = calloc(c->max_links + 1, sizeof *engine->free_links);
  engine->gates = calloc(c->max_links + 1, sizeof *engine->gates);
  if (!engine->local || !engine->free_links || !engine->gates)
    return hp_fail(error, ENOMEM, "no memory for %u links; lower max_links", c->max_links);
  uint64_t links = (c->max_links + 1ull) * sizeof(hp_link);
  if (hp_region_open(&engine->link_region, given, "hp-links", links, false, error))
    return -1;
  engine->links = engine->link_region.at;
  uint32_t used = engine->shared->links_used;
  if (used < 1 || used > c->max_links + 1)
    return hp_fail(error, EBADMSG, "the memory says that %u links were used, of %u", used, c->max_links);
  engine->links_used = used;
  return 0;
}

static int open_all(hp_engine *engine, const hp_given *given, hp_error *error) {
  const hp_config *c = &engine->config;
  if (open_shared(engine, given, error) || open_links(engine, given, error) || hp_keeper_open(engine, error) ||
      hp_region_open(&engine->drop_region, given, "hp-drops", c->drop_records * sizeof(hp_drop), false, error))
    return -1;
  engine->drops = engine->drop_region.at;
  engine->drop_mask = c->drop_records - 1;
  for (uint32_t i = 0; i < c->workers; i++) {
    engine->workers[i].shared = engine->shared;
    if (worker_open(&engine->workers[i], given, error))
      return -1;
  }
  if (!engine->read_only)
    measure(engine);
  return 0;
}

static hp_worker *make_workers(hp_engine *engine) {
  uint32_t count = engine->config.workers;
  hp_worker *workers = aligned_alloc(64, count * sizeof *workers);
  if (!workers)
    return NULL;
  memset(workers, 0, count * sizeof *workers);
  for (uint32_t i = 0; i < count; i++) {
    workers[i].engine = engine;
    workers[i].number = i;
    workers[i].workers = count;
    workers[i].wake = -1;
    workers[i].newcomers = -1;
    sem_init(&workers[i].started, 0, 0);
  }
  return workers;
}

hp_engine *hp_engine_open(const hp_config *config, const hp_given *given, hp_error *error) {
  if (check_config(config, error))
    return NULL;
  hp_engine *engine = calloc(1, sizeof *engine);
  if (!engine) {
    hp_fail(error, ENOMEM, "no memory for the engine");
    return NULL;
  }
  engine->config = *config;
  fill_defaults(&engine->config);
  engine->flows_each = (engine->config.max_flows + engine->config.workers - 1) / engine->config.workers;
  engine->read_only = given && given->read_only;
  engine->workers = make_workers(engine);
  hp_random_init(&engine->random, config->seed);
  pthread_mutex_init(&engine->caller, NULL);
  if (!engine->workers)
    hp_fail(error, ENOMEM, "no memory for %u workers", engine->config.workers);
  else if (open_all(engine, given, error) == 0)
    return engine;
  hp_engine_free(engine);
  return NULL;
}

hp_engine *hp_engine_new(const hp_config *config, hp_error *error) {
  hp_engine *engine = hp_engine_open(config, NULL, error);
  if (engine) /* from now on whoever has the regions can inherit them */
    __atomic_store_n(&engine->shared->magic, HP_SHARED_MAGIC, __ATOMIC_RELEASE);
  return engine;
}

void hp_engine_free(hp_engine *engine) {
  if (!engine)
    return;
  hp_engine_stop(engine);
  for (uint32_t link = 1; engine->local && link < engine->links_used; link++)
    hp_link_forget(engine, link);
  for (uint32_t i = engine->workers ? engine->config.workers : 0; i-- > 0;) /* the first has what others share */
    worker_free(&engine->workers[i]);
  hp_region_free(&engine->drop_region);
  hp_region_free(&engine->link_region);
  hp_region_free(&engine->shared_region);
  hp_keeper_close(engine);
  free(engine->workers);
  free(engine->local);
  free(engine->free_links);
  free(engine->gates);
  pthread_mutex_destroy(&engine->caller);
  free(engine);
}

int hp_engine_check_own(const hp_engine *engine, hp_error *error) {
  if (engine->read_only)
    return hp_fail(error, EROFS, "a reader only reads: the engine is another process's");
  return 0;
}

int hp_engine_start(hp_engine *engine, hp_error *error) {
  if (hp_engine_check_own(engine, error))
    return -1;
  pthread_mutex_lock(&engine->caller);
  int result = engine->running ? hp_fail(error, EALREADY, "the engine is running already") : 0;
  if (result == 0)
    result = hp_workers_start(engine, error);
  pthread_mutex_unlock(&engine->caller);
  return result;
}

void hp_engine_stop(hp_engine *engine) {
  pthread_mutex_lock(&engine->caller);
  if (engine->running)
    hp_workers_stop(engine);
  pthread_mutex_unlock(&engine->caller);
}

/* ---- changes ---- */

int hp_engine_run(hp_engine *engine, int (*run)(hp_engine *, void *, hp_error *), void *arguments, hp_error *error) {
  if (hp_engine_check_own(engine, error))
    return -1;
  pthread_mutex_lock(&engine->caller);
  hp_links_collect(engine);
  int result = run(engine, arguments, error);
  pthread_mutex_unlock(&engine->caller);
  return result;
}
