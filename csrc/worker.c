/* worker.c: the loop: a command, a batch in, translate, the batch out, what others have handed over, some sweeping.
 *
 * Each worker's thread runs it. It sleeps in receive() when nothing happens: for a tenth of a second while there are
 * flows to expire, for longer when there are none; a command, and whoever hands a packet over, wakes it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "handover.h"
#include "slices.h"

enum { DOUBTED_AGAIN = 100 }; /* ms: how often a link is looked at */
enum { WAIT_WITH_FLOWS = 100, WAIT_DRAINING = 10, WAIT_IDLE = 1000 };

static void drop_unseen(hp_worker *worker, uint32_t link, hp_reason reason) {
  static const hp_headers nothing;
  hp_packet packet = {.link = link};
  hp_drop_packet(worker, &packet, &nothing, reason);
}

/* Others may have changed the header of its device. Whoever sends nonsense could have us look all the time. */
static void doubt(hp_worker *worker, uint32_t link) {
  hp_link_stats *stats = hp_stats(worker, link);
  uint32_t now = (uint32_t)worker->now;
  if (now - stats->doubted_at < DOUBTED_AGAIN)
    return;
  stats->doubted_at = now;
  hp_keeper_ask(worker->engine, link, HP_DOUBT_HEADER);
}

static void output_failed(void *context, uint32_t link, hp_reason reason) {
  hp_worker *worker = context;
  drop_unseen(worker, link, reason);
  if (reason == HP_OUTPUT_ERROR)
    doubt(worker, link);
}

static void device_gone(void *context, uint32_t link) {
  hp_worker *worker = context;
  __atomic_store_n(&worker->engine->links[link].gone, 1, __ATOMIC_RELAXED);
  __atomic_store_n(&worker->engine->links[link].read_error, 0, __ATOMIC_RELAXED);
}

static void cannot_read(void *context, uint32_t link, int code) {
  hp_worker *worker = context;
  drop_unseen(worker, link, HP_READ_FAILED);
  __atomic_store_n(&worker->engine->links[link].read_error, (uint32_t)code, __ATOMIC_RELAXED);
  if (code == EFAULT || code == EINVAL)
    hp_keeper_ask(worker->engine, link, HP_DOUBT_READS);
}

static void can_read(void *context, uint32_t link) {
  hp_worker *worker = context;
  __atomic_store_n(&worker->engine->links[link].read_error, 0, __ATOMIC_RELAXED);
}

static void newcomers_came(void *context) {
  hp_worker *worker = context;
  worker->newcomers_came = true;
}

static int wait_for(const hp_worker *worker) {
  if (worker->owed || worker->newcomers_came)
    return 0;
  if (worker->leaving_count || worker->resetting)
    return WAIT_DRAINING;
  return worker->flows.control->live ? WAIT_WITH_FLOWS : WAIT_IDLE;
}

static void send_batch(hp_worker *worker, const hp_packet *packets, uint32_t count) {
  const hp_io_ops *ops = worker->io_ops;
  for (uint32_t i = 0; i < count; i++) {
    if (packets[i].verdict == HP_DROP) {
      if (packets[i].reason == HP_MALFORMED_IP || packets[i].reason == HP_BAD_VNET_HEADER)
        doubt(worker, packets[i].link);
      ops->release(worker->io, &packets[i]);
    } else
      ops->send(worker->io, &packets[i]);
  }
}

/* What workers do for each other. */
static void cooperate(hp_worker *worker, uint64_t pass) {
  const hp_engine *engine = worker->engine;
  hp_handover_wake(worker);
  if (worker->ports.in_need) {
    worker->ports.in_need = false;
    for (uint32_t i = 0; i < worker->workers; i++)
      if (i != worker->number) {
        __atomic_store_n(&engine->workers[i].asked, 1, __ATOMIC_RELAXED);
        hp_worker_wake(&engine->workers[i]);
      }
  }
  if (__atomic_exchange_n(&worker->asked, 0, __ATOMIC_RELAXED))
    hp_slices_turn(worker);
  if (pass != worker->pass)
    hp_slices_pass(worker);
}

static void turn(hp_worker *worker) {
  hp_packet packets[HP_BATCH];
  uint64_t pass = worker->pass;
  hp_commands_run(worker);
  uint32_t count = worker->io_ops->receive(worker->io, packets, wait_for(worker));
  hp_clock_set(worker, hp_now());
  worker->words->loops++;
  if (count) {
    worker->words->batches++;
    hp_nat_batch(worker, packets, count);
    send_batch(worker, packets, count);
    /* receive() sends before it waits: in the same system call. */
    if (worker->now != worker->swept_at || worker->owed || hp_commands_wait(worker))
      worker->io_ops->flush(worker->io);
  }
  if (worker->newcomers_came)
    hp_newcomers_take(worker);
  if (worker->workers > 1)
    hp_handover_take(worker);
  hp_expire_turn(worker);
  if (worker->workers > 1)
    cooperate(worker, pass);
}

int hp_worker_connect(hp_worker *worker, uint32_t link, hp_error *error) {
  const hp_engine *engine = worker->engine;
  bool receives;
  int fd = hp_link_fd(engine, link, worker->number, &receives);
  if (fd < 0)
    return 0;
  int group = engine->links[link].kind == HP_LINK_ENI ? HP_GROUP_ENIS : HP_GROUP_TUNNELS;
  return worker->io_ops->add(worker->io, link, fd, receives ? group : HP_GROUP_NONE, error);
}

void hp_worker_wake(const hp_worker *worker) {
  uint64_t one = 1;
  if (write(worker->wake, &one, sizeof one) < 0 && errno != EAGAIN) /* EAGAIN: it is awake already */
    abort();
}

/* ---- life ---- */

static int open_io(hp_worker *worker) {
  const hp_engine *engine = worker->engine;
  if (hp_newcomers_open(worker, &worker->start_error))
    return -1;
  hp_io_config config = {.max_links = engine->config.max_links + 1,
                         .buffers = engine->config.buffers,
                         .wake = worker->wake,
                         .others = worker->newcomers,
                         .spin = hp_spin_for(engine->config.spin, engine->config.workers),
                         .failed = output_failed,
                         .unreadable = cannot_read,
                         .readable = can_read,
                         .gone = device_gone,
                         .others_came = newcomers_came,
                         .context = worker,
                         .counters = &worker->words->io_counters};
  worker->words->io_counters.failing = 0; /* a predecessor's */
  worker->io = worker->io_ops->open(&config, &worker->start_error);
  if (!worker->io)
    return -1;
  for (uint32_t link = 1; link < engine->links_used; link++) {
    const hp_link *l = &engine->links[link];
    bool ours = l->kind == HP_LINK_ENI || (l->kind == HP_LINK_TUNNEL && l->worker == worker->number);
    if (ours && !l->draining && hp_worker_connect(worker, link, &worker->start_error))
      return -1;
  }
  return 0;
}

static void *loop(void *argument) {
  hp_worker *worker = argument;
  worker->opened = open_io(worker) == 0;
  bool opened = worker->opened;
  sem_post(&worker->started);
  while (opened && !__atomic_load_n(&worker->engine->stop, __ATOMIC_ACQUIRE))
    turn(worker);
  if (worker->io)
    worker->io_ops->close(worker->io);
  worker->io = NULL;
  worker->words->io_counters.failing = 0;
  hp_newcomers_close(worker);
  return NULL;
}

static int pin(const hp_worker *worker, hp_error *error) {
  const hp_config *c = &worker->engine->config;
  if (!c->pin_count)
    return 0;
  uint32_t cpu = c->pins[worker->number % c->pin_count];
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (cpu < CPU_SETSIZE)
    CPU_SET(cpu, &cpus);
  int code = pthread_setaffinity_np(worker->thread, sizeof cpus, &cpus);
  if (code)
    return hp_fail(error, code, "worker %u cannot run on CPU %u: %s; pin it to one that this process may use",
                   worker->number, cpu, strerror(code));
  return 0;
}

static void end(hp_worker *worker) {
  hp_worker_wake(worker);
  pthread_join(worker->thread, NULL);
  hp_commands_run(worker); /* that it has not come to */
}

static int start(hp_worker *worker, hp_error *error) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the main thread's */
  int code = pthread_create(&worker->thread, NULL, loop, worker);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (code)
    return hp_fail(error, code, "cannot start the thread of worker %u: %s", worker->number, strerror(code));
  char name[16];
  snprintf(name, sizeof name, "hp-worker-%u", worker->number & 15);
  pthread_setname_np(worker->thread, name);
  while (sem_wait(&worker->started))
    ;
  if (worker->opened && pin(worker, error) == 0)
    return 0;
  if (!worker->opened)
    *error = worker->start_error;
  __atomic_store_n(&worker->engine->stop, 1, __ATOMIC_RELEASE);
  end(worker);
  return -1;
}

static void stop(hp_engine *engine, uint32_t count) {
  __atomic_store_n(&engine->stop, 1, __ATOMIC_RELEASE);
  for (uint32_t i = 0; i < count; i++)
    end(&engine->workers[i]);
  hp_keeper_stop(engine);
  hp_handover_close(engine);
}

static int start_all(hp_engine *engine, const hp_io_ops *ops, hp_error *error) {
  if (hp_handover_open(engine, error))
    return -1;
  if (hp_keeper_start(engine, error)) {
    hp_handover_close(engine);
    return -1;
  }
  engine->stop = 0;
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    engine->workers[i].io_ops = ops;
    if (start(&engine->workers[i], error) == 0)
      continue;
    stop(engine, i);
    return -1;
  }
  engine->running = 1;
  __atomic_store_n(&engine->shared->io, ops == &hp_io_uring ? HP_IO_URING : HP_IO_EPOLL, __ATOMIC_RELAXED);
  __atomic_store_n(&engine->shared->running, 1, __ATOMIC_RELAXED);
  return 0;
}

int hp_workers_start(hp_engine *engine, hp_error *error) {
  const hp_io_ops *ops = hp_io_choose(engine->config.io, error);
  if (!ops)
    return -1;
  if (start_all(engine, ops, error) == 0)
    return 0;
  /* What a small ring has shown need not be so for a large one: memory, descriptors, a sandbox. */
  bool free_choice = engine->config.io == HP_IO_AUTO && ops != &hp_io_epoll;
  return free_choice ? start_all(engine, &hp_io_epoll, error) : -1;
}

void hp_workers_stop(hp_engine *engine) {
  stop(engine, engine->config.workers);
  engine->running = 0;
  __atomic_store_n(&engine->shared->running, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&engine->shared->io, HP_IO_AUTO, __ATOMIC_RELAXED);
}
