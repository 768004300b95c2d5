/* slices.h: slices of ports move to the worker that needs them.
 *
 * A worker that takes the last free slice, or finds none, says that it wants one (port.h), and has the others woken.
 * They look between two batches: what nobody uses is given back at once, all but one. Who has nothing to spare but has
 * more than the one in want, by two at least, stops choosing ports of one slice; it is given back when its last flow
 * has ended and its last port has rested. So none is wired to a worker, and none moves to and fro between two that are
 * both short.
 */
#ifndef HP_SLICES_H
#define HP_SLICES_H

#include "engine.h"

/* A flow with that outside key has come (+1) or gone (-1). Only when there are several workers. */
void hp_slices_count(hp_worker *worker, const hp_key *outside, int by);
/* Gives back what others want, as far as it can be spared now. */
void hp_slices_turn(hp_worker *worker);
/* Once in a pass of the sweep: gives back what has come free, and forgets what this worker wanted: if it still does,
 * it says so again. */
void hp_slices_pass(hp_worker *worker);

#endif
