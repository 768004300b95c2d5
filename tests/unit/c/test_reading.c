/* test_reading.c: an engine whose I/O the kernel refuses in part, and whose devices others change. Needs root. */
#include "io_fixture.h"

#include <sys/syscall.h>

#include "../../../csrc/engine.h"
#include "../../../csrc/uring.h"

#define OWN "198.18.0.2"
#define FAR "198.18.0.9"

static bool no_rings; /* of buffers */

/* In liburing's place. */
int io_uring_register_buf_ring(struct io_uring *ring, struct io_uring_buf_reg *registration, unsigned flags) {
  (void)flags;
  if (no_rings)
    return -ENOMEM;
  return -(int)(syscall(SYS_io_uring_register, ring->ring_fd, 22 /* IORING_REGISTER_PBUF_RING */, registration, 1)
                    ? errno
                    : 0);
}

static hp_engine *new_engine(uint32_t io, uint32_t workers) {
  hp_error error = {0};
  hp_config config = {
      .max_flows = 1000, .max_links = 100, .max_addresses = 2, .drop_records = 64, .io = io, .workers = workers};
  hp_engine *engine = hp_engine_new(&config, &error);
  if (!engine)
    fail_msg("%s", error.text);
  return engine;
}

/* The small ring with which io_uring is tried can be made, the real one cannot: whoever left the choice to us gets the
 * other engine, whoever chose learns why not. */
static void test_a_ring_that_cannot_be_made(void **state) {
  (void)state;
  hp_error error = {0};
  hp_status status;
  no_rings = true;
  for (uint32_t workers = 1; workers <= 2; workers++) {
    hp_engine *engine = new_engine(HP_IO_AUTO, workers);
    if (hp_engine_start(engine, &error))
      fail_msg("%s", error.text);
    hp_engine_status(engine, &status);
    assert_int_equal(status.io, HP_IO_EPOLL);
    assert_int_equal(status.running, 1);
    hp_engine_free(engine);
    engine = new_engine(HP_IO_URING, workers);
    assert_int_equal(hp_engine_start(engine, &error), -1);
    assert_non_null(strstr(error.text, "use epoll"));
    hp_engine_free(engine);
  }
  no_rings = false;
}

struct lab {
  hp_engine *engine;
  int tun;
  int udp;
  uint32_t tunnel;
};

static void make_lab(struct lab *lab, uint32_t io) {
  hp_error error = {0};
  hp_eni_config eni = {.addresses = {0xc6130005}, .address_count = 1, .mtu = 1500};
  *lab = (struct lab){.engine = new_engine(io, 1), .tun = new_tun("read0", OWN, "255.255.255.0", 1500, OFFLOADS)};
  lab->udp = udp_socket(OWN, 7000);
  int number = hp_eni_add(lab->engine, &eni, -1, &error);
  assert_true(number > 0);
  hp_tunnel_config tunnel = {.eni = (uint32_t)number, .address = 0xc6120002, .mtu = 1500};
  number = hp_engine_start(lab->engine, &error) ? -1 : hp_tunnel_add(lab->engine, &tunnel, lab->tun, &error);
  if (number < 0)
    fail_msg("%s", error.text);
  lab->tunnel = (uint32_t)number;
}

static void end_lab(struct lab *lab) {
  hp_engine_free(lab->engine);
  close(lab->udp);
  close(lab->tun);
}

static hp_counters counters_of(const struct lab *lab) {
  hp_counters counters;
  hp_error error;
  assert_int_equal(hp_link_counters(lab->engine, lab->tunnel, &counters, &error), 0);
  return counters;
}

static int header_of(const struct lab *lab) {
  int size;
  MUST(ioctl(lab->tun, TUNGETVNETHDRSZ, &size));
  return size;
}

/* Packets are sent until the header has been set again; reading works then. */
static void mended(const struct lab *lab, int size, uint64_t times) {
  hp_status status;
  MUST(ioctl(lab->tun, TUNSETVNETHDRSZ, &size));
  for (int64_t deadline = hp_io_clock() + DEADLINE; counters_of(lab).mended < times && hp_io_clock() < deadline;) {
    udp_send(lab->udp, FAR, "x", 1);
    usleep(1000);
  }
  assert_int_equal(counters_of(lab).mended, times);
  assert_int_equal(header_of(lab), HP_VNET_HEADER);
  uint64_t before = counters_of(lab).drops[HP_SECURITY_GROUP];
  for (int64_t deadline = hp_io_clock() + DEADLINE;
       counters_of(lab).drops[HP_SECURITY_GROUP] == before && hp_io_clock() < deadline;) {
    udp_send(lab->udp, FAR, "x", 1); /* no rule allows it: it has been read and understood */
    usleep(1000);
  }
  assert_true(counters_of(lab).drops[HP_SECURITY_GROUP] > before);
  assert_int_equal(counters_of(lab).read_error, 0);
  hp_engine_status(lab->engine, &status);
  assert_int_equal(status.failing, 0);
  assert_int_equal(status.mended, times);
}

static void test_a_header_that_others_change(void **state) {
  struct lab lab;
  make_lab(&lab, (uint32_t)(uintptr_t)*state);
  mended(&lab, 100000, 1); /* every read fails */
  assert_true(counters_of(&lab).drops[HP_READ_FAILED] > 0);
  mended(&lab, 12, 2); /* every read succeeds, and means nothing */
  assert_true(counters_of(&lab).drops[HP_MALFORMED_IP] + counters_of(&lab).drops[HP_BAD_VNET_HEADER] > 0);
  end_lab(&lab);
}

/* A link is removed and added again while its device is being looked at. */
static void test_removal_beside_the_keeper(void **state) {
  struct lab lab;
  hp_error error = {0};
  make_lab(&lab, (uint32_t)(uintptr_t)*state);
  hp_tunnel_config tunnel = {.eni = 1, .address = 0xc6120002, .mtu = 1500};
  for (int i = 0; i < 50; i++) {
    int size = 100000;
    MUST(ioctl(lab.tun, TUNSETVNETHDRSZ, &size));
    udp_send(lab.udp, FAR, "x", 1);
    assert_int_equal(hp_link_remove(lab.engine, lab.tunnel, &error), 0);
    int number = hp_tunnel_add(lab.engine, &tunnel, lab.tun, &error);
    if (number < 0)
      fail_msg("%s", error.text);
    lab.tunnel = (uint32_t)number;
    assert_int_equal(header_of(&lab), HP_VNET_HEADER);
  }
  end_lab(&lab);
}

static int run(const char *name, uint32_t io) {
  void *state = (void *)(uintptr_t)io;
  const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_a_header_that_others_change, state),
                                     cmocka_unit_test_prestate(test_removal_beside_the_keeper, state)};
  return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void) {
  const struct CMUnitTest refusals[] = {cmocka_unit_test(test_a_ring_that_cannot_be_made)};
  alarm(90); /* a test that waits for ever fails */
  new_namespace();
  int failed = cmocka_run_group_tests_name("refusals", refusals, NULL, NULL);
  failed += run("io_uring", HP_IO_URING);
  failed += run("epoll", HP_IO_EPOLL);
  return failed ? 1 : 0;
}
