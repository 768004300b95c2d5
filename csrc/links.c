/* links.c: tunnels and ENIs: made, given rules, removed. All by command, see engine.c.
 *
 * A removed link drains: packets to it are dropped from then on, the sweep ends its flows, and its number
 * is given out again only after a whole pass, when nothing can name it any more.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "link.h"

enum { MIN_MTU = 576, MAX_MTU = 65535 };

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
