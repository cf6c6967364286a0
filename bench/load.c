/* The load of the benchmarks: both ends of connections, datagrams and streams, and a flood.
 *
 *   load serve PORT                          greet whoever connects with one octet; answer datagrams; swallow streams
 *   load connect ADDRESS PORT FLIGHT COUNT SECONDS  connections, FLIGHT at a time
 *   load datagrams ADDRESS PORT COUNT LATER  flows from a fresh port, one after the other: a first, a second and LATER more datagrams, each answered
 *   load stream ADDRESS PORT SECONDS         one connection, as much as goes
 *   load flood FILE RATE SECONDS             packets of FILE (length in two octets, then the IPv4 packet), RATE a second
 *
 * Each prints one line of JSON, `serve` when it is ready and the others when they are done. Times in nanoseconds.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MOST 4000000u
#define PIECE (256 << 10)
#define PATIENCE_MS 5000

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void add(int epoll, int fd, uint32_t events, uint64_t tag)
{
    struct epoll_event event = {.events = events, .data.u64 = tag};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) die("epoll_ctl");
}

static unsigned long number(const char *text, unsigned long most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value > most) {
        fprintf(stderr, "load: %s: not a number up to %lu\n", text, most);
        exit(2);
    }
    return value;
}

struct peer {
    struct sockaddr_storage address;
    socklen_t length;
};

static struct peer resolve(const char *address, const char *port)
{
    struct addrinfo wanted = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV}, *found;
    struct peer peer = {0};
    if (getaddrinfo(address, port, &wanted, &found) != 0) {
        fprintf(stderr, "load: %s port %s: not an address and a port\n", address, port);
        exit(2);
    }
    memcpy(&peer.address, found->ai_addr, found->ai_addrlen);
    peer.length = found->ai_addrlen;
    freeaddrinfo(found);
    return peer;
}

/* -- figures -------------------------------------------------------------------------------------------------------- */

struct samples {
    uint64_t *at;
    size_t count;
};

static struct samples make_samples(size_t most)
{
    struct samples made = {calloc(most ? most : 1, sizeof(uint64_t)), 0};
    if (made.at == NULL) die("calloc");
    return made;
}

static int compare(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return a < b ? -1 : a > b;
}

static void print_samples(const char *name, struct samples *samples)
{
    qsort(samples->at, samples->count, sizeof *samples->at, compare);
    size_t last = samples->count ? samples->count - 1 : 0;
    printf("\"%s\": {\"p50\": %lu, \"p99\": %lu, \"p999\": %lu}, ", name, samples->at[last / 2],
           samples->at[(size_t)((double)last * 0.99)], samples->at[(size_t)((double)last * 0.999)]);
}

/* -- the server ----------------------------------------------------------------------------------------------------- */

enum { LISTENER = 1, DATAGRAMS = 2, FIRST_CONNECTION = 16 };

static int open_server(int kind, uint16_t port)
{
    int yes = 1, no = 0, fd = socket(AF_INET6, kind | SOCK_NONBLOCK, 0), large = 8 << 20;
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any};
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no) != 0 ||
        bind(fd, (struct sockaddr *)&here, sizeof here) != 0)
        die("bind");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof large);
    if (kind == SOCK_STREAM && listen(fd, 8192) != 0) die("listen");
    return fd;
}

static void accept_all(int listener, int epoll)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (send(fd, "!", 1, MSG_NOSIGNAL) < 0) close(fd);
        else add(epoll, fd, EPOLLIN | EPOLLRDHUP, FIRST_CONNECTION + (uint64_t)fd);
    }
}

static void answer_all(int datagrams)
{
    uint8_t data[2048];
    struct peer from = {.length = sizeof from.address};
    ssize_t length;
    while ((length = recvfrom(datagrams, data, sizeof data, 0, (struct sockaddr *)&from.address, &from.length)) >= 0) {
        if (sendto(datagrams, data, (size_t)length, 0, (struct sockaddr *)&from.address, from.length) < 0) continue;
        from.length = sizeof from.address;
    }
}

static _Noreturn void serve(uint16_t port)
{
    int listener = open_server(SOCK_STREAM, port), datagrams = open_server(SOCK_DGRAM, port), epoll = epoll_create1(0);
    uint8_t *piece = malloc(PIECE);
    if (epoll < 0 || piece == NULL) die("epoll_create1");
    add(epoll, listener, EPOLLIN, LISTENER);
    add(epoll, datagrams, EPOLLIN, DATAGRAMS);
    printf("{\"ready\": 1}\n");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int index = 0; index < ready; index++) {
            uint64_t tag = events[index].data.u64;
            if (tag == LISTENER) accept_all(listener, epoll);
            else if (tag == DATAGRAMS) answer_all(datagrams);
            else {
                int fd = (int)(tag - FIRST_CONNECTION);
                ssize_t length = read(fd, piece, PIECE);
                if (length == 0 || (length < 0 && errno != EAGAIN)) close(fd);
            }
        }
    }
}

/* -- connections ---------------------------------------------------------------------------------------------------- */

struct slot {
    int fd;
    uint64_t began;
    bool connected;
};

static bool begin(struct slot *slot, const struct peer *peer, int epoll, uint64_t tag)
{
    struct linger reset = {.l_onoff = 1}; /* closes by a reset, so that ports and conntrack entries do not run out */
    slot->fd = socket(peer->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (slot->fd < 0) die("socket");
    setsockopt(slot->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    slot->connected = false;
    slot->began = now_ns();
    if (connect(slot->fd, (const struct sockaddr *)&peer->address, peer->length) != 0 && errno != EINPROGRESS) {
        close(slot->fd);
        slot->fd = -1;
        return false;
    }
    add(epoll, slot->fd, EPOLLIN | EPOLLOUT | EPOLLET, tag);
    return true;
}

static int connect_many(const struct peer *peer, size_t flight, size_t count, double seconds)
{
    struct slot *slots = calloc(flight, sizeof *slots);
    struct samples connected = make_samples(count), first = make_samples(count);
    int epoll = epoll_create1(0);
    size_t begun = 0, open = 0, failures = 0;
    if (slots == NULL || epoll < 0) die("epoll_create1");
    uint64_t start = now_ns(), deadline = start + (uint64_t)(seconds * 1e9);
    for (size_t index = 0; index < flight && begun < count; index++, begun++)
        if (begin(&slots[index], peer, epoll, index)) open++;
        else failures++;
    uint64_t end = start;
    while (open > 0) {
        struct epoll_event events[256];
        int ready = epoll_wait(epoll, events, 256, PATIENCE_MS);
        if (ready <= 0) {
            failures += open;
            break;
        }
        for (int index = 0; index < ready; index++) {
            struct slot *slot = &slots[events[index].data.u64];
            uint64_t now = now_ns();
            char greeting;
            bool broken = events[index].events & (EPOLLERR | EPOLLHUP);
            if (!broken && !slot->connected && events[index].events & EPOLLOUT) {
                slot->connected = true;
                connected.at[connected.count++] = now - slot->began;
            }
            if (!broken && !(events[index].events & EPOLLIN)) continue;
            if (!broken && recv(slot->fd, &greeting, 1, 0) == 1) {
                first.at[first.count++] = now - slot->began;
                end = now;
            } else
                failures++;
            close(slot->fd);
            open--;
            if (begun < count && now < deadline) {
                begun++;
                if (begin(slot, peer, epoll, events[index].data.u64)) open++;
                else failures++;
            }
        }
    }
    printf("{\"connects\": %zu, \"failures\": %zu, \"elapsed\": %lu, ", first.count, failures, end - start);
    print_samples("connect", &connected);
    print_samples("first", &first);
    printf("\"flight\": %zu}\n", flight);
    return 0;
}

/* -- datagrams and streams ------------------------------------------------------------------------------------------ */

/* A question of DNS, which any server may answer: for an address of a name of 41 letters in `test`. */
#define QUESTION "\0\1\1\0\0\1\0\0\0\0\0\0\51" "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq" "\4test\0\0\1\0\1"

static bool ask(int fd, struct samples *samples)
{
    char data[] = QUESTION, answer[512];
    uint64_t began = now_ns();
    if (send(fd, data, sizeof data - 1, 0) < 0 || recv(fd, answer, sizeof answer, 0) < 0) return false;
    samples->at[samples->count++] = now_ns() - began;
    return true;
}

static int send_datagrams(const struct peer *peer, size_t count, size_t later)
{
    /* The first flow of all meets a peer that is unknown, or was forgotten; the others go on from that. */
    struct samples cold = make_samples(1), first = make_samples(count), second = make_samples(count), others = make_samples(count * later);
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    size_t failures = 0;
    for (size_t flow = 0; flow < count; flow++) {
        int fd = socket(peer->address.ss_family, SOCK_DGRAM, 0);
        if (fd < 0 || connect(fd, (const struct sockaddr *)&peer->address, peer->length) != 0) die("connect");
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (!ask(fd, flow ? &first : &cold) || !ask(fd, &second)) failures++;
        else
            for (size_t index = 0; index < later; index++)
                if (!ask(fd, &others)) failures++;
        close(fd);
    }
    printf("{\"flows\": %zu, \"failures\": %zu, ", cold.count + first.count, failures);
    print_samples("cold", &cold);
    print_samples("first", &first);
    print_samples("second", &second);
    print_samples("later", &others);
    printf("\"datagrams\": %zu}\n", others.count);
    return 0;
}

static int stream(const struct peer *peer, double seconds)
{
    int fd = socket(peer->address.ss_family, SOCK_STREAM, 0);
    uint8_t *piece = calloc(1, PIECE);
    char greeting;
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    if (fd < 0 || piece == NULL) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (const struct sockaddr *)&peer->address, peer->length) != 0 || recv(fd, &greeting, 1, 0) != 1)
        die("connect");
    uint64_t start = now_ns(), deadline = start + (uint64_t)(seconds * 1e9), octets = 0, now;
    while ((now = now_ns()) < deadline) {
        ssize_t written = send(fd, piece, PIECE, MSG_NOSIGNAL);
        if (written < 0) die("send");
        octets += (uint64_t)written;
    }
    printf("{\"octets\": %lu, \"elapsed\": %lu}\n", octets, now - start);
    return 0;
}

/* -- the flood ------------------------------------------------------------------------------------------------------ */

/* The packets of a file, as sendmmsg takes them. */
struct volley {
    struct mmsghdr *messages;
    struct iovec *vectors;
    struct sockaddr_in *to;
    size_t count;
};

static struct volley load_volley(const char *file)
{
    int fd = open(file, O_RDONLY);
    struct stat about;
    if (fd < 0 || fstat(fd, &about) != 0) die(file);
    size_t size = (size_t)about.st_size, most = size / 22 + 1;
    uint8_t *packets = malloc(size + 1);
    struct volley volley = {calloc(most, sizeof *volley.messages), calloc(most, sizeof *volley.vectors),
                            calloc(most, sizeof *volley.to), 0};
    if (packets == NULL || volley.messages == NULL || volley.vectors == NULL || volley.to == NULL ||
        read(fd, packets, size) != about.st_size)
        die(file);
    close(fd);
    for (size_t offset = 0; offset < size; volley.count++) {
        size_t length = size - offset < 22 ? 0 : (size_t)packets[offset] << 8 | packets[offset + 1];
        if (length < 20 || offset + 2 + length > size) {
            fprintf(stderr, "load: %s: no packet at octet %zu\n", file, offset);
            exit(1);
        }
        struct sockaddr_in *to = &volley.to[volley.count];
        to->sin_family = AF_INET;
        memcpy(&to->sin_addr, packets + offset + 2 + 16, 4);
        volley.vectors[volley.count] = (struct iovec){packets + offset + 2, length};
        volley.messages[volley.count].msg_hdr = (struct msghdr){
            .msg_name = to, .msg_namelen = sizeof *to, .msg_iov = &volley.vectors[volley.count], .msg_iovlen = 1};
        offset += 2 + length;
    }
    return volley;
}

static int flood(const char *file, double rate, double seconds)
{
    struct volley volley = load_volley(file);
    int raw = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (raw < 0) die("raw socket");
    if (volley.count == 0) die(file);
    setpriority(PRIO_PROCESS, 0, -20); /* it stands for another machine: it must not wait for what it floods */
    size_t due = 0, at = 0, sent = 0, refused = 0;
    uint64_t start = now_ns(), deadline = start + (uint64_t)(seconds * 1e9), now;
    while ((now = now_ns()) < deadline) {
        size_t wanted = (size_t)((double)(now - start) / 1e9 * rate);
        while (due < wanted) {
            size_t piece = wanted - due;
            if (piece > volley.count - at) piece = volley.count - at;
            if (piece > 64) piece = 64;
            int gone = sendmmsg(raw, &volley.messages[at], (unsigned)piece, MSG_DONTWAIT);
            if (gone > 0) sent += (size_t)gone;
            else gone = 1, refused++;
            due += (size_t)gone;
            at = (at + (size_t)gone) % volley.count;
        }
        struct timespec pause = {.tv_nsec = 500000};
        nanosleep(&pause, NULL);
    }
    printf("{\"sent\": %zu, \"refused\": %zu, \"elapsed\": %lu}\n", sent, refused, now - start);
    return 0;
}

int main(int count, char **words)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    const char *what = count > 1 ? words[1] : "";
    if (strcmp(what, "serve") == 0 && count == 3) serve((uint16_t)number(words[2], 65535));
    if (strcmp(what, "connect") == 0 && count == 7) {
        struct peer peer = resolve(words[2], words[3]);
        return connect_many(&peer, number(words[4], 4096), number(words[5], MOST), atof(words[6]));
    }
    if (strcmp(what, "datagrams") == 0 && count == 6) {
        struct peer peer = resolve(words[2], words[3]);
        return send_datagrams(&peer, number(words[4], 100000), number(words[5], 40));
    }
    if (strcmp(what, "stream") == 0 && count == 5) {
        struct peer peer = resolve(words[2], words[3]);
        return stream(&peer, atof(words[4]));
    }
    if (strcmp(what, "flood") == 0 && count == 5) return flood(words[2], atof(words[3]), atof(words[4]));
    fprintf(stderr, "load: see the head of bench/load.c\n");
    return 2;
}
