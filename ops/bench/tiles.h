// GCC 12 believes that a tile's shape is eight bytes long, and leaves the rest of it unwritten: llama.cpp then stops at its
// first tile. Where its address was seen, all of it is written.
#pragma once
#if defined(__AMX_TILE__)
#include <immintrin.h>
static inline const void *written(const void *shape) {
  __asm__ volatile("" : : "r"(shape) : "memory");
  return shape;
}
#define _tile_loadconfig(shape) (_tile_loadconfig)(written(shape))
#endif
