#include "team.h"

#include <cstdlib>

namespace contraprune {

void Team::start(int64_t size) {
    if (size <= 1) return;
    members_ = (Member *)calloc((size_t)size - 1, sizeof(Member));
    if (members_ == nullptr) return;
    for (int64_t i = 0; i < size - 1; i++) {
        members_[i].team = this;
        members_[i].number = i + 1;
        if (pthread_create(&members_[i].thread, nullptr, main, &members_[i]) != 0) return;
        started_++;
    }
}

void Team::run(Function function, void *context) {
    if (started_ > 0) {
        pthread_mutex_lock(&mutex_);
        function_ = function;
        context_ = context;
        working_ = started_;
        round_++;
        pthread_cond_broadcast(&begin_);
        pthread_mutex_unlock(&mutex_);
    }
    function(context, 0);
    if (started_ > 0) {
        pthread_mutex_lock(&mutex_);
        while (working_ > 0) pthread_cond_wait(&end_, &mutex_);
        pthread_mutex_unlock(&mutex_);
    }
}

void Team::stop() {
    pthread_mutex_lock(&mutex_);
    stopping_ = true;
    pthread_cond_broadcast(&begin_);
    pthread_mutex_unlock(&mutex_);
    for (int64_t i = 0; i < started_; i++) pthread_join(members_[i].thread, nullptr);
    free(members_);
    members_ = nullptr;
    started_ = 0;
}

void *Team::main(void *argument) {
    Member *member = (Member *)argument;
    Team *team = member->team;
    uint64_t seen = 0;
    for (;;) {
        pthread_mutex_lock(&team->mutex_);
        while (team->round_ == seen && !team->stopping_) pthread_cond_wait(&team->begin_, &team->mutex_);
        if (team->stopping_) {
            pthread_mutex_unlock(&team->mutex_);
            return nullptr;
        }
        seen = team->round_;
        pthread_mutex_unlock(&team->mutex_);
        team->function_(team->context_, member->number);
        pthread_mutex_lock(&team->mutex_);
        if (--team->working_ == 0) pthread_cond_signal(&team->end_);
        pthread_mutex_unlock(&team->mutex_);
    }
}

}  // namespace contraprune
