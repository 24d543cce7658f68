// accesses.cpp: where the accesses of host-compiled kernels are told to the emulator (scripts/sanitize accesses).
//
// g++ -fsanitize=thread calls a __tsan function before every load and store. In this build they are ours and pass on
// address, size and place; ThreadSanitizer itself is not linked. cp.async and ldmatrix, which are calls of the runtime,
// are told on their way there. A function that is missing here would not link: nothing escapes unseen, but for
// memcpy and its like, of which g++ leaves no call on shared or device memory in any kernel.
#include "gpu.cuh"

extern "C" {

// src/device/emulator/accesses.rs: How.
enum { READ, WRITE, COPY_FROM, COPY_TO, LOAD_MATRIX };

typedef void access_hook(emu_thread *, uint32_t how, uintptr_t address, uint32_t bytes, uintptr_t pc);
static access_hook *hook;

static inline void tell(uint32_t how, const volatile void *address, uint32_t bytes, void *pc) {
    if (hook && schnell_emu_self && bytes > 0) hook(schnell_emu_self, how, (uintptr_t)address, bytes, (uintptr_t)pc);
}

#define HERE __builtin_return_address(0)
#define ACCESSES(bytes)                                                                \
    void __tsan_read##bytes(void *p) { tell(READ, p, bytes, HERE); }                   \
    void __tsan_write##bytes(void *p) { tell(WRITE, p, bytes, HERE); }
#define UNALIGNED_ACCESSES(bytes)                                                      \
    void __tsan_unaligned_read##bytes(void *p) { tell(READ, p, bytes, HERE); }         \
    void __tsan_unaligned_write##bytes(void *p) { tell(WRITE, p, bytes, HERE); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
UNALIGNED_ACCESSES(2)
UNALIGNED_ACCESSES(4)
UNALIGNED_ACCESSES(8)
UNALIGNED_ACCESSES(16)
void __tsan_read_range(void *p, size_t bytes) { tell(READ, p, (uint32_t)bytes, HERE); }
void __tsan_write_range(void *p, size_t bytes) { tell(WRITE, p, (uint32_t)bytes, HERE); }

int __tsan_atomic32_fetch_add(volatile void *p, int value, int) {
    tell(WRITE, p, 4, HERE);
    return __atomic_fetch_add((volatile int *)p, value, __ATOMIC_SEQ_CST);
}

// Of atomic_count, which is one access on a GPU.
int __tsan_atomic32_load(const volatile void *p, int) { return __atomic_load_n((const volatile int *)p, __ATOMIC_SEQ_CST); }
int __tsan_atomic32_compare_exchange_strong(volatile void *p, int *expected, int value, int, int) {
    tell(WRITE, p, 4, HERE);
    return __atomic_compare_exchange_n((volatile int *)p, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}

static const emu_runtime *runtime;

static void cp_async(emu_thread *self, void *dst, const void *src, uint32_t bytes, uint32_t valid_bytes, const emu_site *site) {
    tell(COPY_FROM, src, valid_bytes, HERE);
    tell(COPY_TO, dst, bytes, HERE);
    runtime->cp_async(self, dst, src, bytes, valid_bytes, site);
}

static void ldmatrix(emu_thread *self, uint32_t *frag, const void *const *rows, uint32_t tiles, uint32_t trans, const emu_site *site) {
    for (uint32_t tile = 0; tile < tiles; ++tile) tell(LOAD_MATRIX, rows[tile], 16, HERE);
    runtime->ldmatrix(self, frag, rows, tiles, trans, site);
}

// Once, after schnell_emu_set_runtime.
void schnell_accesses_install(access_hook *to) {
    static emu_runtime telling;
    runtime = schnell_emu_runtime;
    telling = *runtime;
    telling.cp_async = cp_async;
    telling.ldmatrix = ldmatrix;
    hook = to;
    schnell_emu_runtime = &telling;
}
}
