/*
 * A volume behind a network: a read-only FUSE file system over a directory, whose blocks come when they are first read.
 *
 *     cc -O2 -o slowvol slowvol.c $(pkg-config --cflags --libs fuse3) -lm
 *     ./slowvol BACKING MOUNTPOINT BLOCK LATENCY STREAM TOTAL CACHE
 *     e.g.  ./slowvol /dev/shm/weights /mnt/volume 8388608 0.010 150e6 1.2e9 pages
 *
 * BLOCK is in bytes, LATENCY in seconds, STREAM and TOTAL in bytes a second; CACHE is one of `caches` below. It says
 * "ready" on standard output when it is mounted, and answers "done" to each command on standard input: e forgets every
 * block and every page of the kernel's cache, r sets the counters back. It unmounts and ends at the end of standard
 * input, when its parent is gone, or on SIGTERM, SIGINT or SIGHUP. Its status is 2 where the arguments are wrong, and 3
 * where it cannot mount.
 *
 * What a read meets: a block that nobody asked for before is asked for as a whole, which is one stream. Its first byte
 * comes after the latency, the others at the rate of a stream; and all blocks share one line, on which they have their
 * turns in the order in which they were asked for. So the moment at which a block is here is known when it is asked for,
 * and whoever needs it sleeps until then: two readers of one block wait for one fetch, and nothing polls or spins.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <fuse_lowlevel.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    IN_FLIGHT = 128,              /* reads ahead that the kernel may have under way; its own default is 12 */
    THREADS = IN_FLIGHT + 64,     /* each sleeps with its read, and a look at a directory must not wait for that */
    MAX_READ = 512 << 10,         /* bytes; with its header a larger answer does not fit into a pipe, and is copied */
};
static const char STATS_FOLDER[] = "/.slowvol", STATS[] = "/.slowvol/stats";

enum cache { PAGES, BLOCKS, NOTHING };  /* what is kept when a file is opened again */
static const char *const caches[] = {"pages", "blocks", "nothing"};

static int backing;               /* descriptor of the directory */
static off_t block;               /* bytes */
static double latency;            /* seconds */
static double stream, total;      /* bytes a second */
static enum cache cache;

struct file {
    struct file *next;
    char *path;
    dev_t dev;
    ino_t ino;
    off_t size;
    double due[];                 /* of each block: when it is here, by the monotonic clock; 0: nobody asked for it */
};

struct handle {                   /* of an open file */
    int fd;
    struct file *file;            /* none for the counters */
};

static pthread_mutex_t books = PTHREAD_MUTEX_INITIALIZER;  /* for everything below, and all that a file holds */
static struct file *files;        /* only ever grows, at its head: the rest of it can be walked without the books */
static double line_free;          /* when the last block asked for has passed the line */
static unsigned streams;          /* blocks under way */
static double cpu_before;         /* seconds, at the last reset */
static struct {
    unsigned long long blocks_fetched, bytes_fetched, reads, bytes_read, waits, opens, max_streams;
    double wait_seconds;
} count;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void sleep_until(double when) {
    struct timespec t = {(time_t)when, (long)((when - (time_t)when) * 1e9)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

static double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

/* --- the network --- */

/* Ask for a block at the time t, with the books in hand. Returns when it is here. */
static double ask(const struct file *file, off_t number, double t) {
    double bytes = fmin(block, file->size - number * block), first_byte = t + latency;
    line_free = fmax(line_free, first_byte) + bytes / total;
    count.blocks_fetched++;
    count.bytes_fetched += bytes;
    return fmax(first_byte + bytes / stream, line_free);
}

/* Sleep until all blocks of file[from, to) are here. */
static void need(struct file *file, off_t from, off_t to) {
    unsigned asked = 0;
    double last = 0;
    pthread_mutex_lock(&books);
    double t = now();
    for (off_t i = from / block; i <= (to - 1) / block; i++) {
        if (!file->due[i]) {
            file->due[i] = ask(file, i, t);
            asked++;
        }
        last = fmax(last, file->due[i]);
    }
    streams += asked;
    count.max_streams = streams > count.max_streams ? streams : count.max_streams;
    count.reads++;
    count.bytes_read += to - from;
    if (last > t) {
        count.waits++;
        count.wait_seconds += last - t;
        pthread_mutex_unlock(&books);
        sleep_until(last);
        pthread_mutex_lock(&books);
    }
    streams -= asked;
    pthread_mutex_unlock(&books);
}

/* Forget the blocks that are here, with the books in hand. What is under way is somebody's, and comes. */
static void forget(struct file *file) {
    double t = now();
    for (off_t i = 0; i * block < file->size; i++)
        if (file->due[i] <= t)
            file->due[i] = 0;
}

/* --- the file system --- */

/* The file with this status, which is remembered for ever: what was fetched outlives the handle. NULL: no memory. */
static struct file *remembered(const char *path, const struct stat *status) {
    for (struct file *file = files; file; file = file->next)
        if (file->ino == status->st_ino && file->dev == status->st_dev && file->size == status->st_size
            && !strcmp(file->path, path))
            return file;
    struct file *file = calloc(1, sizeof *file + (status->st_size / block + 1) * sizeof *file->due);
    char *copy = strdup(path);
    if (!file || !copy) {
        free(file);
        free(copy);
        return NULL;
    }
    *file = (struct file){files, copy, status->st_dev, status->st_ino, status->st_size};
    return files = file;
}

static const char *relative(const char *path) {
    return path[1] ? path + 1 : ".";
}

static int get_attributes(const char *path, struct stat *status, struct fuse_file_info *info) {
    (void)info;
    int folder = !strcmp(path, STATS_FOLDER);
    if (folder || !strcmp(path, STATS)) {
        *status = (struct stat){.st_mode = folder ? S_IFDIR | 0555 : S_IFREG | 0444, .st_nlink = 1, .st_uid = getuid()};
        return 0;
    }
    return fstatat(backing, relative(path), status, AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

static int read_link(const char *path, char *target, size_t size) {
    ssize_t length = readlinkat(backing, relative(path), target, size - 1);
    if (length < 0)
        return -errno;
    target[length] = 0;
    return 0;
}

static int read_directory(const char *path, void *into, fuse_fill_dir_t add, off_t from, struct fuse_file_info *info,
                          enum fuse_readdir_flags flags) {
    (void)from, (void)info, (void)flags;
    int fd = openat(backing, relative(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC), full = 0;
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory)
        return -errno;
    for (struct dirent *entry; !full && (entry = readdir(directory));) {
        struct stat status = {.st_ino = entry->d_ino, .st_mode = DTTOIF(entry->d_type)};
        full = add(into, entry->d_name, &status, 0, 0);
    }
    closedir(directory);
    return full ? -ENOMEM : 0;
}

static int get_space(const char *path, struct statvfs *space) {
    (void)path;
    return fstatvfs(backing, space) ? -errno : 0;
}

/* A file of the counters as they are now: one that is open does not change between two reads. */
static int write_stats(void) {
    int fd = memfd_create("stats", MFD_CLOEXEC);
    if (fd < 0)
        return -1;
    pthread_mutex_lock(&books);
    dprintf(fd,
            "{\"blocks_fetched\": %llu, \"bytes_fetched\": %llu, \"reads\": %llu, \"bytes_read\": %llu, "
            "\"waits\": %llu, \"wait_seconds\": %.6f, \"max_streams\": %llu, \"opens\": %llu, \"cpu_seconds\": %.6f}\n",
            count.blocks_fetched, count.bytes_fetched, count.reads, count.bytes_read, count.waits,
            count.wait_seconds, count.max_streams, count.opens, cpu_seconds() - cpu_before);
    pthread_mutex_unlock(&books);
    return fd;
}

static int open_file(const char *path, struct fuse_file_info *info) {
    struct stat status;
    struct handle *handle = calloc(1, sizeof *handle);
    if (!handle)
        return -ENOMEM;
    info->fh = (uintptr_t)handle;
    info->direct_io = !strcmp(path, STATS);  /* its size is told as 0, and the kernel must read on nevertheless */
    handle->fd = info->direct_io ? write_stats() : openat(backing, relative(path), O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (handle->fd < 0) {
        int error = errno;
        free(handle);
        return -error;
    }
    if (info->direct_io)
        return 0;
    fstat(handle->fd, &status);
    pthread_mutex_lock(&books);
    if ((handle->file = remembered(path, &status))) {
        count.opens++;
        if (cache == NOTHING)  /* as the kernel does with its pages: at each open. A close is told of too late */
            forget(handle->file);
    }
    pthread_mutex_unlock(&books);
    if (!handle->file) {
        close(handle->fd);
        free(handle);
        return -ENOMEM;
    }
    info->keep_cache = cache == PAGES;
    return 0;
}

static int read_file(const char *path, struct fuse_bufvec **answer, size_t size, off_t from,
                     struct fuse_file_info *info) {
    (void)path;
    const struct handle *handle = (const void *)(uintptr_t)info->fh;
    if (handle->file && from < handle->file->size)
        need(handle->file, from, size < (size_t)(handle->file->size - from) ? from + (off_t)size : handle->file->size);
    if (!(*answer = malloc(sizeof **answer)))
        return -ENOMEM;
    **answer = FUSE_BUFVEC_INIT(size);
    (*answer)->buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
    (*answer)->buf[0].fd = handle->fd;
    (*answer)->buf[0].pos = from;
    return 0;
}

static int close_file(const char *path, struct fuse_file_info *info) {
    (void)path;
    struct handle *handle = (void *)(uintptr_t)info->fh;
    close(handle->fd);
    free(handle);
    return 0;
}

static void *agree(struct fuse_conn_info *connection, struct fuse_config *config) {
    connection->max_background = connection->congestion_threshold = IN_FLIGHT;
    connection->max_read = MAX_READ;
    /* Answers go from file to file, in a third of the time that a copy takes; a request is too short to gain by it. */
    connection->want |= connection->capable & FUSE_CAP_SPLICE_WRITE;
    connection->want &= ~FUSE_CAP_SPLICE_READ;
    config->use_ino = 1;
    config->entry_timeout = config->attr_timeout = 60;  /* seconds; the backing directory does not change */
    return NULL;
}

static const struct fuse_operations operations = {
    .init = agree,
    .getattr = get_attributes,
    .readlink = read_link,
    .readdir = read_directory,
    .statfs = get_space,
    .open = open_file,
    .read_buf = read_file,
    .release = close_file,
};

/* --- at work --- */

static void *serve(void *session) {
    struct fuse_buf request = {0};
    int got;
    while ((got = fuse_session_receive_buf(session, &request)) > 0 || got == -EINTR)
        if (got > 0)
            fuse_session_process_buf(session, &request);
    kill(getpid(), SIGTERM);  /* somebody else has unmounted it: the main thread must know */
    return NULL;
}

/* Forget everything that was read. The pages go first, and the kernel waits for those that are being read ahead: after
 * that no fetch is under way that nobody waits for, and that would leave its block here. */
static void evict(struct fuse *fuse) {
    pthread_mutex_lock(&books);
    struct file *all = files;
    pthread_mutex_unlock(&books);
    for (struct file *file = all; file; file = file->next)
        fuse_invalidate_path(fuse, file->path);  /* without the books: the reads it waits for need them */
    pthread_mutex_lock(&books);
    for (struct file *file = all; file; file = file->next)
        forget(file);
    pthread_mutex_unlock(&books);
}

static void reset(void) {
    pthread_mutex_lock(&books);
    memset(&count, 0, sizeof count);
    cpu_before = cpu_seconds();
    pthread_mutex_unlock(&books);
}

/* Do what standard input says, until there is a reason to end. */
static void obey(struct fuse *fuse, int signals, int parent) {
    struct pollfd set[] = {{STDIN_FILENO, POLLIN, 0}, {signals, POLLIN, 0}, {parent, POLLIN, 0}};
    for (;;) {
        char command;
        if (poll(set, 3, -1) < 0 && errno != EINTR)
            return;
        if (set[1].revents || set[2].revents)
            return;
        if (!set[0].revents)
            continue;
        if (read(STDIN_FILENO, &command, 1) <= 0)
            return;
        if (command == 'e')
            evict(fuse);
        else if (command == 'r')
            reset();
        else
            continue;
        puts("done");
        fflush(stdout);
    }
}

static int usage(const char *program) {
    fprintf(stderr, "usage: %s BACKING MOUNTPOINT BLOCK LATENCY STREAM TOTAL pages|blocks|nothing\n", program);
    return 2;
}

int main(int argc, char **argv) {
    /* The parent itself is watched too, for a child that it forks holds the other end of standard input open. Not by
     * PR_SET_PDEATHSIG, which tells of the end of the thread that started this process. From the beginning, because
     * later there may be another parent. */
    int parent = syscall(SYS_pidfd_open, getppid(), 0);
    if (argc != 8)
        return usage(argv[0]);
    block = atoll(argv[3]);
    latency = atof(argv[4]);
    stream = atof(argv[5]);
    total = atof(argv[6]);
    while (cache <= NOTHING && strcmp(argv[7], caches[cache]))
        cache++;
    if (block <= 0 || !(latency >= 0) || !(stream > 0) || !(total > 0) || cache > NOTHING)
        return usage(argv[0]);
    if ((backing = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) {
        perror(argv[1]);
        return 2;
    }

    /* Before any thread starts: each inherits this, and the signals wait for the main thread. */
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM), sigaddset(&ends, SIGINT), sigaddset(&ends, SIGHUP);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    signal(SIGPIPE, SIG_IGN);  /* an answer to a driver that is gone must not end this process before it unmounts */

    char mount_options[128];
    snprintf(mount_options, sizeof mount_options, "ro,default_permissions,fsname=slowvol,subtype=slowvol,max_read=%d",
             MAX_READ);
    char *options[] = {argv[0], "-o", mount_options, NULL};
    struct fuse_args arguments = FUSE_ARGS_INIT(3, options);
    struct fuse *fuse = fuse_new(&arguments, &operations, sizeof operations, NULL);
    if (!fuse || fuse_mount(fuse, argv[2]))
        return 3;
    /* Not fuse_loop_mt: how many threads it runs, and by which options, differs from one libfuse to the next. */
    for (int i = 0; i < THREADS; i++) {
        pthread_t thread;
        if ((errno = pthread_create(&thread, NULL, serve, fuse_get_session(fuse)))) {
            perror("pthread_create");
            fuse_unmount(fuse);
            return 3;
        }
    }
    puts("ready");
    fflush(stdout);
    obey(fuse, signalfd(-1, &ends, SFD_CLOEXEC), parent);
    fuse_unmount(fuse);  /* also where files are open: it detaches the mount, and who reads them gets an error */
    fflush(NULL);
    _exit(0);  /* the threads may be in the middle of a read */
}
