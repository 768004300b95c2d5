/* removal.c: the end of links.
 *
 * A removed link drains: its workers stop receiving from it, packets to it are dropped, and each worker's sweep ends
 * its flows. Its number is given out again only when all these have made a whole pass and nothing can name it any more:
 * the last one puts it on a list from which callers take it back.
 */
#include <errno.h>
#include <stdlib.h>

#include "links.h"
#include "steer.h"

/* ---- numbers ---- */

void hp_link_forget(hp_engine *engine, uint32_t number) {
  hp_link_local *local = &engine->local[number];
  hp_keeper_lock(engine);
  free(local->rules);
  free(local->fds);
  hp_steer_unmap(local->steering);
  *local = (hp_link_local){.fd = -1};
  if (engine->keeper.doubts)
    __atomic_store_n(&engine->keeper.doubts[number], 0, __ATOMIC_RELAXED);
  hp_keeper_unlock(engine);
}

void hp_link_give(hp_engine *engine, uint32_t number) {
  hp_link *link = &engine->links[number];
  __atomic_store_n(&link->ready, 0, __ATOMIC_RELEASE);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  for (uint32_t i = 0; i < link->address_count; i++)
    hp_address_remove(&engine->workers[0].ports, link->addresses[i]);
  hp_link_forget(engine, number);
  link->kind = HP_LINK_FREE;
  link->draining = 0;
  link->address_count = 0;
  hp_gate_set(engine, number);
  engine->free_links[engine->free_count++] = number;
}

void hp_link_forget_addresses(hp_worker *worker, const hp_link *link) {
  for (uint32_t i = 0; i < link->address_count; i++)
    hp_address_forget(&worker->ports, link->addresses[i]);
}

static void let_go(hp_worker *worker, uint32_t number) {
  hp_engine *engine = worker->engine;
  hp_link *link = &engine->links[number];
  hp_link_local *local = &engine->local[number];
  hp_link_forget_addresses(worker, link);
  if (__atomic_sub_fetch(&local->awaiting, 1, __ATOMIC_ACQ_REL))
    return;
  __atomic_store_n(&link->ready, 0, __ATOMIC_RELEASE);
  __atomic_store_n(&link->kind, HP_LINK_FREE, __ATOMIC_RELEASE);
  local->next = __atomic_load_n(&engine->returned, __ATOMIC_RELAXED);
  while (
      !__atomic_compare_exchange_n(&engine->returned, &local->next, number, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
    ;
}

void hp_links_left(hp_worker *worker) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < worker->leaving_count; i++) {
    const hp_leaving leaving = worker->leaving[i];
    if (worker->pass >= leaving.pass)
      let_go(worker, leaving.link);
    else
      worker->leaving[kept++] = leaving;
  }
  worker->leaving_count = kept;
}

void hp_links_collect(hp_engine *engine) {
  if (!__atomic_load_n(&engine->returned, __ATOMIC_RELAXED))
    return;
  uint32_t next, number = __atomic_exchange_n(&engine->returned, 0, __ATOMIC_ACQUIRE);
  for (; number; number = next) {
    next = engine->local[number].next;
    engine->draining--;
    hp_link_give(engine, number);
  }
}

/* ---- removing ---- */

static int disconnect(hp_worker *worker, void *arguments, hp_error *error) {
  (void)error;
  uint32_t number = *(const uint32_t *)arguments;
  bool receives;
  if (worker->io && !hp_newcomer_remove(worker, number) &&
      hp_link_fd(worker->engine, number, worker->number, &receives) >= 0)
    worker->io_ops->remove(worker->io, number);
  return 0;
}

void hp_link_disconnect(hp_engine *engine, uint32_t number, uint32_t count) {
  hp_error ignored;
  for (uint32_t i = 0; i < count; i++)
    hp_worker_run(&engine->workers[i], disconnect, &number, &ignored);
}

/* Its worker receives nothing more from the link, nor do others for it: what is still on its way to this worker is
 * taken before the sweep of this turn. */
static int leave(hp_worker *worker, void *arguments, hp_error *error) {
  (void)error;
  uint32_t number = *(const uint32_t *)arguments;
  /* The pass under way may be past some of its flows: the next one sees them all. */
  worker->leaving[worker->leaving_count++] =
      (hp_leaving){.link = number, .pass = worker->pass + (worker->cursor ? 2 : 1)};
  return 0;
}

int hp_link_leave(hp_engine *engine, uint32_t number) {
  hp_link *link = &engine->links[number];
  bool tunnel = link->kind == HP_LINK_TUNNEL;
  hp_worker *first = &engine->workers[tunnel ? link->worker : 0];
  uint32_t count = tunnel ? 1 : engine->config.workers;
  hp_error ignored;
  hp_keeper_lock(engine);
  __atomic_store_n(&link->draining, 1, __ATOMIC_RELAXED);
  hp_keeper_unlock(engine);
  hp_gate_set(engine, number);
  for (uint32_t i = 0; i < count; i++)
    hp_worker_run(first + i, disconnect, &number, &ignored);
  engine->local[number].fd = -1;
  engine->local[number].awaiting = count;
  if (tunnel) {
    engine->links[link->eni].tunnels--;
    first->tunnels--;
  }
  engine->draining++;
  for (uint32_t i = 0; i < count; i++)
    hp_worker_run(first + i, leave, &number, &ignored);
  return 0;
}

static int remove_link(hp_engine *engine, void *arguments, hp_error *error) {
  uint32_t number = *(const uint32_t *)arguments;
  if (number == 0 || number >= engine->links_used || engine->links[number].kind == HP_LINK_FREE ||
      engine->links[number].draining)
    return hp_fail(error, ENOENT, "there is no link %u", number);
  const hp_link *link = &engine->links[number];
  if (link->kind == HP_LINK_ENI && link->tunnels)
    return hp_fail(error, EBUSY, "the ENI is used by %u tunnels; remove them first", link->tunnels);
  return hp_link_leave(engine, number);
}

int hp_link_remove(hp_engine *engine, uint32_t link, hp_error *error) {
  return hp_engine_run(engine, remove_link, &link, error);
}
