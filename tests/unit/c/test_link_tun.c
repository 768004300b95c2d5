/* test_link_tun.c: which descriptors are taken, and which I/O engine. Needs root; makes its own namespace. */
#include "io_fixture.h"

static void test_choose(void **state) {
  hp_error error = {0};
  (void)state;
  assert_ptr_equal(hp_io_choose(HP_IO_AUTO, &error), *hp_io_probe(HP_IO_URING) ? &hp_io_epoll : &hp_io_uring);
  assert_ptr_equal(hp_io_choose(HP_IO_EPOLL, &error), &hp_io_epoll);
  assert_null(hp_io_choose(7, &error));
  assert_non_null(strstr(error.text, "choose"));
  assert_string_equal(hp_io_name(HP_IO_URING), "io_uring");
  assert_string_equal(hp_io_name(HP_IO_EPOLL), "epoll");
  assert_string_equal(hp_io_probe(HP_IO_AUTO), "");
}

static void check_refuses(int fd, const char *word) {
  hp_error error = {0};
  if (hp_link_tun_check(fd, &error) != -1)
    fail_msg("accepted what should be refused with a word about %s", word);
  assert_null(strchr(error.text, '\n'));
  if (!strstr(error.text, word))
    fail_msg("\"%s\" does not speak of %s", error.text, word);
}

static void test_tun_check(void **state) {
  static const struct {
    short flags;
    const char *word;
  } refused[] = {{IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, "IFF_TUN"},
                 {IFF_TUN | IFF_VNET_HDR, "IFF_NO_PI"},
                 {IFF_TUN | IFF_NO_PI, "IFF_VNET_HDR"}};
  (void)state;

  check_refuses(-1, "Bad file descriptor");
  check_refuses(STDERR_FILENO, "not a TUN");
  int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  MUST(fd);
  check_refuses(fd, "TUNSETIFF");
  close(fd);
  fd = open("/dev/net/tun", O_RDONLY | O_CLOEXEC);
  MUST(fd);
  check_refuses(fd, "O_RDWR");
  close(fd);
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
    struct ifreq device = device_named("io3");
    device.ifr_flags = refused[i].flags;
    fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    MUST(fd);
    MUST(ioctl(fd, TUNSETIFF, &device));
    check_refuses(fd, refused[i].word);
    set_flags("io3", IFF_UP); /* it makes no difference */
    check_refuses(fd, refused[i].word);
    close(fd);
  }
  fd = new_tun("io3", NULL, NULL, 0, OFFLOADS);
  int header = 12;
  hp_error error = {0};
  MUST(ioctl(fd, TUNSETVNETHDRSZ, &header));
  MUST(fcntl(fd, F_SETFL, O_RDWR));
  assert_int_equal(hp_link_tun_check(fd, &error), 0);
  MUST(ioctl(fd, TUNGETVNETHDRSZ, &header));
  assert_int_equal(header, HP_VNET_HEADER);
  assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
  delete_device("io3");
  check_refuses(fd, "deleted");
  close(fd);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_choose), cmocka_unit_test(test_tun_check)};
  close(new_namespace());
  return cmocka_run_group_tests(tests, NULL, NULL) ? 1 : 0;
}
