/* newcomers.c: tunnels that have been added and have not sent anything yet.
 *
 * Theory of operation. To receive from a link is its worker's business, and a worker that sleeps has to be woken for
 * it: an interrupt to another processor, which on a virtual machine takes the caller as long as all else that adding a
 * tunnel takes. But a new tunnel has nothing to say until its environment runs. So it is put into a set of descriptors
 * that its worker watches, which any thread may do, and the worker hears of it with its first packet: then it leaves
 * the set, and is received from like any other. A device that goes away before that wakes the worker as well. Until
 * then nothing is sent to the tunnel either: no flow leads to it. (A claimed one may have flows, and is no newcomer.)
 *
 * The set is an epoll set: adding to it is safe beside the worker's waiting. It exists while the workers run; those
 * that are added before are received from when they start.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "engine.h"

enum { AT_ONCE = 64 }; /* that are taken up in one turn */

int hp_newcomers_open(hp_worker *worker, hp_error *error) {
  worker->newcomers = epoll_create1(EPOLL_CLOEXEC);
  if (worker->newcomers < 0)
    return hp_fail(error, errno, "cannot make an epoll set: %s; raise the limit of open files (ulimit -n)",
                   strerror(errno));
  worker->newcomers_came = false;
  return 0;
}

void hp_newcomers_close(hp_worker *worker) {
  const hp_engine *engine = worker->engine;
  if (worker->newcomers < 0)
    return;
  for (uint32_t link = 1; link < engine->links_used; link++)
    if (engine->links[link].kind == HP_LINK_TUNNEL && engine->links[link].worker == worker->number)
      engine->local[link].newcomer = 0;
  close(worker->newcomers);
  worker->newcomers = -1;
}

bool hp_newcomer_add(const hp_worker *worker, uint32_t link) {
  hp_link_local *local = &worker->engine->local[link];
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = link};
  local->newcomer = 1;
  if (epoll_ctl(worker->newcomers, EPOLL_CTL_ADD, local->fd, &event) == 0)
    return true;
  local->newcomer = 0;
  return false;
}

bool hp_newcomer_remove(const hp_worker *worker, uint32_t link) {
  hp_link_local *local = &worker->engine->local[link];
  if (!local->newcomer)
    return false;
  local->newcomer = 0;
  epoll_ctl(worker->newcomers, EPOLL_CTL_DEL, local->fd, NULL);
  return true;
}

void hp_newcomers_take(hp_worker *worker) {
  struct epoll_event events[AT_ONCE];
  int count = epoll_wait(worker->newcomers, events, AT_ONCE, 0);
  worker->newcomers_came = count == AT_ONCE;
  for (int i = 0; i < count; i++) {
    uint32_t link = events[i].data.u32;
    hp_error ignored;
    if (hp_newcomer_remove(worker, link) && hp_worker_connect(worker, link, &ignored))
      __atomic_store_n(&worker->engine->links[link].gone, 1, __ATOMIC_RELAXED);
  }
}
