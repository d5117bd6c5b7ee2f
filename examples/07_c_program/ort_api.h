/* The part of ONNX Runtime's C API that this program calls.
 *
 * With the maker's header beside the library (release archives and Linux packages carry it, Python's wheel does not) that one
 * is used. Without it, the declarations below: `OrtApi` is a structure of function pointers, new ones are only ever added at
 * its end, and ONNX Runtime's own build asserts the places of the old ones. `make abi` compares both where both are there. */
#ifndef ORT_API_H
#define ORT_API_H

#if defined(ORT_HEADER)
#include ORT_HEADER
#else

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 11 /* all that is called was there in 1.11 */

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtValue OrtValue;

enum { ORT_LOGGING_LEVEL_ERROR = 3 };
enum { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2 };
enum { OrtDeviceAllocator = 0, OrtMemTypeDefault = 0 };

typedef void (*ort_slot)(void); /* a function of another place, not called here */

typedef struct OrtApi { /* the number is the place in the structure */
  ort_slot before_2[2];
  const char *(*GetErrorMessage)(const OrtStatus *);                                                          /* 2 */
  OrtStatus *(*CreateEnv)(int severity, const char *id, OrtEnv **);                                           /* 3 */
  ort_slot before_6[2];
  OrtStatus *(*DisableTelemetryEvents)(const OrtEnv *);                                                       /* 6 */
  ort_slot before_8[1];
  OrtStatus *(*CreateSessionFromArray)(const OrtEnv *, const void *, size_t, const OrtSessionOptions *, OrtSession **); /* 8 */
  OrtStatus *(*Run)(OrtSession *, const OrtRunOptions *, const char *const *input_names, const OrtValue *const *inputs, size_t,
                    const char *const *output_names, size_t, OrtValue **outputs);                             /* 9 */
  OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);                                                   /* 10 */
  ort_slot before_22[11];
  OrtStatus *(*SetSessionLogSeverityLevel)(OrtSessionOptions *, int);                                         /* 22 */
  ort_slot before_24[1];
  OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int);                                               /* 24 */
  OrtStatus *(*SetInterOpNumThreads)(OrtSessionOptions *, int);                                               /* 25 */
  ort_slot before_49[23];
  OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *, size_t bytes, const int64_t *shape, size_t rank,
                                               int type, OrtValue **);                                        /* 49 */
  ort_slot before_69[19];
  OrtStatus *(*CreateCpuMemoryInfo)(int allocator, int type, OrtMemoryInfo **);                               /* 69 */
  ort_slot before_92[22];
  void (*ReleaseEnv)(OrtEnv *);                                                                               /* 92 */
  void (*ReleaseStatus)(OrtStatus *);                                                                         /* 93 */
  void (*ReleaseMemoryInfo)(OrtMemoryInfo *);                                                                 /* 94 */
  void (*ReleaseSession)(OrtSession *);                                                                       /* 95 */
  void (*ReleaseValue)(OrtValue *);                                                                           /* 96 */
  ort_slot before_100[3];
  void (*ReleaseSessionOptions)(OrtSessionOptions *);                                                         /* 100 */
  ort_slot before_130[29];
  OrtStatus *(*AddSessionConfigEntry)(OrtSessionOptions *, const char *key, const char *value);               /* 130 */
} OrtApi;

typedef struct OrtApiBase {
  const OrtApi *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} OrtApiBase;

#endif

/* The places, whichever of the two was compiled. */
#define ORT_PLACE(function, place) \
  _Static_assert(offsetof(OrtApi, function) == (place) * sizeof(void (*)(void)), "OrtApi has another layout")
ORT_PLACE(GetErrorMessage, 2);
ORT_PLACE(CreateEnv, 3);
ORT_PLACE(DisableTelemetryEvents, 6);
ORT_PLACE(CreateSessionFromArray, 8);
ORT_PLACE(Run, 9);
ORT_PLACE(CreateSessionOptions, 10);
ORT_PLACE(SetSessionLogSeverityLevel, 22);
ORT_PLACE(SetIntraOpNumThreads, 24);
ORT_PLACE(SetInterOpNumThreads, 25);
ORT_PLACE(CreateTensorWithDataAsOrtValue, 49);
ORT_PLACE(CreateCpuMemoryInfo, 69);
ORT_PLACE(ReleaseEnv, 92);
ORT_PLACE(ReleaseStatus, 93);
ORT_PLACE(ReleaseMemoryInfo, 94);
ORT_PLACE(ReleaseSession, 95);
ORT_PLACE(ReleaseValue, 96);
ORT_PLACE(ReleaseSessionOptions, 100);
ORT_PLACE(AddSessionConfigEntry, 130);

#endif
