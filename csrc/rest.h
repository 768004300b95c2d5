/* rest.h: links that are not read from for a while, because reading from them has failed. */
#ifndef HP_REST_H
#define HP_REST_H

#include "io.h"

typedef struct hp_resting {
  int64_t until; /* hp_io_clock() */
  uint32_t link;
} hp_resting;

/* In no order: mostly there are none. */
typedef struct hp_rests {
  hp_resting *at;
  uint32_t count;
  int64_t soonest; /* nobody's rest is over before */
} hp_rests;

/* -1: no memory. */
int hp_rests_open(hp_rests *rests, uint32_t max_links);
void hp_rests_close(hp_rests *rests);
/* The link rests, and does not yet: 10 ms after the first failure in a row, twice as long after each further one, a
 * second at most. */
void hp_rest_begin(hp_rests *rests, uint32_t link, uint32_t failures);
/* It does not rest any more, if it did. */
void hp_rest_end(hp_rests *rests, uint32_t link);
/* Calls `over` with each whose rest is over; it may have to rest again at once. */
void hp_rest_over(hp_rests *rests, hp_io *io, void (*over)(hp_io *io, uint32_t link));
/* How long to wait, of `timeout` ms (-1: for ever), until somebody's rest is over. */
int hp_rest_within(const hp_rests *rests, int timeout);

#endif
