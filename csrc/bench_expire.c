/* bench_expire.c: what flows cost that nobody sends to: the sweep that looks after them, and their ends. */
#include <errno.h>

#include "bench.h"
#include "nat.h"

enum { SHIFT = 15, SECONDS = 3, STEP = 1 /* ms between two turns of the loop */, TIMEOUT = 300000 };

typedef struct sweeping {
  hp_traffic traffic;
  hp_engine *engine;
} sweeping;

static int sweeping_new(sweeping *s, uint32_t flows, bool huge, hp_error *error) {
  if (flows < 1 || flows > HP_MAX_FLOWS / 2) {
    hp_fail(error, EINVAL, "flows is %u; it must be 1 to %d", flows, HP_MAX_FLOWS / 2);
    return -1;
  }
  if (hp_traffic_new(&s->traffic, flows, SHIFT, false, error))
    return -1;
  s->engine = hp_bench_engine(flows, s->traffic.tunnels, huge, error);
  if (s->engine && hp_bench_open_flows(s->engine, &s->traffic, error) == 0)
    return 0;
  hp_engine_free(s->engine);
  hp_traffic_free(&s->traffic);
  return -1;
}

static void sweeping_free(sweeping *s) {
  hp_engine_free(s->engine);
  hp_traffic_free(&s->traffic);
}

/* ns of all turns of the loop in that many seconds. */
static double sweep(hp_worker *worker, uint32_t seconds) {
  double start = hp_bench_clock();
  for (uint32_t at = 0; at < seconds * 1000; at += STEP) {
    hp_clock_set(worker, worker->now + STEP);
    hp_expire_turn(worker);
  }
  return hp_bench_clock() - start;
}

/* Every flow has been used just now, and the sweep last looked at it at any time in the last TIMEOUT. */
double hp_bench_keep(uint32_t flows, int huge_pages, hp_error *error) {
  sweeping s;
  if (sweeping_new(&s, flows, huge_pages != 0, error))
    return -1;
  hp_worker *worker = s.engine->workers;
  hp_random random;
  hp_random_init(&random, 1);
  for (uint32_t number = 0; number < flows; number++) {
    for (int side = 0; side < 2; side++)
      worker->flows.flows[number].half[side].last_seen = (uint32_t)worker->now;
    hp_flow_due(&worker->flows, number, (uint32_t)worker->now + hp_random_below(&random, TIMEOUT));
  }
  sweep(worker, 1);
  double elapsed = sweep(worker, SECONDS);
  double result = elapsed / SECONDS / flows;
  if (worker->flows.control->live != flows)
    result = hp_fail(error, 0, "flows have ended: the measurement is void");
  sweeping_free(&s);
  return result;
}

double hp_bench_end(uint32_t flows, int huge_pages, hp_error *error) {
  sweeping s;
  if (sweeping_new(&s, flows, huge_pages != 0, error))
    return -1;
  hp_worker *worker = s.engine->workers;
  hp_clock_set(worker, worker->now + TIMEOUT + 1000);
  double start = hp_bench_clock();
  hp_expire(worker, UINT32_MAX);
  double result = (hp_bench_clock() - start) / flows;
  if (worker->flows.control->live)
    result = hp_fail(error, 0, "flows are left: the measurement is void");
  sweeping_free(&s);
  return result;
}
