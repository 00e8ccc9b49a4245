#include "serving/serving_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/float_environment.h"
#include "base/status.h"
#include "row/weight_type.h"
#include "serving/row_spill.h"

namespace damo {
namespace {

// How large a part's rows are; what is in memory is a multiple of it.
constexpr size_t kPartBytes = size_t{8} << 20;
// So that records of a group have numbers of 32 bits.
constexpr size_t kMostPartsPerGroup = size_t{1} << 14;
constexpr size_t kMostParts = size_t{1} << kPartBits;
// What building a part takes for each key.
constexpr size_t kScratchPerKey = 40;
constexpr uint64_t kRowsPerProgress = uint64_t{1} << 14;

const ServingOptions& Checked(const ServingOptions& options) {
  const auto check = [](bool holds, const std::string& what, size_t got) {
    if (!holds) throw Error(ErrorCode::kInvalidArgument, what + ", got " + std::to_string(got));
  };
  check(options.dim >= 1 && options.dim <= kMostDim, "dim must be in 1.." + std::to_string(kMostDim),
        static_cast<size_t>(options.dim));
  check(options.shard_rows >= 1, "shard_rows must be at least 1", options.shard_rows);
  check(options.num_threads >= 1, "num_threads must be at least 1", static_cast<size_t>(options.num_threads));
  check(options.memory_bytes >= kLeastServingMemory,
        "memory_bytes must be at least " + std::to_string(kLeastServingMemory), options.memory_bytes);
  return options;
}

size_t KeysPerPart(size_t row_bytes) {
  return std::clamp(kPartBytes / (kRecordHeader + row_bytes), size_t{1}, kMostKeysPerPart);
}

int ThreadsFor(const ServingOptions& options, size_t keys_per_part) {
  const size_t most = options.memory_bytes / 8 / (kScratchPerKey * keys_per_part);
  return std::clamp(options.num_threads, 1, static_cast<int>(std::clamp<size_t>(most, 1, 1024)));
}

size_t CeilDiv(size_t a, size_t b) { return (a + b - 1) / b; }

TableParts Divide(size_t ids, size_t keys_per_part) {
  const size_t buckets = NumBuckets(ids);
  const size_t parts = std::min(std::bit_ceil(CeilDiv(ids, keys_per_part)), buckets);
  return {parts, buckets / parts};
}

}  // namespace

// A table of a snapshot.
struct ServingRows::Source {
  const RowSnapshot& snapshot;
  const size_t position;
  const Progress& progress;
  uint64_t found = 0;
  uint64_t taken = 0;
  int64_t smallest_id = 0;  // of those that are taken
  int64_t faint = 0;        // as ServingTable

  const RowSnapshot::Table& table() const { return snapshot.tables().at(position); }
  std::string name() const { return "table \"" + table().name + "\""; }

  // Calls f(id, payload) for each row. Throws kCorruption unless there are as many as the table is said to have, for
  // which parts and memory are planned.
  template <class F>
  void ForEach(F f) {
    const uint64_t expected = static_cast<uint64_t>(table().state.rows);
    const std::unique_ptr<RowIterator> rows = snapshot.Scan(position);
    int64_t id;
    const char* payload;
    for (found = 0; rows->Next(&id, &payload);) {
      if (++found > expected) break;
      f(id, payload);
      if (found % kRowsPerProgress == 0) progress(taken);
    }
    if (found == expected) return;
    throw Error(ErrorCode::kCorruption, name() + ": expected " + std::to_string(expected) + " rows, found " +
                                            (found > expected ? "more" : std::to_string(found)));
  }
};

ServingRows::ServingRows(const ServingOptions& options)
    : options_(Checked(options)),
      row_bytes_(FactsOf(options.dtype).weight_bytes * static_cast<size_t>(options.dim)),
      keys_per_part_(KeysPerPart(row_bytes_)),
      threads_(ThreadsFor(options, keys_per_part_)),
      files_(std::make_unique<ServingFiles>(options.directory + "/" + options.prefix, row_bytes_, options.shard_rows,
                                            FactsOf(options.dtype).scaled)) {
  AppendZeros(0);
  files_->AppendBuckets(std::vector{MakeBucket(0, 0)});
  parts_.push_back(HashPart::At(0, 1));
}

ServingTable ServingRows::Add(const RowSnapshot& snapshot, size_t position, const RowFilter& filter,
                              const Progress& progress) {
  CheckOpen();
  const DefaultFloatEnvironment environment;
  Source rows{snapshot, position, progress};
  try {
    if (rows.table().layout.dim != options_.dim) {
      throw Error(ErrorCode::kInvalidArgument, rows.name() + ": expected rows of dim " + std::to_string(options_.dim) +
                                                   ", found " + std::to_string(rows.table().layout.dim));
    }
    return AddTable(&rows, filter);
  } catch (...) {
    files_.reset();
    throw;
  }
}

ServingTable ServingRows::AddTable(Source* rows, const RowFilter& filter) {
  const RowLayout& layout = rows->table().layout;
  RowSelection selection(filter);
  uint64_t expected = static_cast<uint64_t>(rows->table().state.rows);
  if (filter.any()) {
    rows->ForEach([&](int64_t, const char* payload) { selection.Count(PayloadHeader(payload, layout)); });
    expected = selection.Choose();
  }

  // Half of the memory is for records, and an eighth for buffers of what goes to files.
  const size_t record_bytes = kRecordHeader + row_bytes_;
  const TableParts table_parts = Divide(expected, keys_per_part_);
  if (table_parts.number > kMostParts - parts_.size()) {
    throw Error(ErrorCode::kInvalidArgument, rows->name() + ": with its rows the tables of dim " +
                                                 std::to_string(options_.dim) + " are more than " +
                                                 std::to_string(kMostParts) + " parts");
  }
  const size_t parts_per_group =
      std::clamp(options_.memory_bytes / 2 / (record_bytes + sizeof(uint32_t)) / keys_per_part_, size_t{1},
                 std::min(table_parts.number, kMostPartsPerGroup));
  const size_t groups = CeilDiv(table_parts.number, parts_per_group);
  RowSpill spill(options_.directory + "/" + options_.prefix + ".spill.", record_bytes, groups,
                 options_.memory_bytes / 8 / groups, expected);

  std::vector<float> weights(static_cast<size_t>(layout.dim));
  rows->ForEach([&](int64_t id, const char* payload) {
    if (filter.any() && !selection.Takes(PayloadHeader(payload, layout))) return;
    if (rows->taken++ == 0) rows->smallest_id = id;
    DecodeWeights(layout.weight_type, layout.dim, payload, weights.data());
    char* record = spill.Add(table_parts.Of(id) / parts_per_group);
    float scale = 0;
    try {
      WithRowDtype(options_.dtype, [&](auto dtype) {
        dtype.Encode(options_.dim, weights.data(), record + kRecordHeader, &scale);
        if (dtype.kFaint == 0) return;
        uint32_t largest = 0;
        for (const float weight : weights) largest = std::max(largest, MagnitudeBits(weight));
        if (largest > 0 && largest < dtype.kFaint) ++rows->faint;
      });
    } catch (const Error& error) {
      throw Error(error.code(), rows->name() + ", id " + std::to_string(id) + ": " + error.what());
    }
    std::memcpy(record, &id, sizeof id);
    std::memcpy(record + sizeof id, &scale, sizeof scale);
  });

  if (rows->taken == 0) return {{}, 0, 0};
  const ServingTable table{{files_->num_buckets(), static_cast<int64_t>(table_parts.number * table_parts.buckets - 1)},
                           static_cast<int64_t>(rows->taken),
                           rows->faint};
  for (size_t first = 0; first < table_parts.number; first += parts_per_group) {
    const size_t n = std::min(parts_per_group, table_parts.number - first);
    Records records(spill.Take(first / parts_per_group), record_bytes);
    WriteParts(*rows, ServingParts(std::move(records), table_parts, first, n, static_cast<int64_t>(parts_.size())));
  }
  return table;
}

void ServingRows::WriteParts(const Source& rows, const ServingParts& parts) {
  const size_t at_a_time = 2 * static_cast<size_t>(threads_.threads());
  for (size_t first = 0; first < parts.size(); first += at_a_time) {
    std::vector<PlacedPart> placed(std::min(at_a_time, parts.size() - first));
    try {
      threads_.ParallelFor(placed.size(), [&](size_t i, int) { placed[i] = parts.Place(first + i); });
    } catch (const Error& error) {
      throw Error(error.code(), rows.name() + ": " + error.what());
    }
    for (const PlacedPart& part : placed) WritePart(rows, parts.records(), part);
    rows.progress(rows.taken);
  }
}

void ServingRows::WritePart(const Source& rows, const Records& records, const PlacedPart& part) {
  parts_.push_back(HashPart::At(files_->num_rows(), part.hash.slots));
  files_->AppendBuckets(part.hash.buckets);
  for (const uint32_t record : part.records) {
    if (record == PlacedPart::kNone) {
      AppendZeros(rows.smallest_id);
    } else {
      files_->AppendRow(records.id(record), records.weights(record), records.scale(record));
    }
  }
}

void ServingRows::AppendZeros(int64_t key) { files_->AppendRow(key, std::vector<char>(row_bytes_).data(), 0); }

void ServingRows::Finish() {
  CheckOpen();
  const std::unique_ptr<ServingFiles> files = std::move(files_);
  files->Finish();
  num_rows_ = files->num_rows();
  num_buckets_ = files->num_buckets();
  num_shards_ = files->num_shards();
}

void ServingRows::CheckOpen() const {
  if (files_ == nullptr) {
    throw Error(ErrorCode::kInvalidArgument, "the row group is finished, or was given up after an error");
  }
}

}  // namespace damo
