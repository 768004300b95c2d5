/* translate.c: the packet path in memory: what workers do with packets of descriptors, done with packets of the caller
 * while they do not run. */
#include <errno.h>

#include "nat.h"
#include "slices.h"
#include "steer.h"

/* Whether the caller may do what is the workers' while they run. */
static int check_still(const hp_engine *engine, uint64_t now, const char *what, hp_error *error) {
  uint64_t latest = engine->workers[0].now;
  if (engine->running)
    return hp_fail(error, EBUSY, "the engine is running: its workers alone %s; stop it first", what);
  if (now < latest)
    return hp_fail(error, EINVAL, "the time goes back: now is %llu, was %llu", (unsigned long long)now,
                   (unsigned long long)latest);
  return 0;
}

static int check_packets(const hp_engine *engine, const hp_packet *packets, uint32_t count, hp_error *error) {
  for (uint32_t i = 0; i < count; i++)
    if (packets[i].link == 0 || packets[i].link >= engine->links_used || packets[i].length > packets[i].capacity)
      return hp_fail(error, EINVAL, "packet %u: link %u is unknown, or its length %u exceeds its capacity %u", i,
                     packets[i].link, packets[i].length, packets[i].capacity);
  return 0;
}

/* The worker that a packet would arrive at. */
static hp_worker *worker_for(const hp_engine *engine, const hp_packet *packet) {
  const hp_link *link = &engine->links[packet->link];
  uint32_t number = link->kind == HP_LINK_TUNNEL ? link->worker : hp_steer(&engine->workers[0].ports, link, packet);
  return &engine->workers[number];
}

uint32_t hp_packet_worker(hp_engine *engine, const hp_packet *packet) {
  pthread_mutex_lock(&engine->caller);
  uint32_t number = packet->link < engine->links_used ? worker_for(engine, packet)->number : 0;
  pthread_mutex_unlock(&engine->caller);
  return number;
}

/* Packets in a row of the same worker are a batch. */
static void translate_all(const hp_engine *engine, hp_packet *packets, uint32_t count) {
  for (uint32_t i = 0, end; i < count; i = end) {
    hp_worker *worker = engine->workers;
    if (engine->config.workers > 1)
      worker = worker_for(engine, &packets[i]);
    for (end = i + 1; end < count && end - i < HP_BATCH; end++)
      if (engine->config.workers > 1 && worker_for(engine, &packets[end]) != worker)
        break;
    hp_nat_batch(worker, packets + i, end - i);
  }
}

/* What the workers do for each other between two batches while they run. */
static void share_slices(hp_engine *engine) {
  bool in_need = false;
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    in_need |= engine->workers[i].ports.in_need;
    engine->workers[i].ports.in_need = false;
  }
  for (uint32_t i = 0; in_need && i < engine->config.workers; i++)
    hp_slices_turn(&engine->workers[i]);
}

int hp_translate(hp_engine *engine, hp_packet *packets, uint32_t count, uint64_t now, hp_error *error) {
  if (hp_engine_check_own(engine, error))
    return -1;
  pthread_mutex_lock(&engine->caller);
  int result = check_packets(engine, packets, count, error);
  if (result == 0)
    result = check_still(engine, now, "translate", error);
  for (uint32_t i = 0; result == 0 && i < engine->config.workers; i++)
    hp_clock_set(&engine->workers[i], now);
  if (result == 0)
    translate_all(engine, packets, count);
  share_slices(engine);
  pthread_mutex_unlock(&engine->caller);
  return result;
}

int hp_sweep(hp_engine *engine, uint64_t now, hp_error *error) {
  if (hp_engine_check_own(engine, error))
    return -1;
  pthread_mutex_lock(&engine->caller);
  int result = check_still(engine, now, "sweep", error);
  for (uint32_t i = 0, all = result == 0 ? engine->config.workers : 0; i < all; i++) {
    hp_worker *worker = &engine->workers[i];
    uint64_t before = worker->flows.control->live;
    hp_clock_set(worker, now);
    worker->cursor = 0;
    hp_expire(worker, UINT32_MAX);
    if (all > 1)
      hp_slices_pass(worker);
    result += (int)(before - worker->flows.control->live);
  }
  hp_links_collect(engine);
  pthread_mutex_unlock(&engine->caller);
  return result;
}
