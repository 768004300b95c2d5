/* command.c: what callers have workers do.
 *
 * Theory of operation. A command is put on its worker's list, which that takes up whole between two batches: a list
 * without a lock, to which callers push and from which only the worker takes. Waking a worker whose processor has gone
 * to sleep takes longer than what it has to do; putting the caller to sleep as well, and waking it again, would double
 * that. So a caller first looks for the outcome for about as long, and lets others run meanwhile: with one processor
 * the worker is among them.
 */
#include <sched.h>

#include "engine.h"
#include "io_common.h"

enum { LOOK = 60 * 1000 }; /* ns */

static void post(hp_worker *worker, hp_command *command) {
  sem_init(&command->done, 0, 0);
  command->next = __atomic_load_n(&worker->commands, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(&worker->commands, &command->next, command, false, __ATOMIC_RELEASE,
                                      __ATOMIC_RELAXED))
    ;
  hp_worker_wake(worker);
}

static int wait_for(hp_command *command) {
  int64_t end = hp_io_nanoseconds() + LOOK;
  while (sem_trywait(&command->done)) {
    if (hp_io_nanoseconds() < end)
      sched_yield();
    else if (sem_wait(&command->done) == 0)
      break;
  }
  sem_destroy(&command->done);
  return command->result;
}

bool hp_commands_wait(const hp_worker *worker) { return __atomic_load_n(&worker->commands, __ATOMIC_RELAXED) != NULL; }

void hp_commands_run(hp_worker *worker) {
  if (!hp_commands_wait(worker))
    return;
  hp_command *next, *first = NULL, *command = __atomic_exchange_n(&worker->commands, NULL, __ATOMIC_ACQUIRE);
  for (; command; command = next) { /* the latest stands first */
    next = command->next;
    command->next = first;
    first = command;
  }
  for (; first; first = next) {
    next = first->next;
    first->result = first->run(worker, first->arguments, first->error);
    sem_post(&first->done); /* the caller's from now on */
  }
}

int hp_worker_run(hp_worker *worker, int (*run)(hp_worker *, void *, hp_error *), void *arguments, hp_error *error) {
  if (!worker->engine->running)
    return run(worker, arguments, error);
  hp_command command = {.run = run, .arguments = arguments, .error = error};
  post(worker, &command);
  return wait_for(&command);
}
