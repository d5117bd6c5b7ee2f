/* A bundle: `SHA256SUMS`, `manifest.json`, and files that are only handed out after their hash was checked. */
#ifndef BUNDLE_H
#define BUNDLE_H

#include <cjson/cJSON.h>

#include "program.h"

struct bundle;

/* Read and check `SHA256SUMS` and `manifest.json`; ends the program where one of them is not what it must be. */
struct bundle *bundle_open(const char *folder);

/* The parsed manifest. */
const cJSON *bundle_manifest(const struct bundle *bundle);

/* Read one file of the bundle and check its SHA-256: what is returned is what was hashed. */
struct bytes bundle_file(const struct bundle *bundle, const char *name);

/* SHA-256 as 64 hexadecimal digits and a zero. */
void sha256_hex(const void *data, size_t size, char hex[65]);

/* Fields of the manifest; each ends the program (65) where the field is missing or of another type. */
const cJSON *field(const cJSON *object, const char *name);
const char *field_text(const cJSON *object, const char *name);
double field_number(const cJSON *object, const char *name);
int field_integer(const cJSON *object, const char *name, int least, int most);
const cJSON *field_list(const cJSON *object, const char *name);
const cJSON *field_object(const cJSON *object, const char *name);

#endif
