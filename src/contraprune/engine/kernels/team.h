// Threads that run one function together and wait for each other.
#pragma once
#include <pthread.h>
#include <sched.h>

#include <cstdint>

namespace contraprune {

// Threads of one team meet here. They look for a short while, then let others run: cores may be shared.
class Barrier {
   public:
    void set(int64_t members) { members_ = members; }
    void wait() {
        if (members_ <= 1) return;
        const uint64_t round = __atomic_load_n(&round_, __ATOMIC_ACQUIRE);
        if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == members_) {
            __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&round_, round + 1, __ATOMIC_RELEASE);
            return;
        }
        for (int spin = 0; __atomic_load_n(&round_, __ATOMIC_ACQUIRE) == round; spin++) {
            if (spin < 4000) {
#if defined(__x86_64__)
                __builtin_ia32_pause();
#endif
            } else {
                sched_yield();
            }
        }
    }

   private:
    int64_t members_ = 1, arrived_ = 0;
    uint64_t round_ = 0;
};

// The caller's thread and `size - 1` others, which sleep between runs.
class Team {
   public:
    typedef void (*Function)(void *context, int64_t member);

    int64_t size() const { return started_ + 1; }
    // Starts the other threads; fewer where the system has no more.
    void start(int64_t size);
    void run(Function function, void *context);
    void stop();

   private:
    struct Member {
        Team *team;
        int64_t number;
        pthread_t thread;
    };
    static void *main(void *member);

    pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t begin_ = PTHREAD_COND_INITIALIZER, end_ = PTHREAD_COND_INITIALIZER;
    Member *members_ = nullptr;
    int64_t started_ = 0, working_ = 0;
    uint64_t round_ = 0;
    bool stopping_ = false;
    Function function_ = nullptr;
    void *context_ = nullptr;
};

}  // namespace contraprune
