// Connections: sockets, and the slots on them.
#define _GNU_SOURCE
#include "grpcload.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define WINDOW ((1 << 30) - 1) // never let our own flow control hold a server back

Connection *connections;
size_t slot_count;
int epoll, alive;
long bytes_in, bytes_out;

static void lose(Connection *c, const char *why) {
  if (c->dead) return;
  note("connection lost", (const uint8_t *)why, strlen(why));
  c->dead = 1;
  alive--;
  close(c->fd);
  for (int k = 0; k < settings.streams; k++) {
    Slot *s = c->slots + k;
    if (s->call) calls--;
    for (int i = 0; i < s->flights; i++) finish(s->flight + i, LOST, 0);
    while (s->own.count) {
      Flight f = {.due = pop(&s->own)};
      finish(&f, LOST, 0);
    }
    s->call = s->flights = 0;
  }
  if (!fault[LOST]) count_fault(LOST, 0); // a lost connection is an error even when nothing was on it
}

void flush_out(Connection *c) {
  c->dirty = 0;
  while (!c->dead) {
    while (c->out_count < OUT_FILL) {
      const uint8_t *p;
      ssize_t n = nghttp2_session_mem_send(c->session, &p);
      if (n < 0) {
        lose(c, nghttp2_strerror((int)n));
        return;
      }
      if (n == 0) break;
      if (c->out_count + (size_t)n > OUT_SIZE) die("frame of %zd bytes does not fit", n);
      memcpy(c->out + c->out_count, p, (size_t)n);
      c->out_count += (size_t)n;
    }
    int blocked = 0;
    if (c->out_at < c->out_count) {
      ssize_t w = send(c->fd, c->out + c->out_at, c->out_count - c->out_at, MSG_NOSIGNAL);
      if (w > 0) {
        c->out_at += (size_t)w;
        bytes_out += w;
      } else if (errno == EAGAIN)
        blocked = 1;
      else {
        lose(c, strerror(errno));
        return;
      }
    }
    if (c->out_at == c->out_count) c->out_at = c->out_count = 0;
    if (blocked != c->blocked) {
      struct epoll_event e = {blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, {.ptr = c}};
      epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
      c->blocked = blocked;
    }
    if (blocked || (!c->out_count && !nghttp2_session_want_write(c->session))) break;
  }
  if (!c->dead && c->refused && !c->calls) lose(c, "server sent GOAWAY");
}

void take_input(Connection *c) {
  static uint8_t in[256 << 10];
  ssize_t n = recv(c->fd, in, sizeof in, 0);
  if (n > 0) {
    bytes_in += n;
    ssize_t used = nghttp2_session_mem_recv(c->session, in, (size_t)n);
    if (used < 0)
      lose(c, nghttp2_strerror((int)used));
    else
      flush_out(c);
    if (!c->dead && !nghttp2_session_want_read(c->session) && !nghttp2_session_want_write(c->session))
      lose(c, "HTTP/2 protocol error");
  } else if (n == 0)
    lose(c, "closed by the server");
  else if (errno != EAGAIN)
    lose(c, strerror(errno));
}

void connect_all(nghttp2_session_callbacks *callbacks) {
  struct addrinfo hint = {.ai_socktype = SOCK_STREAM}, *address;
  int r = getaddrinfo(settings.host, settings.port, &hint, &address);
  if (r) die("%s:%s: %s", settings.host, settings.port, gai_strerror(r));
  for (int i = 0; i < settings.connections; i++) {
    Connection *c = connections + i;
    int one = 1;
    struct timeval limit = {.tv_sec = 5};
    c->fd = socket(address->ai_family, SOCK_STREAM, 0);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); // bounds connect()
    if (c->fd < 0 || connect(c->fd, address->ai_addr, address->ai_addrlen))
      die("connect to %s:%s: %s", settings.host, settings.port, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    nghttp2_session_client_new(&c->session, callbacks, c);
    nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_ENABLE_PUSH,         0     },
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW}
    };
    nghttp2_submit_settings(c->session, 0, settings, 2);
    nghttp2_session_set_local_window_size(c->session, 0, 0, WINDOW);
    struct epoll_event e = {EPOLLIN, {.ptr = c}};
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e);
    alive++;
    flush_out(c);
  }
  freeaddrinfo(address);
}

void make_slots(void) {
  slot_count = (size_t)settings.connections * (size_t)settings.streams;
  connections = calloc((size_t)settings.connections, sizeof *connections);
  idle = calloc(slot_count, sizeof *idle);
  // Arrivals of plain requests queue in common, for any free slot; those of sequences and streams belong to one slot.
  // Giving each arrival of one Poisson process to a random slot makes the slots independent Poisson processes.
  int shared = !settings.stream && !settings.sequence;
  for (int k = 0; k < settings.streams; k++)
    for (int i = 0; i < settings.connections; i++) {
      Connection *c = connections + i;
      if (!c->slots) c->slots = calloc((size_t)settings.streams, sizeof *c->slots);
      Slot *s = c->slots + k;
      size_t index = (size_t)k * (size_t)settings.connections + (size_t)i;
      s->connection = c;
      s->due = shared ? &common : &s->own;
      s->scratch = malloc(largest);
      s->flight = calloc((size_t)settings.inflight, sizeof *s->flight);
      // First sequences have staggered lengths, or all slots would start and end theirs in step for the whole run.
      s->length = settings.sequence ? 2 + (int)((size_t)(settings.sequence - 2) * (index + 1) / slot_count) : 0;
    }
}
