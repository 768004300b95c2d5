/* test_io.c: both I/O engines with real TUN devices. Needs root; makes its own namespaces. */
#include "io_fixture.h"

#include "../../../csrc/packet.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define NEAR "198.18.0.2" /* in namespace 0, on device io0, link 0 */
#define FAR "198.19.0.2"  /* in namespace 1, on device io1, link 1 */
#define MASK "255.254.0.0"

static int namespaces[2];
static int idle[500];

/* Two devices, sockets behind them, and an engine with both. */
struct world {
  struct engine engine;
  int tun[2];
  int udp[2];
};

static void make_spinning_world(struct world *world, void **state, uint32_t buffers, uint32_t spin) {
  const char *devices[] = {"io0", "io1"}, *addresses[] = {NEAR, FAR};
  open_spinning(&world->engine, *state, buffers, spin);
  for (int i = 0; i < 2; i++) {
    enter(namespaces[i]);
    world->tun[i] = new_tun(devices[i], addresses[i], MASK, 65000, OFFLOADS);
    world->udp[i] = udp_socket(addresses[i], 7000);
    add_link(&world->engine, (uint32_t)i, world->tun[i], i ? HP_GROUP_ENIS : HP_GROUP_TUNNELS);
  }
}

static void make_world(struct world *world, void **state, uint32_t buffers) {
  make_spinning_world(world, state, buffers, 0);
}

/* Whether the device is there, in the namespace of link `i`. */
static bool exists(int i, const char *name) {
  enter(namespaces[i]);
  return if_nametoindex(name) != 0;
}

/* Ends everything, and sees to it that the engine holds no descriptor back. */
static void end_world(struct world *world) {
  close_engine(&world->engine);
  for (int i = 0; i < 2; i++) {
    close(world->udp[i]);
    close(world->tun[i]);
    assert_false(exists(i, i ? "io1" : "io0"));
  }
}

static void expect(int fd, const void *bytes, size_t length) {
  static char got[65536];
  ssize_t count = recv(fd, got, sizeof got, 0);
  assert_int_equal(count, length);
  assert_memory_equal(got, bytes, length);
}

static double processor_seconds(void) {
  struct timespec used;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

/* The thread sleeps: it uses less than half of a processor for that long. */
static void assert_sleeps(struct engine *engine, int timeout) {
  hp_packet packets[HP_BATCH];
  double before = processor_seconds();
  assert_int_equal(receive(engine, packets, timeout), 0);
  assert_true(processor_seconds() - before < timeout / 2000.0);
}

static void test_round_trip(void **state) {
  static const size_t sizes[] = {1, 2, 64, 1400, 9000, 60000};
  static char bytes[60000];
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 64);
  for (size_t i = 0; i < sizeof bytes; i++)
    bytes[i] = (char)(i * 7);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    udp_send(world.udp[0], FAR, bytes, sizes[i]);
    forward(&world.engine, 0, 1, 1);
    expect(world.udp[1], bytes, sizes[i]);
    udp_send(world.udp[1], NEAR, bytes, sizes[i]);
    forward(&world.engine, 1, 0, 1);
    expect(world.udp[0], bytes, sizes[i]);
  }
  assert_int_equal(receive(&world.engine, packets, 0), 0); /* the last write is counted when it has ended */
  assert_int_equal(world.engine.counters.packets, 12);
  assert_int_equal(world.engine.counters.writes, 12);
  end_world(&world);
}

/* Far more packets than buffers: each comes once, in order, and every buffer comes back. */
static void test_order(void **state) {
  struct world world;
  make_world(&world, state, 64);
  for (int round = 0; round < 10; round++) {
    udp_flood(world.udp[0], FAR, 300, 100);
    forward(&world.engine, 0, 1, 300);
    for (uint32_t i = 0; i < 300; i++) {
      uint32_t number;
      char bytes[100];
      assert_int_equal(recv(world.udp[1], bytes, sizeof bytes, 0), sizeof bytes);
      memcpy(&number, bytes, sizeof number);
      assert_int_equal(number, i);
    }
  }
  assert_int_equal(world.engine.full + world.engine.errors + world.engine.gone, 0);
  assert_true(world.engine.counters.writes <= 3000);
  end_world(&world);
}

static void *wake_soon(void *argument) {
  struct engine *engine = argument;
  /* Runs when the other thread sleeps in receive(), or before: both must wake it. */
  assert_int_equal(eventfd_write(engine->wake, 1), 0);
  return NULL;
}

static void test_wake(void **state) {
  struct engine engine;
  hp_packet packets[HP_BATCH];
  eventfd_t value;
  open_engine(&engine, *state, 16);
  assert_int_equal(eventfd_write(engine.wake, 1), 0);
  assert_int_equal(eventfd_write(engine.wake, 1), 0);
  assert_int_equal(receive(&engine, packets, -1), 0);
  for (int i = 0; i < 50; i++) {
    pthread_t thread;
    pthread_create(&thread, NULL, wake_soon, &engine);
    assert_int_equal(receive(&engine, packets, -1), 0);
    pthread_join(thread, NULL);
    assert_int_equal(eventfd_read(engine.wake, &value), -1); /* it was cleared */
  }
  assert_int_equal(receive(&engine, packets, 0), 0);
  int64_t before = hp_io_clock();
  assert_int_equal(receive(&engine, packets, 50), 0); /* no wake is left over */
  assert_true(hp_io_clock() - before >= 49);
  close_engine(&engine);
}

/* A wake that remove() comes across is not lost. */
static void test_wake_during_remove(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 16);
  assert_int_equal(receive(&world.engine, packets, 0), 0);
  assert_int_equal(eventfd_write(world.engine.wake, 1), 0);
  world.engine.ops->remove(world.engine.io, 0);
  assert_int_equal(receive(&world.engine, packets, -1), 0);
  assert_sleeps(&world.engine, 50);
  end_world(&world);
}

struct sender {
  int udp;
  const char *to;
  int stop;
};

/* Traffic until told to stop, or 2,000,000 packets. */
static void *send_much(void *argument) {
  struct sender *sender = argument;
  struct sockaddr_in in = endpoint(sender->to, 7000);
  char bytes[100] = {0};
  for (int i = 0; i < 2000000 && !__atomic_load_n(&sender->stop, __ATOMIC_ACQUIRE); i++)
    if (sendto(sender->udp, bytes, sizeof bytes, 0, (struct sockaddr *)&in, sizeof in) < 0 && errno == EPERM)
      break; /* ENETUNREACH and the like: the device is down just now */
  return NULL;
}

/* After remove() nothing comes from that link, the other's packets are not lost, buffers are back. */
static void test_remove_under_traffic(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 32);
  struct engine *engine = &world.engine;
  struct sender sender = {.udp = world.udp[0], .to = FAR};
  pthread_t thread;
  pthread_create(&thread, NULL, send_much, &sender);
  for (int round = 0; round < 50; round++) {
    drain(engine, 0, 100);
    udp_flood(world.udp[1], NEAR, 20, 100);
    if (round % 2) /* some of them are seen by remove() only when they are completions already */
      engine->ops->flush(engine->io);
    uint32_t held = receive(engine, packets, 100), other = 0;
    engine->ops->remove(engine->io, 0);
    for (uint32_t i = 0; i < held; i++)
      other += packets[i].link == 1;
    release_all(engine, packets, held);
    assert_int_equal(drain(engine, 1, 20 - other), 0);
    assert_int_equal(receive(engine, packets, 0), 0);
    add_link(engine, 0, world.tun[0], HP_GROUP_TUNNELS);
  }
  __atomic_store_n(&sender.stop, 1, __ATOMIC_RELEASE);
  pthread_join(thread, NULL);
  assert_int_equal(engine->gone, 0);
  end_world(&world);
}

/* Adds `count` TUNs PREFIX0, PREFIX1, ... to the first namespace, with addresses 198.18.SUBNET.2 and on, as links
 * from a number on. */
static void add_tuns(struct engine *engine, int *tun, unsigned count, const char *prefix, unsigned subnet,
                     uint32_t link) {
  char name[IFNAMSIZ], address[20];
  enter(namespaces[0]);
  for (unsigned i = 0; i < count; i++) {
    snprintf(name, sizeof name, "%s%u", prefix, i);
    snprintf(address, sizeof address, "198.18.%u.2", subnet + i);
    tun[i] = new_tun(name, address, "255.255.255.0", 1500, OFFLOADS);
    add_link(engine, link + i, tun[i], HP_GROUP_TUNNELS);
  }
}

/* Packets that wait inside the engine when links are removed: the removed ones' are dropped, the others' are not, and
 * no buffer is lost. */
static void test_remove_with_packets_waiting(void **state) {
  enum { EXTRA = 6, EACH = 20, BUFFERS = 128 };
  struct world world;
  hp_packet packets[BUFFERS + HP_BATCH];
  char address[20];
  int tun[EXTRA];
  make_world(&world, state, BUFFERS);
  struct engine *engine = &world.engine;
  add_tuns(engine, tun, EXTRA, "io-x", 128, 10);
  assert_int_equal(receive(engine, packets, 0), 0);
  for (unsigned i = 0; i < EXTRA; i++) {
    snprintf(address, sizeof address, "198.18.%u.9", 128 + i);
    udp_flood(world.udp[0], address, EACH, 100);
  }
  udp_flood(world.udp[1], NEAR, EACH, 100);
  uint32_t got[32] = {0}, count = receive(engine, packets, 100);
  assert_int_equal(count, HP_BATCH); /* so some wait */
  for (uint32_t i = 0; i < count; i++)
    got[packets[i].link]++;
  release_all(engine, packets, count);
  for (uint32_t link = 9 + EXTRA; link > 10; link--) /* the first has packets that nobody has looked at */
    engine->ops->remove(engine->io, link);
  for (int64_t deadline = hp_io_clock() + DEADLINE; got[10] < EACH && hp_io_clock() < deadline;) {
    count = receive(engine, packets, 100);
    for (uint32_t i = 0; i < count; i++) {
      assert_true(packets[i].link == 10 || packets[i].link == 1);
      got[packets[i].link]++;
    }
    release_all(engine, packets, count);
  }
  assert_int_equal(got[10], EACH);
  engine->ops->remove(engine->io, 1); /* after another's removal came across its packets */
  engine->ops->remove(engine->io, 10);
  assert_int_equal(receive(engine, packets, 10), 0);
  assert_int_equal(engine->gone, 0);
  udp_flood(world.udp[0], FAR, 300, 100); /* as many as there are buffers can be held at once */
  for (count = 0; count < BUFFERS;)
    count += receive(engine, packets + count, 100);
  release_all(engine, packets, count);
  for (int i = 0; i < EXTRA; i++)
    close(tun[i]);
  end_world(&world);
}

/* A removed link's last reference is the caller's, although other links' reads are older and younger. */
static void test_remove_drops_descriptor(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 32);
  struct engine *engine = &world.engine;
  enter(namespaces[0]);
  int tun = new_tun("io2", "198.18.128.2", "255.255.255.0", 1500, OFFLOADS);
  add_link(engine, 2, tun, HP_GROUP_TUNNELS);
  add_link(engine, 3, idle[0], HP_GROUP_TUNNELS);
  udp_send(world.udp[0], FAR, "x", 1);
  udp_send(world.udp[0], "198.18.128.9", "x", 1);
  drain(engine, 2, 1);
  udp_send(world.udp[0], "198.18.128.9", "y", 1);
  engine->ops->remove(engine->io, 2);
  engine->ops->remove(engine->io, 2);
  assert_true(exists(0, "io2"));
  close(tun);
  assert_false(exists(0, "io2"));
  while (receive(engine, packets, 0))
    ; /* not returned on purpose: close() takes care of packets that the caller holds */
  end_world(&world);
}

static void test_device_deleted(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 32);
  struct engine *engine = &world.engine;
  assert_int_equal(receive(engine, packets, 0), 0);
  enter(namespaces[0]);
  delete_device("io0");
  int64_t deadline = hp_io_clock() + DEADLINE;
  while (!engine->gone && hp_io_clock() < deadline)
    assert_int_equal(receive(engine, packets, 10), 0);
  assert_int_equal(engine->gone, 1);
  assert_int_equal(engine->gone_link, 0);
  assert_sleeps(engine, 50);
  udp_send(world.udp[1], NEAR, "x", 1); /* and the other link goes on; writing to the dead one is an error */
  forward(engine, 1, 0, 1);
  receive(engine, packets, 0);
  assert_int_equal(engine->errors, 1);
  assert_int_equal(engine->failed_link, 0);
  engine->ops->remove(engine->io, 0);
  assert_int_equal(engine->gone, 1);
  end_world(&world);
}

static void test_buffers_run_out(void **state) {
  struct world world;
  hp_packet held[HP_BATCH];
  make_world(&world, state, 4);
  struct engine *engine = &world.engine;
  udp_flood(world.udp[0], FAR, 100, 50);
  uint32_t count = 0;
  for (int64_t deadline = hp_io_clock() + DEADLINE; count < 4 && hp_io_clock() < deadline;)
    count += receive(engine, held + count, 100);
  assert_int_equal(count, 4);
  assert_sleeps(engine, 50); /* nothing to read into: it waits, and does not try again and again */
  assert_true(engine->counters.no_buffers <= 2);
  udp_send(world.udp[1], NEAR, "x", 1); /* the other group has buffers */
  assert_int_equal(drain(engine, 1, 1), 0);
  release_all(engine, held, count);
  drain(engine, 0, 96);
  assert_true(engine->counters.no_buffers > 0);
  assert_true(engine->counters.no_buffers <= 100);
  assert_int_equal(engine->gone, 0);
  end_world(&world);
}

/* 500 links that say nothing, with fewer buffers than links. */
static void test_idle_links(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 64);
  struct engine *engine = &world.engine;
  for (uint32_t i = 0; i < 500; i++)
    add_link(engine, 100 + i, idle[i], HP_GROUP_TUNNELS);
  assert_int_equal(receive(engine, packets, 50), 0); /* all are armed, which takes its time */
  assert_sleeps(engine, 50);
  assert_int_equal(engine->counters.no_buffers, 0);
  for (int round = 0; round < 5; round++) {
    udp_flood(world.udp[0], FAR, 200, 100);
    forward(engine, 0, 1, 200);
  }
  for (uint32_t i = 0; i < 500; i += 2)
    engine->ops->remove(engine->io, 100 + i);
  udp_flood(world.udp[0], FAR, 200, 100);
  forward(engine, 0, 1, 200);
  assert_int_equal(engine->gone, 0);
  end_world(&world);
}

/* Closed with packets unread, held and queued for sending. */
static void test_close_in_the_middle(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 256);
  udp_flood(world.udp[0], FAR, 400, 100);
  uint32_t count = receive(&world.engine, packets, 100);
  assert_true(count > 1);
  packets[0].link = 1;
  world.engine.ops->send(world.engine.io, &packets[0]);
  end_world(&world);
}

/* A header size that the descriptor's other holder changed makes frames larger than a buffer. */
static void test_truncated(void **state) {
  static char bytes[64000];
  struct world world;
  hp_packet packets[HP_BATCH];
  int header = 10000, own = HP_VNET_HEADER;
  make_world(&world, state, 16);
  MUST(ioctl(world.tun[0], TUNSETVNETHDRSZ, &header));
  udp_send(world.udp[0], FAR, bytes, sizeof bytes);
  assert_int_equal(receive(&world.engine, packets, DEADLINE), 1);
  assert_int_equal(packets[0].length, HP_BUFFER);
  release_all(&world.engine, packets, 1);
  MUST(ioctl(world.tun[0], TUNSETVNETHDRSZ, &own));
  udp_send(world.udp[0], FAR, bytes, sizeof bytes);
  assert_int_equal(receive(&world.engine, packets, DEADLINE), 1);
  assert_int_equal(packets[0].length, HP_VNET_HEADER + 28 + sizeof bytes);
  release_all(&world.engine, packets, 1);
  end_world(&world);
}

/* One that leaves no room for any frame makes every read fail: that is told, the link is tried again and again, less
 * and less often, and the other goes on. When it is right again, so is the link. */
static void test_unreadable(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  int header = 100000, right = HP_VNET_HEADER;
  make_world(&world, state, 64);
  struct engine *engine = &world.engine;
  assert_int_equal(receive(engine, packets, 0), 0);
  MUST(ioctl(world.tun[0], TUNSETVNETHDRSZ, &header));
  udp_flood(world.udp[0], FAR, 200, 100);
  int64_t start = hp_io_clock();
  for (int i = 0; i < 20; i++) {
    udp_send(world.udp[1], NEAR, "x", 1);
    assert_int_equal(drain(engine, 1, 1), 0);
    assert_int_equal(receive(engine, packets, 10), 0);
  }
  assert_sleeps(engine, 50);
  /* All rests but the last one have passed: 10, 20, 40 ms and so on. */
  assert_in_range(engine->unreadable, 1, 8);
  assert_true(10 * ((1 << (engine->unreadable - 1)) - 1) <= hp_io_clock() - start + 1);
  assert_int_equal(engine->code, EINVAL);
  assert_int_equal(engine->counters.failing, 1);
  assert_int_equal(engine->counters.unreadable, engine->unreadable);
  assert_int_equal(engine->gone + engine->readable, 0);
  MUST(ioctl(world.tun[0], TUNSETVNETHDRSZ, &right));
  drain(engine, 0, 200 - engine->unreadable);
  assert_int_equal(engine->readable, 1);
  assert_int_equal(engine->counters.failing, 0);
  end_world(&world);
}

/* Whoever is removed, or whose device is deleted, while it rests does not come back. */
static void test_end_while_resting(void **state) {
  int header = 100000;
  for (int deleted = 0; deleted < 2; deleted++) {
    struct world world;
    hp_packet packets[HP_BATCH];
    make_world(&world, state, 16);
    struct engine *engine = &world.engine;
    MUST(ioctl(world.tun[0], TUNSETVNETHDRSZ, &header));
    udp_send(world.udp[0], FAR, "x", 1);
    for (int64_t deadline = hp_io_clock() + DEADLINE; !engine->unreadable && hp_io_clock() < deadline;)
      assert_int_equal(receive(engine, packets, 10), 0);
    assert_int_equal(engine->counters.failing, 1);
    if (deleted) {
      enter(namespaces[0]);
      delete_device("io0");
    } else
      engine->ops->remove(engine->io, 0);
    for (int64_t deadline = hp_io_clock() + (deleted ? DEADLINE : 100); !engine->gone && hp_io_clock() < deadline;)
      assert_int_equal(receive(engine, packets, 10), 0);
    assert_int_equal(engine->gone, deleted);
    assert_int_equal(engine->counters.failing, 0);
    assert_int_equal(engine->unreadable, 1);
    udp_send(world.udp[1], NEAR, "x", 1);
    drain(engine, 1, 1);
    assert_sleeps(engine, 50);
    end_world(&world);
  }
}

/* Somebody clears O_NONBLOCK on a duplicate: neither reading nor writing waits. */
static void test_blocking_descriptor(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 16);
  for (int i = 0; i < 2; i++)
    MUST(fcntl(world.tun[i], F_SETFL, O_RDWR));
  assert_int_equal(receive(&world.engine, packets, 0), 0);
  udp_flood(world.udp[0], FAR, 50, 100);
  forward(&world.engine, 0, 1, 50);
  assert_int_equal(receive(&world.engine, packets, 10), 0);
  end_world(&world);
}

static void test_output_failures(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  int pair[2];
  make_world(&world, state, 16);
  struct engine *engine = &world.engine;
  enter(namespaces[1]);
  set_flags("io1", 0); /* down: the kernel refuses with EIO */
  udp_flood(world.udp[0], FAR, 10, 100);
  forward(engine, 0, 1, 10);
  receive(engine, packets, 0);
  assert_int_equal(engine->errors, 10);
  assert_int_equal(engine->failed_link, 1);
  MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair)); /* holds a few datagrams only */
  add_link(engine, 2, pair[0], HP_GROUP_ENIS);
  for (size_t i = 0; i < 400; i++) { /* each longer than the one before: they are not coalesced */
    udp_flood(world.udp[0], FAR, 1, 100 + i);
    forward(engine, 0, 2, 1);
  }
  receive(engine, packets, 0);
  assert_int_equal(engine->errors, 10);
  assert_int_equal(engine->failed_link, 2);
  assert_true(engine->full > 0);
  forward(engine, 0, 999, 0); /* all buffers are back */
  udp_flood(world.udp[0], FAR, 30, 100);
  forward(engine, 0, 999, 30); /* no such link */
  assert_int_equal(engine->errors, 40);
  engine->ops->remove(engine->io, 2);
  close(pair[0]);
  close(pair[1]);
  end_world(&world);
}

/* A packet of the caller's own: at once, without a buffer, and behind what was flushed before. */
static void test_inject(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 16);
  struct engine *engine = &world.engine;
  udp_send(world.udp[0], FAR, "first", 5);
  udp_send(world.udp[0], FAR, "then", 4);
  uint32_t count = receive(engine, packets, DEADLINE);
  while (count < 2)
    count += receive(engine, packets + count, DEADLINE);
  packets[0].link = 1;
  engine->ops->send(engine->io, &packets[0]);
  engine->ops->flush(engine->io);
  for (int i = 0; i < 100; i++) /* more than there are buffers */
    engine->ops->inject(engine->io, 1, packets[1].data, packets[1].length);
  expect(world.udp[1], "first", 5);
  for (int i = 0; i < 100; i++)
    expect(world.udp[1], "then", 4);
  assert_int_equal(engine->errors + engine->full, 0);
  engine->ops->inject(engine->io, 999, packets[1].data, packets[1].length); /* no such link */
  assert_int_equal(engine->errors, 1);
  assert_int_equal(engine->failed_link, 999);
  enter(namespaces[1]);
  set_flags("io1", 0);
  engine->ops->inject(engine->io, 1, packets[1].data, packets[1].length);
  assert_int_equal(engine->errors, 2);
  assert_int_equal(engine->failed_link, 1);
  engine->ops->release(engine->io, &packets[1]);
  end_world(&world);
}

/* A link that always has more does not keep another one of its group from being heard. */
static void test_fairness(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 256);
  struct engine *engine = &world.engine;
  enter(namespaces[0]);
  int tun = new_tun("io2", "198.18.128.2", "255.255.255.0", 1500, OFFLOADS), quiet = udp_socket("198.18.128.2", 7000);
  add_link(engine, 2, tun, HP_GROUP_TUNNELS);
  uint32_t worst = 0;
  for (int round = 0; round < 20; round++) {
    udp_flood(world.udp[0], FAR, 450, 100);
    uint32_t before = 0, heard = 0;
    udp_flood(quiet, "198.18.128.9", 20, 100);
    while (heard < 20) {
      uint32_t count = receive(engine, packets, 100);
      for (uint32_t i = 0; i < count; i++) {
        heard += packets[i].link == 2;
        before += packets[i].link == 0;
      }
      release_all(engine, packets, count);
      udp_flood(world.udp[0], FAR, count, 100);
    }
    worst = before > worst ? before : worst;
  }
  assert_true(worst <= 256 + 2 * HP_BATCH); /* what fits the buffers when it comes, and two batches more */
  engine->ops->remove(engine->io, 2);
  close(tun);
  close(quiet);
  end_world(&world);
}

static void took(hp_spin *spin, uint32_t turns, uint32_t count, uint32_t length) {
  hp_packet packets[HP_BATCH] = {{.length = length}, {.length = length}, {.length = length}};
  for (uint32_t i = 0; i < turns; i++)
    hp_spin_took(spin, packets, count);
}

/* Whether the next wait begins with looking for packets. The wait itself takes no time. */
static bool looks(hp_spin *spin, const hp_io_config *config) {
  bool yes = hp_spin_begin(spin, config) != 0;
  hp_spin_end(spin, config);
  return yes;
}

/* Only where one packet waits for another, as long as they come soon. */
static void test_when_to_spin(void **state) {
  hp_io_config config = {.spin = 1000000}, never = {0};
  hp_spin spin = {0};
  (void)state;
  assert_false(looks(&spin, &config));
  took(&spin, 15, 2, 2048);
  assert_false(looks(&spin, &config));
  took(&spin, 1, 2, 2048);
  assert_true(looks(&spin, &config));
  assert_false(looks(&spin, &never));
  took(&spin, 1, 0, 0); /* nothing came: nothing new */
  assert_true(looks(&spin, &config));
  took(&spin, 1, 3, 64); /* a batch */
  assert_false(looks(&spin, &config));
  took(&spin, 16, 1, 64);
  assert_true(looks(&spin, &config));
  took(&spin, 1, 1, 4097); /* a super-segment */
  assert_false(looks(&spin, &config));
  took(&spin, 16, 1, 64);
  hp_spin_begin(&spin, &config);
  spin.started -= 1100 * 1000000LL; /* 1.1 s ago: it waited in vain */
  hp_spin_end(&spin, &config);
  assert_false(looks(&spin, &config)); /* which took no time: so it would have paid */
  assert_true(looks(&spin, &config));
}

/* Never where the one who looks takes the processor of those whom it waits for. */
static void test_where_to_spin(void **state) {
  cpu_set_t before, one;
  (void)state;
  MUST(sched_getaffinity(0, sizeof before, &before));
  uint32_t cpus = (uint32_t)CPU_COUNT(&before), first = 0;
  while (!CPU_ISSET(first, &before))
    first++;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  assert_int_equal(hp_spin_for(50, cpus), 0);
  if (cpus > 1)
    assert_int_equal(hp_spin_for(50, cpus - 1), 50);
  MUST(sched_setaffinity(0, sizeof one, &one));
  assert_int_equal(hp_spin_for(50, 1), 0);
  MUST(sched_setaffinity(0, sizeof before, &before));
}

/* Looking for packets before sleeping: nothing is lost, a wake is heard, and an idle engine sleeps. */
static void test_spin(void **state) {
  struct world world;
  make_spinning_world(&world, state, 64, 1000);
  for (int round = 0; round < 20; round++) {
    udp_flood(world.udp[0], FAR, 100, 100);
    forward(&world.engine, 0, 1, 100);
    for (int i = 0; i < 40; i++) {
      udp_send(world.udp[1], NEAR, "x", 1);
      forward(&world.engine, 1, 0, 1);
      expect(world.udp[0], "x", 1);
    }
  }
  for (int i = 0; i < 20; i++) {
    hp_packet packets[HP_BATCH];
    pthread_t thread;
    pthread_create(&thread, NULL, wake_soon, &world.engine);
    while (receive(&world.engine, packets, 1000)) /* no packets, and no whole second */
      fail();
    pthread_join(thread, NULL);
  }
  assert_sleeps(&world.engine, 50);
  assert_sleeps(&world.engine, 50);
  end_world(&world);
}

/* More links that take much than there are buffer rings for them, one after the other: whoever changes rings loses
 * nothing, and its packets stay in order. */
static void test_many_hot_links(void **state) {
  enum { TUNNELS = 11, EACH = 150, QUIET = 80 };
  struct world world;
  hp_packet packets[HP_BATCH];
  char address[20];
  int tun[TUNNELS];
  make_world(&world, state, 64);
  struct engine *engine = &world.engine;
  add_tuns(engine, tun, TUNNELS, "io-h", 140, 20);
  for (unsigned round = 0; round < 3 * TUNNELS; round++) {
    uint32_t link = 20 + round % TUNNELS, next = 0;
    snprintf(address, sizeof address, "198.18.%u.9", 140 + round % TUNNELS);
    udp_flood(world.udp[0], address, EACH, 100);
    for (int64_t deadline = hp_io_clock() + DEADLINE; next < EACH && hp_io_clock() < deadline;) {
      uint32_t count = receive(engine, packets, 100), number;
      for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(packets[i].link, link);
        memcpy(&number, packets[i].data + HP_VNET_HEADER + 28, sizeof number);
        assert_int_equal(number, next++);
      }
      release_all(engine, packets, count);
    }
    assert_int_equal(next, EACH);
    for (int i = 0; i < QUIET; i++) { /* turns in which the others are silent */
      udp_send(world.udp[0], FAR, "x", 1);
      assert_int_equal(drain(engine, 0, 1), 0);
    }
  }
  for (uint32_t i = 0; i < TUNNELS; i++) {
    engine->ops->remove(engine->io, 20 + i);
    close(tun[i]);
  }
  assert_int_equal(engine->gone, 0);
  udp_flood(world.udp[0], FAR, 200, 100); /* all buffers are back */
  drain(engine, 0, 200);
  end_world(&world);
}

/* A small packet is written before another tunnel's super-segments, though it came after them. */
static void test_small_before_large(void **state) {
  static char large[50000], got[65536];
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 64);
  struct engine *engine = &world.engine;
  enter(namespaces[0]);
  int tun = new_tun("io2", "198.18.128.2", "255.255.255.0", 1500, OFFLOADS);
  add_link(engine, 2, tun, HP_GROUP_TUNNELS);
  uint32_t count = 0;
  for (int i = 0; i < 3; i++)
    udp_send(world.udp[0], FAR, large, sizeof large);
  while (count < 3)
    count += receive(engine, packets + count, DEADLINE);
  udp_send(world.udp[0], "198.18.128.9", "small", 5);
  count += receive(engine, packets + count, DEADLINE);
  assert_int_equal(count, 4);
  assert_int_equal(packets[3].link, 2);
  for (uint32_t i = 0; i < count; i++) {
    uint8_t *ip = packets[i].data + HP_VNET_HEADER; /* to the socket behind link 1 */
    uint32_t to = hp_get32(ip + 16);
    inet_pton(AF_INET, FAR, ip + 16);
    hp_put16(ip + 20, (uint16_t)(7000 + packets[i].link)); /* two flows */
    hp_partial_apply(ip + 26, hp_delta32(to, hp_get32(ip + 16)));
    hp_put16(ip + 10, 0);
    hp_put16(ip + 10, hp_ipv4_checksum(ip, 20));
    packets[i].link = 1;
    engine->ops->send(engine->io, &packets[i]);
  }
  engine->ops->flush(engine->io);
  assert_int_equal(recv(world.udp[1], got, sizeof got, 0), 5);
  for (int i = 0; i < 3; i++)
    assert_int_equal(recv(world.udp[1], got, sizeof got, 0), sizeof large);
  engine->ops->remove(engine->io, 2);
  close(tun);
  end_world(&world);
}

static void test_add_refuses(void **state) {
  struct world world;
  hp_error error = {0};
  make_world(&world, state, 16);
  const hp_io_ops *ops = world.engine.ops;
  assert_int_equal(ops->add(world.engine.io, 0, world.tun[0], 0, &error), -1);
  assert_non_null(strstr(error.text, "remove it first"));
  assert_int_equal(ops->add(world.engine.io, LINKS, world.tun[0], 0, &error), -1);
  assert_non_null(strstr(error.text, "max_links"));
  assert_int_equal(ops->add(world.engine.io, 5, -1, 0, &error), -1);
  assert_int_equal(ops->add(world.engine.io, 5, world.tun[0], HP_GROUP_NONE + 1, &error), -1);
  ops->remove(world.engine.io, 5);
  ops->remove(world.engine.io, LINKS);
  end_world(&world);
  hp_io_config config = {.max_links = 4, .buffers = 3, .wake = 0};
  assert_null(ops->open(&config, &error));
  assert_non_null(strstr(error.text, "power of two"));
  config = (hp_io_config){.max_links = 4, .buffers = 4, .wake = -1};
  assert_null(ops->open(&config, &error));
}

/* Memory is taken as packets need it, a page at a time: none of them waits until two megabytes have been cleared. */
static void test_memory_of_buffers(void **state) {
  enum { PER_GROUP = 256, USED = 32 };
  hp_buffers buffers;
  hp_error error;
  (void)state;
  assert_int_equal(hp_buffers_new(&buffers, PER_GROUP, &error), 0);
  size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (size_t)buffers.count * HP_STRIDE;
  size_t pages = (bytes + page - 1) / page, resident = 0;
  unsigned char *in_memory = malloc(pages);
  assert_non_null(in_memory);
  for (uint32_t i = 0; i < USED; i++)
    *hp_buffer(&buffers, i * (buffers.count / USED)) = 1;
  MUST(mincore(buffers.at, bytes, in_memory));
  for (size_t i = 0; i < pages; i++)
    resident += in_memory[i] & 1;
  assert_int_equal(resident, USED);
  free(in_memory);
  hp_buffers_free(&buffers);
}

/* With epoll a tunnel's turn ends after some bytes too: others do not wait for a whole row of super-segments. */
static void test_large_packets_take_turns(void **state) {
  static char large[50000];
  struct world world;
  hp_packet packets[HP_BATCH];
  make_world(&world, state, 64);
  struct engine *engine = &world.engine;
  enter(namespaces[0]);
  int tun = new_tun("io2", "198.18.128.2", "255.255.255.0", 1500, OFFLOADS);
  add_link(engine, 2, tun, HP_GROUP_TUNNELS);
  for (int i = 0; i < 12; i++)
    udp_send(world.udp[0], FAR, large, sizeof large);
  udp_send(world.udp[0], "198.18.128.9", "small", 5);
  uint32_t count = receive(engine, packets, DEADLINE), before = 0;
  while (before < count && packets[before].link != 2)
    before++;
  assert_true(before <= 6 && before < count);
  release_all(engine, packets, count);
  engine->ops->remove(engine->io, 2);
  close(tun);
  end_world(&world);
}

static unsigned yields;
static int64_t away; /* ns that others keep the processor */

/* In libc's place. */
int sched_yield(void) {
  int64_t end = hp_io_nanoseconds() + away;
  yields++;
  do
    syscall(SYS_sched_yield);
  while (hp_io_nanoseconds() < end);
  return 0;
}

/* Sends `count` packets, takes them, and looks once more: how often others were let run. */
static unsigned yields_after(struct world *world, uint32_t count) {
  hp_packet packets[HP_BATCH];
  udp_flood(world->udp[0], FAR, count, 100);
  for (uint32_t got = 0, now; got < count; got += now) {
    now = receive(&world->engine, packets, DEADLINE);
    release_all(&world->engine, packets, now);
  }
  yields = 0;
  assert_int_equal(receive(&world->engine, packets, 0), 0);
  return yields;
}

/* After many packets others are let run; not after a few, nor for a while when they kept the processor for long. */
static void test_gives_way(void **state) {
  struct world world;
  make_world(&world, state, 64);
  assert_int_equal(yields_after(&world, 1), 0);
  away = 0;
  for (int64_t deadline = hp_io_clock() + DEADLINE; !yields_after(&world, 20);) /* it may stay because of others here */
    assert_true(hp_io_clock() < deadline);
  assert_int_equal(yields_after(&world, 1), 0);
  away = 500000000; /* so it stays for four seconds */
  for (int64_t deadline = hp_io_clock() + DEADLINE; !yields_after(&world, 20);)
    assert_true(hp_io_clock() < deadline);
  assert_int_equal(yields_after(&world, 20), 0);
  away = 0;
  end_world(&world);
}

/* ---- kernels before 6.4 ---- */

static bool old_kernel; /* the kernel takes no RWF_NOWAIT for a TUN */

static bool refuses(int flags) {
  if (!old_kernel || !(flags & RWF_NOWAIT))
    return false;
  errno = EOPNOTSUPP;
  return true;
}

/* In libc's place. */
ssize_t preadv2(int fd, const struct iovec *vector, int count, off_t offset, int flags) {
  return refuses(flags) ? -1 : syscall(SYS_preadv2, fd, vector, count, offset, 0, flags);
}

ssize_t pwritev2(int fd, const struct iovec *vector, int count, off_t offset, int flags) {
  return refuses(flags) ? -1 : syscall(SYS_pwritev2, fd, vector, count, offset, 0, flags);
}

/* The kernel's refusal is found out with the first read as well, not only when the engine opens. */
static void test_refused_later(void **state) {
  struct world world;
  old_kernel = false;
  make_world(&world, state, 16);
  old_kernel = true;
  udp_flood(world.udp[0], FAR, 30, 100);
  forward(&world.engine, 0, 1, 30);
  for (int i = 0; i < 30; i++) {
    char bytes[200];
    assert_int_equal(recv(world.udp[1], bytes, sizeof bytes, 0), 100);
  }
  assert_int_equal(world.engine.unreadable + world.engine.full + world.engine.errors, 0);
  end_world(&world);
}

static bool no_timers;

/* In libc's place. */
int timer_create(clockid_t clock, struct sigevent *event, timer_t *timer) {
  static int (*real)(clockid_t, struct sigevent *, timer_t *);
  if (!real)
    *(void **)&real = dlsym(RTLD_NEXT, "timer_create");
  if (!no_timers)
    return real(clock, event, timer);
  errno = EAGAIN;
  return -1;
}

/* Where nothing would end a read that waits, the engine does not start; one that learns it too late tells. */
static void test_nothing_ends_reads(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  hp_error error = {0};
  int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  hp_io_config config = {.max_links = 4, .buffers = 4, .wake = wake};
  const hp_io_ops *ops = *state;
  no_timers = true;
  assert_null(ops->open(&config, &error));
  assert_non_null(strstr(error.text, "use Linux 6.4 or newer"));
  old_kernel = false;
  make_world(&world, state, 16);
  old_kernel = true;
  udp_send(world.udp[0], FAR, "x", 1);
  for (int64_t deadline = hp_io_clock() + DEADLINE; !world.engine.unreadable && hp_io_clock() < deadline;)
    assert_int_equal(receive(&world.engine, packets, 10), 0);
  assert_int_equal(world.engine.code, EOPNOTSUPP);
  assert_sleeps(&world.engine, 50);
  no_timers = false;
  drain(&world.engine, 0, 1); /* nothing was lost */
  end_world(&world);
  close(wake);
}

struct clearing {
  int fd;
  bool stop;
  unsigned times;
};

static void *clear_nonblock(void *argument) {
  struct clearing *clearing = argument;
  for (; !__atomic_load_n(&clearing->stop, __ATOMIC_RELAXED); clearing->times++) {
    MUST(fcntl(clearing->fd, F_SETFL, O_RDWR));
    sched_yield();
  }
  return NULL;
}

/* Somebody clears O_NONBLOCK all the time, and sees to it that there is something to read: each read that waits is
 * ended, the link is read from less and less, and the other goes on. Afterwards it works. */
static void test_waiting_reads_end(void **state) {
  enum { EXCHANGES = 100 };
  struct world world;
  pthread_t thread;
  make_world(&world, state, 64);
  struct engine *engine = &world.engine;
  struct clearing clearing = {.fd = world.tun[0]};
  pthread_create(&thread, NULL, clear_nonblock, &clearing);
  int64_t deadline = hp_io_clock() + DEADLINE;
  for (int i = 0; i < EXCHANGES || (!engine->unreadable && hp_io_clock() < deadline); i++) {
    udp_send(world.udp[0], FAR, "x", 1);
    udp_send(world.udp[1], NEAR, "x", 1);
    drain(engine, 1, 1);
  }
  assert_true(engine->unreadable >= 1);
  assert_true(engine->unreadable <= EXCHANGES / 4); /* at first it rests for 10 ms, after eight times for a second */
  assert_int_equal(engine->code, ETIMEDOUT);
  __atomic_store_n(&clearing.stop, true, __ATOMIC_RELAXED);
  pthread_join(thread, NULL);
  MUST(fcntl(world.tun[0], F_SETFL, O_RDWR | O_NONBLOCK));
  udp_send(world.udp[0], FAR, "x", 1);
  for (hp_packet packets[HP_BATCH]; engine->counters.failing && hp_io_clock() < deadline;)
    release_all(engine, packets, receive(engine, packets, 10));
  assert_int_equal(engine->counters.failing, 0);
  assert_int_equal(engine->gone, 0);
  end_world(&world);
}

/* Nor does a write wait for a receiver that is full. */
static void test_waiting_writes_end(void **state) {
  struct world world;
  hp_packet packets[HP_BATCH];
  int pair[2];
  make_world(&world, state, 64);
  struct engine *engine = &world.engine;
  MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair)); /* holds a few datagrams only, and waits */
  add_link(engine, 2, pair[0], HP_GROUP_NONE);
  for (size_t i = 0; i < 400; i++) { /* each longer than the one before: they are not coalesced */
    udp_flood(world.udp[0], FAR, 1, 100 + i);
    forward(engine, 0, 2, 1);
  }
  assert_true(engine->full > 0);
  assert_in_range(engine->unreadable, 1, 20);
  assert_int_equal(engine->code, ETIMEDOUT);
  assert_int_equal(engine->failed_link, 2);
  engine->ops->remove(engine->io, 2);
  assert_int_equal(engine->counters.failing, 0);
  udp_flood(world.udp[0], FAR, 30, 100); /* all buffers are back */
  forward(engine, 0, 1, 30);
  assert_int_equal(receive(engine, packets, 0), 0);
  close(pair[0]);
  close(pair[1]);
  end_world(&world);
}

static int run_turns(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_prestate(test_large_packets_take_turns, (void *)(uintptr_t)&hp_io_epoll)};
  return cmocka_run_group_tests_name("epoll, turns", tests, NULL, NULL);
}

static int run_shared(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory_of_buffers), cmocka_unit_test(test_when_to_spin),
                                     cmocka_unit_test(test_where_to_spin)};
  return cmocka_run_group_tests_name("buffers, spinning", tests, NULL, NULL);
}

/* Only io_uring has a batch of writes to put in order: epoll writes each packet when it is sent. */
static int run_order(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_prestate(test_small_before_large, (void *)(uintptr_t)&hp_io_uring),
      cmocka_unit_test_prestate(test_gives_way, (void *)(uintptr_t)&hp_io_uring)};
  return cmocka_run_group_tests_name("io_uring, order of writes", tests, NULL, NULL);
}

static int run(const char *name, const hp_io_ops *ops) {
  void *state = (void *)(uintptr_t)ops;
  const struct CMUnitTest tests[] = {
#define TEST(function) cmocka_unit_test_prestate(function, state)
      TEST(test_round_trip),
      TEST(test_order),
      TEST(test_remove_with_packets_waiting),
      TEST(test_wake),
      TEST(test_wake_during_remove),
      TEST(test_remove_under_traffic),
      TEST(test_device_deleted),
      TEST(test_remove_drops_descriptor),
      TEST(test_buffers_run_out),
      TEST(test_idle_links),
      TEST(test_truncated),
      TEST(test_close_in_the_middle),
      TEST(test_unreadable),
      TEST(test_end_while_resting),
      TEST(test_blocking_descriptor),
      TEST(test_fairness),
      TEST(test_output_failures),
      TEST(test_inject),
      TEST(test_many_hot_links),
      TEST(test_spin),
      TEST(test_add_refuses),
  };
  return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

static int run_old(void) {
  void *state = (void *)(uintptr_t)&hp_io_epoll;
  const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_waiting_reads_end, state),
                                     cmocka_unit_test_prestate(test_waiting_writes_end, state),
                                     cmocka_unit_test_prestate(test_refused_later, state),
                                     cmocka_unit_test_prestate(test_nothing_ends_reads, state)};
  old_kernel = true;
  int failed = run("epoll, before Linux 6.4", &hp_io_epoll);
  failed += cmocka_run_group_tests_name("epoll, before Linux 6.4, descriptors that wait", tests, NULL, NULL);
  old_kernel = false;
  return failed;
}

/* With a table of descriptors that RLIMIT_NOFILE does not allow, io_uring goes on without one. Must be the
 * last: only CAP_SYS_RESOURCE could raise the limit again. */
static int run_plain_descriptors(void) {
  struct rlimit low = {.rlim_cur = LINKS - 1, .rlim_max = LINKS - 1};
  MUST(setrlimit(RLIMIT_NOFILE, &low));
  return run("io_uring, plain descriptors", &hp_io_uring);
}

int main(void) {
  struct rlimit files;
  alarm(90); /* a test that waits for ever fails */
  MUST(getrlimit(RLIMIT_NOFILE, &files));
  files.rlim_cur = files.rlim_max;
  MUST(setrlimit(RLIMIT_NOFILE, &files));
  int crowd = new_namespace();
  for (int i = 0; i < 500; i++) {
    char name[IFNAMSIZ];
    snprintf(name, sizeof name, "io-%u", (unsigned)i);
    idle[i] = new_tun(name, NULL, NULL, 0, OFFLOADS);
    MUST(ioctl(idle[i], TUNSETPERSIST, 1)); /* they go with their namespace, which is quicker */
  }
  close(crowd);
  namespaces[0] = new_namespace();
  namespaces[1] = new_namespace();
  int failed = run_shared();
  failed += run("epoll", &hp_io_epoll);
  failed += run("io_uring", &hp_io_uring);
  failed += run_old();
  failed += run_turns();
  failed += run_order();
  failed += run_plain_descriptors();
  return failed ? 1 : 0;
}
