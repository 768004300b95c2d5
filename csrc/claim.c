/* claim.c: links of inherited regions, which get their descriptors and configuration again, or are removed.
 *
 * The numbers of links are in their flows, so a link that is claimed keeps its own, and a tunnel its worker.
 */
#include <errno.h>
#include <string.h>

#include "links.h"
#include "steer.h"

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

static int claimed(hp_engine *engine, uint32_t number) {
  engine->local[number].claimed = 1;
  __atomic_store_n(&engine->links[number].gone, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&engine->links[number].read_error, 0, __ATOMIC_RELAXED);
  hp_gate_set(engine, number);
  return (int)number;
}

static bool has_addresses(const hp_engine *engine, const hp_link *eni, const hp_eni_config *c) {
  if (eni->address_count != c->address_count)
    return false;
  for (uint32_t i = 0; i < c->address_count; i++)
    if (engine->workers[0].ports.addresses[eni->addresses[i]].address != c->addresses[i])
      return false;
  return true;
}

struct claim {
  const hp_eni_config *eni;
  const hp_tunnel_config *tunnel;
  int fd;
  uint32_t number;
};

/* What a worker has leased is where it was: only the program has to learn it. */
static int steer_to(hp_worker *worker, void *arguments, hp_error *error) {
  (void)error;
  uint32_t number = *(const uint32_t *)arguments;
  const hp_link *link = &worker->engine->links[number];
  for (uint32_t i = 0; i < link->address_count; i++) {
    worker->ports.steering[link->addresses[i]] = hp_steer_part(worker->engine->local[number].steering, i);
    hp_address_steer(&worker->ports, link->addresses[i]);
  }
  return 0;
}

static int connect_all(hp_engine *engine, uint32_t number, hp_error *error) {
  uint32_t done = 0;
  while (done < engine->config.workers && hp_worker_run(&engine->workers[done], hp_link_connect, &number, error) == 0)
    done++;
  if (done < engine->config.workers) {
    hp_link_disconnect(engine, number, done);
    return -1;
  }
  for (uint32_t i = 0; i < engine->config.workers; i++)
    hp_worker_run(&engine->workers[i], steer_to, &number, error);
  return 0;
}

static int check_deadlines(hp_worker *worker, void *arguments, hp_error *error) {
  (void)arguments, (void)error;
  hp_deadlines_check(worker);
  return 0;
}

static int claim_eni(hp_engine *engine, void *arguments, hp_error *error) {
  const struct claim *c = arguments;
  uint32_t number = c->number;
  if (find_unclaimed(engine, number, HP_LINK_ENI, error))
    return -1;
  hp_link *link = &engine->links[number];
  if (!has_addresses(engine, link, c->eni))
    return hp_fail(error, 0, "ENI %u has other addresses; claim it with those, in their order", number);
  const hp_link before = *link;
  hp_eni_configure(link, c->eni);
  if (hp_link_take_queues(engine, number, c->eni, c->fd, error) || connect_all(engine, number, error)) {
    hp_link_forget(engine, number);
    *link = before;
    return -1;
  }
  if (memcmp(&before.timers, &link->timers, sizeof before.timers) != 0)
    for (uint32_t i = 0; i < engine->config.workers; i++)
      hp_worker_run(&engine->workers[i], check_deadlines, NULL, error);
  return claimed(engine, number);
}

int hp_eni_claim(hp_engine *engine, uint32_t link, const hp_eni_config *config, int fd, hp_error *error) {
  if (hp_eni_check(engine, config, fd, error))
    return -1;
  return hp_engine_run(engine, claim_eni, &(struct claim){.eni = config, .fd = fd, .number = link}, error);
}

static int claim_tunnel(hp_engine *engine, void *arguments, hp_error *error) {
  const struct claim *c = arguments;
  const hp_tunnel_config *config = c->tunnel;
  uint32_t number = c->number;
  if (find_unclaimed(engine, number, HP_LINK_TUNNEL, error) || hp_eni_find(engine, config->eni, error))
    return -1;
  hp_link *link = &engine->links[number];
  if (link->eni != config->eni || link->address != config->address)
    return hp_fail(error, 0, "tunnel %u has another ENI or address; claim it with those", number);
  if (!engine->local[config->eni].claimed)
    return hp_fail(error, 0, "ENI %u of tunnel %u is not claimed; claim it first", config->eni, number);
  engine->local[number].fd = c->fd;
  link->mtu = config->mtu;
  link->max_flows = config->max_flows;
  if (hp_worker_run(&engine->workers[link->worker], hp_link_connect, &number, error)) {
    engine->local[number].fd = -1;
    return -1;
  }
  return claimed(engine, number);
}

int hp_tunnel_claim(hp_engine *engine, uint32_t link, const hp_tunnel_config *config, int fd, hp_error *error) {
  if (hp_tunnel_check(config, fd, error))
    return -1;
  return hp_engine_run(engine, claim_tunnel, &(struct claim){.tunnel = config, .fd = fd, .number = link}, error);
}

static int abandon(hp_engine *engine, void *arguments, hp_error *error) {
  (void)arguments, (void)error;
  int count = 0;
  const uint8_t kinds[] = {HP_LINK_TUNNEL, HP_LINK_ENI}; /* an ENI with tunnels stays */
  for (int i = 0; i < 2; i++)
    for (uint32_t number = 1; number < engine->links_used; number++) {
      const hp_link *link = &engine->links[number];
      if (link->kind != kinds[i] || link->draining || engine->local[number].claimed)
        continue;
      hp_link_leave(engine, number);
      count++;
    }
  return count;
}

int hp_engine_abandon(hp_engine *engine, hp_error *error) { return hp_engine_run(engine, abandon, NULL, error); }
