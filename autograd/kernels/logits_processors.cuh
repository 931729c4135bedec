// What some requests want beyond temperature and truncation.
#pragma once
#include "common.cuh"

// A row's; `LogitsProcessors` of `autograd/src/ops/sample/processors.rs` writes it.
struct Extras {
    unsigned short* history;  // see history.cu; null without penalties
    const int* lists;         // bias ids, biases (f32), given ids, masked ids, behind each other
    const unsigned* allowed;  // a bit for each token; null: all
    int biases, masked, given, top;  // lengths of those lists, and how many of the most likely tokens are listed
    float repetition, frequency, presence;
    int listed;  // place of the row's first listed token
};
