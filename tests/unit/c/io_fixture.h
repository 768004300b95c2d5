/* io_fixture.h: real TUN devices in network namespaces of the test's own, and an I/O engine around them.
 *
 * Nothing has a name in the file system: when the process ends, its namespaces and devices end with it. */
#ifndef IO_FIXTURE_H
#define IO_FIXTURE_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <net/route.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../../csrc/io_common.h"
#include "../../../csrc/link.h"

enum { OFFLOADS = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | 0x60 /* TUN_F_USO4 | TUN_F_USO6 */, DEADLINE = 10000 };

/* A step of the test's own setting up; what fails ends the test run loudly. */
#define MUST(call)                                                                                                     \
  do {                                                                                                                 \
    if ((call) < 0) {                                                                                                  \
      fprintf(stderr, "%s:%d: %s: %s (this test needs root and /dev/net/tun)\n", __FILE__, __LINE__, #call,            \
              strerror(errno));                                                                                        \
      exit(1);                                                                                                         \
    }                                                                                                                  \
  } while (0)

static inline void write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  MUST(fd);
  MUST(write(fd, text, strlen(text)));
  close(fd);
}

/* Enters a new network namespace without IPv6, whose own chatter would only disturb. */
static inline int new_namespace(void) {
  MUST(unshare(CLONE_NEWNET));
  int fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
  MUST(fd);
  if (access("/proc/sys/net/ipv6", F_OK) == 0) {
    write_file("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
  }
  return fd;
}

static inline void enter(int namespace) { MUST(setns(namespace, CLONE_NEWNET)); }

static inline void device_ioctl(unsigned long request, struct ifreq *device) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  MUST(fd);
  MUST(ioctl(fd, request, device));
  close(fd);
}

static inline struct ifreq device_named(const char *name) {
  struct ifreq device = {0};
  snprintf(device.ifr_name, IFNAMSIZ, "%s", name);
  return device;
}

static inline void set_flags(const char *name, int flags) {
  struct ifreq device = device_named(name);
  device.ifr_flags = (short)flags;
  device_ioctl(SIOCSIFFLAGS, &device);
}

static inline void set_address(const char *name, unsigned long request, const char *address) {
  struct ifreq device = device_named(name);
  struct sockaddr_in in = {.sin_family = AF_INET};
  inet_pton(AF_INET, address, &in.sin_addr);
  memcpy(&device.ifr_addr, &in, sizeof in);
  device_ioctl(request, &device);
}

/* A device in the current namespace, up, with an address if one is given. */
static inline int new_tun(const char *name, const char *address, const char *mask, int mtu, unsigned offloads) {
  int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  MUST(fd);
  struct ifreq device = device_named(name);
  device.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
  MUST(ioctl(fd, TUNSETIFF, &device));
  MUST(ioctl(fd, TUNSETOFFLOAD, offloads));
  if (!address)
    return fd;
  set_address(name, SIOCSIFADDR, address);
  set_address(name, SIOCSIFNETMASK, mask);
  device.ifr_mtu = mtu;
  device_ioctl(SIOCSIFMTU, &device);
  set_flags(name, IFF_UP);
  return fd;
}

static inline void add_route(const char *name, const char *network, const char *mask) {
  struct rtentry route = {.rt_flags = RTF_UP, .rt_dev = (char *)(uintptr_t)name};
  struct sockaddr_in in = {.sin_family = AF_INET};
  inet_pton(AF_INET, network, &in.sin_addr);
  memcpy(&route.rt_dst, &in, sizeof in);
  inet_pton(AF_INET, mask, &in.sin_addr);
  memcpy(&route.rt_genmask, &in, sizeof in);
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  MUST(fd);
  MUST(ioctl(fd, SIOCADDRT, &route));
  close(fd);
}

/* What `ip link del` does. */
static inline void delete_device(const char *name) {
  struct {
    struct nlmsghdr header;
    struct ifinfomsg info;
  } request = {.header = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_DELLINK, .nlmsg_flags = NLM_F_REQUEST},
               .info = {.ifi_index = (int)if_nametoindex(name)}};
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  MUST(fd);
  MUST(send(fd, &request, sizeof request, 0));
  close(fd);
}

static inline struct sockaddr_in endpoint(const char *address, int port) {
  struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  inet_pton(AF_INET, address, &in.sin_addr);
  return in;
}

/* A UDP socket in the current namespace; what it waits for must come within DEADLINE. */
static inline int udp_socket(const char *address, int port) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), room = 4 << 20;
  struct sockaddr_in in = endpoint(address, port);
  struct timeval deadline = {.tv_sec = DEADLINE / 1000};
  MUST(fd);
  MUST(bind(fd, (struct sockaddr *)&in, sizeof in));
  MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof deadline));
  MUST(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room));
  MUST(setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room));
  return fd;
}

static inline void udp_send(int fd, const char *address, const void *bytes, size_t length) {
  struct sockaddr_in in = endpoint(address, 7000);
  MUST(sendto(fd, bytes, length, 0, (struct sockaddr *)&in, sizeof in));
}

/* `count` datagrams of `length` bytes that begin with their number. */
static inline void udp_flood(int fd, const char *address, uint32_t count, size_t length) {
  char bytes[2000] = {0};
  for (uint32_t i = 0; i < count; i++) {
    memcpy(bytes, &i, sizeof i);
    udp_send(fd, address, bytes, length);
  }
}

/* ---- an engine ---- */

enum { LINKS = 1024 };

struct engine {
  const hp_io_ops *ops;
  hp_io *io;
  hp_io_counters counters;
  int wake;
  unsigned full;   /* packets that failed with HP_OUTPUT_FULL */
  unsigned errors; /* with HP_OUTPUT_ERROR */
  uint32_t failed_link;
  unsigned gone;
  uint32_t gone_link;
  unsigned unreadable; /* reads that failed */
  unsigned readable;
  int code; /* of the latest */
};

static inline void on_failed(void *context, uint32_t link, hp_reason reason) {
  struct engine *engine = context;
  assert_true(reason == HP_OUTPUT_FULL || reason == HP_OUTPUT_ERROR);
  *(reason == HP_OUTPUT_FULL ? &engine->full : &engine->errors) += 1;
  engine->failed_link = link;
}

static inline void on_gone(void *context, uint32_t link) {
  struct engine *engine = context;
  engine->gone++;
  engine->gone_link = link;
}

static inline void on_unreadable(void *context, uint32_t link, int code) {
  struct engine *engine = context;
  engine->unreadable++;
  engine->failed_link = link;
  engine->code = code;
}

static inline void on_readable(void *context, uint32_t link) {
  struct engine *engine = context;
  engine->readable++;
  assert_int_equal(link, engine->failed_link);
}

static inline void open_spinning(struct engine *engine, const hp_io_ops *ops, uint32_t buffers, uint32_t spin) {
  *engine = (struct engine){.ops = ops, .wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  MUST(engine->wake);
  hp_io_config config = {.max_links = LINKS,
                         .buffers = buffers,
                         .wake = engine->wake,
                         .spin = spin,
                         .failed = on_failed,
                         .unreadable = on_unreadable,
                         .readable = on_readable,
                         .gone = on_gone,
                         .context = engine,
                         .counters = &engine->counters};
  hp_error error = {0};
  engine->io = ops->open(&config, &error);
  if (!engine->io)
    fail_msg("%s", error.text);
}

static inline void open_engine(struct engine *engine, const hp_io_ops *ops, uint32_t buffers) {
  open_spinning(engine, ops, buffers, 0);
}

static inline void close_engine(struct engine *engine) {
  engine->ops->close(engine->io);
  close(engine->wake);
}

static inline void add_link(struct engine *engine, uint32_t link, int fd, int group) {
  hp_error error = {0};
  if (engine->ops->add(engine->io, link, fd, group, &error))
    fail_msg("%s", error.text);
}

static inline uint32_t receive(struct engine *engine, hp_packet *packets, int timeout) {
  uint32_t count = engine->ops->receive(engine->io, packets, timeout);
  assert_true(count <= HP_BATCH);
  for (uint32_t i = 0; i < count; i++) {
    assert_non_null(packets[i].data);
    assert_true(packets[i].length > 0 && packets[i].length <= packets[i].capacity);
    assert_int_equal(packets[i].capacity, HP_BUFFER);
  }
  return count;
}

static inline void release_all(struct engine *engine, const hp_packet *packets, uint32_t count) {
  for (uint32_t i = 0; i < count; i++)
    engine->ops->release(engine->io, &packets[i]);
}

/* Receives and releases until `wanted` packets of the link have come; returns how many others came. */
static inline uint32_t drain(struct engine *engine, uint32_t link, uint32_t wanted) {
  hp_packet packets[HP_BATCH];
  int64_t deadline = hp_io_clock() + DEADLINE;
  uint32_t got = 0, others = 0;
  while (got < wanted && hp_io_clock() < deadline) {
    uint32_t count = receive(engine, packets, 100);
    for (uint32_t i = 0; i < count; i++)
      *(packets[i].link == link ? &got : &others) += 1;
    release_all(engine, packets, count);
  }
  assert_true(got >= wanted);
  return others;
}

/* Sends all that comes from one link to another until `wanted` packets have been sent. */
static inline void forward(struct engine *engine, uint32_t from, uint32_t to, uint32_t wanted) {
  hp_packet packets[HP_BATCH];
  int64_t deadline = hp_io_clock() + DEADLINE;
  uint32_t got = 0;
  while (got < wanted && hp_io_clock() < deadline) {
    uint32_t count = receive(engine, packets, 100);
    for (uint32_t i = 0; i < count; i++) {
      assert_int_equal(packets[i].link, from);
      packets[i].link = to;
      engine->ops->send(engine->io, &packets[i]);
    }
    engine->ops->flush(engine->io);
    got += count;
  }
  assert_int_equal(got, wanted);
}

#endif
