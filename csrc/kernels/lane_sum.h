// Sums in an order that depends on the number of terms alone: term j is added to lane j % 16, in ascending j, and the
// lanes are added as a binary tree. Every instruction set computes the same bits.
#pragma once

#include "row/row.h"

namespace damo {

template <class Term>
DAMO_INLINE float LaneSum(int n, Term term) {
  float lane[16] = {};
  int j = 0;
  for (; j + 16 <= n; j += 16) {
    for (int l = 0; l < 16; ++l) lane[l] += term(j + l);
  }
  for (int l = 0; j + l < n; ++l) lane[l] += term(j + l);
  for (int width = 8; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
  }
  return lane[0];
}

}  // namespace damo
