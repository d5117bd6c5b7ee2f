/* What all parts share: exit codes, bytes, and one way to end with a message. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <stddef.h>
#include <stdint.h>

/* The exit codes of edgebert itself. */
enum { DONE = 0, USAGE = 2, BAD_DATA = 65, NO_INPUT = 66, UNAVAILABLE = 69, REFUSED = 77 };

struct bytes {
  unsigned char *data; /* `size` bytes and a zero behind them, so that text can be used as a string */
  size_t size;
};

/* Print `error: ...` and end the program. */
_Noreturn void end_with(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* calloc that does not return without memory. */
void *allocated(size_t count, size_t size);

/* Read a file of at most `limit` bytes. A link is not followed where `plain` is set, a FIFO never waited for. */
struct bytes read_file(const char *path, size_t limit, int plain, int code_where_missing);

#endif
