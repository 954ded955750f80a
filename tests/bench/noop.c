/* A helper that does nothing: answers every line of Squid's with its channel-ID and OK. The limit of any helper. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char in[1 << 18], out[1 << 18];

int main(void) {
    size_t have = 0;
    for (ssize_t got; (got = read(0, in + have, sizeof in - have)) > 0;) {
        size_t made = 0, done = 0;
        have += (size_t)got;
        for (char *end; (end = memchr(in + done, '\n', have - done)) != NULL; done = (size_t)(end - in) + 1) {
            size_t length = strspn(in + done, "0123456789");
            memcpy(out + made, in + done, length);
            memcpy(out + made + length, " OK\n", 4);
            made += length + 4;
        }
        memmove(in, in + done, have - done);
        have -= done;
        for (size_t sent = 0; sent < made;) {
            ssize_t wrote = write(1, out + sent, made - sent);
            if (wrote < 0) exit(1);
            sent += (size_t)wrote;
        }
    }
    return 0;
}
