/* device.c: a TUN with its addresses and routes, made and configured in one call.
 *
 * Theory of operation. Attaching an environment is a dozen system calls, each of which takes the kernel a
 * few microseconds, but for two: TUNSETIFF, which registers the device, and the batch of rtnetlink messages.
 * Made one by one from Python, each of them gives up the interpreter's lock and has to get it back, against
 * everybody else who wants it; that took as long as the kernel did. The messages are the caller's, encoded:
 * only the index of the device is unknown before there is one, and filled in.
 *
 * The kernel carries a batch out while it is sent. It answers each message that it refused, and the last one
 * in any case; so the answers are there when send() returns, and the last one has the last number.
 *
 * /dev/net/tun and a netlink socket belong for ever to the network namespace of the thread that opens them. So
 * a thread is in the environment's namespace only while it opens these two, some microseconds in which nothing
 * waits for a lock, and then at home again: any thread may be the caller. One that did not get home would do all
 * that it does later in a customer's namespace, so the process ends then.
 *
 * Nothing here is the engine's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
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

/* What belongs to the namespace that the calling thread is in. */
static int open_both(hp_device *device, int *kernel) {
  device->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (device->fd < 0)
    return failed(device, HP_DEVICE_OPEN);
  *kernel = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  return *kernel < 0 ? failed(device, HP_DEVICE_OPEN) : 0;
}

static int open_inside(hp_device *device, int *kernel) {
  if (device->environment < 0)
    return open_both(device, kernel);
  if (setns(device->environment, CLONE_NEWNET))
    return failed(device, HP_DEVICE_ENTER);
  int result = open_both(device, kernel);
  if (setns(device->home, CLONE_NEWNET) == 0)
    return result;
  perror("hyperplane: a thread cannot return from a network namespace");
  abort();
}

/* The device alone, as link_tun.c wants it. */
static int register_device(hp_device *device) {
  /* IFF_TUN_EXCL: else the kernel would hand over a persistent TUN of that name that somebody else made. */
  struct ifreq request = {.ifr_flags = (short)(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL)};
  memcpy(request.ifr_name, device->name, sizeof request.ifr_name);
  if (ioctl(device->fd, TUNSETIFF, &request))
    return failed(device, HP_DEVICE_OPEN);
  /* An older kernel knows fewer. Without any of them everything works, only slower. */
  for (int i = 0; i < HP_DEVICE_OFFLOADS && ioctl(device->fd, TUNSETOFFLOAD, device->offloads[i]); i++)
    ;
  /* Its virtio_net_hdr has HP_VNET_HEADER bytes in the processor's byte order, unless somebody asks for others. */
  int little_endian = 1;
  if (__BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ && ioctl(device->fd, TUNSETVNETLE, &little_endian))
    return failed(device, HP_DEVICE_OPEN);
  return 0;
}

/* The batch about this device. */
static int fill_in(const hp_device *device, int kernel, uint8_t *messages) {
  struct ifreq request = {0};
  memcpy(request.ifr_name, device->name, sizeof request.ifr_name);
  if (ioctl(kernel, SIOCGIFINDEX, &request))
    return -1;
  memcpy(messages, device->batch, device->batch_length);
  for (uint32_t i = 0; i < device->place_count; i++)
    memcpy(messages + device->places[i], &request.ifr_ifindex, sizeof request.ifr_ifindex);
  return 0;
}

static int send_batch(const hp_device *device, int kernel) {
  uint8_t messages[HP_DEVICE_BATCH];
  if (device->batch_length > sizeof messages) {
    errno = EMSGSIZE;
    return -1;
  }
  return fill_in(device, kernel, messages) || send(kernel, messages, device->batch_length, 0) < 0 ? -1 : 0;
}

/* Keeps what a refusal says, as long as there is room. */
static void note(hp_device *device, struct nlmsghdr *answer) {
  const struct nlmsgerr *result = NLMSG_DATA(answer);
  uint32_t length = NLMSG_ALIGN(answer->nlmsg_len);
  if (!result->error || device->refusals_length + length > sizeof device->refusals)
    return;
  memcpy(device->refusals + device->refusals_length, answer, length);
  device->refusals_length += length;
}

/* Takes answers until that to the last message has come. */
static int take_answers(hp_device *device, int kernel) {
  _Alignas(struct nlmsghdr) uint8_t answers[32768];
  uint32_t answered = 0;
  while (answered < device->messages) {
    ssize_t got = recv(kernel, answers, sizeof answers, 0);
    if (got <= 0)
      return -1;
    struct nlmsghdr *answer = (struct nlmsghdr *)(void *)answers;
    for (unsigned left = (unsigned)got; NLMSG_OK(answer, left); answer = NLMSG_NEXT(answer, left)) {
      note(device, answer);
      answered = answer->nlmsg_seq;
    }
  }
  return 0;
}

static int configure(hp_device *device, int kernel) {
  int on = 1; /* refusals in words, and without a copy of what was refused */
  setsockopt(kernel, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  setsockopt(kernel, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
  return send_batch(device, kernel) || take_answers(device, kernel) ? failed(device, HP_DEVICE_NETLINK) : 0;
}

int hp_device_make(hp_device *device) {
  uint64_t begun = nanoseconds();
  int kernel = -1, result = 0;
  device->fd = -1;
  device->refusals_length = 0;
  if (open_inside(device, &kernel) || register_device(device)) {
    result = -1;
    if (device->fd >= 0)
      close(device->fd); /* no device: nothing to wait for */
    device->fd = -1;
  }
  uint64_t opened = nanoseconds();
  device->opening_ns = opened - begun;
  if (result == 0)
    result = configure(device, kernel);
  if (kernel >= 0)
    close(kernel);
  device->configuring_ns = nanoseconds() - opened;
  return result;
}
