/*
 * Lets a user-mode Linux of before 6.13 run on processors whose registers need more room than it has for them (AVX-512, AMX).
 *
 * It saves a process's vector registers by ptrace(PTRACE_GETREGSET) into 832 bytes and gives them back from there; a newer kernel takes
 * them back whole or not at all. This keeps what did not fit, by the address at which the rest lies: one per process inside.
 *
 * LD_PRELOAD it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { XSTATE = 0x202, ROOM = 16384, SLOTS = 4096 };

static struct {
    void *at;
    size_t length;
    char bytes[ROOM];
} slots[SLOTS];

static unsigned slot_of(void *at) {
    unsigned slot = ((uintptr_t)at >> 6) % SLOTS;
    while (slots[slot].at && slots[slot].at != at) slot = (slot + 1) % SLOTS;
    slots[slot].at = at;
    return slot;
}

static long get(pid_t pid, struct iovec *wanted) {
    unsigned slot = slot_of(wanted->iov_base);
    struct iovec all = {slots[slot].bytes, ROOM};
    long result = syscall(SYS_ptrace, PTRACE_GETREGSET, pid, XSTATE, &all);
    if (result < 0) return result;
    slots[slot].length = all.iov_len;
    if (all.iov_len < wanted->iov_len) wanted->iov_len = all.iov_len;
    memcpy(wanted->iov_base, all.iov_base, wanted->iov_len);
    return result;
}

static long set(pid_t pid, const struct iovec *given) {
    unsigned slot = slot_of(given->iov_base);
    if (!slots[slot].length) { /* a process that was just forked: its parent's registers, but for what a system call does not keep */
        struct iovec all = {slots[slot].bytes, ROOM};
        if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, XSTATE, &all) < 0) return -1;
        slots[slot].length = all.iov_len;
    }
    memcpy(slots[slot].bytes, given->iov_base, given->iov_len);
    struct iovec all = {slots[slot].bytes, slots[slot].length};
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, XSTATE, &all);
}

long ptrace(enum __ptrace_request request, ...) {
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *), *data = va_arg(arguments, void *);
    va_end(arguments);
    if (address == (void *)XSTATE && request == PTRACE_GETREGSET) return get(pid, data);
    if (address == (void *)XSTATE && request == PTRACE_SETREGSET) return set(pid, data);
    if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) { /* the library returns the word itself */
        long word, result = syscall(SYS_ptrace, request, pid, address, &word);
        if (result < 0) return result;
        errno = 0;
        return word;
    }
    return syscall(SYS_ptrace, request, pid, address, data);
}
