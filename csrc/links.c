/* links.c: tunnels and ENIs: made, and given rules.
 *
 * A link is written while no worker can name it, then the workers that it concerns start to receive from it: an ENI's
 * all, at once; a tunnel's one with the first packet (newcomers.c). removal.c has its end.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "link.h"
#include "links.h"
#include "steer.h"

enum { MIN_MTU = 576, MAX_MTU = 65535 };

/* ---- numbers ---- */

/* A tunnel's counts are its worker's alone, an ENI's are everybody's. */
static void clear_stats(hp_engine *engine, uint32_t number, uint32_t first, uint32_t count) {
  for (uint32_t i = first; i < first + count; i++) {
    const hp_worker *worker = &engine->workers[i];
    *hp_stats(worker, number) =
        (hp_link_stats){.tokens = engine->config.refusal_rate * 1000,
                        .tokens_at = (uint32_t)__atomic_load_n(&worker->words->now, __ATOMIC_RELAXED)};
  }
}

static uint32_t take_link(hp_engine *engine, uint8_t kind, int fd, hp_error *error) {
  uint32_t number;
  if (engine->free_count)
    number = engine->free_links[--engine->free_count];
  else if (engine->links_used <= engine->config.max_links)
    __atomic_store_n(&engine->shared->links_used, (number = engine->links_used++) + 1, __ATOMIC_RELEASE);
  else {
    hp_fail(error, ENOSPC, "all %u links are in use; raise max_links", engine->config.max_links);
    return 0;
  }
  memset(&engine->links[number], 0, sizeof(hp_link));
  engine->links[number].kind = kind;
  uint64_t now = hp_now(), latest = __atomic_load_n(&engine->workers[0].words->now, __ATOMIC_RELAXED);
  engine->links[number].since = now > latest ? now : latest;
  engine->local[number] = (hp_link_local){.fd = fd, .claimed = 1};
  return number;
}

void hp_gate_set(hp_engine *engine, uint32_t number) {
  const hp_link *link = &engine->links[number];
  bool shut = link->kind == HP_LINK_FREE || hp_link_draining(link) || link->drain;
  __atomic_store_n(&engine->gates[number], shut ? 0 : (uint32_t)link->kind << 16 | link->mtu, __ATOMIC_RELAXED);
}

/* From now on a successor finds a whole link. */
static int made(hp_engine *engine, uint32_t number) {
  __atomic_store_n(&engine->links[number].ready, 1, __ATOMIC_RELEASE);
  hp_gate_set(engine, number);
  return (int)number;
}

/* ---- descriptors ---- */

int hp_link_fd(const hp_engine *engine, uint32_t link, uint32_t worker, bool *receives) {
  const hp_link_local *local = &engine->local[link];
  *receives = local->fds || worker == 0 || engine->links[link].kind == HP_LINK_TUNNEL;
  return local->fds ? local->fds[worker] : local->fd;
}

int hp_link_take_queues(hp_engine *engine, uint32_t number, const hp_eni_config *config, int fd, hp_error *error) {
  hp_link_local *local = &engine->local[number];
  if (config->steered && !(local->steering = hp_steer_map(config->steering, error)))
    return -1;
  local->fd = fd;
  if (config->queue_count == 0)
    return 0;
  local->fds = calloc(engine->config.workers, sizeof *local->fds);
  if (!local->fds)
    return hp_fail(error, ENOMEM, "no memory for the queues of an ENI");
  local->fds[0] = fd;
  for (uint32_t i = 1; i < engine->config.workers; i++)
    local->fds[i] = config->queues[i - 1];
  return 0;
}

int hp_link_connect(hp_worker *worker, void *arguments, hp_error *error) {
  return worker->io ? hp_worker_connect(worker, *(const uint32_t *)arguments, error) : 0;
}

/* ---- ENIs ---- */

static uint32_t or_default(uint32_t value, uint32_t otherwise) { return value ? value : otherwise; }

static void set(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_RELAXED); }

/* Of an ENI that is claimed flows may exist, and workers look at its timers. */
static void set_timers(hp_timers *timers, const hp_timers *t) {
  set(&timers->tcp_established, or_default(t->tcp_established, 7440000));
  set(&timers->tcp_transitory, or_default(t->tcp_transitory, 240000));
  set(&timers->tcp_closing, or_default(t->tcp_closing, 240000));
  set(&timers->udp, or_default(t->udp, 300000));
  set(&timers->dns, or_default(t->dns, 30000));
  set(&timers->icmp, or_default(t->icmp, 60000));
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

static int check_queues(const hp_engine *engine, const hp_eni_config *config, int fd, hp_error *error) {
  if (config->queue_count && (fd < 0 || config->queue_count + 1 != engine->config.workers))
    return hp_fail(error, EINVAL, "%u further queues of an ENI: give one for each of the %u workers, or one in all",
                   config->queue_count, engine->config.workers);
  if (fd >= 0 && hp_link_tun_check(fd, error))
    return -1;
  for (uint32_t i = 0; i < config->queue_count; i++)
    if (hp_link_tun_check(config->queues[i], error))
      return -1;
  return 0;
}

int hp_eni_check(const hp_engine *engine, const hp_eni_config *config, int fd, hp_error *error) {
  if (config->address_count < 1 || config->address_count > HP_ENI_ADDRESSES)
    return hp_fail(error, EINVAL, "an ENI has 1 to %d addresses, not %u", HP_ENI_ADDRESSES, config->address_count);
  if (config->udp_mapping > HP_UDP_ENDPOINT_DEPENDENT)
    return hp_fail(error, EINVAL, "udp_mapping is %u; it must be one of HP_UDP_*", config->udp_mapping);
  if (check_mtu(config->mtu, error) || check_timers(&config->timers, error) || check_queues(engine, config, fd, error))
    return -1;
  return 0;
}

void hp_eni_configure(hp_link *link, const hp_eni_config *c) {
  link->mtu = c->mtu;
  link->silent = c->silent != 0;
  link->udp_mapping = (uint8_t)c->udp_mapping;
  set_timers(&link->timers, &c->timers);
}

static int reserve_addresses(hp_engine *engine, uint32_t number, uint32_t count, hp_error *error) {
  hp_link *link = &engine->links[number];
  for (uint32_t i = 0; i < count; i++) {
    uint32_t address = hp_address_reserve(&engine->workers[0].ports, number);
    if (address == HP_NONE)
      return hp_fail(error, ENOSPC, "all %u ENI addresses are in use; raise max_addresses",
                     engine->config.max_addresses);
    link->addresses[link->address_count++] = address;
  }
  return 0;
}

struct add {
  const hp_eni_config *eni;
  const hp_tunnel_config *tunnel;
  int fd;
  uint32_t number;
};

static int set_up_eni(hp_worker *worker, void *arguments, hp_error *error) {
  const struct add *add = arguments;
  const hp_link *link = &worker->engine->links[add->number];
  for (uint32_t i = 0; i < link->address_count; i++) {
    worker->ports.steering[link->addresses[i]] = hp_steer_part(worker->engine->local[add->number].steering, i);
    hp_address_set(&worker->ports, link->addresses[i], add->number, add->eni->addresses[i]);
  }
  uint32_t number = add->number;
  return hp_link_connect(worker, &number, error);
}

static int take_down_eni(hp_worker *worker, void *arguments, hp_error *error) {
  (void)error;
  const struct add *add = arguments;
  hp_link_forget_addresses(worker, &worker->engine->links[add->number]);
  return 0;
}

static int set_up_workers(hp_engine *engine, struct add *add, hp_error *error) {
  uint32_t done = 0;
  while (done < engine->config.workers && hp_worker_run(&engine->workers[done], set_up_eni, add, error) == 0)
    done++;
  if (done == engine->config.workers)
    return 0;
  hp_error ignored;
  hp_link_disconnect(engine, add->number, done);
  for (uint32_t i = 0; i <= done; i++)
    hp_worker_run(&engine->workers[i], take_down_eni, add, &ignored);
  return -1;
}

static int add_eni(hp_engine *engine, void *arguments, hp_error *error) {
  struct add *add = arguments;
  const hp_eni_config *c = add->eni;
  uint32_t number = add->number = take_link(engine, HP_LINK_ENI, add->fd, error);
  if (number == 0)
    return -1;
  hp_link *link = &engine->links[number];
  clear_stats(engine, number, 0, engine->config.workers);
  hp_eni_configure(link, c);
  link->address = c->addresses[0];
  if (hp_link_take_queues(engine, number, c, add->fd, error) ||
      reserve_addresses(engine, number, c->address_count, error) || set_up_workers(engine, add, error)) {
    hp_link_give(engine, number);
    return -1;
  }
  return made(engine, number);
}

int hp_eni_add(hp_engine *engine, const hp_eni_config *config, int fd, hp_error *error) {
  if (hp_eni_check(engine, config, fd, error))
    return -1;
  return hp_engine_run(engine, add_eni, &(struct add){.eni = config, .fd = fd}, error);
}

int hp_eni_find(const hp_engine *engine, uint32_t number, hp_error *error) {
  if (number == 0 || number >= engine->links_used || engine->links[number].kind != HP_LINK_ENI ||
      engine->links[number].draining)
    return hp_fail(error, ENOENT, "link %u is no ENI", number);
  return 0;
}

/* ---- tunnels ---- */

static hp_worker *least_loaded(const hp_engine *engine) {
  hp_worker *least = engine->workers;
  for (uint32_t i = 1; i < engine->config.workers; i++)
    if (engine->workers[i].tunnels < least->tunnels)
      least = &engine->workers[i];
  return least;
}

/* Its worker need not hear of it yet, nor do anything. */
static int connect_tunnel(hp_engine *engine, uint32_t number, hp_error *error) {
  hp_worker *worker = &engine->workers[engine->links[number].worker];
  if (!engine->running || engine->local[number].fd < 0 || hp_newcomer_add(worker, number))
    return 0;
  return hp_worker_run(worker, hp_link_connect, &number, error);
}

static int add_tunnel(hp_engine *engine, void *arguments, hp_error *error) {
  struct add *add = arguments;
  const hp_tunnel_config *c = add->tunnel;
  if (hp_eni_find(engine, c->eni, error))
    return -1;
  uint32_t number = take_link(engine, HP_LINK_TUNNEL, add->fd, error);
  if (number == 0)
    return -1;
  hp_link *link = &engine->links[number], *eni = &engine->links[c->eni];
  hp_worker *worker = least_loaded(engine);
  clear_stats(engine, number, worker->number, 1);
  link->worker = (uint8_t)worker->number;
  link->mtu = c->mtu;
  link->eni = c->eni;
  link->address = c->address;
  link->max_flows = c->max_flows;
  link->pool = hp_random_below(&engine->random, eni->address_count);
  made(engine, number); /* before a packet comes: its environment may run already */
  if (connect_tunnel(engine, number, error)) {
    hp_link_give(engine, number);
    return -1;
  }
  eni->tunnels++;
  worker->tunnels++;
  return (int)number;
}

int hp_tunnel_check(const hp_tunnel_config *config, int fd, hp_error *error) {
  if (check_mtu(config->mtu, error))
    return -1;
  return fd >= 0 && !config->trusted ? hp_link_tun_check(fd, error) : 0;
}

int hp_tunnel_add(hp_engine *engine, const hp_tunnel_config *config, int fd, hp_error *error) {
  if (hp_tunnel_check(config, fd, error))
    return -1;
  return hp_engine_run(engine, add_tunnel, &(struct add){.tunnel = config, .fd = fd}, error);
}

/* ---- rules ---- */

struct rules {
  uint32_t eni;
  hp_rules *rules;
};

static int pass_a_turn(hp_worker *worker, void *arguments, hp_error *error) {
  (void)worker, (void)arguments, (void)error;
  return 0;
}

static int set_rules(hp_engine *engine, void *arguments, hp_error *error) {
  struct rules *given = arguments;
  if (hp_eni_find(engine, given->eni, error))
    return -1;
  given->rules = __atomic_exchange_n(&engine->local[given->eni].rules, given->rules, __ATOMIC_ACQ_REL);
  /* Whoever has been looking at the old ones has finished his batch then. */
  for (uint32_t i = 0; i < engine->config.workers; i++)
    hp_worker_run(&engine->workers[i], pass_a_turn, NULL, error);
  return 0;
}

int hp_eni_rules(hp_engine *engine, uint32_t eni, const hp_rule *rules, uint32_t count, hp_error *error) {
  if (count > HP_MAX_RULES)
    return hp_fail(error, E2BIG, "%u rules; the security groups of an ENI have at most %d together", count,
                   HP_MAX_RULES);
  struct rules given = {.eni = eni, .rules = calloc(1, sizeof(hp_rules) + count * sizeof(hp_rule))};
  if (!given.rules)
    return hp_fail(error, ENOMEM, "no memory for %u rules", count);
  given.rules->count = count;
  if (count)
    memcpy(given.rules->rules, rules, count * sizeof(hp_rule));
  int result = hp_engine_run(engine, set_rules, &given, error);
  free(given.rules);
  return result;
}
