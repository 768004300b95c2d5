/* link_tun.c: checks that a descriptor is a TUN as the engine needs it.
 *
 * Theory of operation. Every packet that the engine reads or writes stands behind a struct
 * virtio_net_hdr, so that offloads (partial checksums, TSO, USO) pass through; nothing else is known
 * about the other end. A TUN has these properties from TUNSETIFF on and for ever, but for the size and
 * byte order of the header, which any holder of a duplicate can change at any time: set here, and never
 * relied on for memory safety. Offloads are left as whoever opened the device set them: they say what
 * that network may hand to us, and we take everything that this header has room for. Which they are the kernel does
 * not tell; when reads fail they are set to those that we give our own devices.
 */
#define _GNU_SOURCE
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "memory.h"

enum { TUN_MAJOR = 10, TUN_MINOR = 200 }; /* Documentation/admin-guide/devices.txt: /dev/net/tun */

static int check_file(int fd, hp_error *error) {
  struct stat file;
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fstat(fd, &file))
    return hp_fail(error, errno, "descriptor %d: %s; hand over an open TUN descriptor", fd, strerror(errno));
  /* Other drivers answer TUNGETIFF too (macvtap), so the device number is looked at first. */
  if (!S_ISCHR(file.st_mode) || file.st_rdev != makedev(TUN_MAJOR, TUN_MINOR))
    return hp_fail(error, ENOTTY, "descriptor %d is not a TUN; open /dev/net/tun and attach it with TUNSETIFF", fd);
  if ((flags & O_ACCMODE) != O_RDWR)
    return hp_fail(error, EACCES, "descriptor %d cannot be both read and written; open /dev/net/tun with O_RDWR", fd);
  if (fcntl(fd, F_SETFL, flags | O_NONBLOCK))
    return hp_fail(error, errno, "descriptor %d: cannot make it non-blocking: %s", fd, strerror(errno));
  return 0;
}

/* TUNGETIFF does not tell: IFF_NO_PI has the value of IFF_NOFILTER, which it sets for every TUN. So a packet
 * is written that no TUN without struct tun_pi takes, because its IP version is 0; one with it takes the
 * first bytes for a tun_pi, and the rest for a packet of a protocol that nobody speaks (or is down: EIO).
 * The device counts either as a dropped packet. */
static bool has_packet_information(int fd) {
  static const char nothing[HP_VNET_HEADER + sizeof(struct tun_pi) + 20];
  struct iovec vector = {(void *)(uintptr_t)nothing, sizeof nothing};
  ssize_t written = pwritev2(fd, &vector, 1, -1, RWF_NOWAIT);
  if (written < 0 && errno == EOPNOTSUPP) /* before Linux 6.4 */
    written = write(fd, nothing, sizeof nothing);
  return written >= 0 || errno != EINVAL;
}

static int check_device(int fd, hp_error *error) {
  struct ifreq device = {0};
  if (ioctl(fd, TUNGETIFF, &device)) {
    if (errno == EBADFD)
      return hp_fail(error, errno, "descriptor %d has no device; attach it with TUNSETIFF, or its device was deleted",
                     fd);
    return hp_fail(error, errno, "descriptor %d: TUNGETIFF: %s", fd, strerror(errno));
  }
  device.ifr_name[IFNAMSIZ - 1] = 0;
  int flags = device.ifr_flags & 0xffff;
  if (flags & IFF_TAP)
    return hp_fail(error, EINVAL, "device %s is a TAP; open it with IFF_TUN", device.ifr_name);
  if (!(flags & IFF_TUN))
    return hp_fail(error, EINVAL, "device %s is not a TUN; open it with IFF_TUN", device.ifr_name);
  if (!(flags & IFF_VNET_HDR))
    return hp_fail(error, EINVAL, "device %s has no virtio_net_hdr; open it with IFF_VNET_HDR", device.ifr_name);
  if (flags & IFF_DETACH_QUEUE)
    return hp_fail(error, EINVAL, "this queue of device %s is detached; attach it with TUNSETQUEUE", device.ifr_name);
  return 0;
}

int hp_link_tun_check(int fd, hp_error *error) {
  if (check_file(fd, error) || check_device(fd, error))
    return -1;
  int size = HP_VNET_HEADER, little_endian = 1; /* whatever the processor's order is */
  if (ioctl(fd, TUNSETVNETHDRSZ, &size) || ioctl(fd, TUNSETVNETLE, &little_endian))
    return hp_fail(error, errno, "descriptor %d: cannot set its virtio_net_hdr to %d bytes, little endian: %s", fd,
                   size, strerror(errno));
  if (has_packet_information(fd))
    return hp_fail(error, EINVAL, "descriptor %d has struct tun_pi before its packets; open it with IFF_NO_PI", fd);
  return 0;
}

/* ---- what others have changed ---- */

enum { OFFLOADS = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6, WITH_UDP = OFFLOADS | 0x60 /* TUN_F_USO4, _USO6 */ };

bool hp_link_tun_mend(int fd, bool offloads) {
  static const int right_size = HP_VNET_HEADER, right_order = 1;
  int size = right_size, little_endian = right_order;
  bool changed = false;
  if (ioctl(fd, TUNGETVNETHDRSZ, &size) == 0 && size != right_size)
    changed |= ioctl(fd, TUNSETVNETHDRSZ, &right_size) == 0;
  if (ioctl(fd, TUNGETVNETLE, &little_endian) == 0 && little_endian != right_order)
    changed |= ioctl(fd, TUNSETVNETLE, &right_order) == 0;
  if (offloads) /* USO from Linux 6.2 on */
    changed |= ioctl(fd, TUNSETOFFLOAD, WITH_UDP) == 0 || ioctl(fd, TUNSETOFFLOAD, OFFLOADS) == 0;
  return changed;
}
