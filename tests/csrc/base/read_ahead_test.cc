#include "base/read_ahead.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "testing/errors.h"
#include "testing/temporary_directory.h"

namespace damo {
namespace {

constexpr size_t kBuffer = 2 * kDirectAlignment;

TEST(ReadAheadFileTest, GivesAllBytesInTheirOrder) {
  testing::TemporaryDirectory directory;
  for (const size_t size :
       std::vector<size_t>{0, 1, kBuffer - 1, kBuffer, kBuffer + 1, 3 * kBuffer, 3 * kBuffer + 5000}) {
    std::string bytes;
    for (size_t i = 0; bytes.size() < size; ++i) bytes += std::to_string(i);
    bytes.resize(size);
    const std::string path = directory / std::to_string(size);
    WriteFile(path, bytes);
    ReadAheadFile file(path, kBuffer);
    std::string read;
    for (std::string_view part = file.Next(); !part.empty(); part = file.Next()) {
      EXPECT_EQ(part.size(), std::min(kBuffer, size - read.size()));
      read += part;
    }
    EXPECT_EQ(read, bytes);
    EXPECT_TRUE(file.Next().empty());
  }
}

TEST(ReadAheadFileTest, MayEndBeforeTheFileDoes) {
  testing::TemporaryDirectory directory;
  WriteFile(directory / "file", std::string(5 * kBuffer, 'a'));
  ReadAheadFile file(directory / "file", kBuffer);
  EXPECT_EQ(file.Next(), std::string(kBuffer, 'a'));
}

TEST(ReadAheadFileTest, ErrorsNameTheFile) {
  testing::TemporaryDirectory directory;
  testing::ExpectError(ErrorCode::kIo, {directory / "none"}, [&] { ReadAheadFile(directory / "none", kBuffer); });
  testing::ExpectError(ErrorCode::kCorruption, {directory / ".", "a directory"},
                       [&] { ReadAheadFile(directory / ".", kBuffer); });
  ReadAheadFile file("/proc/self/mem", kBuffer);  // whose first page nobody has
  testing::ExpectError(ErrorCode::kIo, {"cannot read", "/proc/self/mem"}, [&] { file.Next(); });
}

}  // namespace
}  // namespace damo
