/* The one seam: a backend opens verified bytes and answers one image. A new one is one file and one line in main.c. */
#ifndef BACKEND_H
#define BACKEND_H

#include "program.h"

struct model_files {
  struct bytes model;   /* model.onnx or model.xml */
  struct bytes weights; /* model.bin, or no data */
};

struct model_request {
  int height, width, classes;
  int threads;
  const char *device;              /* the backend's own name, such as `CPU` */
  const char *disabled_optimizers; /* names joined by `;`, or empty */
};

struct backend {
  const char *name; /* in the manifest */
  const char *said; /* to people */
  /* The version that is here, such as `1.31.1`, or NULL where the library cannot be loaded. Loads no model. */
  const char *(*version)(void);
  /* Load a model; ends the program (65) where the backend cannot. */
  void *(*open)(const struct model_files *files, const struct model_request *request);
  /* uint8 height * width * 3 RGB -> `classes` logits. */
  void (*infer)(void *model, const uint8_t *pixels, float *logits);
  void (*close)(void *model);
};

extern const struct backend onnxruntime_backend, openvino_backend;

#endif
