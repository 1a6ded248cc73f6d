// grpcload: closed- and open-loop load for Open Inference Protocol gRPC servers, one thread on libnghttp2.
// The README says what each option means; the comments say why the code is the way it is.
#define _GNU_SOURCE
#include "grpcload.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>

#define SERVICE "/inference.GRPCInferenceService/"

struct Settings settings = {.host = "127.0.0.1",
                            .port = "8001",
                            .connections = 1,
                            .streams = 1,
                            .messages = -1,
                            .inflight = 1,
                            .seconds = 5,
                            .drain = 10,
                            .tolerance = 1e-4,
                            .seed = 1};
Frame *body, *want;
uint32_t bodies, wants, variants, largest;
char authority[300];

static void on_interrupt(int number) {
  (void)number;
  interrupts++;
}

static double number(const char *name, const char *text, double low) {
  char *end;
  double v = strtod(text, &end);
  if (end == text || *end || !(v >= low)) die("--%s %s: expected a number of at least %g", name, text, low);
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
  static const struct option options[] = {
      {"host",         1, 0, 'h'},
      {"port",         1, 0, 'p'},
      {"path",         1, 0, 'P'},
      {"bodies",       1, 0, 'b'},
      {"expect",       1, 0, 'e'},
      {"connections",  1, 0, 'c'},
      {"streams",      1, 0, 'm'},
      {"seconds",      1, 0, 's'},
      {"warmup",       1, 0, 'w'},
      {"drain",        1, 0, 'd'},
      {"rate",         1, 0, 'r'},
      {"order",        1, 0, 'o'},
      {"seed",         1, 0, 'S'},
      {"stream",       0, 0, 'x'},
      {"messages",     1, 0, 'k'},
      {"inflight",     1, 0, 'f'},
      {"sequence",     1, 0, 'q'},
      {"tolerance",    1, 0, 't'},
      {"allow-errors", 0, 0, 'a'},
      {"per-body",     0, 0, 'B'},
      {"help",         0, 0, '?'},
      {0,              0, 0, 0  }
  };
  for (int o, i = 0; (o = getopt_long(argc, argv, "", options, &i)) != -1;) {
    const char *name = options[i].name;
    switch (o) {
    case 'h': settings.host = optarg; break;
    case 'p': settings.port = optarg; break;
    case 'P': settings.path = optarg; break;
    case 'b': settings.bodies = optarg; break;
    case 'e': settings.expect = optarg; break;
    case 'c': settings.connections = (int)number(name, optarg, 1); break;
    case 'm': settings.streams = (int)number(name, optarg, 1); break;
    case 's': settings.seconds = number(name, optarg, 1e-3); break;
    case 'w': settings.warmup = number(name, optarg, 0); break;
    case 'd': settings.drain = number(name, optarg, 0); break;
    case 'r': settings.rate = number(name, optarg, 1e-3); break;
    case 'o':
      if (strcmp(optarg, "next") && strcmp(optarg, "random")) die("--order %s: expected next or random", optarg);
      settings.random = *optarg == 'r';
      break;
    case 'S': settings.seed = strtoull(optarg, NULL, 10); break;
    case 'x': settings.stream = 1; break;
    case 'k': settings.messages = (int)number(name, optarg, 0); break;
    case 'f': settings.inflight = (int)number(name, optarg, 1); break;
    case 'q': settings.sequence = (int)number(name, optarg, 2); break;
    case 't': settings.tolerance = number(name, optarg, 0); break;
    case 'a': settings.allow_errors = 1; break;
    case 'B': settings.per_body = 1; break;
    default: fputs(usage, stderr); exit(2);
    }
  }
  if (!settings.bodies || optind < argc) {
    fputs(usage, stderr);
    exit(2);
  }
  if (!settings.stream && (settings.messages >= 0 || settings.inflight != 1))
    die("--messages and --inflight need --stream");
  if (!settings.path) settings.path = settings.stream ? SERVICE "ModelStreamInfer" : SERVICE "ModelInfer";
  if (settings.messages < 0) settings.messages = settings.stream ? settings.sequence : 1;
  if (settings.stream && settings.sequence && settings.messages % settings.sequence)
    die("--messages %d: expected a multiple of --sequence %d", settings.messages, settings.sequence);
  settings.unit_limit =
      settings.stream && settings.sequence ? settings.messages / settings.sequence : settings.messages;
  random_state = settings.seed;
  snprintf(authority, sizeof authority, "%s:%s", settings.host, settings.port);
}

int main(int argc, char **argv) {
  parse(argc, argv);
  body = load_frames(settings.bodies, &bodies);
  for (uint32_t i = 0; i < bodies; i++) {
    if (body[i].size > largest) largest = body[i].size;
    if (settings.sequence && body[i].sequence_at < 0 && !body[i].group_count)
      die("%s: frame %u has no sequence_id placeholder", settings.bodies, i);
  }
  if (settings.sequence && bodies % 3)
    die("%s: %u frames; --sequence needs start, mid and end of each variant", settings.bodies, bodies);
  variants = settings.sequence ? bodies / 3 : 1;
  if (settings.expect) {
    want = load_frames(settings.expect, &wants);
    if (settings.sequence ? wants % variants || wants / variants < (uint32_t)settings.sequence : wants != bodies)
      die("%s: %u frames do not fit %u bodies%s", settings.expect, wants, bodies,
          settings.sequence ? " (one for every step of every variant)" : "");
  }
  // Ids are new in every run, and stay above 2^56 so that 9 bytes is their own length.
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  next_sequence = ((int64_t)1 << 62) + (((int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000) << 20);
  struct sigaction action = {.sa_handler = on_interrupt};
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  prctl(PR_SET_TIMERSLACK, 1000UL); // the default of 50 us would show in open-loop latencies
  epoll = epoll_create1(0);
  make_slots();
  connect_all(call_callbacks());
  begin_at = now();
  long errors = report(run());
  return (errors || !measured_ok) && !settings.allow_errors;
}
