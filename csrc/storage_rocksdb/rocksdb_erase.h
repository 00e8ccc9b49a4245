// Rows of which no byte is to be left on disk. A delete hides a row: what it was stays in table files until compactions
// come by, and in logs for as long as these are kept.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "storage_rocksdb/rocksdb_salvage.h"

namespace damo {

// By table number; ascending and distinct.
using IdsByTable = std::map<uint32_t, std::vector<int64_t>>;

// What a directory of rows has of some rows.
struct FoundRows {
  IdsByTable held;                 // of which there is a value, be it that it was overwritten or deleted since
  IdsByTable rows;                 // of these, those whose newest value is a row that lives
  std::vector<std::string> files;  // names of the files that hold such values
};

// Looks for rows in a checkpoint's directory, of which nothing is changed. `logs`: paths of those of its journal, in
// their order; `no_logs`: an empty directory; `lives`: is asked once of each whose newest value is a row, or sightings;
// without it all live. Throws kCorruption or kIo, or what `lives` throws.
FoundRows FindRows(const std::string& rows, const std::vector<std::string>& logs, const std::string& no_logs,
                   const IdsByTable& wanted, const RecordReader::Lives& lives = nullptr);

// Makes the new directory `to` one with the rows of `rows` and the logs, but for those in `found`. Those that are rows
// have a deletion record there, of the step that `steps` has for their table. Table files that hold none of them have a
// second name there, and so do logs before the first that does. Everything is synced.
//
// REQUIRES: `rows` is a copy without logs that is the caller's, who removes it: it is changed. Its files may be links.
// Throws kOutOfSpace, kCorruption or kIo.
void EraseRows(const std::string& rows, const std::vector<std::string>& logs, const FoundRows& found,
               const std::map<uint32_t, uint64_t>& steps, const std::string& to);

}  // namespace damo
