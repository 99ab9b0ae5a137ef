// memory.h: memory for a kernel's own use, from where tensors on the CPU live (memory.cpp), so that
// it counts as theirs.
#pragma once

#include <stddef.h>

namespace conquer {

void *take_scratch(size_t bytes);
void give_scratch(void *data); // may be null

} // namespace conquer
