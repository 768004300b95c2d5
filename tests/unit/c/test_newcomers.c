/* test_newcomers.c: tunnels that a running engine has been given and that have not sent anything yet, with real TUN
 * devices and both I/O engines. Needs root; makes its own namespaces. */
#include "io_fixture.h"

#include "../../../csrc/engine.h"

enum { MANY = 100, ENI_ADDRESS = 0xc6130005 /* 198.19.0.5 */ };
#define SERVER "198.19.0.2"

static int environment, vpc;

/* An engine with one ENI; environments' devices, all in one namespace, and a socket behind each. */
struct world {
  hp_engine *engine;
  hp_error error;
  int eni_fd;
  uint32_t eni;
  int server;
  uint32_t count;
  int tun[MANY];
  int udp[MANY];
  uint32_t tunnel[MANY];
};

static void address_of(uint32_t i, char *address) { sprintf(address, "198.18.%u.2", i); }

static void name_of(uint32_t i, char *name) { sprintf(name, "new%u", i); }

static void add(struct world *w, uint32_t i, int fd) {
  hp_tunnel_config config = {.eni = w->eni, .address = 0xc6120002 + (i << 8), .mtu = 1500};
  int tunnel = hp_tunnel_add(w->engine, &config, fd, &w->error);
  if (tunnel < 0)
    fail_msg("%s", w->error.text);
  w->tunnel[i] = (uint32_t)tunnel;
}

static struct world *make_world(void **state, uint32_t count) {
  struct world *w = calloc(1, sizeof *w);
  hp_config config = {
      .max_flows = 1000, .max_links = MANY + 2, .max_addresses = 1, .buffers = 64, .io = (uint32_t)(uintptr_t)*state};
  hp_eni_config eni = {.addresses = {ENI_ADDRESS}, .address_count = 1, .mtu = 1500};
  assert_non_null(w);
  w->engine = hp_engine_new(&config, &w->error);
  if (!w->engine)
    fail_msg("%s", w->error.text);
  enter(vpc);
  w->eni_fd = new_tun("vpc", SERVER, "255.255.0.0", 1500, OFFLOADS);
  w->server = udp_socket(SERVER, 7000);
  w->eni = (uint32_t)hp_eni_add(w->engine, &eni, w->eni_fd, &w->error);
  MUST(hp_eni_rules(w->engine, w->eni, &(hp_rule){.protocol = 0}, 1, &w->error));
  MUST(hp_engine_start(w->engine, &w->error));
  enter(environment);
  w->count = count;
  for (uint32_t i = 0; i < count; i++) {
    char name[IFNAMSIZ], address[20];
    name_of(i, name);
    address_of(i, address);
    w->tun[i] = new_tun(name, address, "255.255.255.255", 1500, OFFLOADS);
    w->udp[i] = udp_socket(address, 7000);
    /* Without a route of its own: what is sent leaves by that device. */
    MUST(setsockopt(w->udp[i], SOL_SOCKET, SO_BINDTODEVICE, name, (socklen_t)strlen(name)));
  }
  return w;
}

static void end_world(struct world *w) {
  hp_engine_free(w->engine);
  for (uint32_t i = 0; i < w->count; i++) {
    close(w->udp[i]);
    close(w->tun[i]);
  }
  close(w->server);
  close(w->eni_fd);
  free(w);
}

/* The number that arrives next. */
static uint32_t hear(const struct world *w) {
  uint32_t number;
  ssize_t got;
  do /* a ring that this thread has closed interrupts it once more */
    got = recv(w->server, &number, sizeof number, 0);
  while (got < 0 && errno == EINTR);
  assert_int_equal(got, sizeof number);
  return number;
}

/* The environment says its number, which arrives. */
static void speak(struct world *w, uint32_t i) {
  udp_send(w->udp[i], SERVER, &i, sizeof i);
  assert_int_equal(hear(w), i);
}

static bool is_newcomer(const struct world *w, uint32_t i) {
  return __atomic_load_n(&w->engine->local[w->tunnel[i]].newcomer, __ATOMIC_RELAXED);
}

static uint64_t loops(const struct world *w) {
  return __atomic_load_n(&w->engine->workers[0].words->loops, __ATOMIC_RELAXED);
}

/* The worker does not wake up for it before its first packet, and receives from it from then on. */
static void test_a_tunnel_is_heard_with_its_first_packet(void **state) {
  struct world *w = make_world(state, 1);
  uint64_t before, after;
  do { /* it wakes up now and then by itself: once in a second */
    before = loops(w);
    add(w, 0, w->tun[0]);
    sched_yield();
    after = loops(w);
    if (after != before)
      MUST(hp_link_remove(w->engine, w->tunnel[0], &w->error));
  } while (after != before);
  assert_true(is_newcomer(w, 0));
  for (int i = 0; i < 20; i++)
    speak(w, 0);
  assert_false(is_newcomer(w, 0));
  end_world(w);
}

static void test_many_at_once(void **state) {
  static bool came[MANY];
  struct world *w = make_world(state, MANY);
  memset(came, 0, sizeof came);
  for (uint32_t i = 0; i < MANY; i++) {
    add(w, i, w->tun[i]);
    assert_true(is_newcomer(w, i));
  }
  for (uint32_t i = 0; i < MANY; i++)
    udp_send(w->udp[i], SERVER, &i, sizeof i);
  for (uint32_t i = 0; i < MANY; i++) {
    uint32_t number = hear(w);
    assert_true(number < MANY && !came[number]);
    came[number] = true;
  }
  for (uint32_t i = 0; i < MANY; i++)
    assert_false(is_newcomer(w, i));
  end_world(w);
}

/* Packets that came before the tunnel was added wait for it. */
static void test_one_that_has_spoken_already(void **state) {
  struct world *w = make_world(state, 1);
  for (uint32_t i = 0; i < 3; i++)
    udp_send(w->udp[0], SERVER, &i, sizeof i);
  add(w, 0, w->tun[0]);
  for (uint32_t i = 0; i < 3; i++)
    assert_int_equal(hear(w), i);
  end_world(w);
}

/* Nothing holds on to a descriptor that is removed before it has spoken: it can be added again, and be closed. */
static void test_removed_before(void **state) {
  struct world *w = make_world(state, 2);
  for (int i = 0; i < 100; i++) {
    add(w, 0, w->tun[0]);
    assert_true(is_newcomer(w, 0)); /* else the set would have had it still */
    MUST(hp_link_remove(w->engine, w->tunnel[0], &w->error));
  }
  close(w->tun[0]);
  assert_int_equal(if_nametoindex("new0"), 0);
  w->tun[0] = new_tun("new0", NULL, NULL, 0, OFFLOADS);
  add(w, 1, w->tun[1]);
  speak(w, 1);
  MUST(hp_link_remove(w->engine, w->tunnel[1], &w->error));
  add(w, 1, w->tun[1]);
  assert_true(is_newcomer(w, 1));
  speak(w, 1);
  end_world(w);
}

static void test_its_device_goes_away_before(void **state) {
  struct world *w = make_world(state, 2);
  add(w, 0, w->tun[0]);
  delete_device("new0");
  int64_t deadline = hp_io_clock() + DEADLINE;
  const hp_link *link = &w->engine->links[w->tunnel[0]];
  while (!__atomic_load_n(&link->gone, __ATOMIC_RELAXED) && hp_io_clock() < deadline)
    sched_yield();
  assert_true(__atomic_load_n(&link->gone, __ATOMIC_RELAXED));
  add(w, 1, w->tun[1]);
  speak(w, 1);
  end_world(w);
}

/* What cannot be put into the set is received from at once. */
static void test_one_that_the_set_does_not_take(void **state) {
  struct world *w = make_world(state, 2);
  add(w, 0, w->tun[0]);
  assert_true(is_newcomer(w, 0));
  add(w, 1, w->tun[0]); /* a descriptor can be in it only once */
  assert_false(is_newcomer(w, 1));
  MUST(hp_link_remove(w->engine, w->tunnel[0], &w->error));
  assert_false(is_newcomer(w, 0));
  end_world(w);
}

static void test_stopped_and_started(void **state) {
  struct world *w = make_world(state, 2);
  add(w, 0, w->tun[0]);
  hp_engine_stop(w->engine);
  assert_false(is_newcomer(w, 0));
  add(w, 1, w->tun[1]);
  assert_false(is_newcomer(w, 1)); /* there is nobody who would listen */
  MUST(hp_engine_start(w->engine, &w->error));
  speak(w, 0);
  speak(w, 1);
  end_world(w);
}

static int run(const char *name, uint32_t io) {
  void *state = (void *)(uintptr_t)io;
  const struct CMUnitTest tests[] = {
#define TEST(function) cmocka_unit_test_prestate(function, state)
      TEST(test_a_tunnel_is_heard_with_its_first_packet),
      TEST(test_many_at_once),
      TEST(test_one_that_has_spoken_already),
      TEST(test_removed_before),
      TEST(test_its_device_goes_away_before),
      TEST(test_one_that_the_set_does_not_take),
      TEST(test_stopped_and_started),
  };
  return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(void) {
  environment = new_namespace();
  vpc = new_namespace();
  return run("newcomers, epoll", HP_IO_EPOLL) | run("newcomers, io_uring", HP_IO_URING);
}
