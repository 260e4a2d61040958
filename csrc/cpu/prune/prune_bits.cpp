// Masks as bits, eight elements of a row to a byte, in little bit order. Eight bools are a word of 64 bits: no vector
// instruction is needed to keep up with the memory.
#include "octavo.h"
#include "parallel.h"

#include <cstring>

namespace octavo {
namespace {

constexpr int64_t kGrain = 1 << 16;  // elements worth a thread
constexpr uint64_t kOnes = 0x0101010101010101u;

// Bit i of the result is byte i, any value but 0 being true.
uint8_t bits_of_eight(uint64_t bytes) {
  const uint64_t low = bytes & (0x7F * kOnes), set = ((low + 0x7F * kOnes) | bytes) >> 7 & kOnes;
  // Byte i times 2^(7 * (8 - i)) stands at bit 56 + i; no two of the products meet.
  return static_cast<uint8_t>(set * 0x0102040810204080u >> 56);
}

uint64_t eight_of_bits(uint8_t bits) {
  const uint64_t own_bit = bits * kOnes & 0x8040201008040201u;
  return (own_bit + 0x7F * kOnes) >> 7 & kOnes;
}

// body(row, first byte, last byte) of rows of so many bytes, in pieces worth a thread.
template <class Body>
void for_bytes(int64_t rows, int64_t row_bytes, int threads, Body body) {
  constexpr int64_t kBytes = kGrain / 8;
  const int64_t pieces = (row_bytes + kBytes - 1) / kBytes;
  auto range = [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece % pieces * kBytes;
      body(piece / pieces, first, row_bytes - first < kBytes ? row_bytes : first + kBytes);
    }
  };
  parallel_for(rows * pieces, row_bytes < kBytes ? kBytes / (row_bytes + 1) + 1 : 1, threads, range);
}

}  // namespace

void pack_mask(const bool* mask, int64_t rows, int64_t cols, uint8_t* bits, int threads) {
  const int64_t row_bytes = (cols + 7) / 8;
  for_bytes(rows, row_bytes, threads, [&](int64_t row, int64_t first, int64_t last) {
    const auto* source = reinterpret_cast<const char*>(mask) + row * cols;
    uint8_t* target = bits + row * row_bytes;
    uint64_t bytes;
    const int64_t whole = last * 8 <= cols ? last : last - 1;
    for (int64_t i = first; i < whole; ++i) {
      memcpy(&bytes, source + 8 * i, sizeof bytes);
      target[i] = bits_of_eight(bytes);
    }
    if (whole == last) return;
    bytes = 0;
    memcpy(&bytes, source + 8 * whole, static_cast<size_t>(cols - 8 * whole));
    target[whole] = bits_of_eight(bytes);
  });
}

void unpack_mask(const uint8_t* bits, int64_t rows, int64_t cols, bool* mask, int threads) {
  const int64_t row_bytes = (cols + 7) / 8;
  for_bytes(rows, row_bytes, threads, [&](int64_t row, int64_t first, int64_t last) {
    const uint8_t* source = bits + row * row_bytes;
    auto* target = reinterpret_cast<char*>(mask) + row * cols;
    uint64_t bytes;
    const int64_t whole = last * 8 <= cols ? last : last - 1;
    for (int64_t i = first; i < whole; ++i) {
      bytes = eight_of_bits(source[i]);
      memcpy(target + 8 * i, &bytes, sizeof bytes);
    }
    if (whole == last) return;
    bytes = eight_of_bits(source[whole]);
    memcpy(target + 8 * whole, &bytes, static_cast<size_t>(cols - 8 * whole));
  });
}

}  // namespace octavo
