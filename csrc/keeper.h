/* keeper.h: a thread that looks after the devices behind links, which others may change. */
#ifndef HP_KEEPER_H
#define HP_KEEPER_H

#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>

#include "hyperplane.h"

/* Why a link is to be looked at. */
enum {
  HP_DOUBT_HEADER = 1, /* what comes from it makes no sense, or it does not take what is written */
  HP_DOUBT_READS = 2   /* reads fail: offloads are set too, which nobody can look at */
};

typedef struct hp_keeper {
  pthread_t thread;
  pthread_mutex_t mutex; /* held while it works on descriptors */
  sem_t work;
  uint8_t *doubts; /* HP_DOUBT_*, by link number */
  int asked;
  int stop;
} hp_keeper;

/* With the engine's tables. -1 with *error filled. */
int hp_keeper_open(hp_engine *engine, hp_error *error);
void hp_keeper_close(hp_engine *engine);
/* While the workers run. */
int hp_keeper_start(hp_engine *engine, hp_error *error);
void hp_keeper_stop(hp_engine *engine);
/* By workers: it never waits. */
void hp_keeper_ask(hp_engine *engine, uint32_t link, uint8_t doubt);
/* Between these the keeper uses no descriptor. */
void hp_keeper_lock(hp_engine *engine);
void hp_keeper_unlock(hp_engine *engine);

#endif
