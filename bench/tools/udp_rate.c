/* udp_rate.c: UDP datagrams per second.
 *
 *   udp_rate sink ADDRESS PORT SECONDS SIZE               prints "ready", then one line of JSON
 *   udp_rate source ADDRESS PORT SECONDS SIZE SEGMENTS FLOWS      prints one line of JSON
 *
 * The source sends as fast as the kernel takes datagrams of SIZE payload bytes, 64 messages a call (sendmmsg); with
 * SEGMENTS above 1 a message is a train of that many, cut by the kernel or by whoever receives it (UDP_SEGMENT). With
 * FLOWS above 1 it has as many sockets, and each in turn sends one message, so that neighbours are never of one flow.
 * The sink takes them in trains too (UDP_GRO), so that it is not what is measured, and looks at every one: each carries
 * its flow, its number in it and a word computed from both. The rate is over the time from the first to the last
 * datagram. The sink ends when nothing has come for a while, after SECONDS at the latest.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 /* linux/udp.h */
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { MESSAGES = 64, TRAIN = 65535, SOCKET_BUFFER = 1 << 24, QUIET_MS = 300, LEAST_SIZE = 16, MOST_FLOWS = 256 };

static uint8_t buffers[MESSAGES][TRAIN + 1];
static struct mmsghdr messages[MESSAGES];
static struct iovec vectors[MESSAGES];
static union {
  uint8_t bytes[CMSG_SPACE(sizeof(int))];
  struct cmsghdr header;
} controls[MESSAGES];

static _Noreturn void fail(const char *what) {
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static uint64_t word_for(uint64_t number) { return (number + 1) * 0x9e3779b97f4a7c15u; }

static void set(int socket_fd, int level, int option, int value, const char *what) {
  if (setsockopt(socket_fd, level, option, &value, sizeof value))
    fail(what);
}

static int open_socket(const char *address, const char *port, struct sockaddr_in *name) {
  int socket_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (socket_fd < 0)
    fail("socket");
  *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)strtoul(port, NULL, 10))};
  if (inet_pton(AF_INET, address, &name->sin_addr) != 1)
    fail(address);
  set(socket_fd, SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER, "SO_RCVBUFFORCE");
  set(socket_fd, SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER, "SO_SNDBUFFORCE");
  return socket_fd;
}

/* ---- sink ---- */

typedef struct tally {
  uint64_t received, wrong, late, next[MOST_FLOWS];
  double first, last;
} tally;

static void look_at(tally *seen, const uint8_t *data, size_t length, size_t size) {
  uint64_t number, word;
  seen->received++;
  if (length != size) {
    seen->wrong++;
    return;
  }
  memcpy(&number, data, 8);
  memcpy(&word, data + 8, 8);
  seen->wrong += word != word_for(number);
  uint64_t *next = &seen->next[number % MOST_FLOWS];
  seen->late += number < *next;
  *next = number + 1;
}

/* The size of the datagrams in a message, all but the last of which have it. */
static size_t train_of(struct msghdr *message, size_t length) {
  for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
    if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
      int size;
      memcpy(&size, CMSG_DATA(c), sizeof size);
      return size > 0 ? (size_t)size : length;
    }
  return length;
}

static void take(tally *seen, int socket_fd, size_t size) {
  for (int i = 0; i < MESSAGES; i++) {
    vectors[i] = (struct iovec){buffers[i], TRAIN};
    messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i],
                                          .msg_iovlen = 1,
                                          .msg_control = controls[i].bytes,
                                          .msg_controllen = sizeof controls[i].bytes};
  }
  int count = recvmmsg(socket_fd, messages, MESSAGES, MSG_WAITFORONE, NULL);
  if (count < 0 && errno != EAGAIN && errno != EINTR)
    fail("recvmmsg");
  if (count <= 0)
    return;
  seen->last = now();
  if (seen->received == 0)
    seen->first = seen->last;
  for (int i = 0; i < count; i++) {
    size_t length = messages[i].msg_len, step = train_of(&messages[i].msg_hdr, length);
    for (size_t at = 0; at < length; at += step)
      look_at(seen, buffers[i] + at, length - at < step ? length - at : step, size);
  }
}

static void sink(const char *address, const char *port, double seconds, size_t size) {
  struct sockaddr_in name;
  int socket_fd = open_socket(address, port, &name);
  if (bind(socket_fd, (struct sockaddr *)&name, sizeof name))
    fail("bind");
  set(socket_fd, IPPROTO_UDP, UDP_GRO, 1, "UDP_GRO");
  struct timeval quiet = {.tv_usec = (suseconds_t)QUIET_MS * 1000};
  if (setsockopt(socket_fd, SOL_SOCKET, SO_RCVTIMEO, &quiet, sizeof quiet))
    fail("SO_RCVTIMEO");
  printf("ready\n");
  fflush(stdout);
  tally seen = {0};
  double end = now() + seconds;
  while (now() < end && (seen.received == 0 || now() - seen.last < QUIET_MS / 1000.0))
    take(&seen, socket_fd, size);
  printf("{\"received\": %llu, \"wrong\": %llu, \"late\": %llu, \"seconds\": %.6f}\n",
         (unsigned long long)seen.received, (unsigned long long)seen.wrong, (unsigned long long)seen.late,
         seen.last - seen.first);
  close(socket_fd);
}

/* ---- source ---- */

/* What a source sends, and how far it has come. */
typedef struct course {
  size_t size, segments, flows;
  int sockets[MOST_FLOWS];
  uint64_t sent, busy, rounds; /* rounds: messages of each flow, or batches when there is one */
} course;

static void write_message(const course *c, int message, uint64_t first, size_t flow) {
  for (size_t i = 0; i < c->segments; i++) {
    uint8_t *data = buffers[message] + i * c->size;
    uint64_t number = (first + i) * MOST_FLOWS + flow, word = word_for(number);
    memcpy(data, &number, 8);
    memcpy(data + 8, &word, 8);
  }
}

static void transmit(course *c, int socket_fd, unsigned messages_now) {
  int count = sendmmsg(socket_fd, messages, messages_now, 0);
  if (count > 0)
    c->sent += (uint64_t)count * c->segments;
  else if (errno == ENOBUFS || errno == EAGAIN || errno == EINTR)
    c->busy++;
  else
    fail("sendmmsg");
}

/* One flow: 64 messages a call. Several: one message of each. */
static void transmit_round(course *c) {
  if (c->flows == 1) {
    for (int i = 0; i < MESSAGES; i++)
      write_message(c, i, (c->rounds * MESSAGES + (uint64_t)i) * c->segments, 0);
    transmit(c, c->sockets[0], MESSAGES);
  } else {
    for (size_t flow = 0; flow < c->flows; flow++) {
      write_message(c, 0, c->rounds * c->segments, flow);
      transmit(c, c->sockets[flow], 1);
    }
  }
  c->rounds++;
}

static void source(const char *address, const char *port, double seconds, course *c) {
  for (size_t flow = 0; flow < c->flows; flow++) {
    struct sockaddr_in name;
    c->sockets[flow] = open_socket(address, port, &name);
    if (c->segments > 1)
      set(c->sockets[flow], IPPROTO_UDP, UDP_SEGMENT, (int)c->size, "UDP_SEGMENT");
    if (connect(c->sockets[flow], (struct sockaddr *)&name, sizeof name))
      fail("connect");
  }
  for (int i = 0; i < MESSAGES; i++) {
    vectors[i] = (struct iovec){buffers[i], c->size * c->segments};
    messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
  }
  double start = now();
  while (now() - start < seconds)
    transmit_round(c);
  printf("{\"sent\": %llu, \"busy\": %llu, \"seconds\": %.6f}\n", (unsigned long long)c->sent,
         (unsigned long long)c->busy, now() - start);
}

int main(int count, char **words) {
  static course c;
  double seconds = count > 5 ? strtod(words[4], NULL) : 0;
  c.size = count > 5 ? strtoul(words[5], NULL, 10) : 0;
  c.segments = count > 6 ? strtoul(words[6], NULL, 10) : 1;
  c.flows = count > 7 ? strtoul(words[7], NULL, 10) : 1;
  if (c.size < LEAST_SIZE || c.segments < 1 || c.segments > TRAIN / c.size || seconds <= 0 || c.flows < 1 ||
      c.flows > MOST_FLOWS) {
    fprintf(stderr,
            "usage: udp_rate sink ADDRESS PORT SECONDS SIZE | source ADDRESS PORT SECONDS SIZE SEGMENTS FLOWS\n"
            "SIZE is at least %d, SIZE * SEGMENTS at most %d, FLOWS at most %d\n",
            LEAST_SIZE, TRAIN, MOST_FLOWS);
    return 2;
  }
  if (strcmp(words[1], "sink") == 0)
    sink(words[2], words[3], seconds, c.size);
  else
    source(words[2], words[3], seconds, &c);
  return 0;
}
