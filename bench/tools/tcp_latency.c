/* tcp_latency.c: how long a small question takes, and how many connections a second.
 *
 *   tcp_latency serve ADDRESS PORT SECONDS      prints "ready"; echoes single bytes, ends after SECONDS
 *   tcp_latency ask ADDRESS PORT SECONDS        one byte there and one back, over one connection
 *   tcp_latency connect ADDRESS PORT SECONDS    a new connection for each question, closed by a reset
 *
 * ask and connect print one line of JSON. The reset keeps TIME_WAIT out of the measurement. A question that is not
 * answered for five seconds ends the program with an error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_QUESTIONS = 1 << 20, BACKLOG = 512, PATIENCE = 5 };

static double taken[MOST_QUESTIONS];

static _Noreturn void fail(const char *what) {
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static struct sockaddr_in name_of(const char *address, const char *port) {
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)strtoul(port, NULL, 10))};
  if (inet_pton(AF_INET, address, &name.sin_addr) != 1)
    fail(address);
  return name;
}

static int new_socket(void) {
  int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket_fd < 0)
    fail("socket");
  return socket_fd;
}

static void no_delay(int socket_fd) {
  int on = 1;
  if (setsockopt(socket_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
    fail("TCP_NODELAY");
}

static void serve(const struct sockaddr_in *name, double seconds) {
  int listener = new_socket(), on = 1;
  char byte;
  if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
      bind(listener, (const struct sockaddr *)name, sizeof *name) || listen(listener, BACKLOG))
    fail("listen");
  printf("ready\n");
  fflush(stdout);
  alarm((unsigned)seconds + 1);
  for (;;) {
    int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (connection < 0)
      continue;                                                             /* reset before it was taken */
    (void)setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* fails once it was reset */
    while (read(connection, &byte, 1) == 1 && write(connection, &byte, 1) == 1)
      ;
    close(connection);
  }
}

static int open_connection(const struct sockaddr_in *name) {
  int socket_fd = new_socket();
  struct timeval patience = {.tv_sec = PATIENCE};
  if (setsockopt(socket_fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience))
    fail("SO_RCVTIMEO");
  if (connect(socket_fd, (const struct sockaddr *)name, sizeof *name))
    fail("connect");
  no_delay(socket_fd);
  return socket_fd;
}

static void question(int socket_fd) {
  char byte = 'x';
  if (write(socket_fd, &byte, 1) != 1)
    fail("write");
  if (read(socket_fd, &byte, 1) != 1 || byte != 'x')
    fail("no answer");
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void ask(const struct sockaddr_in *name, double seconds) {
  int socket_fd = open_connection(name);
  size_t count = 0;
  double end = now() + seconds;
  for (double start = now(); start < end && count < MOST_QUESTIONS; count++) {
    question(socket_fd);
    double after = now();
    taken[count] = after - start;
    start = after;
  }
  close(socket_fd);
  qsort(taken, count, sizeof *taken, ascending);
  printf("{\"count\": %zu, \"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f}\n", count, taken[count / 2] * 1e6,
         taken[count * 99 / 100] * 1e6, taken[count - 1] * 1e6);
}

static void connect_often(const struct sockaddr_in *name, double seconds) {
  uint64_t count = 0;
  double start = now();
  struct linger reset = {.l_onoff = 1};
  do {
    int socket_fd = open_connection(name);
    question(socket_fd);
    if (setsockopt(socket_fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset))
      fail("SO_LINGER");
    close(socket_fd);
    count++;
  } while (now() - start < seconds);
  printf("{\"count\": %llu, \"per_second\": %.1f}\n", (unsigned long long)count, (double)count / (now() - start));
}

int main(int count, char **words) {
  double seconds = count > 4 ? strtod(words[4], NULL) : 0;
  if (seconds <= 0) {
    fprintf(stderr, "usage: tcp_latency serve|ask|connect ADDRESS PORT SECONDS\n");
    return 2;
  }
  struct sockaddr_in name = name_of(words[2], words[3]);
  if (strcmp(words[1], "serve") == 0)
    serve(&name, seconds);
  else if (strcmp(words[1], "ask") == 0)
    ask(&name, seconds);
  else
    connect_often(&name, seconds);
  return 0;
}
