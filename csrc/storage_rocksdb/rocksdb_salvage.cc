#include "storage_rocksdb/rocksdb_salvage.h"

#include <rocksdb/db.h>
#include <rocksdb/iterator.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <utility>

#include "base/files.h"
#include "base/status.h"
#include "row/record.h"
#include "row/row.h"
#include "storage_rocksdb/rocksdb_checkpoint.h"
#include "storage_rocksdb/rocksdb_open.h"
#include "storage_rocksdb/rocksdb_status.h"

namespace damo {
namespace {

using rocksdb::Slice;

constexpr size_t kBatchBytes = size_t{1} << 20;  // of records that are written at a time

rocksdb::BlockBasedTableOptions* TableOptionsOf(rocksdb::Options* options) {
  return options->table_factory->GetOptions<rocksdb::BlockBasedTableOptions>();
}

// Blocks are read one by one, so that none is lost for another one beside it; and no filters, which rows do without.
rocksdb::Options ReaderOptions(const std::string& path) {
  rocksdb::Options options = SideOptions(path);
  TableOptionsOf(&options)->filter_policy = nullptr;
  TableOptionsOf(&options)->max_auto_readahead_size = 0;
  return options;
}

// The key's first bytes, with zeros where there are none, whatever its size.
Key KeyOf(std::string_view bytes) {
  Key key{};
  std::copy_n(bytes.begin(), std::min(bytes.size(), kKeySize), key.bytes.begin());
  return key;
}

// What may be in nobody's share, since it is malformed, is in everybody's.
bool IsIn(const RankShare& share, std::string_view key) {
  if (key.size() != kKeySize) return true;
  return (DecodeTable(key) & kDeletionBit) == 0 && share.Has(DecodeId(key));
}

}  // namespace

void VerifyTableFile(const std::string& path) {
  rocksdb::Options options = SideOptions(path);
  // VerifyChecksum passes over the parts of filters; this has Open read them.
  TableOptionsOf(&options)->metadata_cache_options.partition_pinning = rocksdb::PinningTier::kAll;
  rocksdb::SstFileReader file(options);
  Check(file.Open(CheckRegular(path)), path);
  Check(file.VerifyChecksum(), path);
}

std::vector<TableFile> ListTableFiles(const std::string& path) {
  rocksdb::Options options = ReaderOptions(path);
  options.paranoid_checks = false;  // opens without the files
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
  const std::unique_ptr<rocksdb::DB> db = OpenReadOnly(options, path);
  std::vector<rocksdb::LiveFileMetaData> files;
  db->GetLiveFilesMetaData(&files);
  std::vector<TableFile> result;
  for (const rocksdb::LiveFileMetaData& file : files) {
    result.push_back({file.relative_filename, file.size, file.smallestkey, file.largestkey, file.smallest_seqno,
                      file.largest_seqno});
  }
  return result;
}

void RebuildRocksDb(const std::string& path) {
  Check(rocksdb::RepairDB(path, ReaderOptions(path)), "rebuild of " + path);
}

// ---------------------------------------------------------------- writing

struct RecordWriter::Batch {
  rocksdb::WriteBatch records{kBatchBytes};
};

RecordWriter::RecordWriter(const std::string& scratch)
    : db_(OpenReadWrite(SideOptions(scratch, /*create=*/true), scratch)), batch_(std::make_unique<Batch>()) {}

RecordWriter::~RecordWriter() { CloseDb(&db_); }

void RecordWriter::Put(std::string_view key, std::string_view value) {
  Check(batch_->records.Put(key, value), "write of rows");
  if (batch_->records.GetDataSize() >= kBatchBytes) Write();
}

void RecordWriter::Write() {
  rocksdb::WriteOptions options;
  options.disableWAL = true;
  Check(db_->Write(options, &batch_->records), "write of rows");
  batch_->records.Clear();
}

void RecordWriter::Finish(const std::string& path) {
  Write();
  Check(db_->Flush(rocksdb::FlushOptions()), "write of " + path);
  CopyRocksDb(db_.get(), path, /*link=*/true, {});
  CloseDb(&db_);
}

// ---------------------------------------------------------------- reading

RecordReader::RecordReader(const std::string& path, std::map<uint32_t, size_t> payload_sizes, Lives lives)
    : path_(path),
      payload_sizes_(std::move(payload_sizes)),
      lives_(std::move(lives)),
      db_(OpenReadOnly(ReaderOptions(path), path)) {
  Restart();
}

RecordReader::~RecordReader() {
  records_.reset();
  CloseDb(&db_);
}

// RocksDB's iterator may go on to report a block that it could not read, wherever it is sent.
void RecordReader::Restart() {
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  records_.reset(db_->NewIterator(options));
}

bool RecordReader::Seek(const Key& key) {
  has_last_ = in_malformed_ = false;
  if (!records_->status().ok()) Restart();
  if (key.view().find_first_not_of('\0') == std::string_view::npos) {
    records_->SeekToFirst();  // what somebody else wrote may have shorter keys
  } else {
    records_->Seek(key.view());
  }
  const rocksdb::Status status = records_->status();
  error_ = status.ok() ? "" : status.ToString();
  return status.ok();
}

size_t RecordReader::Read(size_t n, RecordWriter* writer) { return ReadRecords(n, writer, nullptr); }

size_t RecordReader::ReadShare(size_t n, RecordWriter* writer, const RankShare& share) {
  return ReadRecords(n, writer, &share);
}

size_t RecordReader::ReadRecords(size_t n, RecordWriter* writer, const RankShare* share) {
  size_t read = 0;
  for (; read < n && records_->Valid(); ++read, records_->Next()) {
    const std::string_view key = records_->key().ToStringView(), value = records_->value().ToStringView();
    last_ = KeyOf(key);
    has_last_ = true;
    if (share != nullptr && !IsIn(*share, key)) continue;
    const Found found = Accept(key, value);
    const bool wanted = found == Found::kLives || (found == Found::kDead && share == nullptr);
    if (wanted && writer != nullptr) writer->Put(key, value);
  }
  if (!records_->status().ok()) error_ = records_->status().ToString();
  return read;
}

RecordReader::Found RecordReader::Accept(std::string_view key, std::string_view value) {
  const uint32_t number = DecodeTable(last_.view()), table = number & ~kDeletionBit;
  try {
    const auto size = payload_sizes_.find(table);
    if (key.size() != kKeySize)
      throw Error(ErrorCode::kCorruption, "a key of " + std::to_string(key.size()) + " bytes");
    if (size == payload_sizes_.end()) {
      throw Error(ErrorCode::kCorruption, "no table has the number " + std::to_string(table));
    }
    const bool is_row = number == table;
    const size_t payload_size = is_row ? size->second : kDeletionSize;
    const char* payload = RowPayload(value, payload_size, table, DecodeId(key));
    if (!is_row && IsSighting(value)) throw Error(ErrorCode::kCorruption, "sightings in place of a deletion record");
    RecordTally& tally = tallies_[number];
    bool lives = true;
    if (!is_row) {
      ++tally.records;
    } else {
      const bool sighting = IsSighting(value);
      const RowHeader header = PayloadHeader(payload, sighting ? sizeof(RowHeader) : payload_size);
      lives = !lives_ || lives_(number, DecodeId(key), header, sighting);
      ++(sighting ? tally.sightings : lives ? tally.records : tally.dead);
      if (!sighting) tally.last_step = std::max(tally.last_step, header.last_step);
    }
    in_malformed_ = false;
    return lives ? Found::kLives : Found::kDead;
  } catch (const Error& error) {
    if (in_malformed_ && DecodeTable(malformed_.back().last.view()) == number) {
      malformed_.back().last = last_;
    } else {
      malformed_.push_back({last_, last_, error.what()});
    }
    in_malformed_ = true;
    return Found::kMalformed;
  }
}

}  // namespace damo
