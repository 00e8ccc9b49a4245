#include "row/philox.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>

namespace damo {
namespace {

using Words = std::array<uint32_t, 4>;

Words Draw(uint64_t counter_low, uint64_t counter_high, uint64_t key) {
  const PhiloxBlock block = Philox(counter_low, counter_high, key);
  return {block.v[0], block.v[1], block.v[2], block.v[3]};
}

// The three vectors for philox4x32 with 10 rounds in Random123's tests/kat_vectors, which lists words from the least
// significant on.
TEST(PhiloxTest, GivesThePublishedAnswers) {
  EXPECT_EQ(Draw(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Draw(UINT64_MAX, UINT64_MAX, UINT64_MAX), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Draw(0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, EveryBitOfItsArgumentsMatters) {
  const Words words = Draw(1, 2, 3);
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t flip = uint64_t{1} << bit;
    EXPECT_NE(Draw(1 ^ flip, 2, 3), words) << bit;
    EXPECT_NE(Draw(1, 2 ^ flip, 3), words) << bit;
    EXPECT_NE(Draw(1, 2, 3 ^ flip), words) << bit;
  }
}

}  // namespace
}  // namespace damo
