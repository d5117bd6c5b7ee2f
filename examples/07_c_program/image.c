#include "image.h"

#include <math.h>
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "bundle.h"

#define MAX_PIXELS 50000000
#define MAX_EDGE 65535
#define MAX_SIDE 4096

/* Decoding ---------------------------------------------------------------------------------------------------------- */

struct reader {
  struct bytes file;
  size_t place;
};

static void read_from_memory(png_structp png, png_bytep target, size_t size) {
  struct reader *reader = png_get_io_ptr(png);
  if (size > reader->file.size - reader->place) png_error(png, "it ends too early");
  memcpy(target, reader->file.data + reader->place, size);
  reader->place += size;
}

static void say_nothing(png_structp png, png_const_charp text) {
  (void)png;
  (void)text;
}

static void jump_out(png_structp png, png_const_charp text) {
  (void)text;
  longjmp(*(jmp_buf *)png_get_error_ptr(png), 1);
}

struct image decoded_png(struct bytes file, const char *name) {
  jmp_buf failed;
  struct reader reader = {file, 0};
  struct image image = {0, 0, NULL};
  png_bytep *volatile rows = NULL;
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &failed, jump_out, say_nothing);
  png_infop info = png ? png_create_info_struct(png) : NULL;
  if (info == NULL) end_with(1, "libpng cannot be used");
  if (file.size < 8 || png_sig_cmp(file.data, 0, 8) != 0) end_with(BAD_DATA, "`%s` is no PNG", name);
  if (setjmp(failed) != 0) end_with(BAD_DATA, "`%s` is a broken PNG", name);
  png_set_read_fn(png, &reader, read_from_memory);
  png_set_user_limits(png, MAX_EDGE, MAX_EDGE);
  png_read_info(png, info);
  png_uint_32 width = png_get_image_width(png, info), height = png_get_image_height(png, info);
  int colour = png_get_color_type(png, info);
  if ((uint64_t)width * height > MAX_PIXELS) end_with(BAD_DATA, "`%s` has more than %d pixels", name, MAX_PIXELS);
  /* edgebert converts palettes, transparency and 16 bits, and turns by EXIF; this program refuses what it would mistake. */
  if ((colour != PNG_COLOR_TYPE_RGB && colour != PNG_COLOR_TYPE_GRAY) || png_get_bit_depth(png, info) != 8 ||
      png_get_valid(png, info, PNG_INFO_tRNS) || png_get_valid(png, info, PNG_INFO_eXIf))
    end_with(BAD_DATA, "`%s` is another kind of PNG\nexpected: 8-bit RGB or grey, without transparency and EXIF", name);
  if (colour == PNG_COLOR_TYPE_GRAY) png_set_gray_to_rgb(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  image.height = (int)height, image.width = (int)width;
  image.pixels = allocated((size_t)width * height, 3);
  rows = allocated(height, sizeof *rows);
  for (png_uint_32 row = 0; row < height; row++) rows[row] = image.pixels + (size_t)row * width * 3;
  png_read_image(png, rows);
  png_read_end(png, NULL);
  png_destroy_read_struct(&png, &info, NULL);
  free(rows);
  return image;
}

/* Resampling: Pillow's algorithm (src/libImaging/Resample.c), whose results are part of the bundle's contract.
 *
 * Each output pixel is a weighted sum of the input pixels below a filter, scaled with the reduction; first along the rows,
 * then along the columns, rounded to 8 bits in between. Weights are double, made into integers with 22 bits of fraction. */

#define FRACTION_BITS 22

static double sinc(double x) { return x == 0.0 ? 1.0 : sin(x * M_PI) / (x * M_PI); }

static double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

static double bilinear(double x) { return fabs(x) < 1.0 ? 1.0 - fabs(x) : 0.0; }

static double hamming(double x) {
  x = fabs(x);
  if (x == 0.0) return 1.0;
  if (x >= 1.0) return 0.0;
  x *= M_PI;
  return sin(x) / x * (0.54 + 0.46 * cos(x));
}

static double bicubic(double x) {
  const double a = -0.5;
  x = fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

static double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

struct filter {
  const char *name;
  double (*value)(double);
  double support; /* input pixels to each side, where nothing is reduced */
};

static const struct filter FILTERS[] = {
    {"box", box, 0.5},         {"bilinear", bilinear, 1.0}, {"hamming", hamming, 1.0},
    {"bicubic", bicubic, 2.0}, {"lanczos", lanczos, 3.0},
};

struct taps { /* of one output pixel */
  int first, count;
  int32_t *weights;
};

static struct taps *taps_of(const struct filter *filter, int in, int out) {
  double scale = (double)in / out, widened = scale < 1.0 ? 1.0 : scale;
  double support = filter->support * widened;
  int most = (int)ceil(support) * 2 + 1;
  struct taps *taps = allocated((size_t)out, sizeof *taps);
  double *exact = allocated((size_t)most, sizeof *exact);
  for (int place = 0; place < out; place++) {
    double centre = (place + 0.5) * scale, step = 1.0 / widened, sum = 0.0;
    int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
    if (first < 0) first = 0;
    if (last > in) last = in;
    taps[place] = (struct taps){first, last - first, allocated((size_t)most, sizeof(int32_t))};
    for (int tap = 0; tap < last - first; tap++) sum += exact[tap] = filter->value((tap + first - centre + 0.5) * step);
    for (int tap = 0; tap < last - first; tap++) {
      double weight = (sum != 0.0 ? exact[tap] / sum : exact[tap]) * (1 << FRACTION_BITS);
      taps[place].weights[tap] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
  }
  free(exact);
  return taps;
}

static void free_taps(struct taps *taps, int out) {
  for (int place = 0; place < out; place++) free(taps[place].weights);
  free(taps);
}

static uint8_t rounded(int64_t sum) {
  sum >>= FRACTION_BITS;
  return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* Resample along one axis: `step` bytes lie between neighbours on it, in the input and in the output alike. */
static void resample_line(const uint8_t *in, uint8_t *out, const struct taps *taps, int count, size_t step) {
  for (int place = 0; place < count; place++) {
    for (int channel = 0; channel < 3; channel++) {
      int64_t sum = (int64_t)1 << (FRACTION_BITS - 1);
      for (int tap = 0; tap < taps[place].count; tap++)
        sum += (int64_t)in[(size_t)(taps[place].first + tap) * step + channel] * taps[place].weights[tap];
      out[(size_t)place * step + channel] = rounded(sum);
    }
  }
}

static struct image new_image(int height, int width) {
  return (struct image){height, width, allocated((size_t)height * (size_t)width, 3)};
}

static struct image nearest(struct image image, int height, int width) {
  struct image made = new_image(height, width);
  double row = 0.5 * image.height / height, row_step = (double)image.height / height;
  double first = 0.5 * image.width / width, column_step = (double)image.width / width;
  for (int y = 0; y < height; y++, row += row_step) {
    double column = first;
    for (int x = 0; x < width; x++, column += column_step)
      memcpy(made.pixels + ((size_t)y * width + x) * 3, image.pixels + ((size_t)(int)row * image.width + (int)column) * 3, 3);
  }
  return made;
}

static struct image filtered(struct image image, int height, int width, const struct filter *filter) {
  struct image wide = image;
  if (width != image.width) {
    struct taps *taps = taps_of(filter, image.width, width);
    wide = new_image(image.height, width);
    for (int row = 0; row < image.height; row++)
      resample_line(image.pixels + (size_t)row * image.width * 3, wide.pixels + (size_t)row * width * 3, taps, width, 3);
    free_taps(taps, width);
  }
  if (height == wide.height) return wide;
  struct taps *taps = taps_of(filter, wide.height, height);
  struct image made = new_image(height, width);
  for (int column = 0; column < width; column++)
    resample_line(wide.pixels + (size_t)column * 3, made.pixels + (size_t)column * 3, taps, height, (size_t)width * 3);
  free_taps(taps, height);
  if (wide.pixels != image.pixels) free(wide.pixels);
  return made;
}

static struct image scaled(struct image image, int height, int width, const char *interpolation) {
  struct image made = {0, 0, NULL};
  if (image.height == height && image.width == width) return image;
  if (strcmp(interpolation, "nearest") == 0) made = nearest(image, height, width);
  for (size_t place = 0; made.pixels == NULL && place < sizeof FILTERS / sizeof *FILTERS; place++) {
    if (strcmp(FILTERS[place].name, interpolation) == 0) made = filtered(image, height, width, &FILTERS[place]);
  }
  if (made.pixels == NULL) end_with(BAD_DATA, "`manifest.json` has interpolation `%s`", interpolation);
  free(image.pixels);
  return made;
}

static struct image centre_of(struct image image, int height, int width) {
  int top = (image.height - height) / 2, left = (image.width - width) / 2;
  struct image made = new_image(height, width);
  for (int row = 0; row < height; row++)
    memcpy(made.pixels + (size_t)row * width * 3, image.pixels + ((size_t)(row + top) * image.width + left) * 3, (size_t)width * 3);
  free(image.pixels);
  return made;
}

struct image resized(struct image image, const struct rule *rule) {
  if (strcmp(rule->resize, "stretch") == 0) return scaled(image, rule->height, rule->width, rule->interpolation);
  int64_t edge = rule->shortest_edge, rows = image.height, columns = image.width;
  if (strcmp(rule->resize, "stretch-crop") == 0) rows = columns = edge;
  /* The short edge exactly, the long edge rounded downwards. */
  int64_t height = rows > columns ? edge * rows / columns : edge;
  int64_t width = rows > columns ? edge : edge * columns / rows;
  if (height < edge) height = edge;
  if (width < edge) width = edge;
  if (height * width > MAX_PIXELS) end_with(BAD_DATA, "an image of %d x %d pixels is too narrow for this program", image.width, image.height);
  return centre_of(scaled(image, (int)height, (int)width, rule->interpolation), rule->height, rule->width);
}

static void copied(char target[16], const char *text, const char *name) {
  if (strlen(text) > 15) end_with(BAD_DATA, "`manifest.json` has %s `%.80s`", name, text);
  memcpy(target, text, strlen(text) + 1);
}

struct rule rule_of_manifest(const cJSON *manifest) {
  const cJSON *object = field_object(field_object(manifest, "card"), "preprocessing");
  struct rule rule = {field_integer(object, "height", 1, MAX_SIDE), field_integer(object, "width", 1, MAX_SIDE), 0, "", ""};
  copied(rule.resize, field_text(object, "resize"), "resize");
  copied(rule.interpolation, field_text(object, "interpolation"), "interpolation");
  if (strcmp(rule.resize, "stretch") == 0) return rule;
  if (strcmp(rule.resize, "crop") != 0 && strcmp(rule.resize, "stretch-crop") != 0)
    end_with(BAD_DATA, "`manifest.json` has resize `%s`", rule.resize);
  int least = rule.height > rule.width ? rule.height : rule.width;
  rule.shortest_edge = field_integer(object, "shortest_edge", least, 2 * MAX_SIDE);
  return rule;
}
