/* link.h: kinds of links. A link carries IPv4 packets behind a virtio_net_hdr between the engine and
 * an environment (tunnel) or a VPC (ENI). Today: tun. */
#ifndef HP_LINK_H
#define HP_LINK_H

#include <stdbool.h>

#include "hyperplane.h"

/* Whether fd is a TUN (not TAP) with IFF_VNET_HDR and IFF_NO_PI that this process may use; makes the
 * header 10 bytes and the descriptor non-blocking. The descriptor may come from somebody hostile, who
 * keeps a duplicate: whatever is checked here may change later, so every packet is checked again.
 * Returns 0, or -1 with *error filled. */
int hp_link_tun_check(int fd, hp_error *error);

/* Sets header size and byte order as hp_link_tun_check() did, where they are not; with `offloads` also what the kernel
 * may hand to us: all that it takes. True when it has set something. It may wait for the kernel. */
bool hp_link_tun_mend(int fd, bool offloads);

#endif
