/* Packets that arrived at the wrong worker: copied once, translated and written by the one that has their flow, whole,
 * in order and counted once; what does not fit is a counted drop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine_fixture.h"

#include "handover.h"

enum { SECOND = TUNNEL + 1, ROOM = 3000 };

/* What a worker writes is kept: its link, length and outside port's echo in the payload. */
struct hp_io {
  uint32_t count;
  uint32_t links[ROOM], lengths[ROOM];
  uint32_t marks[ROOM];
};

static uint32_t mark_of(const uint8_t *data) { return hp_get32(data + VNET + HP_IPV4_HEADER + HP_UDP_HEADER); }

static void keep(hp_io *io, uint32_t link, const uint8_t *data, uint32_t length) {
  HOLD(io->count < ROOM);
  io->links[io->count] = link;
  io->lengths[io->count] = length;
  io->marks[io->count++] = data[VNET + 9] == HP_UDP ? mark_of(data) : 0;
}

static const hp_io_ops keeping = {.inject = keep};

typedef struct pair {
  lab *lab;
  hp_worker *first, *second; /* the flow is the second one's */
  hp_io *io;
  recipe answer;
  uint8_t data[70000];
} pair;

static pair *new_pair(void) {
  static const hp_config config = {.max_flows = 200, .max_links = 10, .max_addresses = 4, .seed = 1, .workers = 2};
  pair *p = calloc(1, sizeof *p);
  HOLD(p);
  p->lab = new_lab(&config, NULL);
  HOLD(add_tunnel(p->lab, ENI, 0) == SECOND);
  p->first = &p->lab->engine->workers[0];
  p->second = &p->lab->engine->workers[1];
  p->io = calloc(1, sizeof *p->io);
  HOLD(p->io);
  p->second->io = p->io;
  p->second->io_ops = &keeping;
  MUST(p->lab, hp_handover_open(p->lab->engine, &p->lab->error));
  recipe r = from_inside(HP_UDP, 4000, 9);
  HOLD(pass(p->lab, SECOND, &r) == HP_FORWARD);
  p->answer = answer_to_last(p->lab, 0);
  p->answer.may_fragment = true; /* of whatever size it is */
  return p;
}

static void free_pair(pair *p) {
  hp_handover_close(p->lab->engine);
  p->second->io = NULL;
  free_lab(p->lab);
  free(p->io);
  free(p);
}

/* A packet from outside, to the worker that has not its flow. */
static hp_packet arrive(pair *p, const recipe *r, uint32_t mark) {
  hp_packet packet = {.data = p->data, .capacity = sizeof p->data, .link = ENI};
  packet.length = make_packet(p->data, r);
  if (r->protocol == HP_UDP && r->no_checksum)
    hp_put32(p->data + VNET + HP_IPV4_HEADER + HP_UDP_HEADER, mark);
  hp_nat_batch(p->first, &packet, 1);
  return packet;
}

static void test_a_packet_is_handed_over_and_counted_once(void **state) {
  (void)state;
  pair *p = new_pair();
  p->answer.payload = 100;
  hp_packet packet = arrive(p, &p->answer, 0);
  assert_int_equal(packet.verdict, HP_DROP); /* its buffer is free */
  assert_int_equal(packet.reason, HP_REASON_NONE);
  assert_int_equal(p->first->words->handed_over, 1);
  assert_int_equal(hp_stats(p->first, ENI)->packets_in + hp_stats(p->first, ENI)->bytes_in, 0);
  hp_handover_take(p->second);
  assert_int_equal(p->io->count, 1);
  assert_int_equal(p->io->links[0], SECOND);
  assert_int_equal(p->io->lengths[0], packet.length);
  assert_int_equal(p->second->words->taken_over, 1);
  hp_counters counters;
  MUST(p->lab, hp_link_counters(p->lab->engine, ENI, &counters, &p->lab->error));
  assert_int_equal(counters.packets_in, 1);
  assert_int_equal(counters.bytes_in, packet.length - VNET);
  MUST(p->lab, hp_link_counters(p->lab->engine, SECOND, &counters, &p->lab->error));
  assert_int_equal(counters.packets_out, 1);
  hp_handover_take(p->second);
  assert_int_equal(p->io->count, 1);
  free_pair(p);
}

/* Sizes of all kinds, again and again round the ring: nothing is lost, torn or overtaken. */
static void test_the_ring_goes_round(void **state) {
  (void)state;
  pair *p = new_pair();
  uint64_t random = 7;
  uint32_t sent = 0, lengths[ROOM];
  p->answer.no_checksum = true;
  while (sent < 2000) {
    for (uint32_t burst = random_below(&random, 12) + 1; burst; burst--) {
      p->answer.payload = (uint16_t)(4 + random_below(&random, random_below(&random, 4) ? 1400 : 60000));
      lengths[sent] = arrive(p, &p->answer, sent).length;
      sent++;
    }
    hp_handover_take(p->second);
    assert_int_equal(p->io->count, sent);
  }
  for (uint32_t i = 0; i < sent; i++)
    HOLD(p->io->marks[i] == i && p->io->lengths[i] == lengths[i] && p->io->links[i] == SECOND);
  free_pair(p);
}

static void test_what_does_not_fit_is_dropped(void **state) {
  (void)state;
  pair *p = new_pair();
  uint32_t fitted = 0;
  p->answer.no_checksum = true;
  p->answer.payload = 60000;
  while (arrive(p, &p->answer, fitted).reason == HP_REASON_NONE)
    fitted++;
  assert_true(fitted >= 15 && fitted <= 17);
  assert_int_equal(hp_stats(p->first, ENI)->drops[HP_HANDOVER_FULL], 1);
  assert_int_equal(hp_stats(p->first, ENI)->packets_in, 1); /* the dropped one is its own to count */
  hp_handover_take(p->second);
  assert_int_equal(p->io->count, fitted);
  assert_int_equal(arrive(p, &p->answer, 0).reason, HP_REASON_NONE);
  hp_handover_take(p->second);
  assert_int_equal(p->io->count, fitted + 1);
  free_pair(p);
}

/* Whose flow has ended meanwhile, or never was: one drop, by the one whose port it is, and no way back and forth. */
static void test_a_packet_without_flow_ends_where_its_port_is(void **state) {
  (void)state;
  pair *p = new_pair();
  recipe stray = p->answer;
  stray.source_port++;
  assert_int_equal(arrive(p, &stray, 0).reason, HP_REASON_NONE);
  hp_handover_take(p->second);
  assert_int_equal(hp_stats(p->second, ENI)->drops[HP_NO_FLOW], 1);
  stray.destination_port = 80; /* nobody's */
  assert_int_equal(arrive(p, &stray, 0).reason, HP_NO_FLOW);
  hp_handover_take(p->first);
  assert_int_equal(p->first->words->taken_over + p->io->count, 0);
  free_pair(p);
}

/* The answer to one that may not leave goes back to the ENI; the ring has room for it. */
static void test_an_answer_fits_in_the_ring(void **state) {
  (void)state;
  pair *p = new_pair();
  p->answer.ttl = 1;
  arrive(p, &p->answer, 0);
  hp_handover_take(p->second);
  assert_int_equal(p->io->count, 1);
  assert_int_equal(p->io->links[0], ENI);
  assert_int_equal(p->io->lengths[0], VNET + 28 + 28); /* quotes all of it */
  assert_int_equal(hp_stats(p->second, ENI)->drops[HP_TTL_EXCEEDED], 1);
  free_pair(p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_a_packet_is_handed_over_and_counted_once),
      cmocka_unit_test(test_the_ring_goes_round),
      cmocka_unit_test(test_what_does_not_fit_is_dropped),
      cmocka_unit_test(test_a_packet_without_flow_ends_where_its_port_is),
      cmocka_unit_test(test_an_answer_fits_in_the_ring),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
