/* A helper that does nothing: answers every line of Squid's with its channel-ID, where it has one, and OK, and with its
 * argument, where it has one: an annotation without which squidkeeper.conf denies. The limit of any helper. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char in[1 << 18], out[1 << 18]; /* an answer is shorter than its line */

int main(int count, char **arguments) {
    char answer[256];
    size_t have = 0;
    size_t answered = (size_t)snprintf(answer, sizeof answer, count > 1 ? "OK %s\n" : "OK\n", arguments[1]);
    if (answered >= sizeof answer) exit(1);
    for (ssize_t got; (got = read(0, in + have, sizeof in - have)) > 0;) {
        size_t made = 0, done = 0;
        have += (size_t)got;
        for (char *end; (end = memchr(in + done, '\n', have - done)) != NULL; done = (size_t)(end - in) + 1) {
            size_t length = strspn(in + done, "0123456789");
            memcpy(out + made, in + done, length);
            made += length;
            if (length) out[made++] = ' ';
            memcpy(out + made, answer, answered);
            made += answered;
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
