// What is counted of each answer, and the report.
#define _GNU_SOURCE
#include "grpcload.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

Sample *sample;
size_t samples;
static size_t sample_size;
long fault[FAULTS], grpc_code[18], measured, measured_ok, answered, in_window;
static const char *const fault_name[FAULTS] = {"ok",
                                               "grpc",
                                               "http_status",
                                               "missing_grpc_status",
                                               "stream_reset",
                                               "early_close",
                                               "malformed_reply",
                                               "unexpected_reply",
                                               "stream_error_message",
                                               "mismatch",
                                               "connection_lost",
                                               "unanswered"};

void count_fault(enum Fault f, int status) {
  fault[f]++;
  if (f == GRPC) grpc_code[status >= 0 && status <= 16 ? status : 17]++;
}

// A closed loop is measured by when answers come, an open loop by when requests were due: counting only the answers
// that come in time would leave out exactly those that an overloaded server delays.
void finish(const Flight *f, enum Fault verdict, int status) {
  double t = now(), at = settings.rate > 0 ? f->due : t;
  answered++;
  if (verdict != OK)
    count_fault(verdict, status);
  else if (t >= from && t < to)
    in_window++;
  if (at < from || at >= to) return;
  measured++;
  if (verdict != OK) return;
  measured_ok++;
  sample = grown(sample, &sample_size, sizeof *sample, samples + 1);
  sample[samples++] = (Sample){(float)((t - f->due) * 1e3), f->group};
}

static int by_ms(const void *a, const void *b) {
  float x = ((const Sample *)a)->ms, y = ((const Sample *)b)->ms;
  return (x > y) - (x < y);
}

static int by_group(const void *a, const void *b) {
  uint32_t x = ((const Sample *)a)->group, y = ((const Sample *)b)->group;
  return x == y ? by_ms(a, b) : x < y ? -1 : 1;
}

static double quantile(const Sample *s, size_t n, double q) {
  size_t i = (size_t)ceil(q * (double)n);
  return n ? s[i ? i - 1 : 0].ms : 0;
}

static double mean(const Sample *s, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += s[i].ms;
  return n ? sum / (double)n : 0;
}

long report(double cpu) {
  long errors = 0;
  double seconds = to - from;
  const char *comma = "";
  for (int i = 1; i < FAULTS; i++) errors += fault[i];
  qsort(sample, samples, sizeof *sample, by_ms);
  printf("{\"mode\": \"%s%s\", \"loop\": \"%s\", ", settings.sequence ? "sequence " : "",
         settings.stream ? "stream" : "unary", settings.rate > 0 ? "open" : "closed");
  if (settings.rate > 0) printf("\"rate\": %.6g, \"max_send_lag_ms\": %.3f, ", settings.rate, max_lag * 1e3);
  printf("\"connections\": %d, \"streams\": %d, ", settings.connections, settings.streams);
  if (settings.sequence) printf("\"sequences\": %ld, ", sequences);
  printf("\"requests\": %ld, \"ok\": %ld, \"all_requests\": %ld, \"verified\": %s, \"errors\": {\"total\": %ld",
         measured, measured_ok, answered, want ? "true" : "false", errors);
  for (int i = 2; i < FAULTS; i++)
    if (fault[i]) printf(", \"%s\": %ld", fault_name[i], fault[i]);
  if (fault[GRPC]) {
    fputs(", \"grpc\": {", stdout);
    for (int i = 0; i < 18; i++)
      if (grpc_code[i]) {
        printf("%s\"%d\": %ld", comma, i == 17 ? -1 : i, grpc_code[i]);
        comma = ", ";
      }
    putchar('}');
  }
  printf("}, \"seconds\": %.3f, \"per_second\": %.1f, \"latency_ms\": {\"mean\": %.3f", seconds,
         seconds > 0 ? (double)in_window / seconds : 0, mean(sample, samples));
  static const struct {
    const char *name;
    double q;
  } marks[] = {
      {"p50",  .5  },
      {"p90",  .9  },
      {"p95",  .95 },
      {"p99",  .99 },
      {"p999", .999},
      {"max",  1   }
  };
  for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
    printf(", \"%s\": %.3f", marks[i].name, quantile(sample, samples, marks[i].q));
  printf("}, \"cpu_seconds\": %.3f, \"bytes_sent\": %ld, \"bytes_received\": %ld", cpu, measured_out, measured_in);
  if (settings.per_body) {
    qsort(sample, samples, sizeof *sample, by_group);
    fputs(", \"per_body\": [", stdout);
    for (size_t i = 0, j; i < samples; i = j) {
      for (j = i; j < samples && sample[j].group == sample[i].group;) j++;
      printf("%s{\"body\": %u, \"ok\": %zu, \"mean\": %.3f, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}",
             i ? ", " : "", sample[i].group, j - i, mean(sample + i, j - i), quantile(sample + i, j - i, .5),
             quantile(sample + i, j - i, .99), sample[j - 1].ms);
    }
    putchar(']');
  }
  puts("}");
  return errors;
}
