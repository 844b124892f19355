/* Brings an object by many connections and writes it straight to the disk, and does nothing else.
 *
 * No checksum, no retry, no interpreter, memory that was touched before the clock starts: what it
 * takes is what the machine takes, origin and disk included.
 *
 *     native ADDRESS PORT PATH CONNECTIONS SIZE_BYTES REQUEST_BYTES BLOCK_BYTES FILE
 *
 * REQUEST_BYTES is a multiple of BLOCK_BYTES, and that of the page. Prints seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define WINDOW_BYTES (2 << 20)

static struct sockaddr_in origin = {.sin_family = AF_INET};
static const char *path;
static long size_bytes, request_bytes, block_bytes;
static int file;
static atomic_long next;

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec + at.tv_nsec * 1e-9;
}

static char *touched(void) {
  char *block = mmap(NULL, block_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) err(1, "mmap");
  madvise(block, block_bytes, MADV_HUGEPAGE);
  return memset(block, 1, block_bytes);
}

/* With a window that is wide from the start, as ckptd's are. */
static int connected(void) {
  int one = 1, window = WINDOW_BYTES, sock = socket(AF_INET, SOCK_STREAM, 0);
  if (sock < 0 || connect(sock, (struct sockaddr *)&origin, sizeof origin)) err(1, "connect");
  setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(sock, SOL_SOCKET, SO_RCVLOWAT, &window, sizeof window);
  setsockopt(sock, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one);
  return sock;
}

/* Asks for a range; returns how much of its body came with the headers, in `block`. */
static long begun(int sock, long start, long end, char *block) {
  char said[8192], *body;
  long got = 0;
  int length = snprintf(said, sizeof said,
                        "GET %s HTTP/1.1\r\nHost: origin\r\nRange: bytes=%ld-%ld\r\n\r\n", path,
                        start, end - 1);
  if (write(sock, said, length) != length) err(1, "write");
  do {
    ssize_t count = recv(sock, said + got, sizeof said - 1 - got, 0);
    if (count <= 0) err(1, "recv");
    said[got += count] = 0;
  } while ((body = strstr(said, "\r\n\r\n")) == NULL);
  if (strncmp(said, "HTTP/1.1 206", 12)) errx(1, "%.20s", said);
  body += 4;
  memcpy(block, body, said + got - body);
  return said + got - body;
}

static void *bring(void *memory) {
  char *block = memory;
  int sock = connected();
  for (long start; (start = atomic_fetch_add(&next, request_bytes)) < size_bytes;) {
    long end = start + request_bytes < size_bytes ? start + request_bytes : size_bytes;
    long got = begun(sock, start, end, block);
    for (long at = start; at < end; at += block_bytes, got = 0) {
      long length = end - at < block_bytes ? end - at : block_bytes;
      while (got < length) {
        ssize_t count = recv(sock, block + got, length - got, MSG_WAITALL);
        if (count <= 0) err(1, "recv");
        got += count;
      }
      length = (length + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
      if (pwrite(file, block, length, at) != length) err(1, "pwrite");
    }
  }
  close(sock);
  return NULL;
}

int main(int count, char **words) {
  if (count != 9) errx(2, "not so many words");
  inet_pton(AF_INET, words[1], &origin.sin_addr);
  origin.sin_port = htons(atoi(words[2]));
  path = words[3];
  int connections = atoi(words[4]);
  size_bytes = atol(words[5]), request_bytes = atol(words[6]), block_bytes = atol(words[7]);
  pthread_t *threads = calloc(connections, sizeof *threads);
  char **blocks = calloc(connections, sizeof *blocks);
  for (int i = 0; i < connections; i++) blocks[i] = touched();
  double began = now();
  file = open(words[8], O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0600);
  if (file < 0 || (errno = posix_fallocate(file, 0, size_bytes))) err(1, "%s", words[8]);
  for (int i = 0; i < connections; i++)
    if (pthread_create(&threads[i], NULL, bring, blocks[i])) errx(1, "pthread_create");
  for (int i = 0; i < connections; i++) pthread_join(threads[i], NULL);
  if (ftruncate(file, size_bytes) || fsync(file)) err(1, "%s", words[8]);
  printf("%.6f\n", now() - began);
  return 0;
}
