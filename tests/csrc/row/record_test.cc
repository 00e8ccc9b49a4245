#include "row/record.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "testing/errors.h"

namespace damo {
namespace {

using testing::ExpectError;

// The value of a row whose payload is `weights` and this header.
std::string RowValue(std::string_view weights, RowHeader header) {
  std::string value = std::string(1, kRecordVersion).append(weights);
  return value.append(reinterpret_cast<const char*>(&header), sizeof header);
}

std::string_view View(const DeletionRecord& record) { return {record.data(), record.size()}; }

TEST(RecordTest, ARowsPayloadIsWhatFollowsItsVersion) {
  const std::string value = RowValue("weights.", {3, 2});
  EXPECT_EQ(RowPayload(value, value.size() - 1, 1, 2), value.data() + 1);
  ExpectError(ErrorCode::kCorruption, {"table 1, id 2", "of 17 bytes", "16"}, [&] { RowPayload(value, 17, 1, 2); });
  ExpectError(ErrorCode::kCorruption, {"table 1, id 2", "version 1", "none"}, [&] { RowPayload("", 0, 1, 2); });
  ExpectError(ErrorCode::kCorruption, {"table 1, id 2", "version 1", "200"},
              [&] { RowPayload("\xC8weights.", 8, 1, 2); });
}

TEST(RecordTest, ADeletionIsItsVersionAndItsStepInLittleEndian) {
  const DeletionRecord record = EncodeDeletion(0x0102030405060708);
  EXPECT_EQ(View(record), std::string_view("\x01\x08\x07\x06\x05\x04\x03\x02\x01"));
  for (const uint64_t step : {uint64_t{0}, uint64_t{255}, uint64_t{1} << 40, UINT64_MAX}) {
    EXPECT_EQ(DecodeDeletion(EncodeDeletion(step).data() + 1), step);
  }
}

TEST(RecordTest, TellsItsStepWithoutTheTablesLayout) {
  EXPECT_EQ(RecordStep(5, RowValue("", {7, 2})), 7u);
  EXPECT_EQ(RecordStep(5, RowValue("weights and state...", {UINT32_MAX, 2})), UINT32_MAX);
  EXPECT_EQ(RecordStep(5, "\x01short"), std::nullopt);
  EXPECT_EQ(RecordStep(5, ""), std::nullopt);
  EXPECT_EQ(RecordStep(5 | kDeletionBit, View(EncodeDeletion(uint64_t{1} << 40))), uint64_t{1} << 40);
  EXPECT_EQ(RecordStep(5 | kDeletionBit, RowValue("weights.", {7, 2})), std::nullopt);
}

}  // namespace
}  // namespace damo
