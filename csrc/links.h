/* links.h: what making links and claiming them have in common. All with the callers' lock held. */
#ifndef HP_LINKS_H
#define HP_LINKS_H

#include "engine.h"

/* Whether a configuration and descriptors may be a link's; -1 with *error filled if not. */
int hp_eni_check(const hp_engine *engine, const hp_eni_config *config, int fd, hp_error *error);
int hp_tunnel_check(const hp_tunnel_config *config, int fd, hp_error *error);
/* Whether there is such an ENI. */
int hp_eni_find(const hp_engine *engine, uint32_t number, hp_error *error);

/* What of an ENI's configuration may change. */
void hp_eni_configure(hp_link *link, const hp_eni_config *config);
/* Notes an ENI's descriptors, and maps what steers its return packets. hp_link_forget() undoes it. */
int hp_link_take_queues(hp_engine *engine, uint32_t number, const hp_eni_config *config, int fd, hp_error *error);
/* For hp_worker_run() with a link number: starts to receive from it. */
int hp_link_connect(hp_worker *worker, void *arguments, hp_error *error);
/* A worker can name an ENI's addresses no more. */
void hp_link_forget_addresses(hp_worker *worker, const hp_link *link);
/* Has the first `count` workers stop receiving from a link. */
void hp_link_disconnect(hp_engine *engine, uint32_t number, uint32_t count);
/* Removes a link that nothing refers to but flows. */
int hp_link_leave(hp_engine *engine, uint32_t number);

#endif
