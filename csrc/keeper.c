/* keeper.c: a thread that looks after the devices behind links.
 *
 * Theory of operation. Whoever holds a duplicate of a TUN's descriptor, or another queue of it, may change the size and
 * byte order of its header and its offloads at any time. Then packets make no sense to us, or every read fails: with
 * TUN_F_UDP_TUNNEL_GSO, say, and a header too short for it. Workers notice (reads that fail, malformed packets, writes
 * that are refused), and the keeper sets right what is not: these ioctls need no capability, but they take the kernel's
 * lock for devices and routes (RTNL), for which one may wait for milliseconds, and a worker must not.
 *
 * It uses descriptors of links that callers may remove: the mutex stands between the two.
 */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "link.h"

int hp_keeper_open(hp_engine *engine, hp_error *error) {
  hp_keeper *keeper = &engine->keeper;
  keeper->doubts = calloc(engine->config.max_links + 1, sizeof *keeper->doubts);
  if (!keeper->doubts)
    return hp_fail(error, ENOMEM, "no memory for %u links; lower max_links", engine->config.max_links);
  pthread_mutex_init(&keeper->mutex, NULL);
  sem_init(&keeper->work, 0, 0);
  return 0;
}

void hp_keeper_close(hp_engine *engine) {
  hp_keeper *keeper = &engine->keeper;
  if (!keeper->doubts)
    return;
  pthread_mutex_destroy(&keeper->mutex);
  sem_destroy(&keeper->work);
  free(keeper->doubts);
  keeper->doubts = NULL;
}

void hp_keeper_lock(hp_engine *engine) {
  if (engine->keeper.doubts)
    pthread_mutex_lock(&engine->keeper.mutex);
}

void hp_keeper_unlock(hp_engine *engine) {
  if (engine->keeper.doubts)
    pthread_mutex_unlock(&engine->keeper.mutex);
}

void hp_keeper_ask(hp_engine *engine, uint32_t link, uint8_t doubt) {
  hp_keeper *keeper = &engine->keeper;
  __atomic_fetch_or(&keeper->doubts[link], doubt, __ATOMIC_RELAXED);
  if (!__atomic_exchange_n(&keeper->asked, 1, __ATOMIC_RELEASE))
    sem_post(&keeper->work);
}

static void look_at(hp_engine *engine, uint32_t number, uint8_t doubt) {
  hp_link *link = &engine->links[number];
  const hp_link_local *local = &engine->local[number];
  bool changed = false;
  if (!__atomic_load_n(&link->ready, __ATOMIC_ACQUIRE) || hp_link_draining(link) || local->fd < 0)
    return;
  for (uint32_t queue = 0; queue < (local->fds ? engine->config.workers : 1); queue++)
    changed |= hp_link_tun_mend(local->fds ? local->fds[queue] : local->fd, doubt & HP_DOUBT_READS);
  if (!changed)
    return;
  __atomic_store_n(&link->mended, link->mended + 1, __ATOMIC_RELAXED);
  __atomic_store_n(&engine->shared->mended, engine->shared->mended + 1, __ATOMIC_RELAXED);
}

static void *keep(void *argument) {
  hp_engine *engine = argument;
  hp_keeper *keeper = &engine->keeper;
  for (;;) {
    while (sem_wait(&keeper->work))
      ;
    if (__atomic_load_n(&keeper->stop, __ATOMIC_ACQUIRE))
      return NULL;
    __atomic_store_n(&keeper->asked, 0, __ATOMIC_RELEASE);
    uint32_t used = __atomic_load_n(&engine->shared->links_used, __ATOMIC_ACQUIRE);
    for (uint32_t number = 1; number < used; number++) {
      if (!__atomic_load_n(&keeper->doubts[number], __ATOMIC_RELAXED))
        continue;
      pthread_mutex_lock(&keeper->mutex);
      uint8_t doubt = __atomic_exchange_n(&keeper->doubts[number], 0, __ATOMIC_RELAXED);
      if (doubt)
        look_at(engine, number, doubt);
      pthread_mutex_unlock(&keeper->mutex);
    }
  }
}

int hp_keeper_start(hp_engine *engine, hp_error *error) {
  hp_keeper *keeper = &engine->keeper;
  sigset_t all, before;
  __atomic_store_n(&keeper->stop, 0, __ATOMIC_RELEASE);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the main thread's */
  int code = pthread_create(&keeper->thread, NULL, keep, engine);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (code)
    return hp_fail(error, code, "cannot start the thread that looks after devices: %s", strerror(code));
  pthread_setname_np(keeper->thread, "hp-keeper");
  return 0;
}

void hp_keeper_stop(hp_engine *engine) {
  hp_keeper *keeper = &engine->keeper;
  __atomic_store_n(&keeper->stop, 1, __ATOMIC_RELEASE);
  sem_post(&keeper->work);
  pthread_join(keeper->thread, NULL);
  while (sem_trywait(&keeper->work) == 0) /* what workers have asked for since */
    ;
  __atomic_store_n(&keeper->asked, 0, __ATOMIC_RELEASE);
}
