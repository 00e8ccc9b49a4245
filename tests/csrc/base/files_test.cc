#include "base/files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include "testing/errors.h"
#include "testing/system_calls.h"
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

// The system may write less than it was asked to, and end within a block.
TEST(FilesTest, WritesThatComeShortGoOn) {
  TemporaryDirectory directory;
  std::string bytes;
  for (int i = 0; bytes.size() < 100'000; ++i) bytes += std::to_string(i);
  testing::most_bytes_per_write = 5000;
  WriteFile(directory / "whole", bytes);
  for (const bool direct : {false, true}) {
    FileWriter writer(directory / (direct ? "direct" : "buffered"), 8 * kDirectAlignment, direct);
    for (size_t i = 0; i < bytes.size(); i += 777) writer.Append(std::string_view(bytes).substr(i, 777));
    writer.Finish();
  }
  File(directory / "whole", O_WRONLY).WriteAt(bytes, 3);
  testing::most_bytes_per_write = 0;
  EXPECT_EQ(Read(directory / "whole"), bytes.substr(0, 3) + bytes);
  EXPECT_EQ(Read(directory / "buffered"), bytes);
  EXPECT_EQ(Read(directory / "direct"), bytes);
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

TEST(FilesTest, NothingFollowsALinkOrWaitsForAFifo) {
  TemporaryDirectory directory;
  WriteFile(directory / "file", "bytes");
  fs::create_symlink(directory / "file", directory / "link");
  fs::create_symlink(directory / "none", directory / "dangling");
  ASSERT_EQ(::mkfifo((directory / "fifo").c_str(), 0600), 0);
  for (const char* name : {"link", "dangling", "fifo"}) {
    SCOPED_TRACE(name);
    const std::string path = directory / name;
    char bytes[5];
    ExpectError(ErrorCode::kCorruption, {path, "a regular file"}, [&] { ReadFile(path, bytes, sizeof bytes); });
    ExpectError(ErrorCode::kCorruption, {path, "a regular file"}, [&] { CopyFile(path, directory / "copy", 5); });
    ExpectError(ErrorCode::kCorruption, {path, "a regular file"}, [&] { AppendToFile(path, "more"); });
    EXPECT_NE(OddFileAt(path), "");
  }
  EXPECT_EQ(OddFileAt(directory / "link", Links::kFollow), "");
  EXPECT_EQ(OddFileAt(directory / "none"), "");
  EXPECT_EQ(OddFileAt(directory / "file"), "");
  EXPECT_FALSE(fs::exists(directory / "none"));
  EXPECT_FALSE(fs::exists(directory / "copy"));
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
