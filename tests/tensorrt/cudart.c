/* A stand-in for libcudart: the functions that edgebert calls, on the CPU, written from their public descriptions.
 *
 * It is strict where the real one is: work on a stream is only done when somebody waits for it, so that a forgotten wait shows as
 * an old answer; addresses of the GPU carry a tag, so that using one as an address of the host ends the process; memory is filled
 * with rubbish when it is given out and when it is taken back; a copy must lie inside memory of the right kind. */

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int cudaError_t;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_HANDLE = 400, NOT_READY = 600, CAPTURE_UNSUPPORTED = 900 };
enum { OP_COPY, OP_CALL, OP_EVENT };
enum { DEVICE_MEMORY, HOST_MEMORY, STREAMS, EVENTS, GRAPHS, EXECUTABLES, KINDS };

typedef void (*Callback)(long);
typedef struct Op { int kind; void *to; const void *from; size_t size; Callback call; long argument; struct Event *event; struct Op *next; } Op;
typedef struct Ops { Op *first, *last; } Ops;
typedef struct Event { struct Stream *stream; double ms; int done; } Event;
typedef struct Stream { Ops ops; int capturing, spoilt; Ops captured; struct Stream *next; } Stream;
typedef struct Graph { Ops ops; } Graph;
typedef struct Block { char *real; size_t size; int kind; struct Block *next; } Block;

static const uintptr_t TAG = (uintptr_t)1 << 56;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block *blocks;
static long live[KINDS];
static double clock_ms;
static char *calls;
static size_t calls_size, calls_used;
static int devices = 1, integrated = 0, multiprocessors = 8, major = 8, minor = 7, runtime = 12060, driver = 12060;
static char failing[64];
static int failing_code, failing_after;

/* What tests ask and set. */

void double_set(const char *name, int value) {
  if (!strcmp(name, "devices")) devices = value;
  if (!strcmp(name, "integrated")) integrated = value;
  if (!strcmp(name, "multiprocessors")) multiprocessors = value;
  if (!strcmp(name, "runtime")) runtime = value;
}
void double_fail(const char *function, int code, int after) {
  snprintf(failing, sizeof failing, "%s", function);
  failing_code = code;
  failing_after = after;
}
long double_live(int kind) { return live[kind]; }
const char *double_calls(void) { return calls ? calls : ""; }
void double_forget_calls(void) { calls_used = 0; if (calls) calls[0] = 0; }

static int called(const char *name) {
  int code = 0;
  pthread_mutex_lock(&lock);
  if (calls_used + strlen(name) + 2 > calls_size) { calls_size = calls_size * 2 + 4096; calls = realloc(calls, calls_size); }
  calls_used += (size_t)sprintf(calls + calls_used, "%s ", name);
  if (!strcmp(failing, name) && failing_after-- <= 0) code = failing_code;
  pthread_mutex_unlock(&lock);
  return code;
}
#define CALLED do { int failed = called(__func__); if (failed) return failed; } while (0)

static void count(int kind, long by) { pthread_mutex_lock(&lock); live[kind] += by; pthread_mutex_unlock(&lock); }

static cudaError_t take(void **out, size_t size, int kind, uintptr_t tag, int filling) {
  Block *block = malloc(sizeof *block);
  if (size == 0) return INVALID_VALUE;
  block->real = malloc(size); block->size = size; block->kind = kind;
  memset(block->real, filling, size);
  pthread_mutex_lock(&lock);
  block->next = blocks; blocks = block; live[kind]++;
  pthread_mutex_unlock(&lock);
  *out = (void *)((uintptr_t)block->real | tag);
  return SUCCESS;
}
static cudaError_t give_back(void *address, int kind, uintptr_t tag) {
  cudaError_t code = INVALID_VALUE;
  pthread_mutex_lock(&lock);
  for (Block **at = &blocks; *at; at = &(*at)->next)
    if ((*at)->kind == kind && (uintptr_t)address == ((uintptr_t)(*at)->real | tag)) {
      Block *gone = *at;
      *at = gone->next;
      memset(gone->real, 0xDD, gone->size);
      free(gone->real); free(gone); live[kind]--;
      code = SUCCESS;
      break;
    }
  pthread_mutex_unlock(&lock);
  return code;
}
static void *inside(const void *address, size_t size, int kind) {
  uintptr_t tag = kind == DEVICE_MEMORY ? TAG : 0, real = (uintptr_t)address & ~TAG;
  void *found = NULL;
  if (((uintptr_t)address & TAG) != tag) return NULL;
  pthread_mutex_lock(&lock);
  for (Block *at = blocks; at; at = at->next)
    if (at->kind == kind && real >= (uintptr_t)at->real && real + size <= (uintptr_t)at->real + at->size) found = (void *)real;
  pthread_mutex_unlock(&lock);
  return found;
}
/* Where a kernel finds an address; NULL for one that no kernel may use. */
void *double_seen_by_kernels(void *address, size_t size) {
  void *found = inside(address, size, DEVICE_MEMORY);
  return found || !integrated ? found : inside(address, size, HOST_MEMORY);
}

/* Streams. */

static void add(Ops *ops, Op op) {
  Op *copy = malloc(sizeof op);
  *copy = op; copy->next = NULL;
  if (ops->last) ops->last->next = copy; else ops->first = copy;
  ops->last = copy;
}
static void drop(Ops *ops) {
  for (Op *at = ops->first; at;) { Op *next = at->next; free(at); at = next; }
  ops->first = ops->last = NULL;
}
static cudaError_t queue(Stream *stream, Op op) {
  if (!stream) return INVALID_HANDLE;
  add(stream->capturing ? &stream->captured : &stream->ops, op);
  return SUCCESS;
}
static void work(Stream *stream) {
  while (stream->ops.first) {
    Ops now = stream->ops;
    stream->ops.first = stream->ops.last = NULL;
    for (Op *op = now.first; op; op = op->next) {
      if (op->kind == OP_COPY) memcpy(op->to, op->from, op->size);
      if (op->kind == OP_CALL) { op->call(op->argument); pthread_mutex_lock(&lock); clock_ms += 0.5; pthread_mutex_unlock(&lock); }
      if (op->kind == OP_EVENT) { op->event->ms = clock_ms; op->event->done = 1; }
    }
    drop(&now);
  }
}
/* What a kernel launch of the double of TensorRT does. */
int double_launch(Stream *stream, Callback call, long argument) { return queue(stream, (Op){.kind = OP_CALL, .call = call, .argument = argument}); }
int double_is_capturing(Stream *stream) { return stream->capturing; }

cudaError_t cudaRuntimeGetVersion(int *version) { CALLED; *version = runtime; return SUCCESS; }
cudaError_t cudaDriverGetVersion(int *version) { CALLED; *version = driver; return SUCCESS; }
cudaError_t cudaGetDeviceCount(int *count_) { CALLED; *count_ = devices; return devices ? SUCCESS : NO_DEVICE; }
cudaError_t cudaSetDevice(int device) { CALLED; return device < devices ? SUCCESS : 101; }
cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device) {
  CALLED;
  if (device >= devices) return 101;
  switch (attribute) {
    case 16: *value = multiprocessors; return SUCCESS;
    case 18: *value = integrated; return SUCCESS;
    case 19: case 41: *value = 1; return SUCCESS;
    case 75: *value = major; return SUCCESS;
    case 76: *value = minor; return SUCCESS;
    default: return INVALID_VALUE;
  }
}
cudaError_t cudaMemGetInfo(size_t *free_, size_t *total) { CALLED; *free_ = (size_t)3 << 30; *total = (size_t)7 << 30; return SUCCESS; }
cudaError_t cudaMalloc(void **out, size_t size) { CALLED; return take(out, size, DEVICE_MEMORY, TAG, 0xA5); }
cudaError_t cudaFree(void *address) { CALLED; return give_back(address, DEVICE_MEMORY, TAG); }
cudaError_t cudaHostAlloc(void **out, size_t size, unsigned flags) { CALLED; return flags == 2 ? take(out, size, HOST_MEMORY, 0, 0x5A) : INVALID_VALUE; }
cudaError_t cudaFreeHost(void *address) { CALLED; return give_back(address, HOST_MEMORY, 0); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, Stream *stream) {
  void *target, *source;
  CALLED;
  if (kind != 1 && kind != 2) return INVALID_VALUE;
  target = inside(to, size, kind == 1 ? DEVICE_MEMORY : HOST_MEMORY);
  source = inside(from, size, kind == 1 ? HOST_MEMORY : DEVICE_MEMORY);
  if (!target || !source) return INVALID_VALUE;
  return queue(stream, (Op){.kind = OP_COPY, .to = target, .from = source, .size = size});
}
cudaError_t cudaStreamCreateWithFlags(Stream **out, unsigned flags) {
  CALLED;
  if (flags != 1) return INVALID_VALUE;
  *out = calloc(1, sizeof **out);
  count(STREAMS, 1);
  return SUCCESS;
}
cudaError_t cudaStreamSynchronize(Stream *stream) {
  CALLED;
  if (stream->capturing) { stream->spoilt = 1; return CAPTURE_UNSUPPORTED; }
  work(stream);
  return SUCCESS;
}
cudaError_t cudaStreamDestroy(Stream *stream) {
  CALLED;
  drop(&stream->ops); drop(&stream->captured); free(stream);
  count(STREAMS, -1);
  return SUCCESS;
}
cudaError_t cudaEventCreateWithFlags(Event **out, unsigned flags) {
  CALLED;
  if (flags != 0) return INVALID_VALUE;
  *out = calloc(1, sizeof **out);
  count(EVENTS, 1);
  return SUCCESS;
}
cudaError_t cudaEventRecord(Event *event, Stream *stream) {
  CALLED;
  event->done = 0; event->stream = stream;
  return queue(stream, (Op){.kind = OP_EVENT, .event = event});
}
cudaError_t cudaEventSynchronize(Event *event) { CALLED; if (event->stream) work(event->stream); return SUCCESS; }
cudaError_t cudaEventElapsedTime(float *ms, Event *start, Event *end) {
  CALLED;
  if (!start->done || !end->done) return NOT_READY;
  *ms = (float)(end->ms - start->ms);
  return SUCCESS;
}
cudaError_t cudaEventDestroy(Event *event) { CALLED; free(event); count(EVENTS, -1); return SUCCESS; }

/* Graphs. */

cudaError_t cudaStreamBeginCapture(Stream *stream, int mode) {
  CALLED;
  if (mode != 1 || stream->capturing) return INVALID_VALUE;
  stream->capturing = 1; stream->spoilt = 0;
  return SUCCESS;
}
cudaError_t cudaStreamEndCapture(Stream *stream, Graph **out) {
  int was = stream->capturing;
  stream->capturing = 0; /* also where it fails */
  *out = NULL;
  CALLED;
  if (!was) return INVALID_VALUE;
  if (stream->spoilt) { drop(&stream->captured); return 901; }
  *out = calloc(1, sizeof **out);
  (*out)->ops = stream->captured;
  stream->captured.first = stream->captured.last = NULL;
  count(GRAPHS, 1);
  return SUCCESS;
}
cudaError_t cudaGraphInstantiate(Graph **out, Graph *graph, unsigned long long flags) {
  CALLED;
  if (flags != 0) return INVALID_VALUE;
  *out = calloc(1, sizeof **out);
  for (Op *op = graph->ops.first; op; op = op->next) add(&(*out)->ops, *op);
  count(EXECUTABLES, 1);
  return SUCCESS;
}
cudaError_t cudaGraphLaunch(Graph *executable, Stream *stream) {
  CALLED;
  for (Op *op = executable->ops.first; op; op = op->next) queue(stream, *op);
  return SUCCESS;
}
cudaError_t cudaGraphExecDestroy(Graph *executable) { CALLED; drop(&executable->ops); free(executable); count(EXECUTABLES, -1); return SUCCESS; }
cudaError_t cudaGraphDestroy(Graph *graph) { CALLED; drop(&graph->ops); free(graph); count(GRAPHS, -1); return SUCCESS; }

const char *cudaGetErrorName(int code) {
  return code == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : code == NO_DEVICE ? "cudaErrorNoDevice" : code == 35 ? "cudaErrorInsufficientDriver" : "cudaErrorUnknown";
}
const char *cudaGetErrorString(int code) { return code == OUT_OF_MEMORY ? "out of memory" : code == NO_DEVICE ? "no CUDA-capable device is detected" : "unknown error"; }
