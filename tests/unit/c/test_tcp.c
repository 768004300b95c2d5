/* test_tcp.c: the state of a TCP flow (RFC 5382, RFC 7857 section 2, RFC 5961) segment by segment. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "invariants.h"
#include "tcp.h"

enum { IN = HP_INSIDE, OUT = HP_OUTSIDE };

/* A segment with these flags and numbers as it comes from one side; what the fast path does with it. */
typedef struct segment {
  uint8_t data[HP_VNET_HEADER + 20 + 40];
  hp_headers headers;
} segment;

static segment make(uint8_t flags, uint32_t sequence, uint32_t acknowledgment, int scale) {
  segment s = {.headers = {.header = 20, .transport = scale < 0 ? 20 : 24, .protocol = HP_TCP, .tcp_flags = flags}};
  uint8_t *tcp = s.data + HP_VNET_HEADER + 20;
  hp_put32(tcp + 4, sequence);
  hp_put32(tcp + 8, acknowledgment);
  if (scale >= 0) {
    tcp[20] = 1;
    tcp[21] = 3; /* RFC 7323 2.2 */
    tcp[22] = 3;
    tcp[23] = (uint8_t)scale;
  }
  return s;
}

static hp_flow new_flow(int scale) {
  hp_flow flow = {0};
  flow.half[IN].key.link = flow.half[OUT].key.link = HP_TCP | 1 << 8;
  segment syn = make(HP_SYN, 1000, 0, scale);
  hp_tcp_open(&flow, syn.data, &syn.headers);
  return flow;
}

static hp_tcp_verdict send_segment(hp_flow *flow, int side, const segment *s) {
  hp_half *half = &flow->half[side];
  hp_tcp_verdict verdict = HP_TCP_PASS;
  if (s->headers.tcp_flags & (HP_SYN | HP_FIN | HP_RST) || half->flags & HP_ATTENTION)
    verdict = hp_tcp_track(flow, side, s->data, &s->headers);
  if (verdict == HP_TCP_REFUSE)
    return verdict;
  if (verdict == HP_TCP_REOPEN)
    hp_tcp_open(flow, s->data, &s->headers);
  hp_tcp_acknowledged(half, s->data + HP_VNET_HEADER + 20, s->headers.tcp_flags);
  return verdict;
}

static hp_tcp_verdict send_tcp(hp_flow *flow, int side, uint8_t flags, uint32_t sequence, uint32_t acknowledgment) {
  segment s = make(flags, sequence, acknowledgment, -1);
  return send_segment(flow, side, &s);
}

static hp_tcp_verdict send_flags(hp_flow *flow, int side, uint8_t flags) {
  return side == IN ? send_tcp(flow, IN, flags, 1001, 5001) : send_tcp(flow, OUT, flags, 5001, 1001);
}

static hp_flow established(void) {
  hp_flow flow = new_flow(-1);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_OPENING);
  assert_int_equal(send_tcp(&flow, OUT, HP_SYN | HP_ACK, 5000, 1001), HP_TCP_CHANGED);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_OPENING);
  assert_int_equal(send_tcp(&flow, IN, HP_ACK, 1001, 5001), HP_TCP_PASS);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_ESTABLISHED);
  return flow;
}

static void test_handshake(void **state) {
  (void)state;
  established();
}

/* RFC 5382 REQ-2: both SYNs cross on their way. */
static void test_simultaneous_open(void **state) {
  (void)state;
  hp_flow flow = new_flow(-1);
  assert_int_equal(send_tcp(&flow, OUT, HP_SYN, 5000, 0), HP_TCP_CHANGED);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_OPENING);
  assert_int_equal(send_tcp(&flow, IN, HP_SYN | HP_ACK, 1000, 5001), HP_TCP_CHANGED);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_ESTABLISHED);
  assert_int_equal(send_tcp(&flow, OUT, HP_SYN | HP_ACK, 5000, 1001), HP_TCP_CHANGED);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_ESTABLISHED);
}

/* RFC 5382 REQ-5: partially open, whatever else the outside sends and the inside does not acknowledge. */
static void test_only_an_ack_from_inside_establishes(void **state) {
  (void)state;
  hp_flow flow = new_flow(-1);
  for (int again = 0; again < 3; again++)
    send_tcp(&flow, OUT, HP_SYN | HP_ACK, 5000, 1001);
  send_tcp(&flow, OUT, HP_ACK | HP_PSH, 5001, 1001);
  send_tcp(&flow, OUT, HP_FIN | HP_ACK, 5001, 1001);
  send_tcp(&flow, IN, HP_SYN, 1000, 0); /* again */
  send_tcp(&flow, IN, HP_PSH, 1001, 0); /* no ACK flag: acknowledges nothing */
  assert_int_equal(hp_flow_state(&flow), HP_STATE_OPENING);
  send_tcp(&flow, IN, HP_ACK, 1001, 5001);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_ESTABLISHED);
}

/* An ACK from inside that was there before the outside's SYN acknowledges something else. */
static void test_an_early_ack_establishes_nothing(void **state) {
  (void)state;
  hp_flow flow = new_flow(-1);
  send_tcp(&flow, IN, HP_ACK, 1001, 7777);
  send_tcp(&flow, OUT, HP_SYN | HP_ACK, 5000, 1001);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_OPENING);
  assert_int_equal(flow.half[IN].acknowledged, 5001);
  send_tcp(&flow, OUT, HP_SYN | HP_ACK, 5000, 1001);
  send_tcp(&flow, IN, HP_ACK, 1001, 5001);
  send_tcp(&flow, OUT, HP_SYN | HP_ACK, 5000, 1001); /* a copy that comes late takes nothing back */
  assert_int_equal(hp_flow_state(&flow), HP_STATE_ESTABLISHED);
}

/* The scanner's kernel knows nothing of the SYN that its raw socket sent, and answers the SYN|ACK with RST. */
static void test_rst_from_inside_while_opening(void **state) {
  (void)state;
  hp_flow flow = new_flow(-1);
  send_tcp(&flow, OUT, HP_SYN | HP_ACK, 5000, 1001);
  assert_int_equal(send_tcp(&flow, IN, HP_RST, 1001, 0), HP_TCP_CHANGED);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_RESET);
}

static void test_half_close_changes_nothing(void **state) {
  (void)state;
  for (int side = 0; side < 2; side++) {
    hp_flow flow = established();
    assert_int_equal(send_flags(&flow, side, HP_FIN | HP_ACK), HP_TCP_PASS);
    assert_int_equal(hp_flow_state(&flow), HP_STATE_ESTABLISHED);
    assert_int_equal(send_flags(&flow, side, HP_FIN | HP_ACK), HP_TCP_PASS); /* sent again */
    assert_int_equal(hp_flow_state(&flow), HP_STATE_ESTABLISHED);
    assert_false((flow.half[IN].flags | flow.half[OUT].flags) & HP_ATTENTION);
  }
}

static hp_flow closed(int first) {
  hp_flow flow = established();
  send_flags(&flow, first, HP_FIN | HP_ACK);
  assert_int_equal(send_flags(&flow, !first, HP_FIN | HP_ACK), HP_TCP_CHANGED);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_CLOSING);
  return flow;
}

static void test_fin_from_both_sides_closes(void **state) {
  (void)state;
  for (int first = 0; first < 2; first++) {
    hp_flow flow = closed(first);
    /* The last acknowledgments pass, and nothing that follows opens it again. */
    for (int side = 0; side < 2; side++) {
      assert_int_equal(send_flags(&flow, side, HP_ACK), HP_TCP_PASS);
      assert_int_equal(send_flags(&flow, side, HP_FIN | HP_ACK), HP_TCP_PASS);
      assert_int_equal(hp_flow_state(&flow), HP_STATE_CLOSING);
    }
  }
}

/* RFC 6191: the server decides whether a new SYN fits; there is no way in for one from outside. */
static void test_syn_on_an_ended_flow(void **state) {
  (void)state;
  hp_flow flow = closed(IN);
  assert_int_equal(send_tcp(&flow, OUT, HP_SYN, 9000, 0), HP_TCP_REFUSE);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_CLOSING);
  assert_int_equal(send_tcp(&flow, IN, HP_SYN, 90000, 0), HP_TCP_REOPEN);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_OPENING);
  assert_int_equal(flow.half[IN].flags, HP_SEEN_SYN);
  assert_int_equal(flow.half[OUT].flags, 0);
  assert_int_equal(send_tcp(&flow, OUT, HP_SYN | HP_ACK, 70000, 90001), HP_TCP_CHANGED);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_OPENING);
  assert_int_equal(send_tcp(&flow, IN, HP_ACK, 90001, 70001), HP_TCP_PASS);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_ESTABLISHED);
}

static void test_syn_on_a_live_flow_passes(void **state) {
  (void)state;
  hp_flow flow = established();
  assert_int_equal(send_tcp(&flow, IN, HP_SYN, 90000, 0), HP_TCP_CHANGED); /* RFC 5961 4: a challenge ACK follows */
  assert_int_equal(send_tcp(&flow, OUT, HP_SYN, 90000, 0), HP_TCP_CHANGED);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_ESTABLISHED);
}

static void test_refused_connection(void **state) {
  (void)state;
  hp_flow flow = new_flow(-1);
  assert_int_equal(send_tcp(&flow, OUT, HP_RST | HP_ACK, 0, 1001), HP_TCP_CHANGED); /* RFC 9293 3.10.7.1 */
  assert_int_equal(hp_flow_state(&flow), HP_STATE_RESET);
  assert_int_equal(send_tcp(&flow, IN, HP_SYN, 2000, 0), HP_TCP_REOPEN);
}

/* RFC 5961 3.2: from what the receiver has acknowledged to the end of its window. */
static void test_rst_counts_only_in_the_window(void **state) {
  (void)state;
  const struct {
    uint32_t sequence;
    uint8_t state;
  } cases[] = {{5001, HP_STATE_RESET},
               {5001 + 0xffff, HP_STATE_RESET},
               {5001 + 0x10000, HP_STATE_ESTABLISHED},
               {5000, HP_STATE_ESTABLISHED},
               {5001 + 0x80000000u, HP_STATE_ESTABLISHED}};
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    hp_flow flow = established();
    hp_tcp_verdict verdict = send_tcp(&flow, OUT, HP_RST, cases[i].sequence, 0);
    assert_int_equal(hp_flow_state(&flow), cases[i].state);
    assert_int_equal(verdict, cases[i].state == HP_STATE_RESET ? HP_TCP_CHANGED : HP_TCP_PASS);
  }
}

static void test_rst_window_uses_the_receivers_scale(void **state) {
  (void)state;
  hp_flow flow = new_flow(7);
  segment answer = make(HP_SYN | HP_ACK, 5000, 1001, 2);
  assert_int_equal(send_segment(&flow, OUT, &answer), HP_TCP_CHANGED);
  send_tcp(&flow, IN, HP_ACK, 1001, 5001);
  hp_flow copy = flow;
  send_tcp(&copy, OUT, HP_RST, 5001 + (0xffff << 7) + 1, 0);
  assert_int_equal(hp_flow_state(&copy), HP_STATE_ESTABLISHED);
  send_tcp(&copy, IN, HP_RST, 1001 + (0xffff << 2) + 1, 0);
  assert_int_equal(hp_flow_state(&copy), HP_STATE_ESTABLISHED);
  send_tcp(&copy, IN, HP_RST, 1001 + (0xffff << 2), 0);
  assert_int_equal(hp_flow_state(&copy), HP_STATE_RESET);
  send_tcp(&flow, OUT, HP_RST, 5001 + (0xffff << 7), 0);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_RESET);
}

/* Sequence numbers turn over; acknowledgments never go back. */
static void test_window_moves_with_acknowledgments(void **state) {
  (void)state;
  hp_flow flow = established();
  for (uint32_t acknowledged = 5001, i = 0; i < 100; i++) {
    acknowledged += 0x10000000;
    send_tcp(&flow, IN, HP_ACK, 1001, acknowledged);
    send_tcp(&flow, IN, HP_ACK, 1001, acknowledged - 77); /* overtaken on the way */
    assert_int_equal(flow.half[IN].acknowledged, acknowledged);
  }
  uint32_t last = flow.half[IN].acknowledged;
  send_tcp(&flow, OUT, HP_RST, last - 1, 0);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_ESTABLISHED);
  send_tcp(&flow, OUT, HP_RST, last, 0);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_RESET);
}

static void test_rst_after_close(void **state) {
  (void)state;
  hp_flow flow = closed(OUT);
  send_flags(&flow, IN, HP_RST);
  assert_int_equal(hp_flow_state(&flow), HP_STATE_RESET);
  assert_int_equal(send_tcp(&flow, OUT, HP_SYN, 1, 0), HP_TCP_REFUSE);
  assert_int_equal(send_tcp(&flow, IN, HP_SYN, 1, 0), HP_TCP_REOPEN);
}

/* Flags that no sane stack combines open nothing and crash nothing. */
static void test_any_flags_in_any_state(void **state) {
  (void)state;
  uint64_t random = 1;
  for (int round = 0; round < 20000; round++) {
    hp_flow flow = new_flow((int)random_below(&random, 16) - 1);
    for (int i = 0; i < 12; i++) {
      int side = (int)random_below(&random, 2);
      uint8_t flags = (uint8_t)random_below(&random, 64), before = hp_flow_state(&flow);
      hp_tcp_verdict verdict = send_tcp(&flow, side, flags, 5001 + random_below(&random, 3), 1001);
      uint8_t after = hp_flow_state(&flow);
      bool was_over = before == HP_STATE_CLOSING || before == HP_STATE_RESET;
      bool over = after == HP_STATE_CLOSING || after == HP_STATE_RESET;
      HOLD(over == !!(flow.half[IN].flags & HP_ATTENTION) && over == !!(flow.half[OUT].flags & HP_ATTENTION));
      HOLD(was_over || !over || verdict == HP_TCP_CHANGED);
      bool acknowledged = before == HP_STATE_OPENING && after == HP_STATE_ESTABLISHED && side == IN && flags & HP_ACK;
      HOLD(before == after || was_over || verdict == HP_TCP_CHANGED || acknowledged);
      HOLD(!was_over || over || verdict == HP_TCP_REOPEN); /* nothing else brings it back */
      HOLD(verdict != HP_TCP_REOPEN || (side == IN && was_over && (flags & HP_SYN) && !(flags & HP_RST)));
    }
  }
}

static void test_state_of_other_protocols(void **state) {
  (void)state;
  hp_flow flow = {0};
  flow.half[IN].key.link = 1 << 8 | HP_UDP;
  assert_int_equal(hp_flow_state(&flow), HP_STATE_ACTIVE);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_handshake),
      cmocka_unit_test(test_simultaneous_open),
      cmocka_unit_test(test_only_an_ack_from_inside_establishes),
      cmocka_unit_test(test_an_early_ack_establishes_nothing),
      cmocka_unit_test(test_rst_from_inside_while_opening),
      cmocka_unit_test(test_half_close_changes_nothing),
      cmocka_unit_test(test_fin_from_both_sides_closes),
      cmocka_unit_test(test_syn_on_an_ended_flow),
      cmocka_unit_test(test_syn_on_a_live_flow_passes),
      cmocka_unit_test(test_refused_connection),
      cmocka_unit_test(test_rst_counts_only_in_the_window),
      cmocka_unit_test(test_rst_window_uses_the_receivers_scale),
      cmocka_unit_test(test_window_moves_with_acknowledgments),
      cmocka_unit_test(test_rst_after_close),
      cmocka_unit_test(test_any_flags_in_any_state),
      cmocka_unit_test(test_state_of_other_protocols),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
