/*
 * A long, narrow line on loopback: a TCP proxy that gives every connection its own rate, round trip and slow start.
 *
 *     cc -O2 -o shaper shaper.c -lm
 *     ./shaper LISTEN_PORT ORIGIN_PORT MB_PER_SECOND ROUND_TRIP_MS [SLOW]      e.g.  ./shaper 8001 8000 40 20
 *
 * With SLOW, bytes a second, one connection is throttled: the fourth one after a time without any. Its bytes come in
 * pieces of a tenth of a second.
 *
 * Port 0 lets the kernel choose; the port in use is the first line of standard output. A rate of 0 is no limit and no
 * slow start. It listens and connects on 127.0.0.1 only, and runs until it is killed.
 *
 * What a connection meets, in each direction: bytes leave the sender at the rate, and in slow start at most a window of
 * them in each round trip; they arrive half a round trip later. A window that was used up doubles, as in TCP, until the
 * rate is the limit, and stays as large while the connection is idle. The handshake costs one round trip more.
 *
 * The bytes on their way lie in a pipe, moved with splice(2): the pages that the origin sent are handed on, not copied,
 * so that one thread carries more than 1 GB/s. The pipe is also the bound: a client that does not read fills it, and
 * then nothing more is taken from the origin. Nothing spins: between two events poll(2) sleeps.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECTIONS = 128,            /* six descriptors each: within the usual limit of 1024 */
    CHUNKS = 512,                 /* pieces on their way in one direction */
    CHUNK = 64 << 10,             /* bytes; 1.6 ms at 40 MB/s */
    PIPE = 1 << 20,               /* bytes; twice what is on its way at 40 MB/s and 20 ms, for pages filled in part */
    SOCKET_BUFFER = 256 << 10,    /* bytes; more would be a reservoir that no real line has */
    FIRST_WINDOW = 10 * 1460,     /* bytes, RFC 6928 */
    THROTTLED = 4,                /* which connection is the slow one */
};
static const double TICK = 0.5e-3; /* seconds; what falls due within one is done together: fewer wake-ups */

static double rate, round_trip;   /* bytes a second, seconds */
static double slow;               /* bytes a second of a throttled connection; 0 if there is none */
static int accepted;              /* connections since there was none */
static int pipe_size;

struct way {                      /* one direction of a connection */
    int from, to, in, out;        /* sockets, and the two ends of the pipe between them */
    double rate, most;            /* bytes a second, and bytes in one piece */
    double free_at;               /* when the last byte taken has left the sender */
    double round_end;             /* slow start: until then the window is what may leave */
    double window, left;          /* bytes a round trip, and what is left of them in this one */
    int waiting;                  /* the sender had more than the line took: the line has not been idle since */
    int pipe_full, blocked;       /* the pipe has no page left; the receiver takes no more */
    int eof, done;
    int head, count;
    struct { double due; size_t bytes; } chunk[CHUNKS];
};

struct connection { struct way up, down; };

static struct connection *all[CONNECTIONS];
static int open_connections;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* When the sender may send again; later than any time while something else must happen first. */
static double may_take(const struct way *w) {
    if (w->eof || w->pipe_full || w->count == CHUNKS)
        return INFINITY;
    return w->left < 1 ? fmax(w->free_at, w->round_end) : w->free_at;
}

/* Take what the line has room for since the last call. Returns 0 when the connection is broken. */
static int take(struct way *w, double t) {
    for (double open; (open = may_take(w)) <= t;) {
        int new_round = t >= w->round_end;
        if (new_round) {
            if (w->left < 1)  /* a window that was not used up does not grow */
                w->window *= 2;
            if (w->window >= w->rate * round_trip)
                w->window = INFINITY;  /* from here on the rate is the limit */
            w->left = w->window;
        }
        ssize_t n = splice(w->from, 0, w->in, 0, fmin(w->most, w->left), SPLICE_F_NONBLOCK);
        if (n < 0 && errno == EAGAIN) {  /* the pipe has no page left, or the sender has nothing to send? */
            int unread = 0;
            ioctl(w->from, FIONREAD, &unread);
            w->pipe_full = unread > 0 && w->count > 0;
            w->waiting = 0;
            return 1;
        }
        if (n < 0)
            return 0;
        if (n == 0) {
            w->eof = 1;
            return 1;
        }
        /* Bytes that had to wait leave as soon as the line was open to them, however late this process woke up. */
        double leave = w->waiting ? open : t;
        if (new_round)
            w->round_end = leave + round_trip;
        w->free_at = leave + n / w->rate;
        w->waiting = 1;
        w->left -= n;
        int tail = (w->head + w->count++) % CHUNKS;
        w->chunk[tail].due = w->free_at + round_trip / 2;
        w->chunk[tail].bytes = n;
    }
    return 1;
}

/* Hand over what has arrived. Returns 0 when the connection is broken. */
static int give(struct way *w, double t) {
    w->blocked = 0;
    while (w->count && w->chunk[w->head].due <= t) {
        ssize_t n = splice(w->out, 0, w->to, 0, w->chunk[w->head].bytes, SPLICE_F_NONBLOCK);
        if (n < 0) {
            w->blocked = errno == EAGAIN;
            return w->blocked;
        }
        w->pipe_full = 0;
        w->chunk[w->head].bytes -= n;
        if (w->chunk[w->head].bytes == 0) {
            w->head = (w->head + 1) % CHUNKS;
            w->count--;
        }
    }
    if (w->eof && !w->count && !w->done) {
        shutdown(w->to, SHUT_WR);
        w->done = 1;
    }
    return 1;
}

static void start(struct way *w, int from, int to, int size, double at, double speed) {
    int ends[2], yes = 1, buffer = SOCKET_BUFFER;
    if (pipe2(ends, O_NONBLOCK) || fcntl(ends[1], F_SETPIPE_SZ, size) < 0)
        die("no pipe of this size (/proc/sys/fs/pipe-max-size)");
    setsockopt(to, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(to, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    fcntl(to, F_SETFL, O_NONBLOCK);
    w->from = from, w->to = to, w->in = ends[1], w->out = ends[0];
    w->free_at = at;
    w->rate = speed;
    w->most = speed < rate ? fmax(1, speed / 10) : CHUNK;
    w->window = w->left = isinf(speed) ? INFINITY : FIRST_WINDOW;
}

static void open_connection(int client, const struct sockaddr_in *origin) {
    int upstream = socket(AF_INET, SOCK_STREAM, 0);
    if (open_connections == CONNECTIONS || connect(upstream, (const void *)origin, sizeof *origin)) {
        close(client), close(upstream);
        return;
    }
    accepted = open_connections ? accepted + 1 : 1;
    double speed = slow > 0 && accepted == THROTTLED ? slow : rate;
    struct connection *c = all[open_connections++] = calloc(1, sizeof *c);
    if (!c)
        die("calloc");
    /* The kernel has long shaken hands with the client: the round trip of that is made up for by its first bytes. */
    start(&c->up, client, upstream, 64 << 10, now() + round_trip, rate);
    start(&c->down, upstream, client, pipe_size, 0, speed);
}

static void close_connection(int i) {
    struct connection *c = all[i];
    close(c->up.from), close(c->up.to);
    close(c->up.in), close(c->up.out), close(c->down.in), close(c->down.out);
    free(c);
    all[i] = all[--open_connections];
}

/* Add to the poll set what this direction waits for now, and bring `wake` forward to when it has something to do.
 * A socket from which nothing is wanted stays out of the set: poll would report its end again and again. */
static int wait_for(const struct way *w, double t, struct pollfd *set, double *wake) {
    int n = 0;
    double next = may_take(w);
    if (next <= t)
        set[n++] = (struct pollfd){w->from, POLLIN, 0};
    else
        *wake = fmin(*wake, next);
    if (w->blocked)
        set[n++] = (struct pollfd){w->to, POLLOUT, 0};
    else if (w->count)
        *wake = fmin(*wake, w->chunk[w->head].due);
    return n;
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6) {
        fprintf(stderr, "usage: %s LISTEN_PORT ORIGIN_PORT MB_PER_SECOND ROUND_TRIP_MS [SLOW]\n", argv[0]);
        return 2;
    }
    rate = atof(argv[3]) > 0 ? atof(argv[3]) * 1e6 : INFINITY;
    round_trip = atof(argv[4]) / 1e3;
    slow = argc == 6 ? atof(argv[5]) : 0;
    pipe_size = isinf(rate) ? PIPE : (int)fmax(PIPE, rate * round_trip);
    signal(SIGPIPE, SIG_IGN);

    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))}, origin = here;
    here.sin_addr.s_addr = origin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    origin.sin_port = htons(atoi(argv[2]));
    int door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    socklen_t length = sizeof here;
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(door, (void *)&here, length) || listen(door, CONNECTIONS) || getsockname(door, (void *)&here, &length))
        die("cannot listen");
    printf("%d\n", ntohs(here.sin_port));
    fflush(stdout);

    for (;;) {
        static struct pollfd set[1 + 4 * CONNECTIONS];
        int n = 1;
        set[0] = (struct pollfd){door, POLLIN, 0};
        double t = now(), wake = INFINITY;
        for (int i = open_connections - 1; i >= 0; i--) {
            struct way *up = &all[i]->up, *down = &all[i]->down;
            if (!take(up, t) || !take(down, t) || !give(up, t) || !give(down, t) || (up->done && down->done)) {
                close_connection(i);
                continue;
            }
            n += wait_for(up, t, set + n, &wake);
            n += wait_for(down, t, set + n, &wake);
        }
        double sleep = fmax(0, ceil(wake / TICK) * TICK - now());
        struct timespec timeout = {(time_t)sleep, (long)((sleep - (time_t)sleep) * 1e9)};
        ppoll(set, n, isinf(wake) ? NULL : &timeout, NULL);
        for (int client; (client = accept(door, NULL, NULL)) >= 0;)
            open_connection(client, &origin);
    }
}
