/* worker.c: the loop: commands, a batch in, translate, the batch out, some sweeping.
 *
 * One thread runs it. It sleeps in receive() when nothing happens: for a tenth of a second while there are
 * flows to expire, for longer when there are none; a command wakes it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nat.h"

enum { WAIT_WITH_FLOWS = 100, WAIT_DRAINING = 10, WAIT_IDLE = 1000, SWEEP_PERIOD = 1000, DRAIN_PERIOD = 100 };

static void output_failed(void *context, uint32_t link, hp_reason reason) {
  hp_worker *worker = context;
  static const hp_headers nothing;
  hp_packet packet = {.link = link};
  hp_drop_packet(worker, &packet, &nothing, reason);
}

static void device_gone(void *context, uint32_t link) {
  hp_worker *worker = context;
  worker->engine->links[link].gone = 1;
}

static bool commands_wait(const hp_engine *engine) {
  return engine->ring_head != __atomic_load_n(&engine->ring_tail, __ATOMIC_ACQUIRE);
}

static void run_commands(hp_engine *engine) {
  while (commands_wait(engine)) {
    hp_command *command = engine->ring[engine->ring_head++ % HP_COMMANDS];
    command->result = command->run(engine, command->arguments, command->error);
    sem_post(&command->done);
  }
}

static int wait_for(const hp_engine *engine) {
  if (engine->worker.owed)
    return 0;
  if (engine->draining || engine->resetting)
    return WAIT_DRAINING;
  return engine->worker.flows.control->live ? WAIT_WITH_FLOWS : WAIT_IDLE;
}

/* As many numbers as the time since the last turn is worth, so that a pass takes SWEEP_PERIOD, and those that the
 * last turn left. */
static void sweep(hp_worker *worker) {
  const hp_engine *engine = worker->engine;
  uint64_t elapsed = worker->now - worker->swept_at;
  worker->resets = 0;
  if (elapsed == 0 && !worker->owed)
    return;
  worker->swept_at = worker->now;
  uint64_t period = engine->draining || engine->resetting ? DRAIN_PERIOD : SWEEP_PERIOD;
  uint64_t budget = worker->flows.control->used * elapsed / period + 1 + worker->owed;
  hp_expire(worker, (uint32_t)(budget < UINT32_MAX ? budget : UINT32_MAX));
}

static void send_batch(hp_worker *worker, const hp_packet *packets, uint32_t count) {
  const hp_io_ops *ops = worker->io_ops;
  for (uint32_t i = 0; i < count; i++) {
    if (packets[i].verdict == HP_DROP)
      ops->release(worker->io, &packets[i]);
    else
      ops->send(worker->io, &packets[i]);
  }
}

static void turn(hp_worker *worker) {
  hp_packet packets[HP_BATCH];
  hp_engine *engine = worker->engine;
  run_commands(engine);
  uint32_t count = worker->io_ops->receive(worker->io, packets, wait_for(engine));
  hp_clock_set(worker, hp_now());
  worker->shared->loops++;
  if (count) {
    worker->shared->batches++;
    hp_nat_batch(worker, packets, count);
    send_batch(worker, packets, count);
    /* receive() sends before it waits: in the same system call. */
    if (worker->now != worker->swept_at || worker->owed || commands_wait(engine))
      worker->io_ops->flush(worker->io);
  }
  sweep(worker);
}

static int open_io(hp_engine *engine) {
  hp_worker *worker = &engine->worker;
  hp_io_config config = {.max_links = engine->config.max_links + 1,
                         .buffers = engine->config.buffers,
                         .wake = engine->wake,
                         .spin = engine->config.spin,
                         .failed = output_failed,
                         .gone = device_gone,
                         .context = worker,
                         .counters = &worker->shared->io_counters};
  worker->io = worker->io_ops->open(&config, &engine->start_error);
  if (!worker->io)
    return -1;
  for (uint32_t link = 1; link < engine->links_used; link++) {
    const hp_link *l = &engine->links[link];
    if (l->kind == HP_LINK_FREE || l->draining || engine->local[link].fd < 0)
      continue;
    int group = l->kind == HP_LINK_ENI ? HP_GROUP_ENIS : HP_GROUP_TUNNELS;
    if (worker->io_ops->add(worker->io, link, engine->local[link].fd, group, &engine->start_error))
      return -1;
  }
  return 0;
}

static void show_io(hp_worker *worker) {
  __atomic_store_n(&worker->shared->io, worker->io_ops == &hp_io_uring ? HP_IO_URING : HP_IO_EPOLL, __ATOMIC_RELAXED);
  __atomic_store_n(&worker->shared->running, 1, __ATOMIC_RELAXED);
}

static void *loop(void *argument) {
  hp_engine *engine = argument;
  hp_worker *worker = &engine->worker;
  int opened = open_io(engine);
  __atomic_store_n(&engine->running, opened == 0, __ATOMIC_RELEASE);
  if (opened == 0)
    show_io(worker);
  sem_post(&engine->started);
  while (opened == 0 && !__atomic_load_n(&engine->stop, __ATOMIC_ACQUIRE))
    turn(worker);
  if (worker->io)
    worker->io_ops->close(worker->io);
  worker->io = NULL;
  return NULL;
}

int hp_worker_start(hp_engine *engine, hp_error *error) {
  hp_worker *worker = &engine->worker;
  worker->io_ops = hp_io_choose(engine->config.io, error);
  if (!worker->io_ops)
    return -1;
  engine->stop = 0;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the main thread's */
  int code = pthread_create(&worker->thread, NULL, loop, engine);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (code)
    return hp_fail(error, code, "cannot start the worker's thread: %s", strerror(code));
  pthread_setname_np(worker->thread, "hp-worker");
  while (sem_wait(&engine->started))
    ;
  if (engine->running)
    return 0;
  pthread_join(worker->thread, NULL);
  *error = engine->start_error;
  return -1;
}

void hp_worker_stop(hp_engine *engine) {
  uint64_t one = 1;
  __atomic_store_n(&engine->stop, 1, __ATOMIC_RELEASE);
  if (write(engine->wake, &one, sizeof one) < 0 && errno != EAGAIN)
    abort();
  pthread_join(engine->worker.thread, NULL);
  engine->running = 0;
  __atomic_store_n(&engine->shared->running, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&engine->shared->io, HP_IO_AUTO, __ATOMIC_RELAXED);
}
