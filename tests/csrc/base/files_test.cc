#include "base/files.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include "testing/errors.h"
#include "testing/temporary_directory.h"

namespace damo {
namespace {

namespace fs = std::filesystem;
using testing::ExpectError;
using testing::TemporaryDirectory;

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(FilesTest, WriteFileMakesNewFilesOnly) {
  TemporaryDirectory directory;
  WriteFile(directory / "new", std::string("a\0b", 3));
  EXPECT_EQ(Read(directory / "new"), std::string("a\0b", 3));
  ExpectError(ErrorCode::kInvalidArgument, {directory / "new", "exists"}, [&] { WriteFile(directory / "new", "c"); });
  ExpectError(ErrorCode::kIo, {directory / "no/new"}, [&] { WriteFile(directory / "no/new", "c"); });
  EXPECT_EQ(Read(directory / "new"), std::string("a\0b", 3));
}

TEST(FilesTest, CopyFileTakesThatManyBytes) {
  TemporaryDirectory directory;
  WriteFile(directory / "from", "0123456789");
  CopyFile(directory / "from", directory / "all", 10);
  CopyFile(directory / "from", directory / "some", 4);
  EXPECT_EQ(Read(directory / "all"), "0123456789");
  EXPECT_EQ(Read(directory / "some"), "0123");
  ExpectError(ErrorCode::kIo, {directory / "from", "11", "10"},
              [&] { CopyFile(directory / "from", directory / "more", 11); });
  ExpectError(ErrorCode::kInvalidArgument, {directory / "all"},
              [&] { CopyFile(directory / "from", directory / "all", 10); });
  ExpectError(ErrorCode::kIo, {directory / "absent"}, [&] { CopyFile(directory / "absent", directory / "x", 1); });
}

TEST(FilesTest, LinkFileSaysWhetherItCould) {
  TemporaryDirectory directory;
  WriteFile(directory / "from", "x");
  EXPECT_TRUE(LinkFile(directory / "from", directory / "to"));
  EXPECT_TRUE(fs::equivalent(directory / "from", directory / "to"));
  EXPECT_FALSE(LinkFile("/proc/self/stat", directory / "other device"));
  ExpectError(ErrorCode::kInvalidArgument, {directory / "to"}, [&] { LinkFile(directory / "from", directory / "to"); });
}

TEST(FilesTest, BuildDirectoryLeavesAllOrNothing) {
  TemporaryDirectory directory;
  BuildDirectory(directory / "whole", [&] { WriteFile(directory / "whole/file", "x"); });
  EXPECT_EQ(Read(directory / "whole/file"), "x");
  EXPECT_THROW(BuildDirectory(directory / "part",
                              [&] {
                                WriteFile(directory / "part/file", "x");
                                throw std::runtime_error("half way");
                              }),
               std::runtime_error);
  EXPECT_FALSE(fs::exists(directory / "part"));
  bool filled = false;
  ExpectError(ErrorCode::kInvalidArgument, {directory / "whole"},
              [&] { BuildDirectory(directory / "whole", [&] { filled = true; }); });
  EXPECT_FALSE(filled);
  EXPECT_EQ(Read(directory / "whole/file"), "x");
}

}  // namespace
}  // namespace damo
