// Directories of rows that may be damaged: whether their files are sound, what can be read of them, and a new directory
// for that. Here keys and values are what docs/format.md says, deletion records among them. A reader writes nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "row/key.h"
#include "row/rank.h"
#include "row/row_header.h"

namespace rocksdb {
class DB;
class Iterator;
}  // namespace rocksdb

namespace damo {

// Throws kCorruption or kIo, naming the file, unless the table file has the checksum of each of its blocks: rows, index
// and filters.
void VerifyTableFile(const std::string& path);

// A table file, and between which keys and which sequence numbers its records are. Of two records of a key the one with
// the higher sequence number is the newer.
struct TableFile {
  std::string name;
  uint64_t size;
  std::string smallest;
  std::string largest;
  uint64_t oldest;
  uint64_t newest;
};

// What the database in `path` consists of by RocksDB's manifest, whether the files are there or not. Throws kCorruption
// or kIo.
std::vector<TableFile> ListTableFiles(const std::string& path);

// Makes `path`, a directory of table files alone, a database of the newest record of each key. RocksDB moves files with
// a block that it cannot read into `path`/lost. Throws kCorruption or kIo. REQUIRES: at least one table file.
void RebuildRocksDb(const std::string& path);

// Makes a database of records that come in ascending order of keys. Not thread-safe.
class RecordWriter {
 public:
  // Works in the new directory `scratch`, which is the caller's to remove. Throws kOutOfSpace or kIo, as the others.
  explicit RecordWriter(const std::string& scratch);
  ~RecordWriter();
  RecordWriter(const RecordWriter&) = delete;
  RecordWriter& operator=(const RecordWriter&) = delete;

  void Put(std::string_view key, std::string_view value);
  // Writes the database into the new directory `path`, synced. No Put may follow.
  void Finish(const std::string& path);

 private:
  struct Batch;

  void Write();

  std::unique_ptr<rocksdb::DB> db_;
  std::unique_ptr<Batch> batch_;
};

// Records one after the other whose blocks are sound, but which are not what this release writes for their table.
struct MalformedRecords {
  Key first;
  Key last;
  std::string reason;  // of the first
};

// What was read of a table's rows, or of its deletion records.
struct RecordTally {
  uint64_t records = 0;
  uint64_t dead = 0;       // rows that somebody has told apart, beside those
  uint64_t sightings = 0;  // of ids without a row, beside those
  uint32_t last_step = 0;  // the largest of any row
};

// Reads a database's records in the order of their keys. Where a block cannot be read, all files' records that its keys
// may cover are out of reach, so that no older one is taken for the newest. Not thread-safe.
class RecordReader {
 public:
  // Whether a row of this table, or the sightings of an id that has none, live.
  using Lives = std::function<bool(uint32_t table, int64_t id, RowHeader header, bool sighting)>;

  // `payload_sizes`: of the rows of each table, by number. Throws kCorruption or kIo.
  RecordReader(const std::string& path, std::map<uint32_t, size_t> payload_sizes, Lives lives = nullptr);
  ~RecordReader();
  RecordReader(const RecordReader&) = delete;
  RecordReader& operator=(const RecordReader&) = delete;

  const std::string& path() const { return path_; }

  // Goes to the first record whose key is not below `key`; false if what is there cannot be read.
  bool Seek(const Key& key);
  // Reads up to `n` records, and hands those that are well-formed to `writer`, if there is one; how many there were. If
  // fewer than `n`, the next cannot be read, or, with an empty error(), there are no more. Throws what Put throws.
  size_t Read(size_t n, RecordWriter* writer);
  // The same of a rank's rows and sightings that live alone: others, and deletions, are neither counted nor written.
  size_t ReadShare(size_t n, RecordWriter* writer, const RankShare& share);
  // Why Seek or Read got no further.
  const std::string& error() const { return error_; }
  // The last record's since Seek; nullptr if there was none.
  const Key* last_key() const { return has_last_ ? &last_ : nullptr; }

  // Since the reader was made.
  const std::map<uint32_t, RecordTally>& tallies() const { return tallies_; }
  const std::vector<MalformedRecords>& malformed() const { return malformed_; }

 private:
  enum class Found { kMalformed, kDead, kLives };

  void Restart();
  size_t ReadRecords(size_t n, RecordWriter* writer, const RankShare* share);
  // Counts the record, or notes why it is malformed.
  Found Accept(std::string_view key, std::string_view value);

  const std::string path_;
  const std::map<uint32_t, size_t> payload_sizes_;
  const Lives lives_;
  std::map<uint32_t, RecordTally> tallies_;
  std::vector<MalformedRecords> malformed_;
  std::unique_ptr<rocksdb::DB> db_;
  std::unique_ptr<rocksdb::Iterator> records_;
  Key last_;
  bool has_last_ = false;
  bool in_malformed_ = false;  // the last record was
  std::string error_;
};

}  // namespace damo
