/* reset.h: the end of a tunnel that is drained: it takes no new flow, or its flows are reset, both sides told. */
#ifndef HP_RESET_H
#define HP_RESET_H

#include "nat.h"

enum {
  HP_RESET_FLOWS = 32, /* in one turn of the loop: their RSTs are as many as a batch of packets */
  HP_RESET_GRACE = 100 /* ms that a flow stays after its RSTs */
};

/* Looks at a flow of a tunnel whose flows are reset. The first time both sides of a TCP connection that is not over
 * get an RST. True when it has nothing more to wait for. */
bool hp_reset_flow(hp_worker *worker, uint32_t number);
/* Whether this turn of the loop has sent as many RSTs as it may. Without devices nothing is held up by them. */
bool hp_resets_used_up(const hp_worker *worker);
/* A packet from a tunnel, or from outside for one, that is removed or whose flows are reset (`link`): drops it, and
 * in the second case tells its sender. */
void hp_detached_packet(hp_worker *worker, hp_packet *packet, const hp_item *item, const hp_link *link);
/* Counts the tunnels that have flows to reset anew, from what the links say. */
void hp_resets_recount(hp_engine *engine);

#endif
