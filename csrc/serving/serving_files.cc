#include "serving/serving_files.h"

#include <string_view>

namespace damo {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 18;
constexpr size_t kRowBufferBytes = size_t{1} << 20;

template <class T>
std::string_view BytesOf(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

}  // namespace

ServingFiles::ServingFiles(const std::string& prefix, size_t row_bytes, size_t shard_rows, bool scaled)
    : prefix_(prefix),
      row_bytes_(row_bytes),
      shard_rows_(static_cast<int64_t>(shard_rows)),
      keys_(prefix + ".keys", kBufferBytes),
      buckets_(prefix + ".buckets", kBufferBytes) {
  if (scaled) scales_.emplace(prefix + ".scales", kBufferBytes);
}

void ServingFiles::AppendRow(int64_t key, const char* row, float scale) {
  if (num_rows_ == num_shards_ * shard_rows_) {
    if (shard_) shard_->Finish();
    shard_.emplace(prefix_ + ".rows." + std::to_string(num_shards_), kRowBufferBytes);
    ++num_shards_;
  }
  keys_.Append(BytesOf(key));
  if (scales_) scales_->Append(BytesOf(scale));
  shard_->Append({row, row_bytes_});
  ++num_rows_;
}

void ServingFiles::AppendBuckets(std::span<const int64_t> buckets) {
  buckets_.Append({reinterpret_cast<const char*>(buckets.data()), buckets.size_bytes()});
  num_buckets_ += static_cast<int64_t>(buckets.size());
}

void ServingFiles::Finish() {
  keys_.Finish();
  buckets_.Finish();
  if (scales_) scales_->Finish();
  if (shard_) shard_->Finish();
}

}  // namespace damo
