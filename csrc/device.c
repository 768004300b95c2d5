/* device.c: a TUN with its addresses and routes, in one call.
 *
 * Theory of operation. Attaching an environment is a dozen system calls, each of which takes the kernel a
 * few microseconds, but for two: TUNSETIFF, which registers the device, and the batch of rtnetlink messages.
 * Made one by one from Python, each of them gives up the interpreter's lock and has to get it back, against
 * everybody else who wants it; that took as long as the kernel did. Here they are one call. The messages are
 * the caller's, encoded: only the index of the device is unknown before there is one, and filled in.
 *
 * The kernel carries a batch out while it is sent. It answers each message that it refused, and the last one
 * in any case; so the answers are there when send() returns, and the last one has the last number.
 *
 * Everything concerns the network namespace of the calling thread. Nothing here is the engine's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "hyperplane.h"

static uint64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int failed(hp_device *device, int step) {
  device->error = errno;
  device->step = step;
  return -1;
}

/* The device alone, as link_tun.c wants it. */
static int open_device(hp_device *device) {
  device->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (device->fd < 0)
    return failed(device, HP_DEVICE_OPEN);
  /* IFF_TUN_EXCL: else the kernel would hand over a persistent TUN of that name that somebody else made. */
  struct ifreq request = {.ifr_flags = (short)(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL)};
  memcpy(request.ifr_name, device->name, sizeof request.ifr_name);
  if (ioctl(device->fd, TUNSETIFF, &request)) {
    failed(device, HP_DEVICE_OPEN);
    close(device->fd); /* no device: nothing to wait for */
    device->fd = -1;
    return -1;
  }
  /* An older kernel knows fewer. Without any of them everything works, only slower. */
  for (int i = 0; i < HP_DEVICE_OFFLOADS && ioctl(device->fd, TUNSETOFFLOAD, device->offloads[i]); i++)
    ;
  int header = HP_VNET_HEADER;
  return ioctl(device->fd, TUNSETVNETHDRSZ, &header) ? failed(device, HP_DEVICE_HEADER) : 0;
}

static int fill_in_index(hp_device *device, int kernel) {
  struct ifreq request = {0};
  memcpy(request.ifr_name, device->name, sizeof request.ifr_name);
  if (ioctl(kernel, SIOCGIFINDEX, &request))
    return -1;
  for (uint32_t i = 0; i < device->place_count; i++)
    memcpy(device->batch + device->places[i], &request.ifr_ifindex, sizeof request.ifr_ifindex);
  return 0;
}

/* Takes answers until that to the last message has come. */
static int take_answers(hp_device *device, int kernel) {
  uint32_t answered = 0;
  while (answered < device->messages) {
    uint8_t *at = device->answers + device->answers_length;
    ssize_t got = recv(kernel, at, HP_DEVICE_ANSWERS - device->answers_length, 0);
    if (got <= 0) {
      errno = got ? errno : ENOBUFS; /* no room left */
      return -1;
    }
    device->answers_length += (uint32_t)got;
    struct nlmsghdr *answer = (struct nlmsghdr *)(void *)at;
    for (unsigned left = (unsigned)got; NLMSG_OK(answer, left); answer = NLMSG_NEXT(answer, left))
      answered = answer->nlmsg_seq;
  }
  return 0;
}

static int configure(hp_device *device) {
  int kernel = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  if (kernel < 0)
    return failed(device, HP_DEVICE_NETLINK);
  int on = 1; /* refusals in words, and without a copy of what was refused */
  setsockopt(kernel, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  setsockopt(kernel, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
  int result = 0;
  if (fill_in_index(device, kernel) || send(kernel, device->batch, device->batch_length, 0) < 0 ||
      take_answers(device, kernel))
    result = failed(device, HP_DEVICE_NETLINK);
  close(kernel);
  return result;
}

int hp_device_make(hp_device *device) {
  uint64_t begun = nanoseconds();
  device->answers_length = 0;
  int result = open_device(device);
  uint64_t opened = nanoseconds();
  if (result == 0)
    result = configure(device);
  device->opening_ns = opened - begun;
  device->configuring_ns = nanoseconds() - opened;
  return result;
}
