/* OpenVINO, through its C API; compiled against the header of the release it is linked with, whose element types are numbered
 * anew from time to time. */

#include <openvino/c/openvino.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"

struct model {
  ov_core_t *core;
  ov_compiled_model_t *compiled;
  ov_infer_request_t *request;
  ov_tensor_t *image;
  size_t pixel_bytes, answer_bytes;
};

static void check(ov_status_e status, const char *what) {
  if (status == OK) return;
  const char *why = ov_get_last_err_msg();
  end_with(BAD_DATA, "OpenVINO cannot %s: %s", what, why != NULL && *why != '\0' ? why : ov_get_error_info(status));
}

/* The numbers before the build: `2026.4.1-22000-abc` -> `2026.4.1`. */
static const char *version(void) {
  static char text[64];
  ov_version_t found = {NULL, NULL};
  if (ov_get_openvino_version(&found) != OK || found.buildNumber == NULL) return NULL;
  snprintf(text, sizeof text, "%.*s", (int)strspn(found.buildNumber, "0123456789."), found.buildNumber);
  ov_version_free(&found);
  return text;
}

/* Plain OpenVINO IR never holds a document type: it would only serve to name other files. */
static void refuse_document_type(struct bytes xml) {
  if (strstr((const char *)xml.data, "<!DOCTYPE") != NULL || strstr((const char *)xml.data, "<!ENTITY") != NULL ||
      strlen((const char *)xml.data) != xml.size)
    end_with(BAD_DATA, "`model.xml` is no plain OpenVINO IR");
}

static ov_model_t *read_model(ov_core_t *core, const struct model_files *files) {
  ov_model_t *model = NULL;
  ov_tensor_t *weights = NULL;
  if (files->weights.data != NULL) {
    refuse_document_type(files->model);
    int64_t size = (int64_t)files->weights.size;
    ov_shape_t shape = {1, &size};
    check(ov_tensor_create_from_host_ptr(U8, shape, files->weights.data, &weights), "take the weights");
  }
  check(ov_core_read_model_from_memory_buffer(core, (const char *)files->model.data, files->model.size, weights, &model),
        "read the model");
  if (weights != NULL) ov_tensor_free(weights);
  return model;
}

static void *open_model(const struct model_files *files, const struct model_request *request) {
  struct model *model = allocated(1, sizeof *model);
  check(ov_core_create(&model->core), "start");
  ov_model_t *read = read_model(model->core, files);
  int64_t dims[4] = {1, request->height, request->width, 3};
  ov_dimension_t dimensions[4];
  for (int place = 0; place < 4; place++) dimensions[place] = (ov_dimension_t){dims[place], dims[place]};
  ov_partial_shape_t wanted;
  check(ov_partial_shape_create(4, dimensions, &wanted), "take the shape");
  check(ov_model_reshape_single_input(read, wanted), "take images of the manifest's size");
  ov_partial_shape_free(&wanted);
  char threads[16];
  snprintf(threads, sizeof threads, "%d", request->threads);
  /* As edgebert/runtime/openvino_runner.py: FP32 stays FP32 on CPUs with AMX, and nothing is pinned. The last two are the
   * CPU plugin's alone. */
  size_t arguments = strcmp(request->device, "CPU") == 0 ? 8 : 4;
  check(ov_core_compile_model(model->core, read, request->device, arguments, &model->compiled, "PERFORMANCE_HINT", "LATENCY",
                              "INFERENCE_PRECISION_HINT", "f32", "INFERENCE_NUM_THREADS", threads, "ENABLE_CPU_PINNING", "NO"),
        "compile the model");
  ov_model_free(read);
  check(ov_compiled_model_create_infer_request(model->compiled, &model->request), "make a request");
  ov_shape_t shape = {4, dims};
  check(ov_tensor_create(U8, shape, &model->image), "make the input");
  check(ov_infer_request_set_input_tensor(model->request, model->image), "take uint8 images");
  check(ov_tensor_get_byte_size(model->image, &model->pixel_bytes), "say the input's size");
  model->answer_bytes = (size_t)request->classes * sizeof(float);
  return model;
}

static void infer(void *opened, const uint8_t *pixels, float *logits) {
  struct model *model = opened;
  void *memory = NULL;
  ov_tensor_t *answer = NULL;
  ov_element_type_e type = DYNAMIC;
  size_t size = 0;
  check(ov_tensor_data(model->image, &memory), "show the input");
  memcpy(memory, pixels, model->pixel_bytes);
  check(ov_infer_request_infer(model->request), "run the model");
  check(ov_infer_request_get_output_tensor(model->request, &answer), "show the answer");
  check(ov_tensor_get_element_type(answer, &type), "say the answer's type");
  check(ov_tensor_get_byte_size(answer, &size), "say the answer's size");
  if (type != F32 || size != model->answer_bytes) end_with(BAD_DATA, "the model answers with %zu bytes, or not in float", size);
  check(ov_tensor_data(answer, &memory), "show the answer");
  memcpy(logits, memory, size);
  ov_tensor_free(answer);
}

static void close_model(void *opened) {
  struct model *model = opened;
  ov_tensor_free(model->image);
  ov_infer_request_free(model->request);
  ov_compiled_model_free(model->compiled);
  ov_core_free(model->core);
  free(model);
}

const struct backend openvino_backend = {"openvino", "OpenVINO", version, open_model, infer, close_model};
