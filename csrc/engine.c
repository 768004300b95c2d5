/* engine.c: the engine's life, the way commands take, and the packet path in memory.
 *
 * Every change is a command (hp_engine_run): while the worker runs, it carries the command out between
 * two batches and the caller waits for that; else the caller does it. So links need no lock, and a
 * change never stops traffic.
 */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

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
  return 0;
}

static void fill_defaults(hp_config *c) {
  c->max_mappings = c->max_mappings ? c->max_mappings : c->max_flows;
  c->refusal_rate = c->refusal_rate ? c->refusal_rate : 100;
  c->port_quarantine = c->port_quarantine ? c->port_quarantine : 30000;
  c->buffers = c->buffers ? c->buffers : 256;
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
  hp_shared *shared = engine->worker.shared = engine->shared = engine->shared_region.at;
  if (!given) {
    shared->layout = HP_LAYOUT;
    shared->bytes = sizeof *shared;
    shared->config = *c;
    shared->links_used = 1; /* link 0 is never used: a key without link is an empty flow */
    __atomic_store_n(&shared->now, hp_now(), __ATOMIC_RELAXED);
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
      had->max_addresses != c->max_addresses || had->drop_records != c->drop_records)
    return hp_fail(
        error, EINVAL,
        "the memory was made for max_flows %u, max_mappings %u, max_links %u, max_addresses %u, drop_records "
        "%u; give the same configuration",
        had->max_flows, had->max_mappings, had->max_links, had->max_addresses, had->drop_records);
  return 0;
}

static int worker_open(hp_worker *worker, const hp_config *c, const hp_given *given, hp_error *error) {
  bool huge = c->huge_pages && !(given && given->read_only);
  if (hp_flow_table_open(&worker->flows, given, c->max_flows, c->seed, huge, error) ||
      hp_mapping_table_open(&worker->mappings, given, c->max_mappings, worker->flows.seed, error) ||
      hp_ports_open(&worker->ports, given, c->max_addresses, c->max_flows, c->port_quarantine, c->seed, error) ||
      hp_region_open(&worker->drop_region, given, "hp-drops", c->drop_records * sizeof(hp_drop), false, error))
    return -1;
  worker->drops = worker->drop_region.at;
  worker->drop_mask = c->drop_records - 1;
  worker->now = __atomic_load_n(&worker->shared->now, __ATOMIC_RELAXED);
  worker->swept_at = worker->now;
  return 0;
}

static void measure(hp_engine *engine) {
  const hp_region *regions[HP_REGIONS];
  hp_memory memory = {.regions = HP_REGIONS};
  hp_all_regions(engine, regions);
  for (int i = 0; i < HP_REGIONS; i++) {
    memory.bytes += regions[i]->bytes;
    memory.huge_bytes += regions[i]->huge;
    if (i + 1 == HP_FLOW_REGIONS)
      memory.bytes_per_flow = (uint32_t)(memory.bytes / engine->config.max_flows);
  }
  engine->shared->memory = memory;
}

static int open_all(hp_engine *engine, const hp_given *given, hp_error *error) {
  const hp_config *c = &engine->config;
  engine->local = calloc(c->max_links + 1, sizeof *engine->local);
  engine->free_links = calloc(c->max_links + 1, sizeof *engine->free_links);
  if (!engine->local || !engine->free_links)
    return hp_fail(error, ENOMEM, "no memory for %u links; lower max_links", c->max_links);
  engine->wake = engine->read_only ? -1 : eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (engine->wake < 0 && !engine->read_only)
    return hp_fail(error, errno, "eventfd: %s; raise the limit of open files (ulimit -n)", strerror(errno));
  uint64_t links = (c->max_links + 1ull) * sizeof(hp_link);
  if (open_shared(engine, given, error) ||
      hp_region_open(&engine->link_region, given, "hp-links", links, false, error) ||
      worker_open(&engine->worker, c, given, error))
    return -1;
  engine->links = engine->link_region.at;
  uint32_t used = engine->shared->links_used;
  if (used < 1 || used > c->max_links + 1)
    return hp_fail(error, EBADMSG, "the memory says that %u links were used, of %u", used, c->max_links);
  engine->links_used = used;
  if (!engine->read_only)
    measure(engine);
  return 0;
}

hp_engine *hp_engine_open(const hp_config *config, const hp_given *given, hp_error *error) {
  if (check_config(config, error))
    return NULL;
  hp_engine *engine = aligned_alloc(64, sizeof *engine);
  if (!engine) {
    hp_fail(error, ENOMEM, "no memory for the engine");
    return NULL;
  }
  memset(engine, 0, sizeof *engine);
  engine->config = *config;
  fill_defaults(&engine->config);
  engine->read_only = given && given->read_only;
  engine->worker.engine = engine;
  engine->wake = -1;
  pthread_mutex_init(&engine->caller, NULL);
  sem_init(&engine->started, 0, 0);
  if (open_all(engine, given, error) == 0)
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
  hp_worker *worker = &engine->worker;
  for (uint32_t link = 1; engine->local && link < engine->links_used; link++)
    free(engine->local[link].rules);
  hp_region_free(&worker->drop_region);
  hp_ports_free(&worker->ports);
  hp_mapping_table_free(&worker->mappings);
  hp_flow_table_free(&worker->flows);
  hp_region_free(&engine->link_region);
  hp_region_free(&engine->shared_region);
  if (engine->wake >= 0)
    close(engine->wake);
  free(engine->local);
  free(engine->free_links);
  sem_destroy(&engine->started);
  pthread_mutex_destroy(&engine->caller);
  free(engine);
}

static int check_own(const hp_engine *engine, hp_error *error) {
  if (engine->read_only)
    return hp_fail(error, EROFS, "a reader only reads: the engine is another process's");
  return 0;
}

int hp_engine_start(hp_engine *engine, hp_error *error) {
  if (check_own(engine, error))
    return -1;
  pthread_mutex_lock(&engine->caller);
  int result = engine->running ? hp_fail(error, EALREADY, "the engine is running already") : 0;
  if (result == 0)
    result = hp_worker_start(engine, error);
  pthread_mutex_unlock(&engine->caller);
  return result;
}

void hp_engine_stop(hp_engine *engine) {
  pthread_mutex_lock(&engine->caller);
  if (engine->running)
    hp_worker_stop(engine);
  pthread_mutex_unlock(&engine->caller);
}

/* ---- commands ---- */

int hp_engine_run(hp_engine *engine, int (*run)(hp_engine *, void *, hp_error *), void *arguments, hp_error *error) {
  if (check_own(engine, error))
    return -1;
  hp_command command = {.run = run, .arguments = arguments, .error = error};
  pthread_mutex_lock(&engine->caller);
  if (!engine->running) {
    int result = run(engine, arguments, error);
    pthread_mutex_unlock(&engine->caller);
    return result;
  }
  /* The mutex is held until it is done: one command at a time is under way, so the ring has room. */
  sem_init(&command.done, 0, 0);
  uint32_t tail = engine->ring_tail;
  engine->ring[tail % HP_COMMANDS] = &command;
  __atomic_store_n(&engine->ring_tail, tail + 1, __ATOMIC_RELEASE);
  uint64_t one = 1;
  if (write(engine->wake, &one, sizeof one) < 0 && errno != EAGAIN) /* EAGAIN: it is awake already */
    abort();
  while (sem_wait(&command.done))
    ;
  pthread_mutex_unlock(&engine->caller);
  sem_destroy(&command.done);
  return command.result;
}

/* ---- the packet path in memory ---- */

int hp_translate(hp_engine *engine, hp_packet *packets, uint32_t count, uint64_t now, hp_error *error) {
  hp_worker *worker = &engine->worker;
  if (check_own(engine, error))
    return -1;
  for (uint32_t i = 0; i < count; i++)
    if (packets[i].link == 0 || packets[i].link >= engine->links_used || packets[i].length > packets[i].capacity)
      return hp_fail(error, EINVAL, "packet %u: link %u is unknown, or its length %u exceeds its capacity %u", i,
                     packets[i].link, packets[i].length, packets[i].capacity);
  pthread_mutex_lock(&engine->caller);
  int result = 0;
  if (engine->running)
    result = hp_fail(error, EBUSY, "the engine is running: its worker alone translates; stop it first");
  else if (now < worker->now)
    result = hp_fail(error, EINVAL, "the time goes back: now is %llu, was %llu", (unsigned long long)now,
                     (unsigned long long)worker->now);
  if (result == 0)
    hp_clock_set(worker, now);
  for (uint32_t i = 0; result == 0 && i < count; i += HP_BATCH)
    hp_nat_batch(worker, packets + i, count - i < HP_BATCH ? count - i : HP_BATCH);
  pthread_mutex_unlock(&engine->caller);
  return result;
}

int hp_sweep(hp_engine *engine, uint64_t now, hp_error *error) {
  hp_worker *worker = &engine->worker;
  if (check_own(engine, error))
    return -1;
  pthread_mutex_lock(&engine->caller);
  int result = 0;
  if (engine->running)
    result = hp_fail(error, EBUSY, "the engine is running: its worker alone sweeps; stop it first");
  else if (now < worker->now)
    result = hp_fail(error, EINVAL, "the time goes back: now is %llu, was %llu", (unsigned long long)now,
                     (unsigned long long)worker->now);
  if (result == 0) {
    uint64_t before = worker->flows.control->live;
    hp_clock_set(worker, now);
    worker->cursor = 0;
    hp_expire(worker, UINT32_MAX);
    result = (int)(before - worker->flows.control->live);
  }
  pthread_mutex_unlock(&engine->caller);
  return result;
}
