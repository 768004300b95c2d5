/* steer.c: see steer.h. hyperplane/linux/steering.py has the program that decides as hp_steer_slot() does. */
#define _GNU_SOURCE
#include "steer.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* Bytes that are not there end the program, and the look here: as bpf's LD_ABS has it. */
static bool get8(const uint8_t *ip, uint32_t length, uint32_t at, uint32_t *value) {
  if (at + 1 > length)
    return false;
  *value = ip[at];
  return true;
}

static bool get16(const uint8_t *ip, uint32_t length, uint32_t at, uint32_t *value) {
  if (at + 2 > length)
    return false;
  *value = hp_get16(ip + at);
  return true;
}

/* Where the outside port of a packet stands whose transport header begins at `at`: TCP and UDP have it as the
 * destination, ICMP echo replies as the id, and ICMP errors quote a packet that has it as its source. */
static bool find_port(const uint8_t *ip, uint32_t length, uint32_t at, uint32_t protocol, uint32_t *port) {
  uint32_t type, first, quoted;
  if (protocol == HP_TCP || protocol == HP_UDP)
    return get16(ip, length, at + 2, port);
  if (protocol != HP_ICMP || !get8(ip, length, at, &type))
    return false;
  if (type == HP_ICMP_ECHO_REPLY)
    return get16(ip, length, at + 4, port);
  if (type != HP_ICMP_UNREACHABLE && type != HP_ICMP_TIME_EXCEEDED && type != HP_ICMP_PARAMETER)
    return false;
  at += HP_ICMP_HEADER;
  if (!get8(ip, length, at, &first) || !get8(ip, length, at + 9, &quoted))
    return false;
  at += (first & 15) * 4;
  if (quoted == HP_TCP || quoted == HP_UDP)
    return get16(ip, length, at, port);
  return quoted == HP_ICMP && get16(ip, length, at + 4, port);
}

static uint32_t index_of(const uint8_t *ip, const uint32_t *addresses, uint32_t count) {
  uint32_t destination = hp_get32(ip + 16);
  for (uint32_t i = 0; i < count; i++)
    if (addresses[i] == destination)
      return i;
  return HP_NONE;
}

uint32_t hp_steer_slot(const uint8_t *ip, uint32_t length, const uint32_t *addresses, uint32_t count) {
  uint32_t port;
  if (length < HP_IPV4_HEADER || ip[0] >> 4 != 4 || hp_get16(ip + 6) & 0x3fff) /* a fragment, the first one too */
    return HP_NONE;
  uint32_t index = index_of(ip, addresses, count);
  if (index == HP_NONE || !find_port(ip, length, (ip[0] & 15u) * 4, ip[9], &port) || port < HP_PORT_FIRST)
    return HP_NONE;
  return index * 64 + (port - HP_PORT_FIRST) / HP_SLICE_PORTS;
}

uint32_t hp_steer(const hp_ports *ports, const hp_link *eni, const hp_packet *packet) {
  uint32_t addresses[HP_ENI_ADDRESSES];
  if (packet->length < HP_VNET_HEADER || eni->kind != HP_LINK_ENI)
    return 0;
  for (uint32_t i = 0; i < eni->address_count; i++)
    addresses[i] = ports->addresses[eni->addresses[i]].address;
  uint32_t slot =
      hp_steer_slot(packet->data + HP_VNET_HEADER, packet->length - HP_VNET_HEADER, addresses, eni->address_count);
  if (slot == HP_NONE)
    return 0;
  uint8_t owner = hp_slice_owner(ports, eni->addresses[slot / 64], slot % 64);
  return owner && owner <= ports->workers ? owner - 1u : 0;
}

uint64_t *hp_steer_map(int fd, hp_error *error) {
  void *at = mmap(NULL, HP_STEER_SLOTS * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at != MAP_FAILED)
    return at;
  hp_fail(error, errno, "descriptor %d is no array of %d values that can be mapped: %s; make it with BPF_F_MMAPABLE",
          fd, HP_STEER_SLOTS, strerror(errno));
  return NULL;
}

void hp_steer_unmap(uint64_t *steering) {
  if (steering)
    munmap(steering, HP_STEER_SLOTS * sizeof(uint64_t));
}
