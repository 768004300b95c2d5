/* engine.c: the engine's life, its links, and the commands that change them.
 *
 * Every change is a command (hp_engine_run): while the worker runs, it carries the command out between
 * two batches and the caller waits for that; else the caller does it. So links need no lock, and a
 * change never stops traffic.
 *
 * A removed link drains: packets to it are dropped from then on, the sweep ends its flows, and its number
 * is given out again only after a whole pass, when nothing can name it any more.
 */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "link.h"
#include "nat.h"

enum { MIN_MTU = 576, MAX_MTU = 65535, MAX_REFUSAL_RATE = 1000000 };

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

static int worker_new(hp_worker *worker, const hp_config *c, hp_error *error) {
  if (hp_flow_table_new(&worker->flows, c->max_flows, c->seed, c->huge_pages != 0, error) ||
      hp_mapping_table_new(&worker->mappings, c->max_mappings, worker->flows.seed, error) ||
      hp_ports_new(&worker->ports, c->max_addresses, c->max_flows, c->port_quarantine, c->seed, error) ||
      hp_region_new(&worker->drop_region, "hp-drops", c->drop_records * sizeof(hp_drop), false, error))
    return -1;
  worker->drops = worker->drop_region.at;
  worker->drop_mask = c->drop_records - 1;
  worker->now = hp_now();
  worker->swept_at = worker->now;
  return 0;
}

hp_engine *hp_engine_new(const hp_config *config, hp_error *error) {
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
  engine->worker.engine = engine;
  engine->wake = -1;
  engine->links_used = 1; /* link 0 is never used: a key without link is an empty flow */
  pthread_mutex_init(&engine->caller, NULL);
  sem_init(&engine->started, 0, 0);
  engine->local = calloc(config->max_links + 1, sizeof *engine->local);
  engine->free_links = calloc(config->max_links + 1, sizeof *engine->free_links);
  engine->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (!engine->local || !engine->free_links)
    hp_fail(error, ENOMEM, "no memory for %u links; lower max_links", config->max_links);
  else if (engine->wake < 0)
    hp_fail(error, errno, "eventfd: %s; raise the limit of open files (ulimit -n)", strerror(errno));
  else if (hp_region_new(&engine->link_region, "hp-links", (config->max_links + 1ull) * sizeof(hp_link), false,
                         error) == 0 &&
           worker_new(&engine->worker, &engine->config, error) == 0) {
    engine->links = engine->link_region.at;
    return engine;
  }
  hp_engine_free(engine);
  return NULL;
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
  if (engine->wake >= 0)
    close(engine->wake);
  free(engine->local);
  free(engine->free_links);
  sem_destroy(&engine->started);
  pthread_mutex_destroy(&engine->caller);
  free(engine);
}

int hp_engine_start(hp_engine *engine, hp_error *error) {
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

/* ---- links ---- */

static uint32_t take_link(hp_engine *engine, uint8_t kind, int fd, hp_error *error) {
  uint32_t number;
  if (engine->free_count)
    number = engine->free_links[--engine->free_count];
  else if (engine->links_used <= engine->config.max_links)
    number = engine->links_used++;
  else {
    hp_fail(error, ENOSPC, "all %u links are in use; raise max_links", engine->config.max_links);
    return 0;
  }
  memset(&engine->links[number], 0, sizeof(hp_link));
  engine->links[number].kind = kind;
  engine->links[number].tokens = engine->config.refusal_rate * 1000;
  engine->links[number].tokens_at = (uint32_t)engine->worker.now;
  engine->local[number] = (hp_link_local){.fd = fd};
  return number;
}

static void give_link(hp_engine *engine, uint32_t number) {
  hp_link *link = &engine->links[number];
  for (uint32_t i = 0; i < link->address_count; i++)
    hp_address_remove(&engine->worker.ports, link->addresses[i]);
  free(engine->local[number].rules);
  engine->local[number] = (hp_link_local){.fd = -1};
  link->kind = HP_LINK_FREE;
  link->draining = 0;
  link->address_count = 0;
  engine->free_links[engine->free_count++] = number;
}

void hp_links_drained(hp_engine *engine) {
  for (uint32_t number = 1; number < engine->links_used && engine->draining; number++) {
    hp_link *link = &engine->links[number];
    if (!link->draining || engine->worker.pass < link->drain_pass)
      continue;
    engine->draining--;
    give_link(engine, number);
  }
}

static int connect_link(hp_engine *engine, uint32_t number, hp_error *error) {
  const hp_link_local *local = &engine->local[number];
  if (local->fd < 0 || !engine->worker.io)
    return 0;
  int group = engine->links[number].kind == HP_LINK_ENI ? HP_GROUP_ENIS : HP_GROUP_TUNNELS;
  return engine->worker.io_ops->add(engine->worker.io, number, local->fd, group, error);
}

static uint32_t or_default(uint32_t value, uint32_t otherwise) { return value ? value : otherwise; }

static hp_timers fill_timers(const hp_timers *t) {
  return (hp_timers){.tcp_established = or_default(t->tcp_established, 7440000),
                     .tcp_transitory = or_default(t->tcp_transitory, 240000),
                     .tcp_closing = or_default(t->tcp_closing, 240000),
                     .udp = or_default(t->udp, 300000),
                     .dns = or_default(t->dns, 30000),
                     .icmp = or_default(t->icmp, 60000)};
}

static int check_mtu(uint32_t mtu, hp_error *error) {
  if (mtu < MIN_MTU || mtu > MAX_MTU)
    return hp_fail(error, EINVAL, "mtu is %u; it must be %d to %d", mtu, MIN_MTU, MAX_MTU);
  return 0;
}

static int check_timers(const hp_timers *t, hp_error *error) {
  const uint32_t all[] = {t->tcp_established, t->tcp_transitory, t->tcp_closing, t->udp, t->dns, t->icmp};
  for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
    if (all[i] > INT32_MAX / 2)
      return hp_fail(error, EINVAL, "a timer of %u ms; it must be at most %d ms (12 days)", all[i], INT32_MAX / 2);
  return 0;
}

struct add {
  const hp_eni_config *eni;
  const hp_tunnel_config *tunnel;
  int fd;
};

static int add_eni(hp_engine *engine, void *arguments, hp_error *error) {
  const struct add *add = arguments;
  const hp_eni_config *c = add->eni;
  uint32_t number = take_link(engine, HP_LINK_ENI, add->fd, error);
  if (number == 0)
    return -1;
  hp_link *link = &engine->links[number];
  link->mtu = c->mtu;
  link->address = c->addresses[0];
  link->silent = c->silent != 0;
  link->udp_mapping = (uint8_t)c->udp_mapping;
  link->timers = fill_timers(&c->timers);
  for (uint32_t i = 0; i < c->address_count; i++) {
    uint32_t address = hp_address_add(&engine->worker.ports, number, c->addresses[i]);
    if (address == HP_NONE) {
      give_link(engine, number);
      return hp_fail(error, ENOSPC, "all %u ENI addresses are in use; raise max_addresses",
                     engine->config.max_addresses);
    }
    link->addresses[link->address_count++] = address;
  }
  if (connect_link(engine, number, error)) {
    give_link(engine, number);
    return -1;
  }
  return (int)number;
}

int hp_eni_add(hp_engine *engine, const hp_eni_config *config, int fd, hp_error *error) {
  if (config->address_count < 1 || config->address_count > HP_ENI_ADDRESSES)
    return hp_fail(error, EINVAL, "an ENI has 1 to %d addresses, not %u", HP_ENI_ADDRESSES, config->address_count);
  if (config->udp_mapping > HP_UDP_ENDPOINT_DEPENDENT)
    return hp_fail(error, EINVAL, "udp_mapping is %u; it must be one of HP_UDP_*", config->udp_mapping);
  if (check_mtu(config->mtu, error) || check_timers(&config->timers, error) ||
      (fd >= 0 && hp_link_tun_check(fd, error)))
    return -1;
  return hp_engine_run(engine, add_eni, &(struct add){.eni = config, .fd = fd}, error);
}

static int find_eni(hp_engine *engine, uint32_t number, hp_error *error) {
  if (number == 0 || number >= engine->links_used || engine->links[number].kind != HP_LINK_ENI ||
      engine->links[number].draining)
    return hp_fail(error, ENOENT, "link %u is no ENI", number);
  return 0;
}

static int add_tunnel(hp_engine *engine, void *arguments, hp_error *error) {
  const struct add *add = arguments;
  const hp_tunnel_config *c = add->tunnel;
  if (find_eni(engine, c->eni, error))
    return -1;
  uint32_t number = take_link(engine, HP_LINK_TUNNEL, add->fd, error);
  if (number == 0)
    return -1;
  hp_link *link = &engine->links[number], *eni = &engine->links[c->eni];
  link->mtu = c->mtu;
  link->eni = c->eni;
  link->address = c->address;
  link->max_flows = c->max_flows;
  link->pool = hp_random_below(&engine->worker.ports.random, eni->address_count);
  if (connect_link(engine, number, error)) {
    give_link(engine, number);
    return -1;
  }
  eni->tunnels++;
  return (int)number;
}

int hp_tunnel_add(hp_engine *engine, const hp_tunnel_config *config, int fd, hp_error *error) {
  if (check_mtu(config->mtu, error) || (fd >= 0 && hp_link_tun_check(fd, error)))
    return -1;
  return hp_engine_run(engine, add_tunnel, &(struct add){.tunnel = config, .fd = fd}, error);
}

static int remove_link(hp_engine *engine, void *arguments, hp_error *error) {
  uint32_t number = *(const uint32_t *)arguments;
  if (number == 0 || number >= engine->links_used || engine->links[number].kind == HP_LINK_FREE ||
      engine->links[number].draining)
    return hp_fail(error, ENOENT, "there is no link %u", number);
  hp_link *link = &engine->links[number];
  if (link->kind == HP_LINK_ENI && link->tunnels)
    return hp_fail(error, EBUSY, "the ENI is used by %u tunnels; remove them first", link->tunnels);
  if (engine->worker.io && engine->local[number].fd >= 0)
    engine->worker.io_ops->remove(engine->worker.io, number);
  engine->local[number].fd = -1;
  if (link->kind == HP_LINK_TUNNEL)
    engine->links[link->eni].tunnels--;
  link->draining = 1;
  /* The pass under way may be past some of its flows: the next one sees them all. */
  link->drain_pass = engine->worker.pass + (engine->worker.cursor ? 2 : 1);
  engine->draining++;
  return 0;
}

int hp_link_remove(hp_engine *engine, uint32_t link, hp_error *error) {
  return hp_engine_run(engine, remove_link, &link, error);
}

struct rules {
  uint32_t eni;
  hp_rule *rules;
  uint32_t count;
};

static int set_rules(hp_engine *engine, void *arguments, hp_error *error) {
  struct rules *set = arguments;
  if (find_eni(engine, set->eni, error))
    return -1;
  hp_link_local *local = &engine->local[set->eni];
  hp_rule *old = local->rules;
  local->rules = set->rules;
  local->rule_count = set->count;
  set->rules = old; /* the caller frees it: a worker frees nothing */
  return 0;
}

int hp_eni_rules(hp_engine *engine, uint32_t eni, const hp_rule *rules, uint32_t count, hp_error *error) {
  if (count > HP_MAX_RULES)
    return hp_fail(error, E2BIG, "%u rules; the security groups of an ENI have at most %d together", count,
                   HP_MAX_RULES);
  struct rules set = {.eni = eni, .count = count, .rules = calloc(count ? count : 1, sizeof(hp_rule))};
  if (!set.rules)
    return hp_fail(error, ENOMEM, "no memory for %u rules", count);
  if (count)
    memcpy(set.rules, rules, count * sizeof(hp_rule));
  int result = hp_engine_run(engine, set_rules, &set, error);
  free(set.rules);
  return result;
}

/* ---- the packet path in memory ---- */

int hp_translate(hp_engine *engine, hp_packet *packets, uint32_t count, uint64_t now, hp_error *error) {
  hp_worker *worker = &engine->worker;
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
