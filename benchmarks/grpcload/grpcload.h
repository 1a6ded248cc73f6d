// What the files of grpcload share.
#ifndef GRPCLOAD_H
#define GRPCLOAD_H
#include <nghttp2/nghttp2.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

enum Fault {
  OK,
  GRPC,
  HTTP,
  NO_STATUS,
  RESET,
  EARLY_CLOSE,
  MALFORMED,
  EXTRA,
  STREAM_ERROR,
  MISMATCH,
  LOST,
  UNANSWERED,
  FAULTS
};

// A message of a body file or of an expectation file, its prefix included.
typedef struct {
  const uint8_t *data;
  uint32_t size;
  int id_at, sequence_at; // offsets of placeholders, -1: none
  uint32_t *groups;
  size_t group_count; // offsets of placeholders in text
} Frame;
// Intended send times, in order.
typedef struct {
  double *at;
  size_t head, count, size;
} Fifo;
// One unanswered message.
typedef struct {
  double due;
  uint32_t want, group, tag;
} Flight;
// One latency, and which body or step it belongs to.
typedef struct {
  float ms;
  uint32_t group;
} Sample;
typedef struct Connection Connection;

// A slot owns one HTTP/2 stream at a time; connections x streams slots make the concurrency.
typedef struct {
  Connection *connection;
  Fifo own, *due; // open loop: where this slot's arrivals queue (its own queue, or the common one)
  int32_t call;   // HTTP/2 stream of the open call, 0: none
  int deferred;   // it has nothing to send yet
  int ended;      // its last byte is handed over
  int waiting;    // it is in the idle ring
  int units;      // messages (or whole sequences) started in this call
  const uint8_t *unsent;
  size_t unsent_size; // rest of the message being sent
  uint8_t *scratch;   // patched copy, for bodies with placeholders
  Flight *flight;
  int flights;
  uint8_t *received;
  size_t received_count, received_size;
  int http, status, replies;
  enum Fault verdict;
  int step, length;
  uint32_t variant;
  int64_t sequence;
} Slot;

#define OUT_FILL (128 << 10)             // gather this much before one write()
#define OUT_SIZE (OUT_FILL + (64 << 10)) // nghttp2 hands out at most one 16 KiB frame beyond it
struct Connection {
  int fd, dead, dirty, blocked, refused, calls;
  nghttp2_session *session;
  Slot *slots;
  size_t out_count, out_at;
  uint8_t out[OUT_SIZE];
};

// The options; the README says what each means.
struct Settings {
  const char *host, *port, *path, *bodies, *expect;
  int connections, streams, stream, messages, inflight, sequence, random, per_body, allow_errors;
  int unit_limit; // of a call: messages, or sequences; 0: none
  double seconds, warmup, rate, drain, tolerance;
  uint64_t seed;
};
extern struct Settings settings;

// The load.
extern Frame *body, *want;
extern uint32_t bodies, wants, variants, largest;
extern Connection *connections;
extern size_t slot_count;
extern char authority[300];
extern uint64_t random_state;
extern int64_t next_sequence;

// The run.
extern double begin_at, from, to; // from and to bound what is measured
extern int stopping, epoll, calls, alive;
extern volatile sig_atomic_t interrupts;
extern Fifo common; // arrivals for any free slot
extern Slot **idle; // a ring of the slots that wait for one
extern size_t idle_head, idle_count;

// What came of it.
extern Sample *sample;
extern size_t samples;
extern long fault[FAULTS], grpc_code[18], sequences, measured, measured_ok, answered, in_window;
extern long bytes_in, bytes_out, measured_in, measured_out;
extern double max_lag;

// tools.c
double now(void);
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
int may_note(void);
void note(const char *what, const uint8_t *text, size_t n);
void *grown(void *p, size_t *size, size_t item, size_t need);
uint32_t random_below(uint32_t n);
double exponential(double rate);
uint32_t pick(uint32_t n);
void push(Fifo *f, double at);
double pop(Fifo *f);

// frames.c
Frame *load_frames(const char *name, uint32_t *count);
int next_field(const uint8_t **p, const uint8_t *end, uint64_t *number, const uint8_t **v, size_t *n);
enum Fault compare(const uint8_t *p, const uint8_t *end, const Frame *w);

// report.c
void count_fault(enum Fault f, int status);
void finish(const Flight *f, enum Fault verdict, int status);
long report(double cpu);

// calls.c
void wake(Slot *s);
nghttp2_session_callbacks *call_callbacks(void);

// connections.c
void make_slots(void);
void connect_all(nghttp2_session_callbacks *callbacks);
void flush_out(Connection *c);
void take_input(Connection *c);

// run.c
double run(void);
#endif
