/* seeds.h: programs that fuzz_translate begins with: one for each way through the engine. */
#ifndef SEEDS_H
#define SEEDS_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct seed {
  const char *name;
  uint32_t length;
  uint8_t program[256];
} seed;

/* Steps: 0 from inside, 4 from a flow, 9 bytes, 10 error, 12 time, 13 sweep, 14 links, 15 burst. */
#define SET_UP 40, 16, 0
#define SHORT_OF_PORTS 0xff, 16, 0
#define SYN_TO_443 0, 0x40, 2, 16, 0, 2
#define DATAGRAM 0, 0x61, 0, 0, 30, 2
#define DNS 0, 0x01, 0, 0, 30, 2
#define PING 0, 2, 0, 0, 40, 2
#define ANSWER(flags, shape, payload) 4, 0, flags, shape, payload
#define SEND(flags, shape, payload) 4, 0, 0x80 | (flags), shape, payload
#define FLUSH 12, 0
#define WAIT(which) 12, which
#define SWEEP 13, 0x80
#define BURST(what, first) 15, what, 63, first
#define SIXTEEN(macro, what)                                                                                           \
  macro(what, 0), macro(what, 1), macro(what, 2), macro(what, 3), macro(what, 4), macro(what, 5), macro(what, 6),      \
      macro(what, 7), macro(what, 8), macro(what, 9), macro(what, 10), macro(what, 11), macro(what, 12),               \
      macro(what, 13), macro(what, 14), macro(what, 15), macro(what, 16)

#define SEED(name, ...)                                                                                                \
  {                                                                                                                    \
    name, sizeof((uint8_t[]){__VA_ARGS__}), { __VA_ARGS__ }                                                            \
  }

static const seed seeds[] = {
    SEED("tcp", SET_UP, SYN_TO_443, FLUSH, ANSWER(0x12, 16, 0), FLUSH, SEND(0x10, 0, 0), SEND(0x18, 0, 90),
         ANSWER(0x10, 0, 200), SEND(0x11, 0, 0), ANSWER(0x11, 0, 0), FLUSH, SEND(0x02, 16, 0), FLUSH,
         ANSWER(0x14, 0, 0), FLUSH, ANSWER(0x02, 0, 0), FLUSH, WAIT(4), SWEEP),
    SEED("tcp-offload", SET_UP, SYN_TO_443, FLUSH, ANSWER(0x12, 17, 0), FLUSH, SEND(0x10, 2, 200), 20,
         ANSWER(0x10, 2, 250), 30, FLUSH),
    SEED("udp", SET_UP, DATAGRAM, DNS, FLUSH, ANSWER(0, 0, 50), ANSWER(0, 1, 9), SEND(0, 3, 7), 4, 1, 0, 0, 9, FLUSH,
         WAIT(3), SWEEP, WAIT(4), SWEEP, DATAGRAM, FLUSH),
    SEED("ping", SET_UP, PING, FLUSH, ANSWER(0, 0, 40), FLUSH, WAIT(3), SWEEP, WAIT(3), SWEEP),
    SEED("errors", SET_UP, SYN_TO_443, DATAGRAM, PING, FLUSH, 10, 0, 1, 0, 40, 0, 10, 1, 1, 0, 40, 0, 10, 2, 1, 0, 40,
         0, 10, 0, 0, 0, 40, 0, 10, 1, 2, 0, 40, 12, 10, 1, 5, 0, 40, 0, 10, 2, 0x13, 0, 40, 0, FLUSH),
    SEED("ttl-mtu", 40, 17, 0, 0, 0x40, 2, 48, 0, 2, 1, 0, 0x61, 0, 0, 255, 2, 0, 0x61, 0, 34, 255, 2, 2, 100, 0, 0x61,
         0, 2, 255, 2, 100, FLUSH, 4, 0, 0, 32, 9, 1, 4, 0, 0, 2, 255, 200, FLUSH),
    SEED("lies", SET_UP, 0, 0x40, 2, 64, 0, 2, 9, 22, 3, 0, 0x61, 0, 64, 30, 2, 2, 35, 7, 34, 9, 0, 0x61, 0, 64, 30, 2,
         12, 9, FLUSH),
    SEED("bytes", SET_UP, 9, 2, 28, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 2, 203, 0, 113, 1, 15, 160, 0,
         53, 0, 8, 0, 0, FLUSH),
    SEED("links", SET_UP, SYN_TO_443, DATAGRAM, FLUSH, 14, 1, 2, ANSWER(0x12, 0, 0), SWEEP, SWEEP, 14, 0, 0, DATAGRAM,
         FLUSH, 14, 2, 14, 1, 5, WAIT(7), SWEEP),
    SEED("drain", SET_UP, SYN_TO_443, DATAGRAM, FLUSH, ANSWER(0x12, 16, 0), SEND(0x10, 0, 0), FLUSH, 14, 4, 3,
         SYN_TO_443, DATAGRAM, PING, SEND(0x18, 0, 9), FLUSH, 14, 12, 3, SEND(0x10, 0, 0), ANSWER(0x10, 0, 90),
         DATAGRAM, PING, FLUSH, SWEEP, ANSWER(0x10, 0, 0), FLUSH, WAIT(2), SWEEP, SEND(0x10, 0, 0), FLUSH),
    SEED("quota-full", 3, 0x50, 0, 15, 1, 20, 0, 15, 9, 20, 0, 15, 0x40, 20, 0, WAIT(2), 15, 0x40, 20, 1, FLUSH),
    SEED("tcp-ports", SHORT_OF_PORTS, SIXTEEN(BURST, 0x40), FLUSH, ANSWER(0x14, 0, 0), FLUSH, WAIT(2), BURST(0x40, 17),
         FLUSH, BURST(0x48, 18), FLUSH, 0, 0x41, 0, 0, 5, 2, FLUSH),
    SEED("udp-ports", SHORT_OF_PORTS, SIXTEEN(BURST, 0x41), FLUSH, BURST(0x61, 3), BURST(0x45, 3), FLUSH, WAIT(5),
         SWEEP, BURST(0x41, 5), FLUSH),
};

static inline int write_seeds(const char *directory) {
  for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
    char path[1000];
    snprintf(path, sizeof path, "%s/%s", directory, seeds[i].name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(seeds[i].program, 1, seeds[i].length, file) != seeds[i].length || fclose(file)) {
      perror(path);
      return 1;
    }
  }
  return 0;
}

#endif
