/* workers.c: two workers at work on descriptors, under ThreadSanitizer, while links come and go and readers read.
 *
 * Links are socket pairs: the test's ends are environments and a VPC that answers every packet, now by one queue of the
 * ENI, now by the other, so that half of what comes back is handed over. Run it with the seconds that each I/O engine
 * gets. A race ends it (halt_on_error); in the end both workers must have worked, and no packet may have got lost but
 * for want of room in a socket.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../unit/c/engine_fixture.h"
#include "link.h"

enum { WORKERS = 2, TUNNELS = 4, PORTS = 300, PASSING = 3 };

/* In the place of link_tun.c: sockets do. */
int hp_link_tun_check(int fd, hp_error *error) {
  (void)fd, (void)error;
  return 0;
}

bool hp_link_tun_mend(int fd, bool offloads) {
  (void)fd;
  return offloads;
}

typedef struct ends {
  int ours, engines;
} ends;

typedef struct world {
  hp_engine *engine;
  ends queues[WORKERS];
  ends tunnels[TUNNELS];
  int stop;
  uint64_t answered; /* packets that came back to environments */
  uint64_t changes;
} world;

static ends make_ends(void) {
  int both[2], room = 1 << 20;
  HOLD(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, both) == 0);
  for (int i = 0; i < 2; i++)
    HOLD(setsockopt(both[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room) == 0);
  return (ends){both[0], both[1]};
}

static void close_ends(const ends *e) {
  close(e->ours);
  close(e->engines);
}

static bool stopped(world *w) { return __atomic_load_n(&w->stop, __ATOMIC_ACQUIRE); }

static void rest(int fd) {
  struct pollfd one = {.fd = fd, .events = POLLIN};
  poll(&one, 1, 1);
}

static void say(int fd, const recipe *r) {
  uint8_t data[400];
  uint32_t length = make_packet(data, r);
  if (write(fd, data, length) < 0)
    HOLD(errno == EAGAIN || errno == ENOBUFS);
}

/* ---- who sends ---- */

static void *environment(void *argument) {
  world *w = argument;
  uint8_t data[2000];
  for (uint32_t n = 0; !stopped(w); n++) {
    const ends *e = &w->tunnels[n % TUNNELS];
    for (uint16_t i = 0; i < 8; i++) {
      recipe r = from_inside(n % 3 ? HP_UDP : HP_TCP, (uint16_t)(2000 + (n * 8 + i) / TUNNELS % PORTS), 80);
      say(e->ours, &r);
    }
    for (uint32_t i = 0; i < TUNNELS; i++)
      while (read(w->tunnels[i].ours, data, sizeof data) > 0)
        __atomic_fetch_add(&w->answered, 1, __ATOMIC_RELAXED);
    rest(e->ours);
  }
  return NULL;
}

static void *vpc(void *argument) {
  world *w = argument;
  lab *l = calloc(1, sizeof *l);
  HOLD(l);
  for (uint32_t n = 0; !stopped(w); n++) {
    const ends *from = &w->queues[n % WORKERS];
    while (read(from->ours, l->data, sizeof l->data) > VNET + HP_IPV4_HEADER) {
      recipe r = answer_to_last(l, HP_SYN | HP_ACK);
      say(w->queues[n++ / 3 % WORKERS].ours, &r);
    }
    rest(from->ours);
  }
  free(l);
  return NULL;
}

/* ---- who changes, and who looks ---- */

static uint32_t add_passing_eni(world *w, ends *queues) {
  hp_error error;
  hp_eni_config config = {.addresses = {0xc0000301}, .address_count = 1, .mtu = 1500, .queue_count = WORKERS - 1};
  for (int i = 0; i < WORKERS; i++)
    queues[i] = make_ends();
  config.queues[0] = queues[1].engines;
  int eni;
  while ((eni = hp_eni_add(w->engine, &config, queues[0].engines, &error)) < 0) {
    if (error.code != ENOSPC) /* those that were removed have their numbers until they are swept */
      broken(error.text, __FILE__, __LINE__);
    rest(queues[0].ours);
  }
  return (uint32_t)eni;
}

static void *changer(void *argument) {
  world *w = argument;
  hp_error error;
  while (!stopped(w)) {
    ends queues[WORKERS], tunnels[PASSING];
    uint32_t eni = add_passing_eni(w, queues), numbers[PASSING];
    hp_rule rules[2] = {{.protocol = 0}};
    HOLD(hp_eni_rules(w->engine, eni, rules, 1, &error) == 0);
    for (uint32_t i = 0; i < PASSING; i++) {
      hp_tunnel_config config = {.eni = eni, .address = INSIDE_ADDRESS, .mtu = 1500};
      tunnels[i] = make_ends();
      int number = hp_tunnel_add(w->engine, &config, tunnels[i].engines, &error);
      HOLD(number > 0);
      numbers[i] = (uint32_t)number;
      for (uint16_t port = 1; port <= 20; port++) {
        recipe r = from_inside(port % 2 ? HP_TCP : HP_UDP, port, 80);
        say(tunnels[i].ours, &r);
      }
    }
    HOLD(hp_eni_rules(w->engine, ENI, rules, 1 + w->changes % 2, &error) == 0);
    HOLD(hp_link_drain(w->engine, numbers[0], HP_DRAIN_RESET, &error) == 0);
    HOLD(hp_link_drain(w->engine, numbers[1], HP_DRAIN_CLOSE, &error) == 0);
    for (uint32_t i = 0; i < PASSING; i++) {
      HOLD(hp_link_remove(w->engine, numbers[i], &error) == 0);
      close_ends(&tunnels[i]);
    }
    HOLD(hp_link_remove(w->engine, eni, &error) == 0);
    for (int i = 0; i < WORKERS; i++)
      close_ends(&queues[i]);
    w->changes++;
  }
  return NULL;
}

static void *reader(void *argument) {
  world *w = argument;
  static hp_flow_info flows[256];
  static hp_drop drops[256];
  uint64_t drop_cursor = 0;
  while (!stopped(w)) {
    uint32_t flow_cursor = 0;
    hp_error error;
    hp_counters counters;
    hp_status status;
    while (hp_flows(w->engine, &flow_cursor, flows, 256))
      ;
    while (hp_drops(w->engine, &drop_cursor, drops, 256))
      ;
    for (uint32_t link = 1; link < 20; link++) {
      hp_link_counters(w->engine, link, &counters, &error);
      hp_link_flows(w->engine, link);
      hp_link_since(w->engine, link);
    }
    hp_engine_status(w->engine, &status);
    sched_yield();
  }
  return NULL;
}

/* ---- a run ---- */

static void add_links(world *w) {
  hp_error error;
  hp_eni_config eni = {.addresses = {ENI_ADDRESS}, .address_count = 1, .mtu = 1500, .queue_count = WORKERS - 1};
  for (int i = 0; i < WORKERS; i++)
    w->queues[i] = make_ends();
  eni.queues[0] = w->queues[1].engines;
  HOLD(hp_eni_add(w->engine, &eni, w->queues[0].engines, &error) == ENI);
  HOLD(hp_eni_rules(w->engine, ENI, &(hp_rule){.protocol = 0}, 1, &error) == 0);
  for (int i = 0; i < TUNNELS; i++) {
    hp_tunnel_config tunnel = {.eni = ENI, .address = INSIDE_ADDRESS, .mtu = 1500};
    w->tunnels[i] = make_ends();
    HOLD(hp_tunnel_add(w->engine, &tunnel, w->tunnels[i].engines, &error) > 0);
  }
}

static void check(world *w) {
  hp_status status;
  hp_counters counters;
  hp_error error;
  hp_engine_status(w->engine, &status);
  HOLD(w->answered && w->changes);
  for (int i = 0; i < WORKERS; i++)
    HOLD(status.worker[i].flows && status.worker[i].handed_over);
  HOLD(hp_link_counters(w->engine, ENI, &counters, &error) == 0);
  for (int reason = 0; reason < HP_REASON_COUNT; reason++)
    HOLD(!counters.drops[reason] || reason == HP_OUTPUT_FULL || reason == HP_HANDOVER_FULL);
  check_engine(w->engine);
}

static void run(uint32_t io, int seconds) {
  static void *(*const parts[])(void *) = {environment, vpc, changer, reader};
  enum { PARTS = sizeof parts / sizeof *parts };
  hp_config config = {.max_flows = 20000,
                      .max_links = 100,
                      .max_addresses = 8,
                      .drop_records = 1024,
                      .buffers = 64,
                      .io = io,
                      .workers = WORKERS};
  hp_error error;
  world *w = calloc(1, sizeof *w);
  pthread_t threads[PARTS];
  HOLD(w);
  w->engine = hp_engine_new(&config, &error);
  HOLD(w->engine);
  add_links(w);
  if (hp_engine_start(w->engine, &error))
    broken(error.text, __FILE__, __LINE__);
  for (int i = 0; i < PARTS; i++)
    HOLD(pthread_create(&threads[i], NULL, parts[i], w) == 0);
  nanosleep(&(struct timespec){.tv_sec = seconds}, NULL);
  __atomic_store_n(&w->stop, 1, __ATOMIC_RELEASE);
  for (int i = 0; i < PARTS; i++)
    pthread_join(threads[i], NULL);
  hp_engine_stop(w->engine);
  while (hp_sweep(w->engine, hp_now(), &error) > 0)
    ;
  check(w);
  printf("tsan: %s: %llu answers, links came and went %llu times\n", hp_io_name((int)io),
         (unsigned long long)w->answered, (unsigned long long)w->changes);
  hp_engine_free(w->engine);
  for (int i = 0; i < WORKERS; i++)
    close_ends(&w->queues[i]);
  for (int i = 0; i < TUNNELS; i++)
    close_ends(&w->tunnels[i]);
  free(w);
}

int main(int argc, char **argv) {
  int seconds = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 5;
  run(HP_IO_EPOLL, seconds);
  run(HP_IO_URING, seconds);
  return 0;
}
