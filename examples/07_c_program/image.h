/* From the bytes of a PNG to the network's input: the same pixels as edgebert/preprocess.py, bit by bit. */
#ifndef IMAGE_H
#define IMAGE_H

#include <cjson/cJSON.h>

#include "program.h"

struct image {
  int height, width;
  uint8_t *pixels; /* height * width * 3, RGB */
};

/* What of `card.preprocessing` concerns pixels; mean, standard deviation and channel order are inside the graph. */
struct rule {
  int height, width, shortest_edge; /* `shortest_edge` is 0 for `stretch` */
  char resize[16], interpolation[16];
};

struct rule rule_of_manifest(const cJSON *manifest);

/* Decode an 8-bit RGB or grey PNG without transparency; ends the program (65) for every other image. */
struct image decoded_png(struct bytes file, const char *name);

/* Resize (and crop) to the network's input. The given image's pixels are freed. */
struct image resized(struct image image, const struct rule *rule);

#endif
