// Calls: what a slot sends, and what becomes of the answers.
#define _GNU_SOURCE
#include "grpcload.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

size_t idle_head, idle_count;
Slot **idle;
int calls;
int64_t next_sequence;
long sequences;
double max_lag;
static uint32_t next_tag;

// One message of a call's answer.
static void take_reply(Slot *s, const uint8_t *p, size_t n, int compressed) {
  const uint8_t *end = p + n, *q, *v, *id = NULL, *error = NULL;
  size_t m, id_size = 0, error_size = 0;
  uint64_t field;
  int r = 0, i = 0;
  s->replies++;
  if (settings.stream) { // ModelStreamInferResponse {error_message = 1, infer_response = 2}
    const uint8_t *from_stream = p;
    q = p;
    p = end;
    while ((r = next_field(&q, from_stream + n, &field, &v, &m)) > 0) {
      if (field == 1) error = v, error_size = m;
      if (field == 2) p = v, end = v + m;
    }
  }
  for (q = p; r == 0 && next_field(&q, end, &field, &v, &m) > 0;)
    if (field == 3) id = v, id_size = m;
  if (id_size == 8) { // answers on one stream may be out of order: the echoed id says whose it is
    char text[9] = "";
    memcpy(text, id, 8);
    uint32_t tag = (uint32_t)strtoul(text, NULL, 16);
    for (int k = 0; k < s->flights; k++)
      if (s->flight[k].tag == tag) {
        i = k;
        break;
      }
  }
  if (i >= s->flights || (!settings.stream && s->replies > 1)) {
    if (settings.stream) count_fault(EXTRA, 0);
    return;
  }
  Flight f = s->flight[i];
  enum Fault verdict = r < 0 || compressed ? MALFORMED : OK;
  if (verdict == OK && error_size) {
    verdict = STREAM_ERROR;
    note("error_message", error, error_size);
  }
  if (verdict == OK && f.tag) {
    char text[9];
    snprintf(text, sizeof text, "%08x", f.tag);
    if (id_size != 8 || memcmp(id, text, 8)) {
      verdict = MISMATCH;
      note("wrong or missing id", id ? id : p, id_size);
    }
  }
  if (verdict == OK && want && (verdict = compare(p, end, want + f.want)) == MISMATCH && may_note())
    fprintf(stderr, "grpcload: mismatch on body %u\n", f.group);
  if (!settings.stream) {
    // A unary call is over with its trailers, not with its message.
    s->verdict = verdict;
    return;
  }
  memmove(s->flight + i, s->flight + i + 1, (size_t)(--s->flights - i) * sizeof f);
  finish(&f, verdict, 0);
  wake(s);
}

// When stopping, open sequences are still finished: an abandoned one would hold server state into the next run.
static int has_work(const Slot *s) {
  return settings.rate > 0 ? s->due->count || (stopping && s->step) : !stopping || s->step;
}

static int all_started(const Slot *s) {
  return (settings.unit_limit && s->units == settings.unit_limit) || (stopping && !has_work(s));
}

// Prepare the next message, if there is one to send now.
static int start_message(Slot *s) {
  if (!has_work(s)) return 0;
  double t = now();
  Flight f = {.due = s->due->count ? pop(s->due) : t};
  uint32_t b;
  if (t - f.due > max_lag && f.due >= from && f.due < to) max_lag = t - f.due;
  if (settings.sequence) {
    if (s->step == 0) {
      s->sequence = next_sequence++;
      s->variant = pick(variants);
      sequences++;
    }
    b = s->variant * 3 + (s->step == 0 ? 0 : s->step == s->length - 1 ? 2 : 1);
    f.group = (uint32_t)s->step;
    f.want = s->variant * (wants / variants) + f.group;
    if (++s->step == s->length) {
      s->step = 0;
      s->length = settings.sequence;
    }
  } else
    b = f.group = f.want = pick(bodies);
  const Frame *frame = body + b;
  s->unsent = frame->data;
  s->unsent_size = frame->size;
  if (frame->id_at >= 0 || frame->sequence_at >= 0 || frame->group_count) {
    memcpy(s->scratch, frame->data, frame->size);
    s->unsent = s->scratch;
    if (frame->id_at >= 0) {
      char text[9];
      if (!++next_tag) next_tag = 1; // 0 means: no id
      f.tag = next_tag;
      snprintf(text, sizeof text, "%08x", f.tag);
      memcpy(s->scratch + frame->id_at, text, 8);
    }
    if (frame->sequence_at >= 0)
      for (int k = 0; k < 9; k++)
        s->scratch[frame->sequence_at + k] = (uint8_t)((s->sequence >> 7 * k & 127) | (k < 8 ? 128 : 0));
    if (frame->group_count) {
      char text[17];
      snprintf(text, sizeof text, "%016llx", (unsigned long long)s->sequence);
      for (size_t k = 0; k < frame->group_count; k++) memcpy(s->scratch + frame->groups[k], text, 16);
    }
  }
  s->units += !settings.stream || !settings.sequence || s->step == 0;
  s->flight[s->flights++] = f;
  return 1;
}

static ssize_t on_read(nghttp2_session *session, int32_t id, uint8_t *out, size_t room, uint32_t *flags,
                       nghttp2_data_source *source, void *user) {
  Slot *s = source->ptr;
  size_t n = 0;
  (void)session;
  (void)id;
  (void)user;
  do {
    size_t k = s->unsent_size < room - n ? s->unsent_size : room - n;
    memcpy(out + n, s->unsent, k);
    n += k;
    s->unsent += k;
    s->unsent_size -= k;
    if (!s->unsent_size && all_started(s)) {
      s->ended = 1;
      *flags |= NGHTTP2_DATA_FLAG_EOF;
      return (ssize_t)n;
    }
  } while (n < room && s->flights < settings.inflight && start_message(s));
  if (n) return (ssize_t)n;
  s->deferred = 1;
  return NGHTTP2_ERR_DEFERRED;
}

#define FIELD(n, v)                                                                                                    \
  {(uint8_t *)(n), (uint8_t *)(v), sizeof(n) - 1, strlen(v),                                                           \
   NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE}
// The slot may have something to do: go on with its call, or begin the next one.
void wake(Slot *s) {
  Connection *c = s->connection;
  if (c->dead) return;
  if (s->call) {
    if (s->deferred) {
      s->deferred = 0;
      nghttp2_session_resume_data(c->session, s->call);
      c->dirty = 1;
    }
    return;
  }
  if (!nghttp2_session_check_request_allowed(c->session)) {
    c->refused = 1; // GOAWAY: the connection is used up
    return;
  }
  s->units = s->ended = s->deferred = s->replies = s->http = 0;
  s->status = -1;
  s->verdict = OK;
  if (!start_message(s)) {
    if (s->due == &common && !s->waiting) {
      s->waiting = 1;
      idle[(idle_head + idle_count++) % slot_count] = s;
    }
    return;
  }
  nghttp2_nv fields[] = {FIELD(":method", "POST"),
                         FIELD(":scheme", "http"),
                         FIELD(":path", settings.path),
                         FIELD(":authority", authority),
                         FIELD("content-type", "application/grpc"),
                         FIELD("te", "trailers")};
  nghttp2_data_provider provider = {.source.ptr = s, .read_callback = on_read};
  int32_t id = nghttp2_submit_request(c->session, NULL, fields, 6, &provider, s);
  if (id < 0) die("nghttp2_submit_request: %s", nghttp2_strerror(id));
  s->call = id;
  calls++;
  c->calls++;
  c->dirty = 1;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t n,
                     const uint8_t *value, size_t m, uint8_t flags, void *user) {
  Slot *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
  (void)flags;
  (void)user;
  if (!s) return 0;
  // nghttp2 ends values with NUL.
  if (n == 11 && !memcmp(name, "grpc-status", 11))
    s->status = atoi((const char *)value);
  else if (n == 12 && !memcmp(name, "grpc-message", 12) && m)
    note("grpc-message", value, m);
  else if (n == 7 && !memcmp(name, ":status", 7))
    s->http = atoi((const char *)value);
  return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t n, void *user) {
  Slot *s = nghttp2_session_get_stream_user_data(session, id);
  size_t at = 0;
  (void)flags;
  (void)user;
  if (!s) return 0;
  s->received = grown(s->received, &s->received_size, 1, s->received_count + n);
  memcpy(s->received + s->received_count, data, n);
  s->received_count += n;
  while (s->received_count - at >= 5) {
    const uint8_t *p = s->received + at;
    size_t size = (size_t)p[1] << 24 | (size_t)p[2] << 16 | (size_t)p[3] << 8 | p[4];
    if (s->received_count - at - 5 < size) break;
    take_reply(s, p + 5, size, p[0]);
    at += 5 + size;
  }
  memmove(s->received, s->received + at, s->received_count -= at);
  return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
  Slot *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
  (void)user;
  // A server may end a stream that we still send on and leave the reset to us: without it the stream would stay half
  // open.
  if (s && s->call && !s->ended && (frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) &&
      frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
    nghttp2_submit_rst_stream(session, 0, frame->hd.stream_id, NGHTTP2_NO_ERROR);
  return 0;
}

static int on_close(nghttp2_session *session, int32_t id, uint32_t code, void *user) {
  Slot *s = nghttp2_session_get_stream_user_data(session, id);
  (void)user;
  if (!s) return 0;
  enum Fault f = s->http && s->http != 200 ? HTTP
                 : s->status > 0           ? GRPC
                 : s->status == 0          ? OK
                 : code                    ? RESET
                                           : NO_STATUS;
  if (f == OK && !settings.stream) f = s->replies == 1 ? s->verdict : MALFORMED;
  if (f == OK && settings.stream)
    f = s->received_count ? MALFORMED : s->flights ? UNANSWERED : s->ended ? OK : EARLY_CLOSE;
  if (f != OK && !s->flights) count_fault(f, s->status);
  for (int i = 0; i < s->flights; i++) finish(s->flight + i, f, s->status);
  if (f != OK && settings.stream) {
    s->step = 0; // the sequence broke with its stream
    s->length = settings.sequence;
  }
  s->call = s->flights = 0;
  s->unsent_size = s->received_count = 0;
  calls--;
  s->connection->calls--;
  wake(s);
  return 0;
}

nghttp2_session_callbacks *call_callbacks(void) {
  nghttp2_session_callbacks *callbacks;
  nghttp2_session_callbacks_new(&callbacks);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
  return callbacks;
}
