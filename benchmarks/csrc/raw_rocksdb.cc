// Measures RocksDB without the engine, and the disk without RocksDB: the roof over what the engine can do. Prints one
// JSON object. benchmarks/raw.py runs it.
//
//   raw_rocksdb read  DB IDS --rows-per-batch N --threads T --memory-budget BYTES [--direct]
//                            [--write-rows W --payload-bytes P]
//   raw_rocksdb write DB IDS --rows-per-batch N --payload-bytes P --memory-budget BYTES [--direct]
//   raw_rocksdb disk  FILE... --in-flight N --seconds S
//
// DB is a RocksDB of rows. Whatever writes changes it: give it a copy. IDS is a file as ReadKeys (raw_database.h) takes
// it. `read` reads batch by batch, each sorted beforehand; with --write-rows, a thread writes W of the rows for each
// batch while the next ones are read, and a batch waits for the writes of the one before it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <future>
#include <iomanip>
#include <iostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "disk.h"
#include "raw_database.h"

namespace damo::benchmarks {
namespace {

class Watch {
 public:
  double Seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

void PrintRate(size_t rows, size_t found, const std::vector<double>& seconds, double flush_seconds) {
  double total = flush_seconds;
  std::cout << "{\"rows\": " << rows << ", \"found\": " << found << ", \"seconds\": [";
  for (size_t i = 0; i < seconds.size(); ++i) {
    total += seconds[i];
    std::cout << (i == 0 ? "" : ", ") << seconds[i];
  }
  std::cout << "], \"rows_per_second\": " << static_cast<double>(rows) / total << "}\n";
}

std::vector<std::span<Key>> Batches(std::span<Key> keys, size_t rows_per_batch) {
  std::vector<std::span<Key>> batches;
  for (size_t begin = 0; begin < keys.size(); begin += rows_per_batch) {
    batches.push_back(keys.subspan(begin, std::min(rows_per_batch, keys.size() - begin)));
  }
  return batches;
}

RawDatabaseOptions DatabaseOptions(const Arguments& arguments, bool read_only) {
  if (arguments.words().size() != 2) throw Error(ErrorCode::kInvalidArgument, "expected DB and IDS");
  return {arguments.words()[0], arguments.Count("--memory-budget"), arguments.Has("--direct"), read_only};
}

void Read(const Arguments& arguments) {
  const size_t write_rows = arguments.Count("--write-rows", 0);
  const size_t payload_bytes = write_rows == 0 ? 0 : arguments.Count("--payload-bytes");
  RawDatabase database(DatabaseOptions(arguments, write_rows == 0));
  std::vector<Key> keys = ReadKeys(arguments.words()[1]);
  const std::vector<Key> written = keys;  // in the order given
  ThreadPool threads(static_cast<int>(arguments.Count("--threads")));

  const std::vector<std::span<Key>> batches = Batches(keys, arguments.Count("--rows-per-batch"));
  for (const std::span<Key> batch : batches) std::sort(batch.begin(), batch.end());
  size_t found = 0, next_written = 0;
  std::vector<double> seconds;
  std::future<void> writing;
  for (const std::span<Key> batch : batches) {
    const Watch watch;
    found += database.Read(batch, &threads);
    if (writing.valid()) writing.get();
    if (write_rows > 0) {
      std::vector<Key> group(write_rows);
      for (Key& key : group) key = written[next_written++ % written.size()];
      writing = std::async(std::launch::async, [&database, payload_bytes, group = std::move(group)]() mutable {
        database.Write(group, payload_bytes);
      });
    }
    seconds.push_back(watch.Seconds());
  }
  const Watch watch;
  if (writing.valid()) writing.get();
  seconds.back() += watch.Seconds();
  PrintRate(keys.size(), found, seconds, 0);
}

void Write(const Arguments& arguments) {
  const size_t payload_bytes = arguments.Count("--payload-bytes");
  RawDatabase database(DatabaseOptions(arguments, /*read_only=*/false));
  std::vector<Key> keys = ReadKeys(arguments.words()[1]);
  std::vector<double> seconds;
  for (const std::span<Key> batch : Batches(keys, arguments.Count("--rows-per-batch"))) {
    const Watch watch;
    database.Write(batch, payload_bytes);
    seconds.push_back(watch.Seconds());
  }
  const Watch watch;
  database.Flush();
  PrintRate(keys.size(), keys.size(), seconds, watch.Seconds());
}

void Disk(const Arguments& arguments) {
  const int in_flight = static_cast<int>(arguments.Count("--in-flight"));
  const double rate = RandomReadsPerSecond(arguments.words(), in_flight, arguments.Number("--seconds"));
  std::cout << "{\"reads_per_second\": " << rate << "}\n";
}

void Run(int argc, char** argv) {
  const std::string_view command = argc < 2 ? "" : argv[1];
  std::cout << std::setprecision(9);
  if (command == "read") {
    Read({argc - 2,
          argv + 2,
          {"--rows-per-batch", "--threads", "--memory-budget", "--write-rows", "--payload-bytes"},
          {"--direct"}});
  } else if (command == "write") {
    Write({argc - 2, argv + 2, {"--rows-per-batch", "--payload-bytes", "--memory-budget"}, {"--direct"}});
  } else if (command == "disk") {
    Disk({argc - 2, argv + 2, {"--in-flight", "--seconds"}, {}});
  } else {
    throw Error(ErrorCode::kInvalidArgument, "the first argument must be read, write or disk");
  }
}

}  // namespace
}  // namespace damo::benchmarks

int main(int argc, char** argv) {
  try {
    damo::benchmarks::Run(argc, argv);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "raw_rocksdb: %s\n", error.what());
    return 1;
  }
}
