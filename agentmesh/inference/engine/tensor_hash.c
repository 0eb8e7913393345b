/* FNV-1a 64 of ranges of one file, as llama.cpp's RPC backend computes it of a tensor (ggml-rpc.cpp, fnv_hash).
 *
 *     agentmesh-tensor-hash FILE
 *
 * stdin: lines "OFFSET SIZE" in decimal, then an empty line; kept open: its end means that nobody waits any more, and is
 * noticed within some megabytes.
 * stdout: a line "OFFSET SIZE HASH" (16 hex digits) for each range, as each is done, in no particular order.
 * exit status: 0 all were hashed; 1 the file cannot be read or ends too early; 2 not called as above; 3 nobody waits.
 *
 * Each step of FNV needs the one before: a processor waits four cycles for each byte of one range. So eight ranges are
 * hashed in turn, byte by byte, in one thread. Memory: half a megabyte, and 24 bytes for each range. Built and called by
 * agentmesh (engine/tensor_hash.py, rpc/hashing.py); not a part of llama.cpp.
 */
#define _FILE_OFFSET_BITS 64
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LANES 8
#define FEW 4                 /* as many take as long as one: these when no more are left */
#define BLOCK 65536           /* read at once for a lane */
#define STRIDE (BLOCK + 192)  /* not a power of two: all lanes would want the same lines of the first cache */
#define MAX_RANGES 65536
#define LOOK_BYTES (8 << 20)  /* hashed between two looks at stdin */
#define NICENESS 5

static const uint64_t BASIS = 0xcbf29ce484222325ULL, PRIME = 0x100000001b3ULL;

typedef struct { uint64_t offset, size; } Range;
typedef struct { Range range; uint64_t done; } Lane;

static unsigned char buffer[LANES * STRIDE];
static Lane lanes[LANES];
static uint64_t hashes[LANES];
static Range *ranges;
static size_t count, next_range, active;

static int fail(int status, const char *why) {
    fprintf(stderr, "agentmesh-tensor-hash: %s\n", why);
    return status;
}

#define EACH(n) h##n = (h##n ^ p[STRIDE * n + i]) * PRIME

static void hash_all(const unsigned char *p, size_t length) {
    uint64_t h0 = hashes[0], h1 = hashes[1], h2 = hashes[2], h3 = hashes[3];
    uint64_t h4 = hashes[4], h5 = hashes[5], h6 = hashes[6], h7 = hashes[7];
    for (size_t i = 0; i < length; i++) {
        EACH(0); EACH(1); EACH(2); EACH(3); EACH(4); EACH(5); EACH(6); EACH(7);
    }
    hashes[0] = h0; hashes[1] = h1; hashes[2] = h2; hashes[3] = h3;
    hashes[4] = h4; hashes[5] = h5; hashes[6] = h6; hashes[7] = h7;
}

static void hash_few(const unsigned char *p, size_t length) {
    uint64_t h0 = hashes[0], h1 = hashes[1], h2 = hashes[2], h3 = hashes[3];
    for (size_t i = 0; i < length; i++) {
        EACH(0); EACH(1); EACH(2); EACH(3);
    }
    hashes[0] = h0; hashes[1] = h1; hashes[2] = h2; hashes[3] = h3;
}

/* One number of decimal digits, then `end`; NULL if it is not that, or more than a file may have. */
static const char *number(const char *text, char end, uint64_t *value) {
    *value = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (at - text >= 19 || *value > (uint64_t)INT64_MAX / 10 - 1)
            return NULL;
        *value = *value * 10 + (uint64_t)(*at - '0');
    }
    return at > text && *at == end ? at + 1 : NULL;
}

/* 1: an empty line came; 0: something else did, or the end. */
static int read_ranges(void) {
    char line[64];
    ranges = malloc(MAX_RANGES * sizeof *ranges);
    while (ranges != NULL && fgets(line, sizeof line, stdin) != NULL) {
        if (strcmp(line, "\n") == 0)
            return 1;
        Range range;
        const char *rest = number(line, ' ', &range.offset);
        if (rest == NULL || (rest = number(rest, '\n', &range.size)) == NULL || *rest != '\0')
            return 0;
        if (count == MAX_RANGES)
            return 0;
        ranges[count++] = range;
    }
    return 0;
}

static int nobody_waits(void) {
    struct pollfd one = {0, POLLIN, 0};
    return poll(&one, 1, 0) != 0;
}

/* The next bytes of lane n, at most `length`: how many there are; 0: the file ends, or cannot be read. */
static size_t fill(int file, size_t n, size_t length) {
    for (;;) {
        off_t at = (off_t)(lanes[n].range.offset + lanes[n].done);
        ssize_t got = pread(file, buffer + n * STRIDE, length, at);
        if (got >= 0)
            return (size_t)got;
        if (errno != EINTR)
            return 0;
    }
}

static int report(size_t n) {
    unsigned long long offset = lanes[n].range.offset, size = lanes[n].range.size, hash = hashes[n];
    return printf("%llu %llu %016llx\n", offset, size, hash) > 0 && fflush(stdout) == 0;
}

/* Reports lanes that are done and gives them other ranges; without any, the last lane takes the place. 0: nobody reads. */
static int renew(void) {
    for (size_t n = 0; n < active;) {
        if (lanes[n].done < lanes[n].range.size) {
            n++;
            continue;
        }
        if (!report(n))
            return 0;
        if (next_range < count) {
            lanes[n] = (Lane){ranges[next_range++], 0};
            hashes[n] = BASIS;
        } else {
            active--;
            lanes[n] = lanes[active];
            hashes[n] = hashes[active];
        }
    }
    return 1;
}

static int hash_ranges(int file) {
    for (; active < LANES && next_range < count; active++) {
        lanes[active] = (Lane){ranges[next_range++], 0};
        hashes[active] = BASIS;
    }
    for (size_t unseen = 0;;) {
        if (unseen >= LOOK_BYTES) {
            if (nobody_waits())
                return fail(3, "nobody waits any more");
            unseen = 0;
        }
        if (!renew())
            return fail(3, "nobody reads");
        if (active == 0)
            return 0;
        size_t length = BLOCK;
        for (size_t n = 0; n < active; n++) {
            uint64_t left = lanes[n].range.size - lanes[n].done;
            length = left < length ? (size_t)left : length;
        }
        for (size_t n = 0; n < active; n++)
            if ((length = fill(file, n, length)) == 0) /* what others got beyond it is read again */
                return fail(1, "the file cannot be read, or ends too early");
        (active > FEW ? hash_all : hash_few)(buffer, length);
        for (size_t n = 0; n < active; n++)
            lanes[n].done += length;
        unseen += active * length;
    }
}

int main(int argc, char **argv) {
    if (argc != 2)
        return fail(2, "usage: agentmesh-tensor-hash FILE, ranges on stdin");
    if (nice(NICENESS) == -1)
        errno = 0;  /* as good as it goes */
    int file = open(argv[1], O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0 || !S_ISREG(status.st_mode))
        return fail(1, "the file cannot be read");
    if (!read_ranges())
        return fail(2, "stdin must be lines of an offset and a size, then an empty line");
    return hash_ranges(file);
}
