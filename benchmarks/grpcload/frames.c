// Messages: the files they come from, and what is in an answer.
#define _GNU_SOURCE
#include "grpcload.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define ID_MARK "~~~~~~~~"                                   // request id placeholder: replaced by 8 hex digits
#define SEQUENCE_MARK "\xff\xff\xff\xff\xff\xff\xff\xff\x7f" // sequence_id placeholder: 2^63-1 as a varint, 9 bytes
#define GROUP_MARK "@@@@@@@@@@@@@@@@" // text placeholder: replaced by 16 hex digits of the sequence's number

Frame *load_frames(const char *name, uint32_t *count) {
  FILE *f = fopen(name, "rb");
  if (!f) die("cannot open %s: %s", name, strerror(errno));
  uint8_t *data = NULL;
  size_t size = 0, used = 0, got;
  do {
    data = grown(data, &size, 1, used + (1 << 16));
    got = fread(data + used, 1, size - used, f);
    used += got;
  } while (got);
  fclose(f);
  Frame *frames = NULL;
  size_t room = 0;
  *count = 0;
  for (size_t at = 0; at < used;) {
    if (used - at < 5) die("%s: truncated prefix at byte %zu", name, at);
    uint8_t *p = data + at;
    uint32_t n = (uint32_t)p[1] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 8 | p[4];
    if (p[0] != 0 || n > used - at - 5) die("%s: no uncompressed gRPC frame at byte %zu", name, at);
    frames = grown(frames, &room, sizeof *frames, *count + 1u);
    uint8_t *id = memmem(p, n + 5, ID_MARK, 8), *sequence = memmem(p, n + 5, SEQUENCE_MARK, 9);
    Frame *frame = frames + (*count)++;
    *frame = (Frame){p, n + 5, id ? (int)(id - p) : -1, sequence ? (int)(sequence - p) : -1, NULL, 0};
    size_t groups = 0;
    for (uint8_t *mark = p; (mark = memmem(mark, (size_t)(p + n + 5 - mark), GROUP_MARK, 16)); mark += 16) {
      frame->groups = grown(frame->groups, &groups, sizeof *frame->groups, frame->group_count + 1);
      frame->groups[frame->group_count++] = (uint32_t)(mark - p);
    }
    at += n + 5;
  }
  if (!*count) die("%s: no frames", name);
  return frames;
}

// Next protobuf field; returns 1 (n bytes at v; n = 0 for a varint), 0 at the end, -1 when malformed.
int next_field(const uint8_t **p, const uint8_t *end, uint64_t *number, const uint8_t **v, size_t *n) {
  uint64_t word[2] = {0, 0};
  int words = 1;
  if (*p == end) return 0;
  for (int w = 0; w < words; w++) {
    for (int shift = 0;; shift += 7) {
      if (*p == end || shift > 63) return -1;
      uint8_t b = *(*p)++;
      word[w] |= (uint64_t)(b & 127) << shift;
      if (b < 128) break;
    }
    if (w == 0 && ((word[0] & 7) == 0 || (word[0] & 7) == 2)) words = 2;
  }
  switch (word[0] & 7) {
  case 0: *n = 0; break;
  case 1: *n = 8; break;
  case 2: *n = word[1]; break;
  case 5: *n = 4; break;
  default: return -1;
  }
  if (*n > (size_t)(end - *p)) return -1;
  *number = word[0] >> 3;
  *v = *p;
  *p += *n;
  return 1;
}

static int same_floats(const uint8_t *got, size_t n, const Frame *w, size_t *at) {
  if (n % 4 || n > w->size - *at) return 0;
  for (size_t i = 0; i < n; i += 4) {
    float a, b;
    memcpy(&a, got + i, 4);
    memcpy(&b, w->data + *at + i, 4);
    if (!(fabsf(a - b) <= (float)settings.tolerance * fmaxf(1, fabsf(b)))) return 0; // so written that NaN fails
  }
  *at += n;
  return 1;
}

// All float outputs in their order of appearance, raw (field 6) or typed (5.contents.fp32_contents), against frame w.
enum Fault compare(const uint8_t *p, const uint8_t *end, const Frame *w) {
  uint64_t field, sub;
  const uint8_t *v, *u, *q;
  size_t n, m, at = 5;
  int r;
  while ((r = next_field(&p, end, &field, &v, &n)) > 0) {
    if (field == 6 && !same_floats(v, n, w, &at)) return MISMATCH;
    if (field == 5)
      for (q = v; next_field(&q, v + n, &sub, &u, &m) > 0;)
        if (sub == 5) {
          const uint8_t *x, *c = u;
          size_t k;
          uint64_t leaf;
          while (next_field(&c, u + m, &leaf, &x, &k) > 0)
            if (leaf == 6 && !same_floats(x, k, w, &at)) return MISMATCH;
        }
  }
  return r < 0 ? MALFORMED : at == w->size ? OK : MISMATCH;
}
