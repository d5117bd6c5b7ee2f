/* ONNX Runtime on the CPU, through its C API. The library is loaded when the program runs: its symbols carry the release, so
 * that a program linked with one release would not start with the next. */

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "ort_api.h"

#ifndef ORT_LIBRARY
#define ORT_LIBRARY "libonnxruntime.so.1"
#endif

struct model {
  OrtEnv *env;
  OrtSession *session;
  OrtMemoryInfo *memory;
  OrtValue *image, *logits; /* show the arrays below */
  uint8_t *pixels;
  float *answer;
  size_t pixel_bytes, answer_bytes;
};

static const OrtApiBase *base(void) {
  static const OrtApiBase *found;
  if (found != NULL) return found;
  setenv("ORT_DISABLE_TELEMETRY", "1", 0); /* from 1.29 on it reports its use; this is its full opt-out */
  const char *path = getenv("ONNXRUNTIME_LIBRARY");
  void *library = dlopen(path != NULL ? path : ORT_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  const OrtApiBase *(*get_base)(void) = NULL;
  if (library != NULL) *(void **)&get_base = dlsym(library, "OrtGetApiBase"); /* POSIX's own idiom */
  return found = get_base != NULL ? get_base() : NULL;
}

static const OrtApi *api(void) {
  static const OrtApi *found;
  if (found == NULL) found = base()->GetApi(ORT_API_VERSION);
  if (found == NULL) end_with(UNAVAILABLE, "ONNX Runtime %s has no C API of version %d", base()->GetVersionString(), ORT_API_VERSION);
  return found;
}

static void check(OrtStatus *status, const char *what) {
  if (status != NULL) end_with(BAD_DATA, "ONNX Runtime cannot %s: %s", what, api()->GetErrorMessage(status));
}

static const char *version(void) { return base() != NULL ? base()->GetVersionString() : NULL; }

static OrtSessionOptions *settings(const struct model_request *request) {
  OrtSessionOptions *made = NULL;
  check(api()->CreateSessionOptions(&made), "be configured");
  check(api()->SetIntraOpNumThreads(made, request->threads), "take the number of threads");
  check(api()->SetInterOpNumThreads(made, 1), "take the number of threads");
  check(api()->SetSessionLogSeverityLevel(made, ORT_LOGGING_LEVEL_ERROR), "be quiet");
  if (*request->disabled_optimizers != '\0')
    check(api()->AddSessionConfigEntry(made, "optimization.disable_specified_optimizers", request->disabled_optimizers),
          "leave optimisations out");
  return made;
}

static void *open_model(const struct model_files *files, const struct model_request *request) {
  if (strcmp(request->device, "CPU") != 0) end_with(UNAVAILABLE, "ONNX Runtime has no device `%s` here", request->device);
  struct model *model = allocated(1, sizeof *model);
  OrtSessionOptions *options = settings(request);
  check(api()->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "edgebert", &model->env), "start");
  check(api()->DisableTelemetryEvents(model->env), "keep to itself");
  check(api()->CreateSessionFromArray(model->env, files->model.data, files->model.size, options, &model->session),
        "load the model");
  api()->ReleaseSessionOptions(options);
  check(api()->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &model->memory), "use memory");
  model->pixel_bytes = (size_t)request->height * (size_t)request->width * 3;
  model->answer_bytes = (size_t)request->classes * sizeof(float);
  model->pixels = allocated(model->pixel_bytes, 1);
  model->answer = allocated(model->answer_bytes, 1);
  const int64_t input[4] = {1, request->height, request->width, 3}, output[2] = {1, request->classes};
  check(api()->CreateTensorWithDataAsOrtValue(model->memory, model->pixels, model->pixel_bytes, input, 4,
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &model->image), "make the input");
  check(api()->CreateTensorWithDataAsOrtValue(model->memory, model->answer, model->answer_bytes, output, 2,
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &model->logits), "make the output");
  return model;
}

static void infer(void *opened, const uint8_t *pixels, float *logits) {
  struct model *model = opened;
  const char *const inputs[1] = {"image"}, *const outputs[1] = {"logits"}; /* every graph of edgebert's has these */
  const OrtValue *const images[1] = {model->image};
  memcpy(model->pixels, pixels, model->pixel_bytes);
  check(api()->Run(model->session, NULL, inputs, images, 1, outputs, 1, &model->logits), "run the model");
  memcpy(logits, model->answer, model->answer_bytes);
}

static void close_model(void *opened) {
  struct model *model = opened;
  api()->ReleaseValue(model->image);
  api()->ReleaseValue(model->logits);
  api()->ReleaseMemoryInfo(model->memory);
  api()->ReleaseSession(model->session);
  api()->ReleaseEnv(model->env);
  free(model->pixels);
  free(model->answer);
  free(model);
}

const struct backend onnxruntime_backend = {"onnxruntime", "ONNX Runtime", version, open_model, infer, close_model};
