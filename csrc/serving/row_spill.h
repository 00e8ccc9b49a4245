// Records of one size that come in any order and are wanted group by group: in memory where there is one group, else
// in a file for each.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace damo {

class RowSpill {
 public:
  // Files are `prefix`N. Of each of several groups at most `buffer_bytes`, or one record, are kept in memory; the
  // records of a single one are, and `expected` is how many they will be.
  RowSpill(std::string prefix, size_t record_bytes, size_t groups, size_t buffer_bytes, size_t expected);
  // Removes what files there are.
  ~RowSpill();
  RowSpill(const RowSpill&) = delete;
  RowSpill& operator=(const RowSpill&) = delete;

  // Room for one more record of a group, until the next call. Throws kOutOfSpace or kIo.
  char* Add(size_t group);
  // The group's records, one after the other, which are then forgotten. Throws kIo.
  std::vector<char> Take(size_t group);

 private:
  struct Group {
    std::vector<char> buffer;
    size_t file_bytes = 0;
  };
  std::string FileOf(size_t group) const { return prefix_ + std::to_string(group); }

  const std::string prefix_;
  const size_t record_bytes_;
  const size_t buffer_bytes_;  // 0: no files
  std::vector<Group> groups_;
};

}  // namespace damo
