// The run: when what is sent, measured and ended.
#define _GNU_SOURCE
#include "grpcload.h"
#include <math.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>

double begin_at, from, to;
int stopping;
Fifo common;
volatile sig_atomic_t interrupts;
long measured_in, measured_out;
static double next_arrival;

static void wake_all(void) {
  for (int k = 0; k < settings.streams; k++)
    for (int i = 0; i < settings.connections; i++) wake(connections[i].slots + k);
  for (int i = 0; i < settings.connections; i++)
    if (connections[i].dirty) flush_out(connections + i);
}

static void arrive(double t) {
  for (; next_arrival <= t && next_arrival < to; next_arrival += exponential(settings.rate)) {
    if (!settings.stream && !settings.sequence) {
      push(&common, next_arrival);
      continue;
    }
    uint32_t k = random_below((uint32_t)slot_count);
    Slot *s = connections[k % (uint32_t)settings.connections].slots + k / (uint32_t)settings.connections;
    if (s->connection->dead) {
      Flight f = {.due = next_arrival};
      finish(&f, LOST, 0);
      continue;
    }
    push(&s->own, next_arrival);
    wake(s);
  }
  while (common.count && idle_count) {
    Slot *s = idle[idle_head];
    idle_head = (idle_head + 1) % slot_count;
    idle_count--;
    s->waiting = 0;
    wake(s);
  }
  for (int i = 0; i < settings.connections; i++)
    if (connections[i].dirty) flush_out(connections + i);
}

static double cpu_seconds(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + 1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

// Send, measure and end; return the processor time of the measured interval.
double run(void) {
  double cpu_from = 0, cpu_to = 0, hard = 0;
  int counting = 0;
  from = begin_at + settings.warmup;
  to = from + settings.seconds;
  hard = to + settings.drain;
  next_arrival = begin_at + (settings.rate > 0 ? exponential(settings.rate) : 0);
  wake_all();
  for (;;) {
    double t = now();
    if (!counting && t >= from) {
      counting = 1;
      cpu_from = cpu_seconds();
      bytes_in = bytes_out = 0;
    }
    if (!stopping && (t >= to || interrupts || !alive)) {
      if (settings.rate > 0) arrive(t);
      stopping = 1;
      if (t < to) to = t > from ? t : from;
      cpu_to = cpu_seconds();
      measured_in = bytes_in;
      measured_out = bytes_out;
      hard = t + settings.drain;
      wake_all();
    }
    if (stopping && ((!calls && !common.count) || !alive || t >= hard || interrupts > 1)) break;
    if (settings.rate > 0) arrive(t);
    double until = stopping ? hard : to;
    if (!counting && from < until) until = from;
    if (settings.rate > 0 && !stopping && next_arrival < until) until = next_arrival;
    double wait = fmin(fmax(until - now(), 0), 0.1);
    struct timespec limit = {0, (long)(wait * 1e9)};
    struct epoll_event events[64];
    int n = epoll_pwait2(epoll, events, 64, &limit, NULL); // epoll_wait is too coarse for arrivals
    for (int i = 0; i < n; i++) {
      Connection *c = events[i].data.ptr;
      if (c->dead) continue;
      if (events[i].events & EPOLLOUT) flush_out(c);
      if (!c->dead && events[i].events & ~(uint32_t)EPOLLOUT) take_input(c);
    }
  }
  for (int i = 0; i < settings.connections; i++) {
    for (int k = 0; k < settings.streams; k++) {
      Slot *s = connections[i].slots + k;
      for (int j = 0; j < s->flights; j++) finish(s->flight + j, UNANSWERED, 0);
      while (s->own.count) {
        Flight f = {.due = pop(&s->own)};
        finish(&f, UNANSWERED, 0);
      }
    }
    if (!connections[i].dead) {
      nghttp2_session_terminate_session(connections[i].session, NGHTTP2_NO_ERROR);
      flush_out(connections + i);
    }
  }
  while (common.count) {
    Flight f = {.due = pop(&common)};
    finish(&f, alive ? UNANSWERED : LOST, 0);
  }
  return counting ? cpu_to - cpu_from : 0;
}
