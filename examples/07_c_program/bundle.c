#include "bundle.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* As in edgebert/bundle.py. */
#define MAX_FILES 64
#define MAX_SUMS_BYTES ((size_t)64 << 10)
#define MAX_MANIFEST_BYTES ((size_t)64 << 20)
#define MAX_FILE_BYTES ((size_t)2 << 30)
#define DIGITS 64

struct listed {
  char digest[DIGITS + 1];
  char *name;
};

struct bundle {
  const char *folder;
  struct listed files[MAX_FILES];
  size_t count;
  cJSON *manifest;
};

_Noreturn void end_with(int code, const char *format, ...) {
  va_list values;
  va_start(values, format);
  fputs("error: ", stderr);
  vfprintf(stderr, format, values);
  fputc('\n', stderr);
  va_end(values);
  exit(code);
}

void *allocated(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size ? size : 1);
  if (memory == NULL) end_with(75, "out of memory: %zu times %zu bytes", count, size);
  return memory;
}

struct bytes read_file(const char *path, size_t limit, int plain, int code_where_missing) {
  int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (plain ? O_NOFOLLOW : 0));
  if (descriptor < 0) end_with(code_where_missing, "`%s` cannot be read: %s", path, strerror(errno));
  struct stat status;
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) end_with(code_where_missing, "`%s` is no plain file", path);
  if (status.st_size < 0 || (uintmax_t)status.st_size > limit) end_with(BAD_DATA, "`%s` is too large", path);
  struct bytes content = {allocated((size_t)status.st_size + 1, 1), 0};
  for (;;) { /* a file that grows meanwhile is cut where it ended, and its hash will say so */
    ssize_t got = read(descriptor, content.data + content.size, (size_t)status.st_size - content.size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) end_with(code_where_missing, "`%s` cannot be read: %s", path, strerror(errno));
    if (got == 0) break;
    content.size += (size_t)got;
  }
  close(descriptor);
  return content;
}

void sha256_hex(const void *data, size_t size, char hex[65]) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  if (EVP_Digest(data, size, digest, &length, EVP_sha256(), NULL) != 1 || length != DIGITS / 2)
    end_with(1, "libcrypto has no SHA-256");
  for (unsigned int place = 0; place < length; place++) snprintf(hex + 2 * place, 3, "%02x", digest[place]);
}

/* Names that can only mean a file below the bundle: no `..`, no absolute path, no hidden file. */
static int is_portable(const char *name) {
  if (*name == '\0' || strlen(name) > 300) return 0;
  for (const char *part = name; part != NULL; part = strchr(part, '/') ? strchr(part, '/') + 1 : NULL) {
    if (*part == '.' || *part == '/' || *part == '-' || *part == '\0') return 0;
  }
  return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/-") == strlen(name);
}

static char *joined(const char *folder, const char *name) {
  size_t size = strlen(folder) + strlen(name) + 2;
  char *path = allocated(size, 1);
  snprintf(path, size, "%s/%s", folder, name);
  return path;
}

/* Each line is 64 digits, two spaces, a name. */
static void parse_sums(struct bundle *bundle, struct bytes sums) {
  char *line = (char *)sums.data, *end = (char *)sums.data + sums.size;
  if (memchr(sums.data, '\0', sums.size) != NULL) end_with(REFUSED, "`SHA256SUMS` holds a zero byte");
  while (line < end) {
    char *stop = memchr(line, '\n', (size_t)(end - line));
    if (stop == NULL) end_with(REFUSED, "`SHA256SUMS` ends within a line");
    *stop = '\0';
    if (bundle->count == MAX_FILES) end_with(REFUSED, "`SHA256SUMS` lists more than %d files", MAX_FILES);
    struct listed *entry = &bundle->files[bundle->count++];
    int is_line = strspn(line, "0123456789abcdef") == DIGITS && line[DIGITS] == ' ' && line[DIGITS + 1] == ' ';
    if (!is_line || !is_portable(line + DIGITS + 2)) end_with(REFUSED, "`SHA256SUMS` holds the line `%.100s`", line);
    memcpy(entry->digest, line, DIGITS);
    entry->name = line + DIGITS + 2;
    for (size_t place = 0; place + 1 < bundle->count; place++) {
      if (strcmp(bundle->files[place].name, entry->name) == 0) end_with(REFUSED, "`SHA256SUMS` names `%s` twice", entry->name);
    }
    line = stop + 1;
  }
}

/* cJSON takes the first of two equal keys and keeps silent: another reader might take the other one. */
static void refuse_duplicates(const cJSON *value) {
  const cJSON *entry, *other;
  cJSON_ArrayForEach(entry, value) {
    if (cJSON_IsObject(value)) {
      for (other = entry->next; other != NULL; other = other->next) {
        if (strcmp(entry->string, other->string) == 0) end_with(BAD_DATA, "`manifest.json` holds `%.80s` twice", entry->string);
      }
    }
    refuse_duplicates(entry);
  }
}

struct bundle *bundle_open(const char *folder) {
  struct stat status;
  if (stat(folder, &status) != 0) end_with(NO_INPUT, "no such bundle: `%s`", folder);
  if (!S_ISDIR(status.st_mode)) end_with(BAD_DATA, "`%s` is no folder `NAME.edgebert`", folder);
  struct bundle *bundle = allocated(1, sizeof *bundle);
  bundle->folder = folder;
  parse_sums(bundle, read_file(joined(folder, "SHA256SUMS"), MAX_SUMS_BYTES, 1, REFUSED));
  struct bytes text = bundle_file(bundle, "manifest.json");
  if (text.size > MAX_MANIFEST_BYTES || memchr(text.data, '\0', text.size) != NULL)
    end_with(BAD_DATA, "`manifest.json` is no JSON text");
  const char *stopped = NULL;
  bundle->manifest = cJSON_ParseWithOpts((const char *)text.data, &stopped, 1);
  if (!cJSON_IsObject(bundle->manifest)) end_with(BAD_DATA, "`manifest.json` is no JSON object");
  refuse_duplicates(bundle->manifest);
  const char *schema = field_text(bundle->manifest, "schema");
  if (strcmp(schema, "edgebert.bundle/1") != 0)
    end_with(BAD_DATA, "`manifest.json` has schema `%.80s`\nexpected: `edgebert.bundle/1`", schema);
  const cJSON *required = cJSON_GetObjectItemCaseSensitive(bundle->manifest, "requires");
  if (required != NULL && (!cJSON_IsArray(required) || required->child != NULL))
    end_with(BAD_DATA, "`manifest.json` requires a feature that this program does not know");
  return bundle;
}

const cJSON *bundle_manifest(const struct bundle *bundle) { return bundle->manifest; }

struct bytes bundle_file(const struct bundle *bundle, const char *name) {
  for (size_t place = 0; place < bundle->count; place++) {
    if (strcmp(bundle->files[place].name, name) != 0) continue;
    struct bytes content = read_file(joined(bundle->folder, name), MAX_FILE_BYTES, 1, REFUSED);
    char digest[DIGITS + 1];
    sha256_hex(content.data, content.size, digest);
    if (strcmp(digest, bundle->files[place].digest) != 0)
      end_with(REFUSED, "bundle `%s` is refused: `%s` was changed", bundle->folder, name);
    return content;
  }
  end_with(REFUSED, "bundle `%s` is refused: `SHA256SUMS` does not list `%.100s`", bundle->folder, name);
}

const cJSON *field(const cJSON *object, const char *name) {
  const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, name);
  if (value == NULL) end_with(BAD_DATA, "`manifest.json` holds nothing as `%s`", name);
  return value;
}

const char *field_text(const cJSON *object, const char *name) {
  const cJSON *value = field(object, name);
  if (!cJSON_IsString(value)) end_with(BAD_DATA, "`manifest.json` holds no text as `%s`", name);
  return value->valuestring;
}

double field_number(const cJSON *object, const char *name) {
  const cJSON *value = field(object, name);
  if (!cJSON_IsNumber(value) || !isfinite(value->valuedouble)) end_with(BAD_DATA, "`manifest.json` holds no number as `%s`", name);
  return value->valuedouble;
}

int field_integer(const cJSON *object, const char *name, int least, int most) {
  double value = field_number(object, name);
  if (value != floor(value) || value < least || value > most)
    end_with(BAD_DATA, "`manifest.json` holds %g as `%s`\nexpected: %d to %d", value, name, least, most);
  return (int)value;
}

const cJSON *field_list(const cJSON *object, const char *name) {
  const cJSON *value = field(object, name);
  if (!cJSON_IsArray(value)) end_with(BAD_DATA, "`manifest.json` holds no list as `%s`", name);
  return value;
}

const cJSON *field_object(const cJSON *object, const char *name) {
  const cJSON *value = field(object, name);
  if (!cJSON_IsObject(value)) end_with(BAD_DATA, "`manifest.json` holds no object as `%s`", name);
  return value;
}
