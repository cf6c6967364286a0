/*
 * trireme-cni: the last plugin in a node's CNI chain (https://www.cni.dev/docs/spec/, versions 0.3.0 to 1.1.0).
 *
 * It hands what the container runtime says to the agent of this node, over the agent's unix socket, waits for the
 * answer and passes it on. So a pod's first process starts when its rules are in place, and not before.
 *
 *   ADD, CHECK  the agent answers. While none does they wait for one, up to `timeoutSeconds`, then fail.
 *   DEL         the agent is told, if it is there. Always succeeds: a pod can be deleted while the agent is away, and
 *               nothing is left behind, because the rules go with the namespace.
 *   GC, STATUS  always succeed, and nobody is asked. GC has nothing to collect. A STATUS that failed while the agent
 *               restarts would make the node unready, and take its running pods out of their Services.
 *   VERSION     answered here.
 *
 * Of its own configuration it reads three top-level members: cniVersion, socket, timeoutSeconds. All other JSON is
 * read and written by the agent. Both messages are a header of 32-bit numbers in network byte order, then octets:
 *
 *   request: "TRC1", milliseconds left, length of environment, length of input; NAME=VALUE\0 ..., standard input
 *   answer:  "TRC1", exit code, length of output; standard output
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAGIC "TRC1"
#define DEFAULT_SOCKET "/run/trireme/cni.sock"
#define SUPPORTED "\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\""
#define NEWEST "1.1.0"

enum {
    DEFAULT_TIMEOUT_S = 30,
    MAX_TIMEOUT_S = 600,
    DEL_TIMEOUT_MS = 5000, /* a deletion that takes longer is no better for it */
    RETRY_MS = 50,         /* between two attempts to reach an agent that is not there */
    MAX_INPUT = 1 << 20,   /* a configuration with a result in it has a few kilobytes */
    MAX_ENVIRONMENT = 1 << 16,
};

/* https://www.cni.dev/docs/spec/#error */
enum { BAD_ENVIRONMENT = 4, IO_FAILURE = 5, BAD_CONFIGURATION = 7, TRY_LATER = 11 };

struct octets {
    char *data;
    size_t length;
};

static struct octets input = {0};
static char cni_version[32] = NEWEST;
static char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path)] = DEFAULT_SOCKET;
static long timeout_s = DEFAULT_TIMEOUT_S;
static bool deleting = false;

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * Ends with an error as the specification wants it, or with success where a pod is deleted. No text of ours needs JSON
 * escapes, and socket_path has none.
 */
__attribute__((noreturn, format(printf, 2, 3))) static void fail(int code, const char *format, ...)
{
    if (deleting)
        exit(0);
    va_list arguments;
    va_start(arguments, format);
    printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"trireme-cni: ", cni_version, code);
    vprintf(format, arguments);
    printf("\"}\n");
    va_end(arguments);
    fflush(stdout);
    exit(1);
}

/* -- The little JSON that is read here ---------------------------------------------------------------------------- */

static size_t skip_space(size_t at)
{
    while (at < input.length && strchr(" \t\r\n", input.data[at]) != NULL && input.data[at] != '\0')
        at++;
    return at;
}

/* From an opening quote to behind the closing one. */
static size_t skip_string(size_t at)
{
    for (at++; at < input.length && input.data[at] != '"'; at++)
        if (input.data[at] == '\\')
            at++;
    return at < input.length ? at + 1 : input.length;
}

/* From the first octet of a value to behind its last. */
static size_t skip_value(size_t at)
{
    size_t depth = 0;
    while (at < input.length) {
        char c = input.data[at];
        if (c == '"') {
            at = skip_string(at);
        } else if (c == '{' || c == '[') {
            depth++;
            at++;
        } else if (c == '}' || c == ']') {
            if (depth == 0)
                break; /* the end of what a number or a word stands in */
            depth--;
            at++;
        } else if (depth == 0 && (c == ',' || skip_space(at) != at)) {
            break;
        } else {
            at++;
            continue;
        }
        if (depth == 0)
            break;
    }
    return at;
}

/* Copies the text of a top-level member, without quotes; false if it is not there or not plain ASCII that fits. */
static bool member(const char *name, char *text, size_t size)
{
    size_t at = skip_space(0);
    if (at >= input.length || input.data[at] != '{')
        return false;
    for (at = skip_space(at + 1); at < input.length && input.data[at] == '"'; at = skip_space(at + 1)) {
        size_t key = at + 1, key_end = skip_string(at);
        at = skip_space(key_end);
        if (at >= input.length || input.data[at] != ':')
            return false;
        size_t value = skip_space(at + 1), end = skip_value(value);
        if (key_end - key - 1 == strlen(name) && memcmp(input.data + key, name, strlen(name)) == 0) {
            if (end - value >= 2 && input.data[value] == '"') {
                value++;
                end--;
            }
            if (end - value >= size)
                return false;
            for (size_t i = value; i < end; i++)
                if (input.data[i] <= ' ' || input.data[i] > '~' || strchr("\"\\{}[]", input.data[i]) != NULL)
                    return false;
            memcpy(text, input.data + value, end - value);
            text[end - value] = '\0';
            return true;
        }
        at = skip_space(end);
        if (at >= input.length || input.data[at] != ',')
            return false;
    }
    return false;
}

/* -- What the runtime says ---------------------------------------------------------------------------------------- */

static void read_input(void)
{
    int64_t deadline = now_ms() + DEFAULT_TIMEOUT_S * 1000;
    input.data = malloc(MAX_INPUT + 1);
    if (input.data == NULL)
        fail(IO_FAILURE, "no memory");
    for (;;) {
        struct pollfd readable = {.fd = STDIN_FILENO, .events = POLLIN};
        int64_t left = deadline - now_ms();
        if (left <= 0 || (poll(&readable, 1, (int)left) < 0 && errno != EINTR))
            fail(IO_FAILURE, "no configuration came on standard input");
        if (readable.revents == 0)
            continue;
        ssize_t got = read(STDIN_FILENO, input.data + input.length, MAX_INPUT + 1 - input.length);
        if (got < 0)
            fail(IO_FAILURE, "standard input: %s", strerror(errno));
        if (got == 0)
            return;
        input.length += (size_t)got;
        if (input.length > MAX_INPUT)
            fail(IO_FAILURE, "the configuration on standard input is longer than 1 MiB");
    }
}

static void read_configuration(void)
{
    char text[sizeof cni_version];
    if (member("cniVersion", text, sizeof text))
        strcpy(cni_version, text);
    char path[sizeof socket_path];
    if (member("socket", path, sizeof path))
        strcpy(socket_path, path);
    if (member("timeoutSeconds", text, sizeof text)) {
        char *end;
        timeout_s = strtol(text, &end, 10);
        if (*end != '\0' || timeout_s < 1 || timeout_s > MAX_TIMEOUT_S)
            fail(BAD_CONFIGURATION, "timeoutSeconds is not a number from 1 to %d", MAX_TIMEOUT_S);
    }
}

static struct octets environment(void)
{
    static const char *const names[] = {"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS",
                                        "CNI_IFNAME",  "CNI_ARGS",        "CNI_PATH"};
    static char text[MAX_ENVIRONMENT];
    size_t length = 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i]);
        if (value == NULL)
            continue;
        size_t needed = strlen(names[i]) + strlen(value) + 2; /* the sign between them, and the end */
        if (needed > sizeof text - length)
            fail(BAD_ENVIRONMENT, "the environment is longer than 64 KiB");
        length += (size_t)sprintf(text + length, "%s=%s", names[i], value) + 1;
    }
    return (struct octets){text, length};
}

/* -- The agent ---------------------------------------------------------------------------------------------------- */

/* Sends or receives all of it before the deadline; returns 0 or an errno value. */
static int transfer(int agent, bool out, char *data, size_t length, int64_t deadline)
{
    for (size_t done = 0; done < length;) {
        struct pollfd ready = {.fd = agent, .events = out ? POLLOUT : POLLIN};
        int64_t left = deadline - now_ms();
        if (left <= 0)
            return ETIMEDOUT;
        if (poll(&ready, 1, (int)left) < 0 && errno != EINTR)
            return errno;
        if (ready.revents == 0)
            continue;
        ssize_t moved = out ? send(agent, data + done, length - done, MSG_NOSIGNAL)
                            : recv(agent, data + done, length - done, 0);
        if (moved == 0)
            return ECONNRESET; /* it ended in the middle */
        if (moved < 0 && errno != EAGAIN && errno != EINTR)
            return errno;
        if (moved > 0)
            done += (size_t)moved;
    }
    return 0;
}

static int converse(int agent, struct octets said, int64_t deadline, struct octets *answer, int *code)
{
    int64_t left = deadline - now_ms();
    uint32_t header[4] = {0, htonl((uint32_t)(left > 0 ? left : 0)), htonl((uint32_t)said.length),
                          htonl((uint32_t)input.length)};
    memcpy(header, MAGIC, 4);
    int wrong = transfer(agent, true, (char *)header, sizeof header, deadline);
    if (wrong == 0)
        wrong = transfer(agent, true, said.data, said.length, deadline);
    if (wrong == 0)
        wrong = transfer(agent, true, input.data, input.length, deadline);
    if (wrong == 0)
        wrong = transfer(agent, false, (char *)header, 12, deadline);
    if (wrong != 0)
        return wrong;
    answer->length = ntohl(header[2]);
    if (memcmp(header, MAGIC, 4) != 0 || ntohl(header[1]) > 255 || answer->length > MAX_INPUT)
        return EPROTO;
    *code = (int)ntohl(header[1]);
    answer->data = malloc(answer->length + 1);
    if (answer->data == NULL)
        return ENOMEM;
    wrong = transfer(agent, false, answer->data, answer->length, deadline);
    if (wrong != 0)
        free(answer->data);
    return wrong;
}

/* One attempt; returns 0 or an errno value. */
static int ask(struct octets said, int64_t deadline, struct octets *answer, int *code)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, socket_path);
    int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (agent < 0)
        return errno;
    /* On a unix socket it succeeds at once or not at all; EAGAIN is a full backlog. */
    int wrong = connect(agent, (struct sockaddr *)&address, sizeof address) == 0
                    ? converse(agent, said, deadline, answer, code)
                    : errno;
    close(agent);
    return wrong;
}

static int add_or_check(struct octets said)
{
    int64_t deadline = now_ms() + timeout_s * 1000;
    struct octets answer;
    int code, wrong;
    /* An agent that dies over a question is asked again when it is back: to hold a pod twice is to hold it. */
    while ((wrong = ask(said, deadline, &answer, &code)) != 0) {
        if (now_ms() + RETRY_MS >= deadline)
            fail(TRY_LATER,
                 "no answer from the trireme agent of this node on %s in %ld s (%s); the pod waits until there is one; "
                 "see: kubectl get pods -A -o wide -l app.kubernetes.io/name=trireme",
                 socket_path, timeout_s, strerror(wrong));
        poll(NULL, 0, RETRY_MS);
    }
    if (fwrite(answer.data, 1, answer.length, stdout) != answer.length || fflush(stdout) != 0)
        code = 1;
    free(answer.data);
    return code;
}

static void del(struct octets said)
{
    struct octets answer;
    int code;
    if (ask(said, now_ms() + DEL_TIMEOUT_MS, &answer, &code) == 0)
        free(answer.data);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const char *command = getenv("CNI_COMMAND");
    if (command == NULL)
        fail(BAD_ENVIRONMENT, "CNI_COMMAND is not set; this is a CNI plugin, which the container runtime runs");
    deleting = strcmp(command, "DEL") == 0;
    read_input();
    read_configuration();
    int code = 0;
    if (strcmp(command, "VERSION") == 0)
        printf("{\"cniVersion\":\"%s\",\"supportedVersions\":[" SUPPORTED "]}\n", cni_version);
    else if (strcmp(command, "ADD") == 0 || strcmp(command, "CHECK") == 0)
        code = add_or_check(environment());
    else if (deleting)
        del(environment());
    else if (strcmp(command, "GC") != 0 && strcmp(command, "STATUS") != 0)
        fail(BAD_ENVIRONMENT, "CNI_COMMAND is not one of ADD, DEL, CHECK, GC, STATUS, VERSION");
    free(input.data);
    return code;
}
