// grpcload: closed- and open-loop load for Open Inference Protocol gRPC servers, one thread on libnghttp2.
// The README says what each option means; the comments here say why the code is the way it is.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SERVICE "/inference.GRPCInferenceService/"
#define ID_MARK "~~~~~~~~"                            // request id placeholder: replaced by 8 hex digits
#define SEQUENCE_MARK "\xff\xff\xff\xff\xff\xff\xff\xff\x7f"  // sequence_id placeholder: 2^63-1 as a varint, 9 bytes
#define GROUP_MARK "@@@@@@@@@@@@@@@@"                  // text placeholder: replaced by 16 hex digits of the sequence's number
#define WINDOW ((1 << 30) - 1)                        // never let our own flow control hold a server back
#define OUT_FILL (128 << 10)                          // gather this much before one write()
#define OUT_SIZE (OUT_FILL + (64 << 10))              // nghttp2 hands out at most one 16 KiB frame beyond it

enum Fault { OK, GRPC, HTTP, NO_STATUS, RESET, EARLY_CLOSE, MALFORMED, EXTRA, STREAM_ERROR, MISMATCH, LOST, UNANSWERED, FAULTS };
static const char *const fault_name[FAULTS] = {"ok", "grpc", "http_status", "missing_grpc_status", "stream_reset", "early_close",
  "malformed_reply", "unexpected_reply", "stream_error_message", "mismatch", "connection_lost", "unanswered"};

typedef struct { const uint8_t *data; uint32_t size; int id_at, sequence_at; uint32_t *groups; size_t group_count; } Frame;  // offsets of placeholders, -1: none
typedef struct { double *at; size_t head, count, size; } Fifo;         // intended send times, in order
typedef struct { double due; uint32_t want, group, tag; } Flight;      // one unanswered message
typedef struct { float ms; uint32_t group; } Sample;
typedef struct Conn Conn;

// A slot owns one HTTP/2 stream at a time; connections x streams slots make the concurrency.
typedef struct {
  Conn *conn;
  Fifo own, *due;                    // open loop: where this slot's arrivals queue (its own queue, or the common one)
  int32_t call;                      // HTTP/2 stream of the open call, 0: none
  int deferred, ended, waiting;      // it has nothing to send yet; its last byte is handed over; the slot is in the idle ring
  int units;                         // messages (or whole sequences) started in this call
  const uint8_t *tx; size_t tx_left; // rest of the message being sent
  uint8_t *scratch;                  // patched copy, for bodies with placeholders
  Flight *flight; int flights;
  uint8_t *rx; size_t rx_count, rx_size;
  int http, status, replies; enum Fault verdict;
  int step, length; uint32_t variant; int64_t sequence;
} Slot;

struct Conn { int fd, dead, dirty, blocked, refused, calls; nghttp2_session *h2; Slot *slots; size_t out_count, out_at; uint8_t out[OUT_SIZE]; };

static struct {
  const char *host, *port, *path, *bodies, *expect;
  int connections, streams, stream, messages, inflight, sequence, random, per_body, allow_errors, unit_limit;
  double seconds, warmup, rate, drain, tolerance; uint64_t seed;
} cfg = {.host = "127.0.0.1", .port = "8001", .connections = 1, .streams = 1, .messages = -1, .inflight = 1, .seconds = 5, .drain = 10,
         .tolerance = 1e-4, .seed = 1};

static Conn *conns; static Slot **idle; static size_t idle_head, idle_count, slot_count;
static Frame *body, *want; static uint32_t bodies, wants, variants, largest;
static Fifo common; static Sample *sample; static size_t samples, sample_size;
static long fault[FAULTS], grpc_code[18], sequences, measured, measured_ok, answered, in_window, bytes_in, bytes_out, measured_in, measured_out; static int calls, alive, shown;
static double begin_at, from, to, max_lag, next_arrival; static int stopping, epoll; static volatile sig_atomic_t interrupts;
static uint64_t random_state; static uint32_t turn, next_tag; static int64_t next_sequence; static char authority[300];

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec; }
static void on_interrupt(int number) { (void)number; interrupts++; }
static void die(const char *format, ...) {
  va_list a; va_start(a, format); fputs("grpcload: ", stderr); vfprintf(stderr, format, a); fputc('\n', stderr); va_end(a); exit(2);
}
static void note(const char *what, const uint8_t *text, size_t n) {   // a few examples are enough to find the cause
  if (shown++ < 5) fprintf(stderr, "grpcload: %s: %.*s\n", what, (int)(n < 400 ? n : 400), (const char *)text);
}
static void *grown(void *p, size_t *size, size_t item, size_t need) {
  if (need <= *size) return p;
  while (*size < need) *size = *size ? *size * 2 : 64;
  if (!(p = realloc(p, *size * item))) die("out of memory");
  return p;
}
static uint64_t random_u64(void) {   // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u; z = (z ^ z >> 27) * 0x94d049bb133111ebu; return z ^ z >> 31;
}
static uint32_t random_below(uint32_t n) { return (uint32_t)((random_u64() >> 32) * n >> 32); }
static double exponential(double rate) { return -log(1 - (double)(random_u64() >> 11) * 0x1p-53) / rate; }
static uint32_t pick(uint32_t n) { return cfg.random ? random_below(n) : turn++ % n; }

static void push(Fifo *f, double at) {
  if (f->head > 4096 && f->head > f->count) { memmove(f->at, f->at + f->head, f->count * sizeof *f->at); f->head = 0; }
  f->at = grown(f->at, &f->size, sizeof *f->at, f->head + f->count + 1); f->at[f->head + f->count++] = at;
}
static double pop(Fifo *f) { f->count--; return f->at[f->head++]; }

static Frame *load_frames(const char *name, uint32_t *count) {
  FILE *f = fopen(name, "rb"); if (!f) die("cannot open %s: %s", name, strerror(errno));
  uint8_t *data = NULL; size_t size = 0, used = 0, got;
  do { data = grown(data, &size, 1, used + (1 << 16)); got = fread(data + used, 1, size - used, f); used += got; } while (got);
  fclose(f);
  Frame *frames = NULL; size_t room = 0; *count = 0;
  for (size_t at = 0; at < used;) {
    if (used - at < 5) die("%s: truncated prefix at byte %zu", name, at);
    uint8_t *p = data + at; uint32_t n = (uint32_t)p[1] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 8 | p[4];
    if (p[0] != 0 || n > used - at - 5) die("%s: no uncompressed gRPC frame at byte %zu", name, at);
    frames = grown(frames, &room, sizeof *frames, *count + 1u);
    uint8_t *id = memmem(p, n + 5, ID_MARK, 8), *sequence = memmem(p, n + 5, SEQUENCE_MARK, 9);
    Frame *frame = frames + (*count)++; *frame = (Frame){p, n + 5, id ? (int)(id - p) : -1, sequence ? (int)(sequence - p) : -1, NULL, 0};
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

// ---- outcomes ----

static void count_fault(enum Fault f, int status) { fault[f]++; if (f == GRPC) grpc_code[status >= 0 && status <= 16 ? status : 17]++; }

// A closed loop is measured by when answers come, an open loop by when requests were due: counting only the answers
// that come in time would leave out exactly those that an overloaded server delays.
static void finish(const Flight *f, enum Fault verdict, int status) {
  double t = now(), at = cfg.rate > 0 ? f->due : t; answered++;
  if (verdict != OK) count_fault(verdict, status);
  else if (t >= from && t < to) in_window++;
  if (at < from || at >= to) return;
  measured++; if (verdict != OK) return;
  measured_ok++; sample = grown(sample, &sample_size, sizeof *sample, samples + 1);
  sample[samples++] = (Sample){(float)((t - f->due) * 1e3), f->group};
}

// Next protobuf field; returns 1 (n bytes at v; n = 0 for a varint), 0 at the end, -1 when malformed.
static int next_field(const uint8_t **p, const uint8_t *end, uint64_t *number, const uint8_t **v, size_t *n) {
  uint64_t word[2] = {0, 0}; int words = 1;
  if (*p == end) return 0;
  for (int w = 0; w < words; w++) {
    for (int shift = 0;; shift += 7) {
      if (*p == end || shift > 63) return -1;
      uint8_t b = *(*p)++; word[w] |= (uint64_t)(b & 127) << shift; if (b < 128) break;
    }
    if (w == 0 && ((word[0] & 7) == 0 || (word[0] & 7) == 2)) words = 2;
  }
  switch (word[0] & 7) { case 0: *n = 0; break; case 1: *n = 8; break; case 2: *n = word[1]; break; case 5: *n = 4; break; default: return -1; }
  if (*n > (size_t)(end - *p)) return -1;
  *number = word[0] >> 3; *v = *p; *p += *n; return 1;
}
static int same_floats(const uint8_t *got, size_t n, const Frame *w, size_t *at) {
  if (n % 4 || n > w->size - *at) return 0;
  for (size_t i = 0; i < n; i += 4) {
    float a, b; memcpy(&a, got + i, 4); memcpy(&b, w->data + *at + i, 4);
    if (!(fabsf(a - b) <= (float)cfg.tolerance * fmaxf(1, fabsf(b)))) return 0;   // so written that NaN fails
  }
  *at += n; return 1;
}
// All float outputs in their order of appearance, raw (field 6) or typed (5.contents.fp32_contents), against frame w.
static enum Fault compare(const uint8_t *p, const uint8_t *end, const Frame *w) {
  uint64_t field, sub; const uint8_t *v, *u, *q; size_t n, m, at = 5; int r;
  while ((r = next_field(&p, end, &field, &v, &n)) > 0) {
    if (field == 6 && !same_floats(v, n, w, &at)) return MISMATCH;
    if (field == 5) for (q = v; next_field(&q, v + n, &sub, &u, &m) > 0;) if (sub == 5) {
      const uint8_t *x, *c = u; size_t k; uint64_t leaf;
      while (next_field(&c, u + m, &leaf, &x, &k) > 0) if (leaf == 6 && !same_floats(x, k, w, &at)) return MISMATCH;
    }
  }
  return r < 0 ? MALFORMED : at == w->size ? OK : MISMATCH;
}

static void wake(Slot *s);

static void take_reply(Slot *s, const uint8_t *p, size_t n, int compressed) {
  const uint8_t *end = p + n, *q, *v, *id = NULL, *error = NULL; size_t m, id_size = 0, error_size = 0; uint64_t field; int r = 0, i = 0;
  s->replies++;
  if (cfg.stream) {   // ModelStreamInferResponse {error_message = 1, infer_response = 2}
    const uint8_t *from_stream = p; q = p; p = end;
    while ((r = next_field(&q, from_stream + n, &field, &v, &m)) > 0) {
      if (field == 1) error = v, error_size = m;
      if (field == 2) p = v, end = v + m;
    }
  }
  for (q = p; r == 0 && next_field(&q, end, &field, &v, &m) > 0;) if (field == 3) id = v, id_size = m;
  if (id_size == 8) {   // answers on one stream may be out of order: the echoed id says whose it is
    char text[9] = ""; memcpy(text, id, 8); uint32_t tag = (uint32_t)strtoul(text, NULL, 16);
    for (int k = 0; k < s->flights; k++) if (s->flight[k].tag == tag) { i = k; break; }
  }
  if (i >= s->flights || (!cfg.stream && s->replies > 1)) { if (cfg.stream) count_fault(EXTRA, 0); return; }
  Flight f = s->flight[i]; enum Fault verdict = r < 0 || compressed ? MALFORMED : OK;
  if (verdict == OK && error_size) { verdict = STREAM_ERROR; note("error_message", error, error_size); }
  if (verdict == OK && f.tag) {
    char text[9]; snprintf(text, sizeof text, "%08x", f.tag);
    if (id_size != 8 || memcmp(id, text, 8)) { verdict = MISMATCH; note("wrong or missing id", id ? id : p, id_size); }
  }
  if (verdict == OK && want && (verdict = compare(p, end, want + f.want)) == MISMATCH && shown++ < 5)
    fprintf(stderr, "grpcload: mismatch on body %u\n", f.group);
  if (!cfg.stream) { s->verdict = verdict; return; }   // a unary call is over with its trailers, not with its message
  memmove(s->flight + i, s->flight + i + 1, (size_t)(--s->flights - i) * sizeof f);
  finish(&f, verdict, 0); wake(s);
}

// ---- calls ----

// When stopping, open sequences are still finished: an abandoned one would hold server state into the next run.
static int has_work(const Slot *s) { return cfg.rate > 0 ? s->due->count || (stopping && s->step) : !stopping || s->step; }
static int all_started(const Slot *s) { return (cfg.unit_limit && s->units == cfg.unit_limit) || (stopping && !has_work(s)); }

static int start_message(Slot *s) {
  if (!has_work(s)) return 0;
  double t = now(); Flight f = {.due = s->due->count ? pop(s->due) : t}; uint32_t b;
  if (t - f.due > max_lag && f.due >= from && f.due < to) max_lag = t - f.due;
  if (cfg.sequence) {
    if (s->step == 0) { s->sequence = next_sequence++; s->variant = pick(variants); sequences++; }
    b = s->variant * 3 + (s->step == 0 ? 0 : s->step == s->length - 1 ? 2 : 1);
    f.group = (uint32_t)s->step; f.want = s->variant * (wants / variants) + f.group;
    if (++s->step == s->length) { s->step = 0; s->length = cfg.sequence; }
  } else b = f.group = f.want = pick(bodies);
  const Frame *frame = body + b; s->tx = frame->data; s->tx_left = frame->size;
  if (frame->id_at >= 0 || frame->sequence_at >= 0 || frame->group_count) {
    memcpy(s->scratch, frame->data, frame->size); s->tx = s->scratch;
    if (frame->id_at >= 0) {
      char text[9]; if (!++next_tag) next_tag = 1;   // 0 means: no id
      f.tag = next_tag; snprintf(text, sizeof text, "%08x", f.tag); memcpy(s->scratch + frame->id_at, text, 8);
    }
    if (frame->sequence_at >= 0) for (int k = 0; k < 9; k++) s->scratch[frame->sequence_at + k] = (uint8_t)((s->sequence >> 7 * k & 127) | (k < 8 ? 128 : 0));
    if (frame->group_count) {
      char text[17]; snprintf(text, sizeof text, "%016llx", (unsigned long long)s->sequence);
      for (size_t k = 0; k < frame->group_count; k++) memcpy(s->scratch + frame->groups[k], text, 16);
    }
  }
  s->units += !cfg.stream || !cfg.sequence || s->step == 0; s->flight[s->flights++] = f; return 1;
}

static ssize_t on_read(nghttp2_session *h2, int32_t id, uint8_t *out, size_t room, uint32_t *flags, nghttp2_data_source *source, void *user) {
  Slot *s = source->ptr; size_t n = 0; (void)h2; (void)id; (void)user;
  do {
    size_t k = s->tx_left < room - n ? s->tx_left : room - n;
    memcpy(out + n, s->tx, k); n += k; s->tx += k; s->tx_left -= k;
    if (!s->tx_left && all_started(s)) { s->ended = 1; *flags |= NGHTTP2_DATA_FLAG_EOF; return (ssize_t)n; }
  } while (n < room && s->flights < cfg.inflight && start_message(s));
  if (n) return (ssize_t)n;
  s->deferred = 1; return NGHTTP2_ERR_DEFERRED;
}

#define FIELD(n, v) {(uint8_t *)(n), (uint8_t *)(v), sizeof(n) - 1, strlen(v), NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE}
static void wake(Slot *s) {   // the slot may have something to do: go on with its call, or begin the next one
  Conn *c = s->conn; if (c->dead) return;
  if (s->call) { if (s->deferred) { s->deferred = 0; nghttp2_session_resume_data(c->h2, s->call); c->dirty = 1; } return; }
  if (!nghttp2_session_check_request_allowed(c->h2)) { c->refused = 1; return; }   // GOAWAY: the connection is used up
  s->units = s->ended = s->deferred = s->replies = s->http = 0; s->status = -1; s->verdict = OK;
  if (!start_message(s)) {
    if (s->due == &common && !s->waiting) { s->waiting = 1; idle[(idle_head + idle_count++) % slot_count] = s; }
    return;
  }
  nghttp2_nv fields[] = {FIELD(":method", "POST"), FIELD(":scheme", "http"), FIELD(":path", cfg.path), FIELD(":authority", authority),
                         FIELD("content-type", "application/grpc"), FIELD("te", "trailers")};
  nghttp2_data_provider provider = {.source.ptr = s, .read_callback = on_read};
  int32_t id = nghttp2_submit_request(c->h2, NULL, fields, 6, &provider, s);
  if (id < 0) die("nghttp2_submit_request: %s", nghttp2_strerror(id));
  s->call = id; calls++; c->calls++; c->dirty = 1;
}

static int on_header(nghttp2_session *h2, const nghttp2_frame *frame, const uint8_t *name, size_t n, const uint8_t *value, size_t m, uint8_t flags, void *user) {
  Slot *s = nghttp2_session_get_stream_user_data(h2, frame->hd.stream_id); (void)flags; (void)user;   // nghttp2 ends values with NUL
  if (!s) return 0;
  if (n == 11 && !memcmp(name, "grpc-status", 11)) s->status = atoi((const char *)value);
  else if (n == 12 && !memcmp(name, "grpc-message", 12) && m) note("grpc-message", value, m);
  else if (n == 7 && !memcmp(name, ":status", 7)) s->http = atoi((const char *)value);
  return 0;
}
static int on_data(nghttp2_session *h2, uint8_t flags, int32_t id, const uint8_t *data, size_t n, void *user) {
  Slot *s = nghttp2_session_get_stream_user_data(h2, id); size_t at = 0; (void)flags; (void)user;
  if (!s) return 0;
  s->rx = grown(s->rx, &s->rx_size, 1, s->rx_count + n); memcpy(s->rx + s->rx_count, data, n); s->rx_count += n;
  while (s->rx_count - at >= 5) {
    const uint8_t *p = s->rx + at; size_t size = (size_t)p[1] << 24 | (size_t)p[2] << 16 | (size_t)p[3] << 8 | p[4];
    if (s->rx_count - at - 5 < size) break;
    take_reply(s, p + 5, size, p[0]); at += 5 + size;
  }
  memmove(s->rx, s->rx + at, s->rx_count -= at); return 0;
}
static int on_frame(nghttp2_session *h2, const nghttp2_frame *frame, void *user) {
  Slot *s = nghttp2_session_get_stream_user_data(h2, frame->hd.stream_id); (void)user;
  // A server may end a stream that we still send on and leave the reset to us: without it the stream would stay half open.
  if (s && s->call && !s->ended && (frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) && frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
    nghttp2_submit_rst_stream(h2, 0, frame->hd.stream_id, NGHTTP2_NO_ERROR);
  return 0;
}
static int on_close(nghttp2_session *h2, int32_t id, uint32_t code, void *user) {
  Slot *s = nghttp2_session_get_stream_user_data(h2, id); (void)user;
  if (!s) return 0;
  enum Fault f = s->http && s->http != 200 ? HTTP : s->status > 0 ? GRPC : s->status == 0 ? OK : code ? RESET : NO_STATUS;
  if (f == OK && !cfg.stream) f = s->replies == 1 ? s->verdict : MALFORMED;
  if (f == OK && cfg.stream) f = s->rx_count ? MALFORMED : s->flights ? UNANSWERED : s->ended ? OK : EARLY_CLOSE;
  if (f != OK && !s->flights) count_fault(f, s->status);
  for (int i = 0; i < s->flights; i++) finish(s->flight + i, f, s->status);
  if (f != OK && cfg.stream) { s->step = 0; s->length = cfg.sequence; }   // the sequence broke with its stream
  s->call = s->flights = 0; s->tx_left = s->rx_count = 0; calls--; s->conn->calls--;
  wake(s); return 0;
}

// ---- connections ----

static void lose(Conn *c, const char *why) {
  if (c->dead) return;
  note("connection lost", (const uint8_t *)why, strlen(why)); c->dead = 1; alive--; close(c->fd);
  for (int k = 0; k < cfg.streams; k++) {
    Slot *s = c->slots + k; if (s->call) calls--;
    for (int i = 0; i < s->flights; i++) finish(s->flight + i, LOST, 0);
    while (s->own.count) { Flight f = {.due = pop(&s->own)}; finish(&f, LOST, 0); }
    s->call = s->flights = 0;
  }
  if (!fault[LOST]) count_fault(LOST, 0);   // a lost connection is an error even when nothing was on it
}
static void flush_out(Conn *c) {
  c->dirty = 0;
  while (!c->dead) {
    while (c->out_count < OUT_FILL) {
      const uint8_t *p; ssize_t n = nghttp2_session_mem_send(c->h2, &p);
      if (n < 0) { lose(c, nghttp2_strerror((int)n)); return; }
      if (n == 0) break;
      if (c->out_count + (size_t)n > OUT_SIZE) die("frame of %zd bytes does not fit", n);
      memcpy(c->out + c->out_count, p, (size_t)n); c->out_count += (size_t)n;
    }
    int blocked = 0;
    if (c->out_at < c->out_count) {
      ssize_t w = send(c->fd, c->out + c->out_at, c->out_count - c->out_at, MSG_NOSIGNAL);
      if (w > 0) { c->out_at += (size_t)w; bytes_out += w; }
      else if (errno == EAGAIN) blocked = 1;
      else { lose(c, strerror(errno)); return; }
    }
    if (c->out_at == c->out_count) c->out_at = c->out_count = 0;
    if (blocked != c->blocked) {
      struct epoll_event e = {blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, {.ptr = c}}; epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e); c->blocked = blocked;
    }
    if (blocked || (!c->out_count && !nghttp2_session_want_write(c->h2))) break;
  }
  if (!c->dead && c->refused && !c->calls) lose(c, "server sent GOAWAY");
}
static void take_input(Conn *c) {
  static uint8_t in[256 << 10]; ssize_t n = recv(c->fd, in, sizeof in, 0);
  if (n > 0) {
    bytes_in += n; ssize_t used = nghttp2_session_mem_recv(c->h2, in, (size_t)n);
    if (used < 0) lose(c, nghttp2_strerror((int)used)); else flush_out(c);
    if (!c->dead && !nghttp2_session_want_read(c->h2) && !nghttp2_session_want_write(c->h2)) lose(c, "HTTP/2 protocol error");
  } else if (n == 0) lose(c, "closed by the server");
  else if (errno != EAGAIN) lose(c, strerror(errno));
}
static void connect_all(nghttp2_session_callbacks *callbacks) {
  struct addrinfo hint = {.ai_socktype = SOCK_STREAM}, *address; int r = getaddrinfo(cfg.host, cfg.port, &hint, &address);
  if (r) die("%s:%s: %s", cfg.host, cfg.port, gai_strerror(r));
  for (int i = 0; i < cfg.connections; i++) {
    Conn *c = conns + i; int one = 1; struct timeval limit = {.tv_sec = 5};
    c->fd = socket(address->ai_family, SOCK_STREAM, 0); setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);   // bounds connect()
    if (c->fd < 0 || connect(c->fd, address->ai_addr, address->ai_addrlen)) die("connect to %s:%s: %s", cfg.host, cfg.port, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); fcntl(c->fd, F_SETFL, O_NONBLOCK);
    nghttp2_session_client_new(&c->h2, callbacks, c);
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0}, {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW}};
    nghttp2_submit_settings(c->h2, 0, settings, 2); nghttp2_session_set_local_window_size(c->h2, 0, 0, WINDOW);
    struct epoll_event e = {EPOLLIN, {.ptr = c}}; epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e); alive++; flush_out(c);
  }
  freeaddrinfo(address);
}
static void make_slots(void) {
  slot_count = (size_t)cfg.connections * (size_t)cfg.streams; conns = calloc((size_t)cfg.connections, sizeof *conns); idle = calloc(slot_count, sizeof *idle);
  // Arrivals of plain requests queue in common, for any free slot; those of sequences and streams belong to one slot. Giving each
  // arrival of one Poisson process to a random slot makes the slots independent Poisson processes.
  int shared = !cfg.stream && !cfg.sequence;
  for (int k = 0; k < cfg.streams; k++) for (int i = 0; i < cfg.connections; i++) {
    Conn *c = conns + i; if (!c->slots) c->slots = calloc((size_t)cfg.streams, sizeof *c->slots);
    Slot *s = c->slots + k; size_t index = (size_t)k * (size_t)cfg.connections + (size_t)i;
    s->conn = c; s->due = shared ? &common : &s->own; s->scratch = malloc(largest); s->flight = calloc((size_t)cfg.inflight, sizeof *s->flight);
    // First sequences have staggered lengths, or all slots would start and end theirs in step for the whole run.
    s->length = cfg.sequence ? 2 + (int)((size_t)(cfg.sequence - 2) * (index + 1) / slot_count) : 0;
  }
}

// ---- the run ----

static void wake_all(void) {
  for (int k = 0; k < cfg.streams; k++) for (int i = 0; i < cfg.connections; i++) wake(conns[i].slots + k);
  for (int i = 0; i < cfg.connections; i++) if (conns[i].dirty) flush_out(conns + i);
}
static void arrive(double t) {
  for (; next_arrival <= t && next_arrival < to; next_arrival += exponential(cfg.rate)) {
    if (!cfg.stream && !cfg.sequence) { push(&common, next_arrival); continue; }
    uint32_t k = random_below((uint32_t)slot_count); Slot *s = conns[k % (uint32_t)cfg.connections].slots + k / (uint32_t)cfg.connections;
    if (s->conn->dead) { Flight f = {.due = next_arrival}; finish(&f, LOST, 0); continue; }
    push(&s->own, next_arrival); wake(s);
  }
  while (common.count && idle_count) {
    Slot *s = idle[idle_head]; idle_head = (idle_head + 1) % slot_count; idle_count--; s->waiting = 0; wake(s);
  }
  for (int i = 0; i < cfg.connections; i++) if (conns[i].dirty) flush_out(conns + i);
}
static double cpu_seconds(void) {
  struct rusage r; getrusage(RUSAGE_SELF, &r);
  return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + 1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}
static double run(void) {   // returns the CPU time of the measured interval
  double cpu_from = 0, cpu_to = 0, hard = 0; int counting = 0;
  from = begin_at + cfg.warmup; to = from + cfg.seconds; hard = to + cfg.drain; next_arrival = begin_at + (cfg.rate > 0 ? exponential(cfg.rate) : 0);
  wake_all();
  for (;;) {
    double t = now();
    if (!counting && t >= from) { counting = 1; cpu_from = cpu_seconds(); bytes_in = bytes_out = 0; }
    if (!stopping && (t >= to || interrupts || !alive)) {
      if (cfg.rate > 0) arrive(t);
      stopping = 1; if (t < to) to = t > from ? t : from;
      cpu_to = cpu_seconds(); measured_in = bytes_in; measured_out = bytes_out; hard = t + cfg.drain; wake_all();
    }
    if (stopping && ((!calls && !common.count) || !alive || t >= hard || interrupts > 1)) break;
    if (cfg.rate > 0) arrive(t);
    double until = stopping ? hard : to; if (!counting && from < until) until = from;
    if (cfg.rate > 0 && !stopping && next_arrival < until) until = next_arrival;
    double wait = fmin(fmax(until - now(), 0), 0.1); struct timespec limit = {0, (long)(wait * 1e9)};
    struct epoll_event events[64]; int n = epoll_pwait2(epoll, events, 64, &limit, NULL);   // epoll_wait is too coarse for arrivals
    for (int i = 0; i < n; i++) {
      Conn *c = events[i].data.ptr; if (c->dead) continue;
      if (events[i].events & EPOLLOUT) flush_out(c);
      if (!c->dead && events[i].events & ~(uint32_t)EPOLLOUT) take_input(c);
    }
  }
  for (int i = 0; i < cfg.connections; i++) {
    for (int k = 0; k < cfg.streams; k++) {
      Slot *s = conns[i].slots + k;
      for (int j = 0; j < s->flights; j++) finish(s->flight + j, UNANSWERED, 0);
      while (s->own.count) { Flight f = {.due = pop(&s->own)}; finish(&f, UNANSWERED, 0); }
    }
    if (!conns[i].dead) { nghttp2_session_terminate_session(conns[i].h2, NGHTTP2_NO_ERROR); flush_out(conns + i); }
  }
  while (common.count) { Flight f = {.due = pop(&common)}; finish(&f, alive ? UNANSWERED : LOST, 0); }
  return counting ? cpu_to - cpu_from : 0;
}

static int by_ms(const void *a, const void *b) { float x = ((const Sample *)a)->ms, y = ((const Sample *)b)->ms; return (x > y) - (x < y); }
static int by_group(const void *a, const void *b) {
  uint32_t x = ((const Sample *)a)->group, y = ((const Sample *)b)->group; return x == y ? by_ms(a, b) : x < y ? -1 : 1;
}
static double quantile(const Sample *s, size_t n, double q) { size_t i = (size_t)ceil(q * (double)n); return n ? s[i ? i - 1 : 0].ms : 0; }
static double mean(const Sample *s, size_t n) { double sum = 0; for (size_t i = 0; i < n; i++) sum += s[i].ms; return n ? sum / (double)n : 0; }

static long report(double cpu) {
  long errors = 0; double seconds = to - from; const char *comma = "";
  for (int i = 1; i < FAULTS; i++) errors += fault[i];
  qsort(sample, samples, sizeof *sample, by_ms);
  printf("{\"mode\": \"%s%s\", \"loop\": \"%s\", ", cfg.sequence ? "sequence " : "", cfg.stream ? "stream" : "unary", cfg.rate > 0 ? "open" : "closed");
  if (cfg.rate > 0) printf("\"rate\": %.6g, \"max_send_lag_ms\": %.3f, ", cfg.rate, max_lag * 1e3);
  printf("\"connections\": %d, \"streams\": %d, ", cfg.connections, cfg.streams);
  if (cfg.sequence) printf("\"sequences\": %ld, ", sequences);
  printf("\"requests\": %ld, \"ok\": %ld, \"all_requests\": %ld, \"verified\": %s, \"errors\": {\"total\": %ld", measured, measured_ok, answered, want ? "true" : "false", errors);
  for (int i = 2; i < FAULTS; i++) if (fault[i]) printf(", \"%s\": %ld", fault_name[i], fault[i]);
  if (fault[GRPC]) {
    fputs(", \"grpc\": {", stdout);
    for (int i = 0; i < 18; i++) if (grpc_code[i]) { printf("%s\"%d\": %ld", comma, i == 17 ? -1 : i, grpc_code[i]); comma = ", "; }
    putchar('}');
  }
  printf("}, \"seconds\": %.3f, \"per_second\": %.1f, \"latency_ms\": {\"mean\": %.3f", seconds, seconds > 0 ? (double)in_window / seconds : 0, mean(sample, samples));
  static const struct { const char *name; double q; } marks[] = {{"p50", .5}, {"p90", .9}, {"p95", .95}, {"p99", .99}, {"p999", .999}, {"max", 1}};
  for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) printf(", \"%s\": %.3f", marks[i].name, quantile(sample, samples, marks[i].q));
  printf("}, \"cpu_seconds\": %.3f, \"bytes_sent\": %ld, \"bytes_received\": %ld", cpu, measured_out, measured_in);
  if (cfg.per_body) {
    qsort(sample, samples, sizeof *sample, by_group); fputs(", \"per_body\": [", stdout);
    for (size_t i = 0, j; i < samples; i = j) {
      for (j = i; j < samples && sample[j].group == sample[i].group;) j++;
      printf("%s{\"body\": %u, \"ok\": %zu, \"mean\": %.3f, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}", i ? ", " : "", sample[i].group, j - i,
             mean(sample + i, j - i), quantile(sample + i, j - i, .5), quantile(sample + i, j - i, .99), sample[j - 1].ms);
    }
    putchar(']');
  }
  puts("}"); return errors;
}

// ---- options ----

static double number(const char *name, const char *text, double low) {
  char *end; double v = strtod(text, &end); if (end == text || *end || !(v >= low)) die("--%s %s: expected a number of at least %g", name, text, low);
  return v;
}
static const char usage[] =
  "usage: grpcload --bodies FILE [options]\n"
  "  --host NAME (127.0.0.1)  --port N (8001)  --path PATH (ModelInfer, or ModelStreamInfer with --stream)\n"
  "  --connections N (1)  --streams M per connection (1)  --seconds S (5)  --warmup W (0)  --drain S (10)\n"
  "  --rate R: open loop, Poisson arrivals per second  --order next|random (next)  --seed N (1)\n"
  "  --stream  --messages K per stream (0: the whole run)  --inflight F per stream (1)\n"
  "  --sequence LEN: bodies are start/mid/end triples  --expect FILE  --tolerance X (1e-4)\n"
  "  --allow-errors  --per-body\n";

static void parse(int argc, char **argv) {
  static const struct option options[] = {{"host", 1, 0, 'h'}, {"port", 1, 0, 'p'}, {"path", 1, 0, 'P'}, {"bodies", 1, 0, 'b'}, {"expect", 1, 0, 'e'},
    {"connections", 1, 0, 'c'}, {"streams", 1, 0, 'm'}, {"seconds", 1, 0, 's'}, {"warmup", 1, 0, 'w'}, {"drain", 1, 0, 'd'}, {"rate", 1, 0, 'r'},
    {"order", 1, 0, 'o'}, {"seed", 1, 0, 'S'}, {"stream", 0, 0, 'x'}, {"messages", 1, 0, 'k'}, {"inflight", 1, 0, 'f'}, {"sequence", 1, 0, 'q'},
    {"tolerance", 1, 0, 't'}, {"allow-errors", 0, 0, 'a'}, {"per-body", 0, 0, 'B'}, {"help", 0, 0, '?'}, {0, 0, 0, 0}};
  for (int o, i = 0; (o = getopt_long(argc, argv, "", options, &i)) != -1;) {
    const char *name = options[i].name;
    switch (o) {
      case 'h': cfg.host = optarg; break;
      case 'p': cfg.port = optarg; break;
      case 'P': cfg.path = optarg; break;
      case 'b': cfg.bodies = optarg; break;
      case 'e': cfg.expect = optarg; break;
      case 'c': cfg.connections = (int)number(name, optarg, 1); break;
      case 'm': cfg.streams = (int)number(name, optarg, 1); break;
      case 's': cfg.seconds = number(name, optarg, 1e-3); break;
      case 'w': cfg.warmup = number(name, optarg, 0); break;
      case 'd': cfg.drain = number(name, optarg, 0); break;
      case 'r': cfg.rate = number(name, optarg, 1e-3); break;
      case 'o': if (strcmp(optarg, "next") && strcmp(optarg, "random")) die("--order %s: expected next or random", optarg); cfg.random = *optarg == 'r'; break;
      case 'S': cfg.seed = strtoull(optarg, NULL, 10); break;
      case 'x': cfg.stream = 1; break;
      case 'k': cfg.messages = (int)number(name, optarg, 0); break;
      case 'f': cfg.inflight = (int)number(name, optarg, 1); break;
      case 'q': cfg.sequence = (int)number(name, optarg, 2); break;
      case 't': cfg.tolerance = number(name, optarg, 0); break;
      case 'a': cfg.allow_errors = 1; break;
      case 'B': cfg.per_body = 1; break;
      default: fputs(usage, stderr); exit(2);
    }
  }
  if (!cfg.bodies || optind < argc) { fputs(usage, stderr); exit(2); }
  if (!cfg.stream && (cfg.messages >= 0 || cfg.inflight != 1)) die("--messages and --inflight need --stream");
  if (!cfg.path) cfg.path = cfg.stream ? SERVICE "ModelStreamInfer" : SERVICE "ModelInfer";
  if (cfg.messages < 0) cfg.messages = cfg.stream ? cfg.sequence : 1;
  if (cfg.stream && cfg.sequence && cfg.messages % cfg.sequence) die("--messages %d: expected a multiple of --sequence %d", cfg.messages, cfg.sequence);
  cfg.unit_limit = cfg.stream && cfg.sequence ? cfg.messages / cfg.sequence : cfg.messages;
  random_state = cfg.seed; snprintf(authority, sizeof authority, "%s:%s", cfg.host, cfg.port);
}

int main(int argc, char **argv) {
  parse(argc, argv); body = load_frames(cfg.bodies, &bodies);
  for (uint32_t i = 0; i < bodies; i++) {
    if (body[i].size > largest) largest = body[i].size;
    if (cfg.sequence && body[i].sequence_at < 0 && !body[i].group_count) die("%s: frame %u has no sequence_id placeholder", cfg.bodies, i);
  }
  if (cfg.sequence && bodies % 3) die("%s: %u frames; --sequence needs start, mid and end of each variant", cfg.bodies, bodies);
  variants = cfg.sequence ? bodies / 3 : 1;
  if (cfg.expect) {
    want = load_frames(cfg.expect, &wants);
    if (cfg.sequence ? wants % variants || wants / variants < (uint32_t)cfg.sequence : wants != bodies)
      die("%s: %u frames do not fit %u bodies%s", cfg.expect, wants, bodies, cfg.sequence ? " (one for every step of every variant)" : "");
  }
  struct timespec t; clock_gettime(CLOCK_REALTIME, &t);   // ids are new in every run, and stay above 2^56 so that 9 bytes is their own length
  next_sequence = ((int64_t)1 << 62) + (((int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000) << 20);
  struct sigaction action = {.sa_handler = on_interrupt}; sigaction(SIGINT, &action, NULL); sigaction(SIGTERM, &action, NULL);
  prctl(PR_SET_TIMERSLACK, 1000UL);   // the default of 50 us would show in open-loop latencies
  nghttp2_session_callbacks *callbacks; nghttp2_session_callbacks_new(&callbacks);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
  sample = grown(sample, &sample_size, sizeof *sample, 1 << 16);
  epoll = epoll_create1(0); make_slots(); connect_all(callbacks); begin_at = now();
  long errors = report(run());
  return (errors || !measured_ok) && !cfg.allow_errors;
}
