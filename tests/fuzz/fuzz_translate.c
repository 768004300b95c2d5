/* fuzz_translate.c: whole lives of an engine.
 *
 * An input is a program: bytes that set an engine up, then steps. A step puts a packet into the batch (from an
 * environment, from a VPC as an answer to some flow, an ICMP error about some flow, a burst of new flows, or plain
 * bytes), and any packet may have lies written over it; or it translates the batch and then lets time pass, sweeps,
 * adds, drains and removes links, or hands over to a successor. After each batch every packet is held against what the
 * engine's rules promise, and in the end the tables are (invariants.h). The short way for steady packets is held
 * against the general parser with each of them.
 *
 * Every packet has an allocation of just its capacity, so AddressSanitizer sees what goes beyond it.
 *
 * `fuzz_translate -seeds=DIRECTORY` writes the programs of seeds.h, to begin with, and ends. */
#include "promises.h"
#include "seeds.h"

enum { INSIDE_ADDRESS = 0xc6120002, ENI_ADDRESS = 0xc0000201, REMOTE = 0xcb007100, MAX_LINKS = 7 };

typedef struct world {
  hp_engine *engine;
  const uint8_t *at, *end; /* of the program */
  uint64_t now;
  uint32_t count;
  hp_packet packets[HP_BATCH];
  sent sent[HP_BATCH];
} world;

static hp_error error;
static uint8_t scratch[70000];

static uint8_t next8(world *w) { return w->at < w->end ? *w->at++ : 0; }
static uint16_t next16(world *w) {
  uint16_t high = next8(w);
  return (uint16_t)(high << 8 | next8(w));
}
static bool ended(const world *w) { return w->at >= w->end; }

/* ---- the batch ---- */

static void translate(world *w) {
  HOLD(hp_translate(w->engine, w->packets, w->count, w->now, &error) == 0);
  for (uint32_t i = 0; i < w->count; i++)
    check_packet(w->engine, &w->packets[i], &w->sent[i]);
  for (uint32_t i = 0; i < w->count; i++) {
    free(w->packets[i].data);
    free(w->sent[i].original);
  }
  w->count = 0;
  if (w->engine->config.max_flows < 100)
    check_engine(w->engine);
}

static void put_packet(world *w, const uint8_t *data, uint32_t length, uint32_t room, uint32_t link) {
  HOLD(length > 0);
  uint8_t *buffer = malloc(length + room), *original = malloc(length);
  HOLD(buffer && original);
  memset(buffer, 0xa5, length + room);
  memcpy(buffer, data, length);
  memcpy(original, data, length);
  check_steady(original, length);
  w->packets[w->count] = (hp_packet){.data = buffer, .length = length, .capacity = length + room, .link = link};
  w->sent[w->count] = (sent){.original = original, .length = length, .link = link};
  if (++w->count == HP_BATCH)
    translate(w);
}

/* Lies: single bytes anywhere in the headers; sums made right again when the program says so. */
static void put_recipe(world *w, recipe *r, uint8_t shape, uint32_t link) {
  static const uint8_t options[12] = {2, 4, 5, 180, 1, 3, 3, 7, 8, 2, 0, 0};
  static const uint8_t ip_options[8][8] = {{1, 1, 1, 1, 1, 1, 1, 1},     {7, 7, 8, 198, 18, 0, 2, 0},
                                           {1, 68, 4, 5, 1, 7, 3, 4},    {148, 4, 0, 0, 7, 3, 4, 0},
                                           {68, 8, 9, 1, 198, 18, 0, 2}, {131, 7, 4, 198, 19, 0, 9, 0},
                                           {7, 9, 4, 0, 0, 0, 0, 0},     {149, 6, 198, 18, 0, 2, 0, 7}};
  r->partial = (shape & 3) != 0 && r->protocol != HP_ICMP;
  r->may_fragment = shape & 4;
  r->ip_options = shape & 8 ? 8 : 0;
  r->ip_option = ip_options[r->payload & 7];
  r->option = options;
  r->tcp_options = shape & 16 ? 12 : 0;
  r->ttl = shape & 32 ? next8(w) & 3 : 64;
  if ((shape & 3) == 2) {
    r->gso = (uint16_t)(1 + next8(w) * 8);
    r->payload = (uint16_t)(r->payload * 10);
  }
  r->no_checksum = r->protocol == HP_UDP && (shape & 3) == 3;
  uint32_t length = make_packet(scratch, r), room = 600;
  if (shape & 64) {
    uint8_t lies = next8(w);
    for (uint32_t i = lies & 3; i; i--) {
      uint32_t at = next8(w);
      scratch[at < length ? at : 0] = next8(w);
    }
    if (lies & 4)
      length -= length > next8(w) ? next8(w) % length : 0;
    if ((lies & 8) && length >= VNET + 60)
      write_ip_checksum(scratch + VNET);
    if ((lies & 16) && hp_get16(scratch + VNET + 2) == length - VNET &&
        (scratch[VNET] & 15) * 4u == 20u + r->ip_options)
      write_checksum(scratch, false);
  }
  if (shape & 128)
    room = next8(w);
  put_packet(w, scratch, length, room, link);
}

/* ---- steps that make packets ---- */

static const uint8_t protocols[4] = {HP_TCP, HP_UDP, HP_ICMP, HP_UDP};
static const uint16_t ports[4] = {53, 80, 443, 5000};

static uint32_t any_link(world *w) { return 1 + next8(w) % (w->engine->links_used - 1); }

static void from_inside(world *w) {
  uint8_t what = next8(w), flags = next8(w), shape = next8(w);
  recipe r = {.source = INSIDE_ADDRESS,
              .destination = REMOTE + (what >> 2 & 1),
              .source_port = (uint16_t)(4000 + (what >> 3 & 3)),
              .destination_port = ports[what >> 5 & 3],
              .protocol = protocols[what & 3],
              .flags = flags,
              .payload = next8(w)};
  if (r.protocol == HP_ICMP && flags < 128)
    r.flags = HP_ICMP_ECHO;
  if (what == 0xff)
    r.destination = (uint32_t)next16(w) << 16 | next16(w);
  put_recipe(w, &r, shape, any_link(w));
}

/* A live flow, or NULL. */
static const hp_flow *any_flow(world *w) {
  uint32_t start = next8(w);
  const hp_flow_table *table = &w->engine->workers[start % w->engine->config.workers].flows;
  uint32_t used = table->control->used;
  for (uint32_t i = 0; i < used; i++)
    if (hp_flow_live(&table->flows[(start + i) % used]))
      return &table->flows[(start + i) % used];
  return NULL;
}

/* What the flow's remote side (or its inside) would send next. */
static recipe next_of(const hp_flow *flow, int side, uint8_t flags) {
  const hp_half *half = &flow->half[side];
  recipe r = {.source = half->key.source,
              .destination = half->key.destination,
              .source_port = (uint16_t)(half->key.ports >> 16),
              .destination_port = (uint16_t)half->key.ports,
              .protocol = (uint8_t)half->key.link,
              .flags = flags,
              .sequence = flow->half[!side].acknowledged,
              .acknowledgment = half->acknowledged + 1000};
  if (r.protocol == HP_ICMP) {
    r.flags = side == HP_INSIDE ? HP_ICMP_ECHO : HP_ICMP_ECHO_REPLY;
    r.source_port = flow->half[!side].port;
  }
  return r;
}

static void from_flow(world *w) {
  const hp_flow *flow = any_flow(w);
  uint8_t what = next8(w), shape = next8(w);
  int side = what >> 7 ? HP_INSIDE : HP_OUTSIDE;
  if (!flow)
    return;
  recipe r = next_of(flow, side, what & 0x3f);
  r.payload = next8(w);
  if (what & 0x40)
    r.sequence += (uint32_t)next16(w) << 4;
  put_recipe(w, &r, shape, flow->half[side].key.link >> 8);
}

static void error_about_flow(world *w) {
  const hp_flow *flow = any_flow(w);
  static uint8_t quoted[2000];
  static const uint8_t recorded[2][4] = {{1, 1, 1, 1}, {7, 3, 4, 0}};
  uint8_t what = next8(w), shape = next8(w);
  int side = what & 1;
  if (!flow)
    return;
  recipe about = next_of(flow, side, HP_ACK); /* the quoted packet is one that went the other way */
  uint32_t turn = about.source;
  about.source = about.destination;
  about.destination = turn;
  uint16_t port = about.source_port;
  if (about.protocol == HP_ICMP) {
    about.flags = side == HP_OUTSIDE ? HP_ICMP_ECHO : HP_ICMP_ECHO_REPLY;
  } else {
    about.source_port = about.destination_port;
    about.destination_port = port;
  }
  about.payload = next8(w);
  about.ip_options = what & 2 ? 4 : 0;
  about.ip_option = recorded[about.payload & 1];
  about.no_checksum = what & 4;
  uint32_t length = make_packet(quoted, &about) - VNET;
  uint8_t cut = next8(w);
  recipe r = {.source = what & 8 ? REMOTE + 9 : about.destination,
              .destination = about.source,
              .protocol = HP_ICMP,
              .flags = what & 16 ? HP_ICMP_TIME_EXCEEDED : HP_ICMP_UNREACHABLE,
              .code = what >> 5,
              .payload = (uint16_t)(cut < length ? length - cut : length),
              .content = quoted + VNET};
  put_recipe(w, &r, shape & 0xfc, flow->half[side].key.link >> 8);
}

static void burst(world *w) {
  uint8_t what = next8(w), count = next8(w) & 63;
  uint16_t first = (uint16_t)(next8(w) << 6);
  for (uint16_t i = 0; i <= count; i++) {
    recipe r = {.source = INSIDE_ADDRESS,
                .destination = REMOTE + (what >> 2 & 1),
                .source_port = (uint16_t)(first + i),
                .destination_port = ports[what >> 5 & 3],
                .protocol = protocols[what & 3],
                .flags = HP_SYN};
    if (r.protocol == HP_ICMP)
      r.flags = HP_ICMP_ECHO;
    put_packet(w, scratch, make_packet(scratch, &r), 100, 3 + (what >> 3 & 1));
  }
}

static void plain_bytes(world *w) {
  uint32_t link = any_link(w), length = next8(w), left = (uint32_t)(w->end - w->at);
  length = length < left ? length : left;
  memset(scratch, 0, VNET);
  memcpy(scratch + VNET, w->at, length);
  w->at += length;
  if (length > 20)
    write_ip_checksum(scratch + VNET); /* reads up to 60 bytes of scratch */
  put_packet(w, scratch, VNET + length, 600, link);
}

/* ---- steps that do not ---- */

/* A worker sweeps everything every second or so: never do flows lie there for days. */
static void pass_time(world *w) {
  static const uint64_t times[8] = {1, 50, 2000, 31000, 241000, 7441000, 0x30000000, 0x90000000};
  translate(w);
  uint64_t time = times[next8(w) & 7];
  w->now += time;
  if (time > 0x1000000)
    HOLD(hp_sweep(w->engine, w->now, &error) >= 0);
}

static void sweep(world *w) {
  uint8_t what = next8(w);
  translate(w);
  if (what & 0x80)
    HOLD(hp_sweep(w->engine, w->now, &error) >= 0);
  else
    hp_expire(&w->engine->workers[what % w->engine->config.workers], what);
}

static int add_eni(hp_engine *engine, uint32_t addresses, uint8_t how) {
  static const uint32_t mtus[4] = {1500, 576, 9000, 65535};
  hp_eni_config c = {.addresses = {ENI_ADDRESS, ENI_ADDRESS + 1},
                     .address_count = addresses,
                     .mtu = mtus[how & 3],
                     .udp_mapping = how >> 2 & 1,
                     .silent = how >> 3 & 1};
  int link = hp_eni_add(engine, &c, -1, &error);
  hp_rule rules[2] = {{.protocol = 6, .port_high = 500}, {.protocol = how & 16 ? 0 : 1, .port_high = 255}};
  if (link > 0)
    HOLD(hp_eni_rules(engine, (uint32_t)link, rules, 2, &error) == 0);
  return link;
}

static int add_tunnel(hp_engine *engine, uint32_t eni, uint8_t how) {
  hp_tunnel_config c = {.eni = eni, .address = INSIDE_ADDRESS, .mtu = 1400, .max_flows = how >> 5};
  return hp_tunnel_add(engine, &c, -1, &error);
}

static void claim(hp_engine *engine, const hp_engine *from, uint32_t number) {
  const hp_link *link = &from->links[number];
  const hp_link_local *local = &from->local[number];
  if (link->kind == HP_LINK_TUNNEL) {
    hp_tunnel_config c = {.eni = link->eni, .address = link->address, .mtu = link->mtu, .max_flows = link->max_flows};
    HOLD(hp_tunnel_claim(engine, number, &c, -1, &error) == (int)number);
    return;
  }
  hp_eni_config c = {.address_count = link->address_count,
                     .mtu = link->mtu,
                     .udp_mapping = link->udp_mapping,
                     .silent = link->silent,
                     .timers = link->timers};
  for (uint32_t i = 0; i < link->address_count; i++)
    c.addresses[i] = from->workers[0].ports.addresses[link->addresses[i]].address;
  HOLD(hp_eni_claim(engine, number, &c, -1, &error) == (int)number);
  HOLD(!local->rules || hp_eni_rules(engine, number, local->rules->rules, local->rules->count, &error) == 0);
}

/* To a successor, as if the process had died. */
static void hand_over(world *w) {
  static const uint8_t kinds[2] = {HP_LINK_ENI, HP_LINK_TUNNEL};
  hp_region_fd regions[HP_MAX_REGIONS];
  hp_engine *old = w->engine;
  uint32_t count = hp_engine_regions(old, regions, HP_MAX_REGIONS);
  w->engine = hp_engine_inherit(&old->config, regions, count, &error);
  HOLD(w->engine);
  for (int i = 0; i < 2; i++)
    for (uint32_t number = 1; number < old->links_used; number++)
      if (old->links[number].kind == kinds[i] && !old->links[number].draining)
        claim(w->engine, old, number);
  HOLD(hp_engine_abandon(w->engine, &error) == 0);
  hp_engine_free(old);
  check_engine(w->engine);
}

static void change_links(world *w) {
  uint8_t what = next8(w);
  translate(w);
  if ((what & 0xf0) == 0xf0)
    hand_over(w);
  else if (what & 1)
    hp_link_remove(w->engine, any_link(w), &error);
  else if (what & 2)
    add_eni(w->engine, 1, what);
  else if (what & 4)
    hp_link_drain(w->engine, any_link(w), what & 8 ? HP_DRAIN_RESET : HP_DRAIN_CLOSE, &error);
  else
    add_tunnel(w->engine, any_link(w), what & 0x1f);
}

/* Another worker has all slices but one: so ports run out within reach. */
static void leave_one_slice(hp_ports *all) {
  for (uint32_t number = 0; number < all->count; number++) {
    hp_address *address = &all->addresses[number];
    memset(all->leases[number].owner, 2, HP_SLICES);
    all->leases[number].owner[address->slices[0]] = 1;
    address->leased = 1;
    address->chosen = 1ull << address->slices[0];
  }
}

static void set_up(world *w) {
  uint8_t flows = next8(w), how = next8(w), more = next8(w);
  hp_config config = {.max_flows = flows == 0xff ? 1200 : 1 + flows % 50u,
                      .max_mappings = more & 15,
                      .max_links = MAX_LINKS,
                      .max_addresses = 4,
                      .drop_records = 64,
                      .refusal_rate = 1 + (more >> 4 & 3),
                      .port_quarantine = 1000,
                      .seed = 1,
                      .workers = flows != 0xff && more & 0x40 ? 2 : 1};
  w->engine = hp_engine_new(&config, &error);
  HOLD(w->engine);
  /* Not the clock's time, so that an input always does the same; soon the low 32 bits turn over. */
  w->now = more & 0x80 ? 0x1ffffe000 : 0x100000000;
  for (uint32_t i = 0; i < config.workers; i++)
    w->engine->workers[i].now = w->engine->workers[i].swept_at = w->now;
  HOLD(add_eni(w->engine, flows == 0xff ? 1 : 2, how) == 1 && add_eni(w->engine, 1, more) == 2);
  if (flows == 0xff)
    leave_one_slice(&w->engine->workers[0].ports);
  HOLD(add_tunnel(w->engine, 1, 0) == 3 && add_tunnel(w->engine, 1, how) == 4 && add_tunnel(w->engine, 2, 0) == 5);
}

/* ---- the end ---- */

/* Of links that stay: those of a removed one are over, though the sweep has not come to them yet. */
static uint32_t shown_flows(hp_engine *engine) {
  uint32_t shown = 0;
  for (uint32_t link = 1; link < engine->links_used; link++)
    if (engine->links[link].kind == HP_LINK_TUNNEL && !engine->links[link].draining &&
        !engine->links[engine->links[link].eni].draining)
      shown += hp_link_flows(engine, link);
  return shown;
}

static void look(world *w) {
  static hp_flow_info infos[2000];
  static hp_drop drops[100];
  uint32_t flow_cursor = 0;
  uint64_t drop_cursor = 0;
  uint32_t count = hp_flows(w->engine, &flow_cursor, infos, 2000);
  HOLD(count == shown_flows(w->engine));
  for (uint32_t i = 0; i < count; i++)
    HOLD(infos[i].started <= w->now && infos[i].last_seen >= infos[i].started && infos[i].last_seen <= w->now &&
         infos[i].expires >= infos[i].started);
  count = hp_drops(w->engine, &drop_cursor, drops, 100);
  HOLD(drop_cursor == w->engine->shared->drop_count && count == (drop_cursor < 64 ? drop_cursor : 64));
  for (uint32_t i = 0; i < count; i++)
    HOLD(drops[i].number == drop_cursor - count + 1 + i && drops[i].reason && drops[i].reason < HP_REASON_COUNT);
}

static void tear_down(world *w) {
  hp_engine *engine = w->engine;
  for (int round = 0; round < 2; round++) /* tunnels first: an ENI with tunnels stays */
    for (uint32_t link = engine->links_used - 1; link; link--)
      hp_link_remove(engine, link, &error);
  for (int round = 0; round < 2; round++)
    HOLD(hp_sweep(engine, w->now, &error) >= 0);
  check_engine(engine);
  for (uint32_t i = 0; i < engine->config.workers; i++) {
    const hp_worker *worker = &engine->workers[i];
    HOLD(worker->flows.control->live == 0 && worker->mappings.control->live == 0 && worker->ports.dense_live == 0);
  }
  HOLD(engine->draining == 0 && engine->free_count == engine->links_used - 1);
  hp_engine_free(engine);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
  for (int i = 1; i < *argc; i++)
    if (strncmp((*argv)[i], "-seeds=", 7) == 0)
      exit(write_seeds((*argv)[i] + 7));
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *program, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *program, size_t size) {
  static void (*const steps[16])(world *) = {
      from_inside, from_inside, from_inside,      from_inside,      from_flow, from_flow, from_flow,    from_flow,
      from_flow,   plain_bytes, error_about_flow, error_about_flow, pass_time, sweep,     change_links, burst};
  static world w;
  w = (world){.at = program, .end = program + size};
  set_up(&w);
  for (int left = 400; left && !ended(&w); left--)
    steps[next8(&w) & 15](&w);
  translate(&w);
  check_engine(w.engine);
  look(&w);
  tear_down(&w);
  return 0;
}
