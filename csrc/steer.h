/* steer.h: which worker a packet from outside belongs to: the one that has leased the slice of its outside port.
 *
 * The same decision is made twice. The kernel makes it for each packet that leaves by an ENI's TUN, by a socket filter
 * program (TUNSETSTEERINGEBPF) that whoever made the device has loaded: the packet goes to the queue of that worker.
 * hp_steer() makes it for packets that arrive elsewhere: where there is no program, or a slice has just moved. What
 * the two read is the same, byte by byte; what cannot be read, or is no packet of a flow, is worker 0's.
 *
 * The program looks the worker up in a BPF array of HP_STEER_SLOTS values of 8 bytes, address index * 64 + slice. The
 * array is mapped here, so a lease that changes is one store, for which the engine needs no privilege.
 */
#ifndef HP_STEER_H
#define HP_STEER_H

#include "engine.h"

enum { HP_STEER_SLOTS = HP_ENI_ADDRESSES * 64 };

/* address index * 64 + slice of an IPv4 packet to one of those addresses, or HP_NONE. */
uint32_t hp_steer_slot(const uint8_t *ip, uint32_t length, const uint32_t *addresses, uint32_t count);
/* The worker of a packet that has arrived from that ENI. */
uint32_t hp_steer(const hp_ports *ports, const hp_link *eni, const hp_packet *packet);

/* The program's array, mapped; NULL with *error filled when the descriptor is none. */
uint64_t *hp_steer_map(int fd, hp_error *error);
void hp_steer_unmap(uint64_t *steering);
/* What of it is about an ENI's address of that index; NULL of NULL. */
static inline uint64_t *hp_steer_part(uint64_t *steering, uint32_t index) {
  return steering ? steering + (size_t)index * 64 : NULL;
}

#endif
