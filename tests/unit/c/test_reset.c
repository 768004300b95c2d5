/* test_reset.c: tunnels that are drained: what passes, the bytes of every RST, and how many at a time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine_fixture.h"
#include "reset.h"

enum { MAX_SENT = 300, PORT = 4000, SERVER_PORT = 80 };
enum { CLIENT_ISN = 0xfffffffe, SERVER_ISN = 7000 }; /* the client's numbers turn over */

/* An I/O engine that keeps what is injected. */
struct hp_io {
  struct {
    uint32_t link;
    hp_headers headers;
    uint32_t sequence, acknowledgment;
  } sent[MAX_SENT];
  uint32_t count;
};

static void keep(hp_io *io, uint32_t link, const uint8_t *data, uint32_t length) {
  static const uint8_t no_vnet[VNET];
  hp_headers *h = &io->sent[io->count].headers;
  const uint8_t *tcp = data + VNET + HP_IPV4_HEADER;
  assert_true(io->count < MAX_SENT);
  assert_int_equal(length, HP_SEGMENT);
  assert_int_equal(hp_parse(data, length, h), HP_REASON_NONE);
  assert_true(ip_checksum_right(data + VNET) && transport_checksum_right(data));
  assert_memory_equal(data, no_vnet, VNET);
  assert_int_equal(h->protocol, HP_TCP);
  assert_int_equal(h->total, HP_IPV4_HEADER + HP_TCP_HEADER);
  io->sent[io->count].link = link;
  io->sent[io->count].sequence = hp_get32(tcp + 4);
  io->sent[io->count++].acknowledgment = hp_get32(tcp + 8);
}

static const hp_io_ops keeping = {.name = "keeping", .inject = keep};

typedef struct connection {
  lab *lab;
  hp_io io;
  uint16_t outside_port;
} connection;

static void open_lab(connection *c) {
  *c = (connection){.lab = new_lab(NULL, NULL)};
  c->lab->engine->workers[0].io_ops = &keeping;
  c->lab->engine->workers[0].io = &c->io;
}

/* A turn of the loop that comes to every flow. */
static uint32_t turn(connection *c, uint64_t after) {
  hp_worker *worker = c->lab->engine->workers;
  hp_clock_set(worker, c->lab->now += after);
  worker->resets = 0;
  return hp_expire(worker, 1000);
}

static void end_lab(connection *c) {
  c->lab->engine->workers[0].io = NULL;
  free_lab(c->lab);
}

static int inside(connection *c, uint8_t flags, uint32_t sequence, uint32_t acknowledgment) {
  recipe r = from_inside(HP_TCP, PORT, SERVER_PORT);
  r.flags = flags;
  r.sequence = sequence;
  r.acknowledgment = acknowledgment;
  int verdict = pass(c->lab, TUNNEL, &r);
  if (verdict == HP_FORWARD)
    c->outside_port = outside_port(c->lab);
  return verdict;
}

static int outside(connection *c, uint8_t flags, uint32_t sequence, uint32_t acknowledgment) {
  recipe r = {.source = REMOTE_ADDRESS,
              .destination = ENI_ADDRESS,
              .source_port = SERVER_PORT,
              .destination_port = c->outside_port,
              .protocol = HP_TCP,
              .flags = flags,
              .sequence = sequence,
              .acknowledgment = acknowledgment};
  return pass(c->lab, ENI, &r);
}

static void syn(connection *c) { assert_int_equal(inside(c, HP_SYN, CLIENT_ISN, 0), HP_FORWARD); }

static void syn_ack(connection *c) {
  assert_int_equal(outside(c, HP_SYN | HP_ACK, SERVER_ISN, CLIENT_ISN + 1u), HP_FORWARD);
}

static void establish(connection *c) {
  syn(c);
  syn_ack(c);
  assert_int_equal(inside(c, HP_ACK, CLIENT_ISN + 1u, SERVER_ISN + 1), HP_FORWARD);
}

static void drain(connection *c, uint32_t how) {
  MUST(c->lab, hp_link_drain(c->lab->engine, TUNNEL, how, &c->lab->error));
}

static void check_rst(const connection *c, uint32_t which, uint32_t link, uint8_t flags, uint32_t sequence,
                      uint32_t acknowledgment) {
  const hp_headers *h = &c->io.sent[which].headers;
  bool out = link == ENI;
  assert_int_equal(c->io.sent[which].link, link);
  assert_int_equal(h->tcp_flags, flags);
  assert_int_equal(c->io.sent[which].sequence, sequence);
  assert_int_equal(c->io.sent[which].acknowledgment, acknowledgment);
  assert_int_equal(h->source, out ? ENI_ADDRESS : REMOTE_ADDRESS);
  assert_int_equal(h->destination, out ? REMOTE_ADDRESS : INSIDE_ADDRESS);
  assert_int_equal(h->source_port, out ? c->outside_port : SERVER_PORT);
  assert_int_equal(h->destination_port, out ? SERVER_PORT : PORT);
}

/* RFC 5961 3.2: exactly the number that the receiver expects next. */
static void test_established(void **state) {
  (void)state;
  connection c;
  open_lab(&c);
  establish(&c);
  assert_int_equal(inside(&c, HP_ACK, CLIENT_ISN + 1u, SERVER_ISN + 500), HP_FORWARD);
  assert_int_equal(outside(&c, HP_ACK, SERVER_ISN + 500, CLIENT_ISN + 90u), HP_FORWARD);
  drain(&c, HP_DRAIN_RESET);
  assert_int_equal(turn(&c, 0), 0);
  assert_int_equal(c.io.count, 2);
  check_rst(&c, 0, ENI, HP_RST, CLIENT_ISN + 90u, 0);
  check_rst(&c, 1, TUNNEL, HP_RST, SERVER_ISN + 500, 0);
  assert_int_equal(hp_stats(c.lab->engine->workers, ENI)->packets_out, 3 + 1);
  assert_int_equal(hp_stats(c.lab->engine->workers, TUNNEL)->packets_out, 2 + 1);
  assert_int_equal(turn(&c, 99), 0);
  assert_int_equal(c.lab->engine->workers[0].resetting, 1);
  assert_int_equal(turn(&c, 1), 1);
  assert_int_equal(c.io.count, 2); /* once is enough */
  assert_int_equal(c.lab->engine->workers[0].resetting, 0);
  assert_int_equal(live_flows(c.lab), 0);
  end_lab(&c);
}

/* RFC 9293 3.10.7.3: in SYN-SENT an RST must acknowledge the SYN. Outside, who is in SYN-RECEIVED expects what follows
 * the SYN. */
static void test_opening(void **state) {
  (void)state;
  connection c;
  open_lab(&c);
  syn(&c);
  drain(&c, HP_DRAIN_RESET);
  turn(&c, 0);
  assert_int_equal(c.io.count, 2);
  check_rst(&c, 0, ENI, HP_RST, CLIENT_ISN + 1u, 0);
  check_rst(&c, 1, TUNNEL, HP_RST | HP_ACK, 0, CLIENT_ISN + 1u);
  end_lab(&c);
}

/* The client may have got the SYN|ACK or not: the RST is right for SYN-SENT and for ESTABLISHED. */
static void test_syn_ack_unanswered(void **state) {
  (void)state;
  connection c;
  open_lab(&c);
  syn(&c);
  syn_ack(&c);
  drain(&c, HP_DRAIN_RESET);
  turn(&c, 0);
  assert_int_equal(c.io.count, 2);
  check_rst(&c, 0, ENI, HP_RST, CLIENT_ISN + 1u, 0);
  check_rst(&c, 1, TUNNEL, HP_RST | HP_ACK, SERVER_ISN + 1, CLIENT_ISN + 1u);
  end_lab(&c);
}

static void test_simultaneous_open(void **state) {
  (void)state;
  connection c;
  open_lab(&c);
  syn(&c);
  assert_int_equal(outside(&c, HP_SYN, SERVER_ISN, 0), HP_FORWARD);
  drain(&c, HP_DRAIN_RESET);
  turn(&c, 0);
  check_rst(&c, 0, ENI, HP_RST | HP_ACK, CLIENT_ISN + 1u, SERVER_ISN + 1);
  check_rst(&c, 1, TUNNEL, HP_RST | HP_ACK, SERVER_ISN + 1, CLIENT_ISN + 1u);
  end_lab(&c);
}

static void test_half_closed(void **state) {
  (void)state;
  connection c;
  open_lab(&c);
  establish(&c);
  assert_int_equal(inside(&c, HP_FIN | HP_ACK, CLIENT_ISN + 1u, SERVER_ISN + 1), HP_FORWARD);
  assert_int_equal(outside(&c, HP_ACK, SERVER_ISN + 1, CLIENT_ISN + 2u), HP_FORWARD);
  drain(&c, HP_DRAIN_RESET);
  turn(&c, 0);
  check_rst(&c, 0, ENI, HP_RST, CLIENT_ISN + 2u, 0);
  check_rst(&c, 1, TUNNEL, HP_RST, SERVER_ISN + 1, 0);
  end_lab(&c);
}

/* RFC 1337: an RST would end the TIME_WAIT of a side that has closed. */
static void test_who_is_over_is_told_nothing(void **state) {
  (void)state;
  for (int how = 0; how < 4; how++) {
    connection c;
    open_lab(&c);
    recipe other = from_inside(how == 3 ? HP_ICMP : HP_UDP, 5000, 9);
    if (how < 2)
      establish(&c);
    else
      assert_int_equal(pass(c.lab, TUNNEL, &other), HP_FORWARD);
    if (how == 0) {
      assert_int_equal(inside(&c, HP_FIN | HP_ACK, CLIENT_ISN + 1u, SERVER_ISN + 1), HP_FORWARD);
      assert_int_equal(outside(&c, HP_FIN | HP_ACK, SERVER_ISN + 1, CLIENT_ISN + 2u), HP_FORWARD);
    } else if (how == 1) {
      assert_int_equal(outside(&c, HP_RST, SERVER_ISN + 1, 0), HP_FORWARD);
    }
    drain(&c, HP_DRAIN_RESET);
    assert_int_equal(turn(&c, 0), 1);
    assert_int_equal(c.io.count, 0);
    end_lab(&c);
  }
}

/* RFC 5961 3.2: who has received more than it has acknowledged answers with a challenge ACK. */
static void test_challenge_is_answered(void **state) {
  (void)state;
  connection c;
  open_lab(&c);
  establish(&c);
  drain(&c, HP_DRAIN_RESET);
  for (int before = 1; before >= 0; before--) { /* before the sweep has come, and after */
    assert_int_equal(outside(&c, HP_ACK, SERVER_ISN + 1, CLIENT_ISN + 300u), HP_REPLY);
    assert_int_equal(c.lab->packet.reason, HP_LINK_DETACHED);
    assert_int_equal(c.lab->packet.link, ENI);
    assert_int_equal(hp_get32(transport_of(c.lab->data) + 4), CLIENT_ISN + 300u);
    assert_int_equal(hp_get16(transport_of(c.lab->data)), c.outside_port);
    assert_int_equal(inside(&c, HP_ACK, CLIENT_ISN + 300u, SERVER_ISN + 90), HP_REPLY);
    assert_int_equal(hp_get32(transport_of(c.lab->data) + 4), SERVER_ISN + 90);
    assert_int_equal(outside(&c, HP_RST, SERVER_ISN + 1, 0), HP_DROP);
    assert_int_equal(inside(&c, HP_RST, CLIENT_ISN + 1u, 0), HP_DROP);
    turn(&c, before ? 0 : 100);
  }
  assert_int_equal(c.io.count, 2);
  assert_int_equal(live_flows(c.lab), 0);
  assert_int_equal(outside(&c, HP_ACK, SERVER_ISN + 1, CLIENT_ISN + 300u), HP_DROP);
  assert_int_equal(c.lab->packet.reason, HP_NO_FLOW);
  end_lab(&c);
}

/* The rate of refusals holds for an environment that goes on when its connections have ended. */
static void test_rate_after_the_end(void **state) {
  (void)state;
  connection c;
  open_lab(&c);
  establish(&c);
  drain(&c, HP_DRAIN_RESET);
  for (int i = 0; i < 300; i++)
    assert_int_equal(inside(&c, HP_ACK, 1, 1), HP_REPLY);
  turn(&c, 0);
  turn(&c, 100);
  int replies = 0;
  for (int i = 0; i < 300; i++)
    replies += inside(&c, HP_ACK, 1, 1) == HP_REPLY;
  assert_int_equal(replies, 100);
  recipe spoofed = from_inside(HP_TCP, PORT, SERVER_PORT);
  spoofed.source++;
  assert_int_equal(pass(c.lab, TUNNEL, &spoofed), HP_DROP);
  end_lab(&c);
}

/* A turn of the loop resets no more than HP_RESET_FLOWS; the rest of its numbers are owed to the next. */
static void test_as_many_as_a_turn_may(void **state) {
  (void)state;
  connection c;
  open_lab(&c);
  hp_worker *worker = c.lab->engine->workers;
  for (uint16_t port = 1; port <= 100; port++) {
    recipe r = from_inside(HP_TCP, port, 80);
    assert_int_equal(pass(c.lab, TUNNEL, &r), HP_FORWARD);
  }
  drain(&c, HP_DRAIN_RESET);
  for (uint32_t turns = 1; turns <= 3; turns++) {
    turn(&c, 0);
    assert_int_equal(c.io.count, 2 * HP_RESET_FLOWS * turns);
    assert_int_equal(worker->owed, 1000 - HP_RESET_FLOWS);
    check_engine(c.lab->engine);
  }
  turn(&c, 0);
  assert_int_equal(c.io.count, 200);
  assert_int_equal(worker->owed, 0);
  assert_int_equal(turn(&c, 100), 100);
  end_lab(&c);
}

static void test_removed_meanwhile(void **state) {
  (void)state;
  connection c;
  open_lab(&c);
  establish(&c);
  drain(&c, HP_DRAIN_RESET);
  MUST(c.lab, hp_link_remove(c.lab->engine, TUNNEL, &c.lab->error));
  assert_int_equal(turn(&c, 0), 1); /* who is outside learns it all the same */
  assert_int_equal(c.io.count, 1);
  check_rst(&c, 0, ENI, HP_RST, CLIENT_ISN + 1u, 0);
  assert_int_equal(c.lab->engine->links[TUNNEL].kind, HP_LINK_FREE);
  assert_int_equal(c.lab->engine->workers[0].resetting, 0);
  assert_int_equal(add_tunnel(c.lab, ENI, 0), TUNNEL);
  syn(&c); /* nothing of it is left */
  end_lab(&c);
}

static void test_recount(void **state) {
  (void)state;
  connection c;
  open_lab(&c);
  establish(&c);
  drain(&c, HP_DRAIN_RESET);
  c.lab->engine->workers[0].resetting = 77;
  hp_resets_recount(c.lab->engine);
  assert_int_equal(c.lab->engine->workers[0].resetting, 1);
  turn(&c, 0);
  turn(&c, 100);
  hp_resets_recount(c.lab->engine);
  assert_int_equal(c.lab->engine->workers[0].resetting, 0);
  end_lab(&c);
}

static void test_what_cannot_be_drained(void **state) {
  (void)state;
  lab *l = new_lab(NULL, NULL);
  assert_int_equal(hp_link_drain(l->engine, ENI, HP_DRAIN_CLOSE, &l->error), -1);
  assert_non_null(strstr(l->error.text, "no tunnel"));
  assert_int_equal(hp_link_drain(l->engine, 0, HP_DRAIN_CLOSE, &l->error), -1);
  assert_int_equal(hp_link_drain(l->engine, 99, HP_DRAIN_RESET, &l->error), -1);
  assert_int_equal(hp_link_drain(l->engine, TUNNEL, 0, &l->error), -1);
  assert_int_equal(hp_link_drain(l->engine, TUNNEL, 3, &l->error), -1);
  assert_int_equal(hp_link_drain(l->engine, TUNNEL, HP_DRAIN_RESET, &l->error), 0);
  assert_int_equal(hp_link_drain(l->engine, TUNNEL, HP_DRAIN_RESET, &l->error), 0);
  assert_int_equal(hp_link_drain(l->engine, TUNNEL, HP_DRAIN_CLOSE, &l->error), 0); /* there is no way back */
  assert_int_equal(l->engine->links[TUNNEL].drain, HP_DRAIN_RESET);
  assert_int_equal(l->engine->workers[0].resetting, 0); /* it had no flow */
  MUST(l, hp_link_remove(l->engine, TUNNEL, &l->error));
  assert_int_equal(hp_link_drain(l->engine, TUNNEL, HP_DRAIN_RESET, &l->error), -1);
  free_lab(l);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_established),
      cmocka_unit_test(test_opening),
      cmocka_unit_test(test_syn_ack_unanswered),
      cmocka_unit_test(test_simultaneous_open),
      cmocka_unit_test(test_half_closed),
      cmocka_unit_test(test_who_is_over_is_told_nothing),
      cmocka_unit_test(test_challenge_is_answered),
      cmocka_unit_test(test_rate_after_the_end),
      cmocka_unit_test(test_as_many_as_a_turn_may),
      cmocka_unit_test(test_removed_meanwhile),
      cmocka_unit_test(test_recount),
      cmocka_unit_test(test_what_cannot_be_drained),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
