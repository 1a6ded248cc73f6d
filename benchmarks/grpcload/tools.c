// Time, chance, errors, memory and queues.
#define _GNU_SOURCE
#include "grpcload.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

uint64_t random_state;

double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

_Noreturn void die(const char *format, ...) {
  va_list a;
  va_start(a, format);
  fputs("grpcload: ", stderr);
  vfprintf(stderr, format, a);
  fputc('\n', stderr);
  va_end(a);
  exit(2);
}

// A few examples of what went wrong are enough to find the cause.
int may_note(void) {
  static int shown;
  return shown++ < 5;
}

void note(const char *what, const uint8_t *text, size_t n) {
  if (may_note()) fprintf(stderr, "grpcload: %s: %.*s\n", what, (int)(n < 400 ? n : 400), (const char *)text);
}

void *grown(void *p, size_t *size, size_t item, size_t need) {
  if (need <= *size) return p;
  while (*size < need) *size = *size ? *size * 2 : 64;
  if (!(p = realloc(p, *size * item))) die("out of memory");
  return p;
}

static uint64_t random_u64(void) { // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

uint32_t random_below(uint32_t n) {
  return (uint32_t)((random_u64() >> 32) * n >> 32);
}

double exponential(double rate) {
  return -log(1 - (double)(random_u64() >> 11) * 0x1p-53) / rate;
}

uint32_t pick(uint32_t n) {
  static uint32_t turn;
  return settings.random ? random_below(n) : turn++ % n;
}

void push(Fifo *f, double at) {
  if (f->head > 4096 && f->head > f->count) {
    memmove(f->at, f->at + f->head, f->count * sizeof *f->at);
    f->head = 0;
  }
  f->at = grown(f->at, &f->size, sizeof *f->at, f->head + f->count + 1);
  f->at[f->head + f->count++] = at;
}

double pop(Fifo *f) {
  f->count--;
  return f->at[f->head++];
}
