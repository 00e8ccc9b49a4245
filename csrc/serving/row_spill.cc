#include "serving/row_spill.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/files.h"

namespace damo {

RowSpill::RowSpill(std::string prefix, size_t record_bytes, size_t groups, size_t buffer_bytes, size_t expected)
    : prefix_(std::move(prefix)),
      record_bytes_(record_bytes),
      buffer_bytes_(groups == 1 ? 0 : std::max(buffer_bytes / record_bytes, size_t{1}) * record_bytes),
      groups_(groups) {
  if (groups == 1) groups_[0].buffer.reserve(expected * record_bytes);
}

RowSpill::~RowSpill() {
  for (size_t group = 0; group < groups_.size(); ++group) {
    if (groups_[group].file_bytes > 0) ::unlink(FileOf(group).c_str());
  }
}

char* RowSpill::Add(size_t group) {
  auto& [buffer, file_bytes] = groups_[group];
  if (buffer_bytes_ > 0) {
    if (buffer.size() == buffer_bytes_) {
      // Opened for each write: there may be more of them than a process may have open.
      const size_t bytes = buffer.size();
      file_bytes += bytes;
      AppendToFile(FileOf(group), {buffer.data(), bytes});
      buffer.clear();
    }
    buffer.reserve(buffer_bytes_);
  }
  buffer.resize(buffer.size() + record_bytes_);
  return buffer.data() + buffer.size() - record_bytes_;
}

std::vector<char> RowSpill::Take(size_t group) {
  auto& [buffer, file_bytes] = groups_[group];
  if (file_bytes == 0) return std::exchange(buffer, {});
  std::vector<char> records(file_bytes + buffer.size());
  ReadFile(FileOf(group), records.data(), file_bytes);
  std::copy(buffer.begin(), buffer.end(), records.begin() + static_cast<std::ptrdiff_t>(file_bytes));
  ::unlink(FileOf(group).c_str());
  groups_[group] = {};
  return records;
}

}  // namespace damo
