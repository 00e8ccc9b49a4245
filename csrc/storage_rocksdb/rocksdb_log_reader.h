// Reading files that are as RocksDB's write-ahead logs are (rocksdb_log.h), with all that may be wrong with one.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "storage/row_store.h"

namespace damo {

// Calls apply(rows) for the changes in such a file, in their order, some hundred KiB at a time; what it is given ends
// with the call. `sequence`: the number of the first change, if that is known; returns that of the next after the last.
// Throws kCorruption, naming the file, unless it is whole, with the checksum of each record, all of them such as
// RocksDbLogWriter writes and each the one to come; kIo if it cannot be read. What came before has been applied then.
std::optional<uint64_t> ReadLogFile(const std::string& path,
                                    const std::function<void(std::span<const RowWrite>)>& apply,
                                    std::optional<uint64_t> sequence = std::nullopt);

// The same of bytes that need not be a file's: `next` gives the next ones, each time as many whole blocks of 32 KiB but
// for the last, and none behind them. `name` is for messages.
std::optional<uint64_t> ReadLog(const std::string& name, const std::function<std::string_view()>& next,
                                const std::function<void(std::span<const RowWrite>)>& apply,
                                std::optional<uint64_t> sequence = std::nullopt);

// Throws as ReadLogFile.
void VerifyLogFile(const std::string& path);

}  // namespace damo
