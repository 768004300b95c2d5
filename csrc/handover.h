/* handover.h: packets that arrived at the wrong worker, on their way to the one that has their flow.
 *
 * That happens where an ENI's packets are not steered, and for a moment when a slice has moved. From each worker to
 * each other one leads a ring of bytes with one writer and one reader. A packet is copied into it, and translated and
 * written out from there: one copy. The rings' memory is bounded, and comes when they are first used; a packet that
 * does not fit is dropped and counted.
 */
#ifndef HP_HANDOVER_H
#define HP_HANDOVER_H

#include "nat.h"

int hp_handover_open(hp_engine *engine, hp_error *error);
void hp_handover_close(hp_engine *engine);

/* A packet from outside that has no flow here: true when another worker owns its port, and has it now or it was
 * dropped for want of room. Its verdict is set, and it is counted there and not here. */
bool hp_hand_over(hp_worker *worker, hp_packet *packet, const hp_headers *headers);
/* Wakes those who were handed something since the last call. */
void hp_handover_wake(hp_worker *worker);
/* Translates what others have handed over by now, and writes it out. */
void hp_handover_take(hp_worker *worker);

#endif
