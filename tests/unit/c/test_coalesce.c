/* test_coalesce.c: which packets leave together, and that the receiver gets what was sent. What they are joined to is
 * test_gso.c's. The part with real TUN devices needs root and makes its own namespaces. */
#include "io_fixture.h"

#include "../../../csrc/coalesce.h"
#include "../../../csrc/packet.h"

static uint32_t below_hash(uint32_t i) { return i * 2654435761u >> 8; }

/* ---- which runs are made: a coalescer with writes that are only noted ---- */

enum { WRITES = 200, ALL_LINKS = 600 };
enum { UDP_HEADERS = HP_VNET_HEADER + 28 };

static hp_buffers buffers;
static hp_coalescer coalescer;
static uint32_t written[WRITES]; /* heads, in order */
static uint32_t write_count;

static void note_write(hp_io *io, uint32_t head) {
  assert_null(io);
  assert_true(write_count < WRITES);
  written[write_count++] = head;
}

/* A frame as the tests vary it; 0 means the usual. */
struct frame {
  uint32_t payload; /* 100 */
  uint8_t ttl;      /* 63 */
  uint8_t tos;
  uint16_t id;
  uint16_t port; /* 4000 */
  uint16_t fragment;
  bool no_df;
  bool full;  /* checksum is the whole one, right */
  bool wrong; /* and with `full`: a wrong one */
  bool none;  /* 0 */
  bool valid; /* VIRTIO_NET_HDR_F_DATA_VALID */
  uint8_t gso_type;
  uint16_t gso_size; /* not 0: a train of datagrams of that size */
  uint8_t version;   /* 0x45 */
  uint8_t protocol;
  uint32_t link; /* 1 */
};

static uint16_t udp_checksum(const uint8_t *ip, uint16_t length) {
  uint64_t sum = hp_pseudo_sum(hp_get32(ip + 12), hp_get32(ip + 16), HP_UDP, length);
  return (uint16_t)~hp_fold(sum + hp_sum(ip + 20, length));
}

static hp_packet make_frame(const struct frame *frame, uint32_t number) {
  uint8_t *data = hp_buffer(&buffers, number), *ip = data + HP_VNET_HEADER, *udp = ip + 20;
  uint32_t payload = frame->payload ? frame->payload : 100;
  uint16_t length = (uint16_t)(8 + payload);
  bool partial = !frame->full && !frame->none;
  struct virtio_net_hdr vnet = {.gso_type = frame->gso_size ? VIRTIO_NET_HDR_GSO_UDP_L4 : frame->gso_type,
                                .gso_size = frame->gso_size};
  if (partial) {
    vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    vnet.csum_start = 20;
    vnet.csum_offset = 6;
  }
  if (frame->valid)
    vnet.flags = VIRTIO_NET_HDR_F_DATA_VALID;
  memset(data, 0, UDP_HEADERS);
  memcpy(data, &vnet, sizeof vnet);
  ip[0] = frame->version ? frame->version : 0x45;
  ip[1] = frame->tos;
  hp_put16(ip + 2, (uint16_t)(20 + length));
  hp_put16(ip + 4, frame->id);
  hp_put16(ip + 6, (uint16_t)(frame->fragment | (frame->no_df ? 0 : 0x4000)));
  ip[8] = frame->ttl ? frame->ttl : 63;
  ip[9] = frame->protocol ? frame->protocol : HP_UDP;
  hp_put32(ip + 12, 0xc6120002);
  hp_put32(ip + 16, 0xc6130002);
  hp_put16(ip + 10, (uint16_t)~hp_fold(hp_sum(ip, 20)));
  hp_put16(udp, frame->port ? frame->port : 4000);
  hp_put16(udp + 2, 7000);
  hp_put16(udp + 4, length);
  for (uint32_t i = 0; i < payload; i++)
    udp[8 + i] = (uint8_t)(number * 31 + i);
  if (frame->full)
    hp_put16(udp + 6, (uint16_t)(udp_checksum(ip, length) + frame->wrong));
  return (hp_packet){.data = data,
                     .length = (uint32_t)(HP_VNET_HEADER + 20) + length,
                     .capacity = HP_BUFFER,
                     .link = frame->link ? frame->link : 1,
                     .buffer = number};
}

/* What the frames leave as: the packets of each write, as "3 1". */
static void expect_writes(const struct frame *frames, uint32_t count, const char *expected) {
  char got[400] = "";
  write_count = 0;
  for (uint32_t i = 0; i < count; i++) {
    hp_packet packet = make_frame(&frames[i], i);
    hp_coalesce_send(&coalescer, &packet);
  }
  hp_coalesce_flush(&coalescer);
  for (uint32_t i = 0; i < write_count; i++) {
    size_t used = strlen(got);
    snprintf(got + used, sizeof got - used, i ? " %u" : "%u", buffers.notes[written[i]].packets);
  }
  assert_string_equal(got, expected);
}
#define EXPECT_WRITES(expected, ...)                                                                                   \
  do {                                                                                                                 \
    struct frame frames_[] = {__VA_ARGS__};                                                                            \
    expect_writes(frames_, sizeof frames_ / sizeof *frames_, expected);                                                \
  } while (0)

static int make_coalescer(void **state) {
  hp_error error;
  (void)state;
  assert_int_equal(hp_buffers_new(&buffers, 128, &error), 0);
  assert_int_equal(hp_coalesce_open(&coalescer, &buffers, ALL_LINKS, NULL, note_write), 0);
  return 0;
}

static int free_coalescer(void **state) {
  (void)state;
  hp_coalesce_close(&coalescer);
  hp_buffers_free(&buffers);
  return 0;
}

static void test_equal_datagrams(void **state) {
  (void)state;
  EXPECT_WRITES("1", {0});
  EXPECT_WRITES("3", {0}, {0}, {0});
  EXPECT_WRITES("3 2", {0}, {0}, {.payload = 50}, {0}, {0}); /* a shorter one ends the run */
  EXPECT_WRITES("2 2", {0}, {0}, {.payload = 101}, {.payload = 101});
  EXPECT_WRITES("2", {.payload = 1}, {.payload = 1});
}

static void test_what_differs_ends_the_run(void **state) {
  (void)state;
  EXPECT_WRITES("1 1 1", {0}, {.ttl = 62}, {0});
  EXPECT_WRITES("1 1 1", {0}, {.tos = 1}, {0}); /* ECN counts */
  EXPECT_WRITES("1 1", {0}, {.no_df = true});
  EXPECT_WRITES("1 1 1", {0}, {.none = true}, {0}); /* order is kept */
  EXPECT_WRITES("1 1 1", {0}, {.version = 0x46}, {0});
  EXPECT_WRITES("1 1 1", {0}, {.fragment = 100}, {0});
}

static void test_never_in_a_run(void **state) {
  (void)state;
  EXPECT_WRITES("1 1", {.none = true}, {.none = true});
  EXPECT_WRITES("1 1", {.fragment = 0x2000}, {.fragment = 0x2000});
  EXPECT_WRITES("1 1", {.fragment = 100}, {.fragment = 100});
  EXPECT_WRITES("1 1", {.version = 0x46}, {.version = 0x46});
  EXPECT_WRITES("1 1", {.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4}, {.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4});
  EXPECT_WRITES("1 1", {.protocol = HP_TCP}, {.protocol = HP_TCP});
  EXPECT_WRITES("1 1", {.protocol = HP_ICMP}, {.protocol = HP_ICMP});
}

/* Lengths that lie, and frames too short for headers: they leave as they came. */
static void test_lies(void **state) {
  struct frame usual = {0};
  (void)state;
  for (uint32_t cut = 0; cut <= UDP_HEADERS + 99; cut++) {
    write_count = 0;
    for (uint32_t i = 0; i < 2; i++) {
      hp_packet packet = make_frame(&usual, i);
      packet.length = cut;
      hp_coalesce_send(&coalescer, &packet);
    }
    hp_coalesce_flush(&coalescer);
    assert_int_equal(write_count, 2);
  }
}

/* A run's checksums are made anew, so a wrong one must not join. */
static void test_checksums(void **state) {
  (void)state;
  EXPECT_WRITES("3", {.full = true}, {.full = true}, {0});
  EXPECT_WRITES("1 2", {.full = true, .wrong = true}, {.full = true}, {.full = true});
  EXPECT_WRITES("1 1 2", {.full = true}, {.full = true, .wrong = true}, {.full = true}, {0});
  EXPECT_WRITES("2", {.full = true, .valid = true}, {.full = true, .valid = true});
}

/* RFC 6864: without DF an id means something, and segmentation numbers on from the first. */
static void test_ids(void **state) {
  (void)state;
  EXPECT_WRITES("2", {.id = 7}, {.id = 3});
  EXPECT_WRITES("3 1", {.no_df = true, .id = 65535}, {.no_df = true}, {.no_df = true, .id = 1},
                {.no_df = true, .id = 3});
  EXPECT_WRITES("1 1", {.no_df = true, .id = 7}, {.no_df = true, .id = 7});
}

#define TRAIN(...)                                                                                                     \
  { .payload = 3200, .gso_size = 100, __VA_ARGS__ } /* 32 datagrams */

static void test_trains(void **state) {
  (void)state;
  EXPECT_WRITES("4 1", TRAIN(), TRAIN(), TRAIN(), TRAIN(), TRAIN());                   /* 128 datagrams */
  EXPECT_WRITES("2 2", TRAIN(), {.payload = 3150, .gso_size = 100}, TRAIN(), TRAIN()); /* a short end ends the run */
  EXPECT_WRITES("1 1 1", TRAIN(), {.payload = 3200, .gso_size = 200}, TRAIN());
  EXPECT_WRITES("1 1 1", TRAIN(), TRAIN(.ttl = 62), TRAIN());
  EXPECT_WRITES("1 1 1", TRAIN(), TRAIN(.tos = 1), TRAIN());
  EXPECT_WRITES("1 1 1", TRAIN(), {.none = true}, TRAIN());
  EXPECT_WRITES("2 2", TRAIN(), TRAIN(.port = 4001), TRAIN(), TRAIN(.port = 4001));
  EXPECT_WRITES("4", {0}, TRAIN(), {0}, {.payload = 40});
  coalescer.refuses[1] = HP_REFUSES_LONG;
  EXPECT_WRITES("2 2 1", TRAIN(), TRAIN(), TRAIN(), TRAIN(), TRAIN());
  coalescer.refuses[1] = 0;
}

/* Linux counts a train as one; who counts its datagrams is right as well. */
static void test_ids_of_trains(void **state) {
  (void)state;
  EXPECT_WRITES("3 1", TRAIN(.no_df = true, .id = 65535), TRAIN(.no_df = true), TRAIN(.no_df = true, .id = 1),
                TRAIN(.no_df = true, .id = 3));
  EXPECT_WRITES("3", TRAIN(.no_df = true, .id = 7), TRAIN(.no_df = true, .id = 39), TRAIN(.no_df = true, .id = 71));
  EXPECT_WRITES("1 1", TRAIN(.no_df = true, .id = 7), TRAIN(.no_df = true, .id = 7));
  EXPECT_WRITES("1 1", TRAIN(.no_df = true, .id = 7), {.no_df = true, .id = 8}); /* one that is alone keeps its id */
  EXPECT_WRITES("2", TRAIN(.no_df = true, .id = 7), {.no_df = true, .id = 39});
  EXPECT_WRITES("2", {.no_df = true, .id = 7}, TRAIN(.no_df = true, .id = 8));
  EXPECT_WRITES("2 1", {.no_df = true, .id = 7}, TRAIN(.no_df = true, .id = 8), TRAIN(.no_df = true, .id = 9));
}

static void test_limits(void **state) {
  static struct frame frames[128];
  (void)state;
  expect_writes(frames, 65, "64 1");
  for (int i = 0; i < 128; i++)
    frames[i].payload = 1400;
  expect_writes(frames, 50, "46 4"); /* 65,000 bytes */
  memset(frames, 0, sizeof frames);
  coalescer.refuses[1] = HP_REFUSES_UDP;
  expect_writes(frames, 3, "1 1 1");
  coalescer.refuses[1] = 0;
}

/* Flows do not disturb each other, on one link or on several. */
static void test_flows(void **state) {
  static struct frame frames[128];
  (void)state;
  EXPECT_WRITES("2 2", {.link = 1}, {.link = 2}, {.link = 1}, {.link = 2});
  EXPECT_WRITES("2 1", {0}, {.port = 4001}, {0});
  EXPECT_WRITES("1 2", {0}, {.protocol = HP_ICMP}, {0});
  EXPECT_WRITES("1 2", {.link = 1}, {.link = 2, .version = 0x46}, {.link = 1}); /* another link's */
  EXPECT_WRITES("1 2", {.link = 1}, {.link = ALL_LINKS}, {.link = 1});          /* no such link */
  memset(frames, 0, sizeof frames);
  for (uint32_t i = 0; i < 128; i++)
    frames[i].port = (uint16_t)(4000 + i % 32);
  expect_writes(frames, 128, "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4");
}

/* More flows than there is room for: each packet leaves, in its flow's order. */
static void test_many_flows(void **state) {
  uint32_t packets = 0;
  (void)state;
  write_count = 0;
  for (uint32_t i = 0; i < 128; i++) {
    struct frame frame = {.port = (uint16_t)(1 + below_hash(i) % 60000)};
    hp_packet packet = make_frame(&frame, i);
    hp_coalesce_send(&coalescer, &packet);
  }
  hp_coalesce_flush(&coalescer);
  for (uint32_t i = 0; i < write_count; i++)
    packets += buffers.notes[written[i]].packets;
  assert_int_equal(packets, 128);
}

/* A device that takes no super-packets: all is as it was sent, and the link is left alone until it is another one. */
static void test_refusal(void **state) {
  static uint8_t before[3][UDP_HEADERS + 100];
  struct frame frame = {.id = 9};
  (void)state;
  write_count = 0;
  for (uint32_t i = 0; i < 3; i++) {
    hp_packet packet = make_frame(&frame, i);
    memcpy(before[i], packet.data, sizeof before[i]);
    hp_coalesce_send(&coalescer, &packet);
  }
  hp_coalesce_flush(&coalescer);
  assert_int_equal(write_count, 1);
  assert_false(hp_coalesce_refused(&coalescer, written[0], EAGAIN)); /* its queue is full: that is no refusal */
  assert_true(hp_coalesce_refused(&coalescer, written[0], EINVAL));
  hp_chain_split(&buffers, written[0], NULL, note_write);
  assert_int_equal(write_count, 4);
  for (uint32_t i = 0; i < 3; i++) {
    const hp_buffer_note *note = &buffers.notes[written[1 + i]];
    assert_int_equal(written[1 + i], i);
    assert_int_equal(note->packets, 1);
    assert_int_equal(note->link, 1);
    assert_int_equal(note->length, sizeof before[i]);
    assert_memory_equal(hp_buffer(&buffers, i), before[i], sizeof before[i]);
    assert_false(hp_coalesce_refused(&coalescer, written[1 + i], EINVAL)); /* and a single one that fails has failed */
  }
  EXPECT_WRITES("1 1 1 2", {0}, {0}, {0}, {.link = 2}, {.link = 2});
  hp_coalesce_link(&coalescer, 1);
  EXPECT_WRITES("3", {0}, {0}, {0});
}

/* A device that takes super-packets, but not with so many datagrams: from then on it gets fewer. */
static void test_refusal_of_many(void **state) {
  struct frame first = TRAIN(.id = 9);
  uint8_t before[UDP_HEADERS];
  (void)state;
  hp_packet packet = make_frame(&first, 0);
  memcpy(before, packet.data, sizeof before);
  EXPECT_WRITES("4", TRAIN(.id = 9), TRAIN(), TRAIN(), TRAIN());
  assert_true(hp_coalesce_refused(&coalescer, written[0], EINVAL));
  assert_memory_equal(hp_buffer(&buffers, 0), before, sizeof before);
  EXPECT_WRITES("2 2 3", TRAIN(), TRAIN(), TRAIN(), TRAIN(), TRAIN(.link = 2), TRAIN(.link = 2), TRAIN(.link = 2));
  EXPECT_WRITES("2", TRAIN(), TRAIN());
  assert_true(hp_coalesce_refused(&coalescer, written[0], EINVAL));
  EXPECT_WRITES("1 1", TRAIN(), TRAIN());
  hp_coalesce_link(&coalescer, 1);
  EXPECT_WRITES("4", TRAIN(), TRAIN(), TRAIN(), TRAIN());
}

/* The super-packet's bytes: the first one's headers, made to fit, and every payload once. */
static void test_super_packet(void **state) {
  struct iovec vector[HP_BATCH];
  struct virtio_net_hdr vnet;
  (void)state;
  EXPECT_WRITES("3", {.id = 9}, {0}, {.payload = 40});
  int count = hp_chain_vector(&buffers, written[0], vector);
  assert_int_equal(count, 3);
  assert_int_equal(vector[0].iov_len, UDP_HEADERS + 100);
  assert_int_equal(vector[1].iov_len, 100);
  assert_int_equal(vector[2].iov_len, 40);
  for (uint32_t n = 0; n < 3; n++) {
    const uint8_t *payload = (const uint8_t *)vector[n].iov_base + (n ? 0 : UDP_HEADERS);
    for (uint32_t i = 0; i < (n == 2 ? 40 : 100); i++)
      assert_int_equal(payload[i], (uint8_t)(n * 31 + i));
  }
  const uint8_t *ip = (const uint8_t *)vector[0].iov_base + HP_VNET_HEADER;
  memcpy(&vnet, vector[0].iov_base, sizeof vnet);
  assert_int_equal(vnet.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
  assert_int_equal(vnet.gso_type, VIRTIO_NET_HDR_GSO_UDP_L4);
  assert_int_equal(vnet.gso_size, 100);
  assert_int_equal(vnet.hdr_len, 28);
  assert_int_equal(hp_get16(ip + 2), 28 + 240);
  assert_int_equal(hp_get16(ip + 4), 9);
  assert_int_equal(hp_fold(hp_sum(ip, 20)), 0xffff);
  assert_int_equal(hp_get16(ip + 24), 8 + 240);
}

/* ---- what the receiver gets: real devices, and a router behind them that has to segment in software ---- */

#define SENDER "198.18.0.2"
#define RECEIVER "203.0.113.9" /* behind io2, which takes neither USO nor partial checksums */

static int namespaces[2];

/* The datagram number that io2 got next; checks all that a receiver would. */
static uint32_t next_datagram(int tun, size_t payload, uint16_t *id) {
  uint8_t frame[2048];
  ssize_t length = -1;
  int64_t deadline = hp_io_clock() + DEADLINE;
  while ((length = read(tun, frame, sizeof frame)) < 0 && hp_io_clock() < deadline)
    sched_yield();
  const uint8_t *ip = frame + HP_VNET_HEADER;
  uint32_t number;
  assert_int_equal(length, UDP_HEADERS + payload);
  assert_int_equal(frame[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM, 0);
  assert_int_equal(hp_get16(ip + 2), length - HP_VNET_HEADER);
  assert_int_equal(hp_fold(hp_sum(ip, 20)), 0xffff);
  assert_int_equal(udp_checksum(ip, (uint16_t)(8 + payload)), 0);
  *id = hp_get16(ip + 4);
  memcpy(&number, frame + UDP_HEADERS, sizeof number);
  return number;
}

/* Takes `count` packets through the engine, and their ids. */
static void take_through(struct engine *engine, uint32_t count, uint16_t *ids) {
  hp_packet packets[HP_BATCH];
  uint32_t seen = 0;
  int64_t deadline = hp_io_clock() + DEADLINE;
  while (seen < count && hp_io_clock() < deadline) {
    uint32_t got = receive(engine, packets, 100);
    for (uint32_t i = 0; i < got; i++) {
      assert_true(seen < count);
      ids[seen++] = hp_get16(packets[i].data + HP_VNET_HEADER + 4);
      packets[i].link = 1;
      engine->ops->send(engine->io, &packets[i]);
    }
    engine->ops->flush(engine->io);
  }
}

/* Sends `count` datagrams through the engine; all arrive in order, with the ids they had when `keeps_ids`. */
static void send_through(struct engine *engine, int udp, int out, uint32_t count, size_t payload, bool keeps_ids) {
  uint16_t ids[500], id;
  assert_true(count <= 500);
  udp_flood(udp, RECEIVER, count, payload);
  take_through(engine, count, ids);
  for (uint32_t i = 0; i < count; i++) {
    assert_int_equal(next_datagram(out, payload, &id), i);
    if (keeps_ids)
      assert_int_equal(id, ids[i]);
  }
}

/* The same with trains of 32, which leave four together, also where the sender's kernel sets no DF. */
static void send_trains_through(struct engine *engine, int udp, int out, uint32_t trains, size_t payload) {
  enum { SEGMENT_OPTION = 103 /* UDP_SEGMENT */, EACH = 32 };
  static char bytes[EACH * 100];
  hp_packet packets[HP_BATCH];
  uint16_t ids[HP_BATCH], id;
  int size = (int)payload, none = 0;
  uint64_t before = engine->counters.writes;
  assert_true(payload <= 100 && trains <= HP_BATCH && trains % 4 == 0);
  MUST(setsockopt(udp, IPPROTO_UDP, SEGMENT_OPTION, &size, sizeof size));
  for (uint32_t train = 0; train < trains; train++) {
    for (uint32_t i = 0; i < EACH; i++) {
      uint32_t number = train * EACH + i;
      memcpy(bytes + i * payload, &number, sizeof number);
    }
    udp_send(udp, RECEIVER, bytes, EACH * payload);
  }
  MUST(setsockopt(udp, IPPROTO_UDP, SEGMENT_OPTION, &none, sizeof none));
  take_through(engine, trains, ids);
  for (uint32_t i = 0; i < trains * EACH; i++)
    assert_int_equal(next_datagram(out, payload, &id), i);
  receive(engine, packets, 0);
  assert_true(engine->counters.writes - before < trains);
}

static void test_through_devices(void **state) {
  static const size_t sizes[] = {4, 64, 65, 1000, 1472};
  struct engine engine;
  hp_packet packets[HP_BATCH];
  enter(namespaces[0]);
  int tun = new_tun("io0", SENDER, "255.255.255.0", 1500, OFFLOADS), udp = udp_socket(SENDER, 7000);
  add_route("io0", "203.0.113.0", "255.255.255.0");
  enter(namespaces[1]);
  int router = new_tun("io1", "198.18.0.1", "255.255.255.0", 1500, OFFLOADS);
  int out = new_tun("io2", "203.0.113.1", "255.255.255.0", 1500, 0);
  write_file("/proc/sys/net/ipv4/ip_forward", "1");
  open_engine(&engine, *state, 128);
  add_link(&engine, 0, tun, HP_GROUP_TUNNELS);
  add_link(&engine, 1, router, HP_GROUP_ENIS);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    send_through(&engine, udp, out, 300, sizes[i], false);
  receive(&engine, packets, 0);
  assert_true(engine.counters.writes < 1500 / 4); /* runs were made */
  send_trains_through(&engine, udp, out, 12, 40); /* no longer than the MTU: with DF */
  int never = IP_PMTUDISC_DONT;
  struct sockaddr_in in = endpoint(RECEIVER, 7000);
  MUST(setsockopt(udp, IPPROTO_IP, IP_MTU_DISCOVER, &never, sizeof never));
  MUST(connect(udp, (struct sockaddr *)&in, sizeof in)); /* a connected socket numbers its datagrams in a row */
  send_through(&engine, udp, out, 300, 64, true);
  send_trains_through(&engine, udp, out, 12, 64);
  receive(&engine, packets, 0);
  assert_int_equal(engine.full + engine.errors, 0);
  close_engine(&engine);
  close(udp);
  close(tun);
  close(router);
  close(out);
}

int main(void) {
  const struct CMUnitTest runs[] = {
      cmocka_unit_test(test_equal_datagrams), cmocka_unit_test(test_what_differs_ends_the_run),
      cmocka_unit_test(test_never_in_a_run),  cmocka_unit_test(test_lies),
      cmocka_unit_test(test_checksums),       cmocka_unit_test(test_ids),
      cmocka_unit_test(test_trains),          cmocka_unit_test(test_ids_of_trains),
      cmocka_unit_test(test_refusal_of_many), cmocka_unit_test(test_limits),
      cmocka_unit_test(test_flows),           cmocka_unit_test(test_many_flows),
      cmocka_unit_test(test_refusal),         cmocka_unit_test(test_super_packet)};
  const struct CMUnitTest epoll[] = {cmocka_unit_test_prestate(test_through_devices, (void *)(uintptr_t)&hp_io_epoll)};
  const struct CMUnitTest uring[] = {cmocka_unit_test_prestate(test_through_devices, (void *)(uintptr_t)&hp_io_uring)};
  alarm(90); /* a test that waits for ever fails */
  namespaces[0] = new_namespace();
  namespaces[1] = new_namespace();
  int failed = cmocka_run_group_tests_name("runs", runs, make_coalescer, free_coalescer);
  failed += cmocka_run_group_tests_name("epoll", epoll, NULL, NULL);
  failed += cmocka_run_group_tests_name("io_uring", uring, NULL, NULL);
  return failed ? 1 : 0;
}
