/* Open a bundle of edgebert without Python: check its hashes, take the form that fits, answer its canaries, classify images.
 *
 *     classify [--target TARGET] [--threads N] [--tensor] BUNDLE [IMAGE.png ...]
 *
 * Without images it prints one line for each canary: file, class, largest difference of a logit, tolerance. With images, one
 * line for each: file, class (several joined by `|`, `-` for none), score. `--tensor` prints the SHA-256 of each image's input
 * tensor instead and loads no model. Exit codes are those of edgebert. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "backend.h"
#include "bundle.h"
#include "image.h"

static const struct backend *const BACKENDS[] = {
#ifdef WITH_ONNXRUNTIME
    &onnxruntime_backend,
#endif
#ifdef WITH_OPENVINO
    &openvino_backend,
#endif
};
#define BACKEND_COUNT (sizeof BACKENDS / sizeof *BACKENDS)
#define MAX_CLASSES 100000

struct request {
  const char *target; /* NULL: the first form that fits */
  int threads, tensor_only;
  const char *folder;
  char **images;
  int image_count;
};

struct opened {
  const struct bundle *bundle;
  const cJSON *manifest, *class_names;
  struct rule rule;
  int classes;
  double *thresholds; /* of a multi-label model, one for each class, else NULL */
  const struct backend *backend;
  void *model;
  char engine[64]; /* the key of its logits in a canary */
  const char *target;
};

/* Fingerprints ------------------------------------------------------------------------------------------------------ */

/* Compare as numbers, part by part: 1 where `found` is newer, 0 where equal, -1 where older. */
static int compare_versions(const char *found, const char *wanted) {
  while (*found != '\0' || *wanted != '\0') {
    char *next = NULL;
    unsigned long ours = strtoul(found, &next, 10);
    found = *next == '.' ? next + 1 : next == found ? "" : next + strlen(next);
    unsigned long theirs = strtoul(wanted, &next, 10);
    wanted = *next == '.' ? next + 1 : next == wanted ? "" : next + strlen(next);
    if (ours != theirs) return ours > theirs ? 1 : -1;
  }
  return 0;
}

static const struct backend *backend_named(const char *name) {
  for (size_t place = 0; place < BACKEND_COUNT; place++) {
    if (strcmp(BACKENDS[place]->name, name) == 0) return BACKENDS[place];
  }
  return NULL;
}

/* Say in `reason` why one condition does not hold here; what this program does not know does not hold. */
static int condition_holds(const cJSON *condition, const struct backend *backend, char reason[300]) {
  struct utsname here;
  const char *name = condition->string, *wanted = cJSON_IsString(condition) ? condition->valuestring : "?";
  if (cJSON_IsNull(condition)) return 1;
  if (uname(&here) != 0) end_with(1, "this system does not say what it is");
  snprintf(reason, 300, "made for %.80s, here is %.80s", wanted, strcmp(name, "os") == 0 ? "linux" : here.machine);
  if (strcmp(name, "os") == 0) return strcmp(wanted, "linux") == 0 && strcmp(here.sysname, "Linux") == 0;
  if (strcmp(name, "machine") == 0) return strcmp(wanted, here.machine) == 0;
  if (strcmp(name, "backend_version") != 0) {
    snprintf(reason, 300, "asks for `%.80s`, which this program does not know", name);
    return 0;
  }
  const char *version = backend->version();
  const char *number = wanted + 2 + strspn(wanted + (strlen(wanted) > 2 ? 2 : 0), " ");
  snprintf(reason, 300, "asks for %s %.80s, here is %s", backend->said, wanted, version != NULL ? version : "none");
  if (version == NULL || strlen(wanted) < 3 || number[strspn(number, "0123456789.")] != '\0') return 0;
  int compared = compare_versions(version, number);
  return (strncmp(wanted, "==", 2) == 0 && compared == 0) || (strncmp(wanted, ">=", 2) == 0 && compared >= 0);
}

/* Whether a form can run here. Nothing of it is read to find out. */
static int form_fits(const cJSON *form, char reason[300]) {
  const struct backend *backend = backend_named(field_text(form, "backend"));
  const cJSON *fingerprint = cJSON_GetObjectItemCaseSensitive(form, "fingerprint"), *condition = NULL;
  if (backend == NULL || backend->version() == NULL) {
    snprintf(reason, 300, "`%.80s` is not in this program, or not on this computer", field_text(form, "backend"));
    return 0;
  }
  if (fingerprint == NULL) { /* of edgebert 0.1.0: it asks for the architecture alone */
    const cJSON *machine = field(form, "machine");
    struct utsname here;
    if (uname(&here) != 0) end_with(1, "this system does not say what it is");
    if (cJSON_IsNull(machine)) return 1;
    snprintf(reason, 300, "made for %.80s, here is %.80s", field_text(form, "machine"), here.machine);
    return strcmp(machine->valuestring, here.machine) == 0;
  }
  if (!cJSON_IsObject(fingerprint)) end_with(BAD_DATA, "`manifest.json` holds a fingerprint that is no object");
  cJSON_ArrayForEach(condition, fingerprint) {
    if (!condition_holds(condition, backend, reason)) return 0;
  }
  return 1;
}

/* Choosing and loading ---------------------------------------------------------------------------------------------- */

static const char *last_part(const char *name) { return strrchr(name, '/') != NULL ? strrchr(name, '/') + 1 : name; }

static int is_identifier(const char *text) {
  return *text != '\0' && text[strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")] == '\0';
}

/* Join a list of identifiers by `;`. */
static char *joined_names(const cJSON *list) {
  size_t size = 1;
  const cJSON *name = NULL;
  cJSON_ArrayForEach(name, list) {
    if (!cJSON_IsString(name) || !is_identifier(name->valuestring)) end_with(BAD_DATA, "`manifest.json` disables no optimisation's name");
    size += strlen(name->valuestring) + 1;
  }
  char *made = allocated(size, 1);
  cJSON_ArrayForEach(name, list) {
    if (*made != '\0') strcat(made, ";");
    strcat(made, name->valuestring);
  }
  return made;
}

static void load(struct opened *opened, const cJSON *form, const struct request *request) {
  struct model_files files = {{NULL, 0}, {NULL, 0}};
  const char *device = form != NULL ? field_text(form, "device") : "CPU";
  const cJSON *name = NULL;
  if (form == NULL) files.model = bundle_file(opened->bundle, "model.onnx");
  if (form != NULL) {
    cJSON_ArrayForEach(name, field_list(form, "files")) {
      if (!cJSON_IsString(name)) end_with(BAD_DATA, "`manifest.json` lists a file without a name");
      const char *last = last_part(name->valuestring);
      if (strcmp(last, "model.bin") == 0) files.weights = bundle_file(opened->bundle, name->valuestring);
      if (strcmp(last, "model.xml") == 0 || strcmp(last, "model.onnx") == 0)
        files.model = bundle_file(opened->bundle, name->valuestring);
    }
  }
  if (files.model.data == NULL) end_with(BAD_DATA, "`manifest.json` lists no model for `%.80s`", opened->target);
  struct model_request wanted = {opened->rule.height, opened->rule.width, opened->classes, request->threads, device,
                                 form != NULL ? joined_names(field_list(form, "disabled_optimizers")) : ""};
  int cpu = strcmp(device, "CPU") == 0;
  snprintf(opened->engine, sizeof opened->engine, "%s%s%.20s", opened->backend->name, cpu ? "" : ":", cpu ? "" : device);
  opened->model = opened->backend->open(&files, &wanted); /* whose bytes are kept: OpenVINO uses the weights where they lie */
}

/* The form of the named target, or the first that fits, or the portable graph, which is said. */
static void open_form(struct opened *opened, const struct request *request) {
  const cJSON *form = NULL, *portable = NULL;
  char reason[300] = "";
  cJSON_ArrayForEach(form, field_list(opened->manifest, "forms")) {
    const char *target = field_text(form, "target");
    if (request->target != NULL && strcmp(request->target, target) != 0) continue;
    opened->target = target;
    opened->backend = backend_named(field_text(form, "backend"));
    if (form_fits(form, reason)) {
      load(opened, form, request);
      return;
    }
    if (request->target != NULL) end_with(UNAVAILABLE, "the form for `%s` does not fit this computer: %s", target, reason);
    fprintf(stderr, "note: the form for `%.80s` does not fit: %s\n", target, reason);
  }
  if (request->target != NULL) end_with(UNAVAILABLE, "the bundle has no form for `%s`", request->target);
  const cJSON *recorded = field_object(field_list(opened->manifest, "canaries")->child, "logits");
  for (size_t place = 0; place < BACKEND_COUNT && portable == NULL; place++) {
    portable = cJSON_GetObjectItemCaseSensitive(recorded, BACKENDS[place]->name);
    if (portable == NULL || BACKENDS[place]->version() == NULL) {
      portable = NULL;
      continue;
    }
    opened->backend = BACKENDS[place];
    opened->target = "portable";
    fprintf(stderr, "warning: no compiled form fits this computer: the portable graph runs in %s\n", BACKENDS[place]->said);
    load(opened, NULL, request);
  }
  if (portable == NULL) end_with(UNAVAILABLE, "nothing in the bundle can run on this computer");
}

static double *thresholds_of(const cJSON *card, int classes) {
  const char *task = field_text(card, "task");
  if (strcmp(task, "single-label") == 0) return NULL;
  if (strcmp(task, "multi-label") != 0) end_with(BAD_DATA, "`manifest.json` has task `%.80s`", task);
  const cJSON *list = field_list(card, "thresholds"), *threshold = NULL;
  if (cJSON_GetArraySize(list) != classes) end_with(BAD_DATA, "`manifest.json` has a threshold too few or too many");
  double *made = allocated((size_t)classes, sizeof *made), *next = made;
  cJSON_ArrayForEach(threshold, list) {
    if (!cJSON_IsNumber(threshold)) end_with(BAD_DATA, "`manifest.json` has a threshold that is no number");
    *next++ = threshold->valuedouble;
  }
  return made;
}

static struct opened open_bundle(const struct request *request) {
  struct opened opened = {.bundle = bundle_open(request->folder)};
  opened.manifest = bundle_manifest(opened.bundle);
  opened.rule = rule_of_manifest(opened.manifest);
  opened.class_names = field_list(field_object(opened.manifest, "card"), "class_names");
  opened.classes = cJSON_GetArraySize(opened.class_names);
  if (opened.classes < 2 || opened.classes > MAX_CLASSES) end_with(BAD_DATA, "`manifest.json` has %d classes", opened.classes);
  const cJSON *name = NULL;
  cJSON_ArrayForEach(name, opened.class_names) {
    if (!cJSON_IsString(name)) end_with(BAD_DATA, "`manifest.json` has a class without a name");
  }
  opened.thresholds = thresholds_of(field_object(opened.manifest, "card"), opened.classes);
  return opened;
}

/* Answers ----------------------------------------------------------------------------------------------------------- */

static const char *class_name(const struct opened *opened, int place) {
  return cJSON_GetArrayItem(opened->class_names, place)->valuestring;
}

static struct image input_of(const struct opened *opened, struct bytes file, const char *name) {
  struct image image = resized(decoded_png(file, name), &opened->rule);
  free(file.data);
  return image;
}

static void infer(const struct opened *opened, const struct image *image, float *logits) {
  opened->backend->infer(opened->model, image->pixels, logits);
  for (int place = 0; place < opened->classes; place++) {
    if (!isfinite(logits[place])) end_with(1, "the model's answer is not finite");
  }
}

static int best_of(const float *logits, int classes) {
  int best = 0;
  for (int place = 1; place < classes; place++) {
    if (logits[place] > logits[best]) best = place;
  }
  return best;
}

static double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

/* Whether a class is said: that of the largest logit, or every one whose probability reaches its threshold. */
static int says(const struct opened *opened, const float *logits, int place) {
  if (opened->thresholds == NULL) return place == best_of(logits, opened->classes);
  return sigmoid(logits[place]) >= opened->thresholds[place];
}

/* What is said, the surest first, joined by `|`; `-` for nothing. The text is the caller's to free. */
static char *said(const struct opened *opened, const float *logits) {
  size_t size = 2;
  for (int place = 0; place < opened->classes; place++) size += strlen(class_name(opened, place)) + 1;
  char *text = allocated(size, 1), *end = text;
  float *left = allocated((size_t)opened->classes, sizeof *left);
  memcpy(left, logits, (size_t)opened->classes * sizeof *left);
  for (int count = 0; count < opened->classes; count++) {
    int place = best_of(left, opened->classes);
    if (says(opened, logits, place)) end += sprintf(end, "%s%s", end == text ? "" : "|", class_name(opened, place));
    left[place] = -INFINITY;
    if (opened->thresholds == NULL) break;
  }
  if (end == text) strcpy(text, "-");
  free(left);
  return text;
}

/* One line for what is said of an image: its name, the classes, the score of the surest. */
static void print_answer(const struct opened *opened, const char *name, const float *logits) {
  const cJSON *confidence = cJSON_GetObjectItemCaseSensitive(field_object(opened->manifest, "card"), "confidence");
  const cJSON *below = cJSON_GetObjectItemCaseSensitive(confidence, "abstain_below");
  double temperature = cJSON_IsObject(confidence) ? field_number(confidence, "temperature") : 1.0, sum = 0.0;
  int best = best_of(logits, opened->classes);
  char *answer = said(opened, logits);
  for (int place = 0; place < opened->classes; place++) sum += exp((logits[place] - (double)logits[best]) / temperature);
  double score = opened->thresholds != NULL ? sigmoid(logits[best] / temperature) : 1.0 / sum;
  printf("%s\t%s\t%.4f%s\n", name, answer, score, cJSON_IsNumber(below) && score < below->valuedouble ? "\tabstained" : "");
  free(answer);
}

/* Answer one canary as edgebert does when it opens a bundle; returns how much of the tolerance was used. */
static double check_canary(const struct opened *opened, const cJSON *canary, float *logits, int print) {
  const char *file = field_text(canary, "file");
  char digest[65];
  struct image image = input_of(opened, bundle_file(opened->bundle, file), file);
  sha256_hex(image.pixels, (size_t)image.height * (size_t)image.width * 3, digest);
  if (strcmp(digest, field_text(canary, "input_sha256")) != 0)
    end_with(REFUSED, "preprocessing turns canary `%s` into another tensor than when the bundle was made", file);
  infer(opened, &image, logits);
  free(image.pixels);
  const cJSON *expected = field_object(field_object(canary, "logits"), opened->engine);
  double tolerance = field_number(field_object(canary, "tolerance"), opened->engine), worst = 0.0;
  float *recorded = allocated((size_t)opened->classes, sizeof *recorded);
  for (int place = 0; place < opened->classes; place++) {
    recorded[place] = (float)field_number(expected, class_name(opened, place));
    double difference = fabs((double)logits[place] - field_number(expected, class_name(opened, place)));
    if (difference > worst) worst = difference;
  }
  int other = 0;
  for (int place = 0; place < opened->classes; place++) other += says(opened, logits, place) != says(opened, recorded, place);
  char *answer = said(opened, logits), *wanted = said(opened, recorded);
  if (!(tolerance > 0) || !(worst <= tolerance) || other > 0)
    end_with(REFUSED, "%s answers canary `%s` with `%s`, and a logit differs by %.5g\nexpected: `%s`, and at most %.2g", opened->engine,
             file, answer, worst, wanted, tolerance);
  if (print) printf("%s\t%s\t%.3g\t%.3g\n", file, answer, worst, tolerance);
  free(recorded);
  free(answer);
  free(wanted);
  return worst / tolerance;
}

static void self_test(const struct opened *opened, float *logits, int print) {
  const cJSON *canary = NULL, *canaries = field_list(opened->manifest, "canaries");
  double used = 0.0;
  if (cJSON_GetArraySize(canaries) < 3) end_with(BAD_DATA, "`manifest.json` has fewer than 3 canaries");
  cJSON_ArrayForEach(canary, canaries) used = fmax(used, check_canary(opened, canary, logits, print));
  fprintf(stderr, "form `%s` in %s %s: all %d canaries answered, %.2g %% of the tolerance used\n", opened->target, opened->backend->said,
          opened->backend->version(), cJSON_GetArraySize(canaries), 100 * used);
}

/* The command line -------------------------------------------------------------------------------------------------- */

static struct request parse(int count, char **words) {
  struct request request = {.threads = 1};
  int place = 1;
  for (; place < count && strncmp(words[place], "--", 2) == 0; place++) {
    int has_value = place + 1 < count;
    if (strcmp(words[place], "--tensor") == 0) request.tensor_only = 1;
    else if (strcmp(words[place], "--target") == 0 && has_value) request.target = words[++place];
    else if (strcmp(words[place], "--threads") == 0 && has_value) request.threads = atoi(words[++place]);
    else break;
  }
  if (place >= count || strncmp(words[place], "--", 2) == 0 || request.threads < 1 || request.threads > 1024)
    end_with(USAGE, "usage: classify [--target TARGET] [--threads N] [--tensor] BUNDLE [IMAGE.png ...]");
  request.folder = words[place];
  request.images = words + place + 1;
  request.image_count = count - place - 1;
  return request;
}

static void print_tensor(const struct opened *opened, const char *name) {
  char digest[65];
  struct image image = input_of(opened, read_file(name, (size_t)256 << 20, 0, NO_INPUT), name);
  sha256_hex(image.pixels, (size_t)image.height * (size_t)image.width * 3, digest);
  printf("%s\t%s\n", name, digest);
  free(image.pixels);
}

int main(int count, char **words) {
  struct request request = parse(count, words);
  struct opened opened = open_bundle(&request);
  if (request.tensor_only) {
    for (int place = 0; place < request.image_count; place++) print_tensor(&opened, request.images[place]);
    return DONE;
  }
  open_form(&opened, &request);
  float *logits = allocated((size_t)opened.classes, sizeof *logits);
  self_test(&opened, logits, request.image_count == 0);
  for (int place = 0; place < request.image_count; place++) {
    const char *name = request.images[place];
    struct image image = input_of(&opened, read_file(name, (size_t)256 << 20, 0, NO_INPUT), name);
    infer(&opened, &image, logits);
    print_answer(&opened, name, logits);
    free(image.pixels);
  }
  opened.backend->close(opened.model);
  free(logits);
  return DONE;
}
