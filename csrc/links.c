/* links.c: tunnels and ENIs: made, claimed, given rules, removed. All by command, see engine.c.
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
    __atomic_store_n(&engine->shared->links_used, (number = engine->links_used++) + 1, __ATOMIC_RELEASE);
  else {
    hp_fail(error, ENOSPC, "all %u links are in use; raise max_links", engine->config.max_links);
    return 0;
  }
  memset(&engine->links[number], 0, sizeof(hp_link));
  engine->links[number].kind = kind;
  engine->links[number].tokens = engine->config.refusal_rate * 1000;
  engine->links[number].tokens_at = (uint32_t)engine->worker.now;
  uint64_t now = hp_now();
  engine->links[number].since = now > engine->worker.now ? now : engine->worker.now;
  engine->local[number] = (hp_link_local){.fd = fd, .claimed = 1};
  return number;
}

/* From now on a successor finds a whole link. */
static int made(hp_engine *engine, uint32_t number) {
  __atomic_store_n(&engine->links[number].ready, 1, __ATOMIC_RELEASE);
  return (int)number;
}

void hp_link_give(hp_engine *engine, uint32_t number) {
  hp_link *link = &engine->links[number];
  __atomic_store_n(&link->ready, 0, __ATOMIC_RELEASE);
  __atomic_thread_fence(__ATOMIC_RELEASE);
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
    hp_link_give(engine, number);
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

static void configure_eni(hp_link *link, const hp_eni_config *c) {
  link->mtu = c->mtu;
  link->silent = c->silent != 0;
  link->udp_mapping = (uint8_t)c->udp_mapping;
  link->timers = fill_timers(&c->timers);
}

static int add_eni(hp_engine *engine, void *arguments, hp_error *error) {
  const struct add *add = arguments;
  const hp_eni_config *c = add->eni;
  uint32_t number = take_link(engine, HP_LINK_ENI, add->fd, error);
  if (number == 0)
    return -1;
  hp_link *link = &engine->links[number];
  configure_eni(link, c);
  link->address = c->addresses[0];
  for (uint32_t i = 0; i < c->address_count; i++) {
    uint32_t address = hp_address_add(&engine->worker.ports, number, c->addresses[i]);
    if (address == HP_NONE) {
      hp_link_give(engine, number);
      return hp_fail(error, ENOSPC, "all %u ENI addresses are in use; raise max_addresses",
                     engine->config.max_addresses);
    }
    link->addresses[link->address_count++] = address;
  }
  if (connect_link(engine, number, error)) {
    hp_link_give(engine, number);
    return -1;
  }
  return made(engine, number);
}

static int check_eni(const hp_eni_config *config, int fd, hp_error *error) {
  if (config->address_count < 1 || config->address_count > HP_ENI_ADDRESSES)
    return hp_fail(error, EINVAL, "an ENI has 1 to %d addresses, not %u", HP_ENI_ADDRESSES, config->address_count);
  if (config->udp_mapping > HP_UDP_ENDPOINT_DEPENDENT)
    return hp_fail(error, EINVAL, "udp_mapping is %u; it must be one of HP_UDP_*", config->udp_mapping);
  if (check_mtu(config->mtu, error) || check_timers(&config->timers, error) ||
      (fd >= 0 && hp_link_tun_check(fd, error)))
    return -1;
  return 0;
}

int hp_eni_add(hp_engine *engine, const hp_eni_config *config, int fd, hp_error *error) {
  if (check_eni(config, fd, error))
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
    hp_link_give(engine, number);
    return -1;
  }
  eni->tunnels++;
  return made(engine, number);
}

static int check_tunnel(const hp_tunnel_config *config, int fd, hp_error *error) {
  return check_mtu(config->mtu, error) || (fd >= 0 && hp_link_tun_check(fd, error)) ? -1 : 0;
}

int hp_tunnel_add(hp_engine *engine, const hp_tunnel_config *config, int fd, hp_error *error) {
  if (check_tunnel(config, fd, error))
    return -1;
  return hp_engine_run(engine, add_tunnel, &(struct add){.tunnel = config, .fd = fd}, error);
}

/* ---- links of inherited regions ---- */

static int find_unclaimed(const hp_engine *engine, uint32_t number, uint8_t kind, hp_error *error) {
  const char *word = kind == HP_LINK_ENI ? "ENI" : "tunnel";
  if (number == 0 || number >= engine->links_used || engine->links[number].kind != kind)
    return hp_fail(error, ENOENT, "link %u is no %s; add it", number, word);
  if (engine->links[number].draining)
    return hp_fail(error, ENOENT, "%s %u was removed; add it anew", word, number);
  if (engine->local[number].claimed)
    return hp_fail(error, 0, "%s %u is claimed already", word, number);
  return 0;
}

static int claim(hp_engine *engine, uint32_t number, int fd, hp_error *error) {
  engine->local[number].fd = fd;
  if (connect_link(engine, number, error)) {
    engine->local[number].fd = -1;
    return -1;
  }
  engine->local[number].claimed = 1;
  engine->links[number].gone = 0;
  return (int)number;
}

static bool has_addresses(const hp_engine *engine, const hp_link *eni, const hp_eni_config *c) {
  if (eni->address_count != c->address_count)
    return false;
  for (uint32_t i = 0; i < c->address_count; i++)
    if (engine->worker.ports.addresses[eni->addresses[i]].address != c->addresses[i])
      return false;
  return true;
}

struct claim {
  struct add add;
  uint32_t number;
};

static int claim_eni(hp_engine *engine, void *arguments, hp_error *error) {
  const struct claim *c = arguments;
  if (find_unclaimed(engine, c->number, HP_LINK_ENI, error))
    return -1;
  hp_link *link = &engine->links[c->number];
  if (!has_addresses(engine, link, c->add.eni))
    return hp_fail(error, 0, "ENI %u has other addresses; claim it with those, in their order", c->number);
  if (claim(engine, c->number, c->add.fd, error) < 0)
    return -1;
  hp_timers before = link->timers;
  configure_eni(link, c->add.eni);
  if (memcmp(&before, &link->timers, sizeof before) != 0)
    hp_deadlines_check(engine);
  return (int)c->number;
}

int hp_eni_claim(hp_engine *engine, uint32_t link, const hp_eni_config *config, int fd, hp_error *error) {
  if (check_eni(config, fd, error))
    return -1;
  return hp_engine_run(engine, claim_eni, &(struct claim){.add = {.eni = config, .fd = fd}, .number = link}, error);
}

static int claim_tunnel(hp_engine *engine, void *arguments, hp_error *error) {
  const struct claim *c = arguments;
  const hp_tunnel_config *config = c->add.tunnel;
  if (find_unclaimed(engine, c->number, HP_LINK_TUNNEL, error) || find_eni(engine, config->eni, error))
    return -1;
  hp_link *link = &engine->links[c->number];
  if (link->eni != config->eni || link->address != config->address)
    return hp_fail(error, 0, "tunnel %u has another ENI or address; claim it with those", c->number);
  if (!engine->local[config->eni].claimed)
    return hp_fail(error, 0, "ENI %u of tunnel %u is not claimed; claim it first", config->eni, c->number);
  if (claim(engine, c->number, c->add.fd, error) < 0)
    return -1;
  link->mtu = config->mtu;
  link->max_flows = config->max_flows;
  return (int)c->number;
}

int hp_tunnel_claim(hp_engine *engine, uint32_t link, const hp_tunnel_config *config, int fd, hp_error *error) {
  if (check_tunnel(config, fd, error))
    return -1;
  return hp_engine_run(engine, claim_tunnel, &(struct claim){.add = {.tunnel = config, .fd = fd}, .number = link},
                       error);
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

static int abandon(hp_engine *engine, void *arguments, hp_error *error) {
  (void)arguments;
  int count = 0;
  const uint8_t kinds[] = {HP_LINK_TUNNEL, HP_LINK_ENI}; /* an ENI with tunnels stays */
  for (int i = 0; i < 2; i++)
    for (uint32_t number = 1; number < engine->links_used; number++) {
      const hp_link *link = &engine->links[number];
      if (link->kind != kinds[i] || link->draining || engine->local[number].claimed)
        continue;
      if (remove_link(engine, &number, error))
        return -1;
      count++;
    }
  return count;
}

int hp_engine_abandon(hp_engine *engine, hp_error *error) { return hp_engine_run(engine, abandon, NULL, error); }

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
