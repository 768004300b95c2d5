/* rest.c: links that are not read from for a while.
 *
 * Theory of operation. A link whose reads fail, for whatever reason, must neither be given up (what others have changed
 * they may change back, or we may) nor be tried again at once for ever: a worker that spins takes the processor from
 * all its other links. So it rests, longer each time. Nothing of this is touched while all links can be read.
 */
#include "rest.h"

#include <stdlib.h>

#include "io_common.h"

enum { FIRST = 10, LONGEST = 1000, DOUBLINGS = 7 }; /* ms */

int hp_rests_open(hp_rests *rests, uint32_t max_links) {
  *rests = (hp_rests){.at = calloc(max_links, sizeof *rests->at)};
  return rests->at ? 0 : -1;
}

void hp_rests_close(hp_rests *rests) {
  free(rests->at);
  *rests = (hp_rests){0};
}

void hp_rest_begin(hp_rests *rests, uint32_t link, uint32_t failures) {
  uint32_t doublings = failures > DOUBLINGS ? DOUBLINGS : failures ? failures - 1 : 0;
  int64_t length = (int64_t)FIRST << doublings, until = hp_io_clock() + (length > LONGEST ? LONGEST : length);
  if (rests->count == 0 || until < rests->soonest)
    rests->soonest = until;
  rests->at[rests->count++] = (hp_resting){.until = until, .link = link};
}

void hp_rest_end(hp_rests *rests, uint32_t link) {
  for (uint32_t i = 0; i < rests->count; i++)
    if (rests->at[i].link == link) {
      rests->at[i] = rests->at[--rests->count];
      return;
    }
}

void hp_rest_over(hp_rests *rests, hp_io *io, void (*over)(hp_io *io, uint32_t link)) {
  int64_t now = hp_io_clock();
  if (now < rests->soonest)
    return;
  rests->soonest = INT64_MAX;
  for (uint32_t i = 0; i < rests->count;) {
    const hp_resting one = rests->at[i];
    if (one.until <= now) {
      rests->at[i] = rests->at[--rests->count];
      over(io, one.link);
      continue;
    }
    if (one.until < rests->soonest)
      rests->soonest = one.until;
    i++;
  }
  if (rests->soonest < now + FIRST) /* a hundred looks a second are enough, however many there are */
    rests->soonest = now + FIRST;
}

int hp_rest_within(const hp_rests *rests, int timeout) {
  if (rests->count == 0)
    return timeout;
  int64_t left = rests->soonest - hp_io_clock();
  int least = left < 0 ? 0 : (int)left + 1;
  return timeout < 0 || least < timeout ? least : timeout;
}
