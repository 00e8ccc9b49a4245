// The Python module damo_torchrec._core: the store.
#include "python/bindings.h"

#include <pybind11/native_enum.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "base/status.h"
#include "engine/store.h"
#include "row/key.h"
#include "storage/memory_store.h"
#include "storage_rocksdb/rocksdb_log.h"
#include "storage_rocksdb/rocksdb_options.h"
#include "storage_rocksdb/rocksdb_salvage.h"
#include "storage_rocksdb/rocksdb_store.h"

namespace damo {
namespace {

std::span<const int64_t> Ids(Address address, size_t n) { return {At<const int64_t>(address), n}; }

// The class in damo_torchrec.errors.
const char* PythonException(ErrorCode code) {
  switch (code) {
    case ErrorCode::kCorruption:
      return "CorruptionError";
    case ErrorCode::kOutOfSpace:
      return "OutOfSpaceError";
    case ErrorCode::kSchemaMismatch:
      return "SchemaMismatchError";
    case ErrorCode::kNonFinite:
      return "NonFiniteGradientError";
    case ErrorCode::kClosed:
      return "StoreClosedError";
    case ErrorCode::kInvalidArgument:  // Python's own ValueError
    case ErrorCode::kIo:
      break;
  }
  return "DamoError";
}

void TranslateError(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kInvalidArgument) {
      py::set_error(PyExc_ValueError, e.what());
      return;
    }
    const py::object type = py::module_::import("damo_torchrec.errors").attr(PythonException(e.code()));
    py::set_error(type, e.what());
  }
}

// RocksDB's thread pool waits at exit for its threads, which a forked child does not have: a child that ends by exit(3)
// instead of _exit(2), as after os.fork and sys.exit, would wait for ever. What is registered last runs first.
void LeaveForkedChildrenAtExit() {
#ifdef __linux__
  static std::once_flag once;
  static pid_t process;
  std::call_once(once, [] {
    process = getpid();
    on_exit(
        [](int status, void*) {
          if (getpid() == process) return;
          std::fflush(nullptr);
          _exit(status);
        },
        nullptr);
  });
#endif
}

Held<Store> OpenStore(const std::string& path, bool create, bool in_memory, const StoreOptions& options) {
  const BudgetShares shares = DivideBudget(options.memory_budget);
  std::unique_ptr<RowStore> rows;
  if (in_memory) {
    rows = OpenMemoryStore(path);
  } else {
    RocksDbOptions rocksdb;
    rocksdb.path = path;
    rocksdb.create = create;
    rocksdb.read_only = options.read_only;
    rocksdb.memory_bytes = shares.row_store;
    rocksdb.num_threads = options.num_threads;
    rocksdb.direct_io = options.direct_io;
    rows = OpenRocksDbStore(rocksdb);
    LeaveForkedChildrenAtExit();
  }
  return Held<Store>(new Store(std::move(rows), shares, options));
}

// Hands out a table's rows in id order, a batch at a time.
class Scan {
 public:
  Scan(Store& store, uint16_t table) : layout_(store.layout(table)), rows_(store.Scan(table)) {}

  // Fills at most `n` ids and rows; how many there were.
  size_t Next(Address ids, Address weights, size_t n) {
    const size_t dim = static_cast<size_t>(layout_.dim);
    return Fill(n, [&](size_t i, int64_t id, const char* payload) {
      At<int64_t>(ids)[i] = id;
      DecodeWeights(layout_.weight_type, layout_.dim, payload, At<float>(weights) + i * dim);
    });
  }

  // The same with whole payloads: weights, state, last step and count.
  size_t NextPayloads(Address ids, Address payloads, size_t n) {
    const size_t size = layout_.payload_size();
    return Fill(n, [&](size_t i, int64_t id, const char* payload) {
      At<int64_t>(ids)[i] = id;
      std::memcpy(At<char>(payloads) + i * size, payload, size);
    });
  }

 private:
  template <class F>
  size_t Fill(size_t n, F f) {
    size_t i = 0;
    int64_t id;
    const char* payload;
    for (; i < n && rows_->Next(&id, &payload); ++i) f(i, id, payload);
    return i;
  }

  RowLayout layout_;
  std::unique_ptr<RowIterator> rows_;
};

// Hyperparameters that are not given have their defaults. Throws kInvalidArgument for a name that is not known.
OptimizerConfig MakeOptimizerConfig(std::string_view rule, std::string_view weight_decay_mode,
                                    const std::map<std::string, double>& hyperparameters) {
  OptimizerConfig config;
  config.kind = OptimizerNamed(rule);
  if (weight_decay_mode != "l2" && weight_decay_mode != "decoupled") {
    throw Error(ErrorCode::kInvalidArgument,
                "weight_decay_mode must be l2 or decoupled, got \"" + std::string(weight_decay_mode) + "\"");
  }
  config.weight_decay_mode = weight_decay_mode == "l2" ? WeightDecayMode::kL2 : WeightDecayMode::kDecoupled;
  for (const auto& [name, value] : hyperparameters) SetHyperparameter(&config, name, value);
  return config;
}

void RegisterOptions(py::module_& m) {
  py::class_<StoreOptions>(m, "StoreOptions")
      .def(py::init<>())
      .def_readwrite("memory_budget", &StoreOptions::memory_budget)
      .def_readwrite("num_threads", &StoreOptions::num_threads)
      .def_readwrite("instruction_set", &StoreOptions::instruction_set)
      .def_readwrite("direct_io", &StoreOptions::direct_io)
      .def_readwrite("read_only", &StoreOptions::read_only)
      .def_readwrite("cache_bytes", &StoreOptions::cache_bytes);

  m.attr("UPDATE_RULES") = py::tuple(py::cast(OptimizerNames()));
  py::class_<OptimizerConfig>(m, "OptimizerConfig")
      .def(py::init(&MakeOptimizerConfig), py::arg("rule"), py::arg("weight_decay_mode") = "l2",
           py::arg("hyperparameters") = py::dict());

  py::native_enum<Distribution>(m, "Distribution", "enum.Enum")
      .value("CONSTANT", Distribution::kConstant)
      .value("UNIFORM", Distribution::kUniform)
      .value("NORMAL", Distribution::kNormal)
      .finalize();
  py::class_<Initializer>(m, "Initializer")
      .def(py::init<>())
      .def_readwrite("distribution", &Initializer::distribution)
      .def_readwrite("stream_key", &Initializer::stream_key)
      .def_readwrite("a", &Initializer::a)
      .def_readwrite("b", &Initializer::b)
      .def_readwrite("low", &Initializer::low)
      .def_readwrite("high", &Initializer::high);

  py::native_enum<WeightType>(m, "WeightType", "enum.Enum")
      .value("FLOAT32", WeightType::kFloat32)
      .value("FLOAT16", WeightType::kFloat16)
      .value("BFLOAT16", WeightType::kBfloat16)
      .finalize();
  py::class_<TableSchema>(m, "TableSchema")
      .def(py::init<>())
      .def_readwrite("name", &TableSchema::name)
      .def_readwrite("number", &TableSchema::number)
      .def_readwrite("dim", &TableSchema::dim)
      .def_readwrite("weight_type", &TableSchema::weight_type)
      .def_readwrite("initializer", &TableSchema::initializer)
      .def_readwrite("optimizer", &TableSchema::optimizer)
      .def_readwrite("iter", &TableSchema::iter)
      .def_readwrite("rows", &TableSchema::rows);
}

void RegisterLookup(py::module_& m) {
  py::native_enum<Pooling>(m, "Pooling", "enum.Enum")
      .value("SUM", Pooling::kSum)
      .value("MEAN", Pooling::kMean)
      .finalize();
  py::native_enum<UnseenRows>(m, "UnseenRows", "enum.Enum")
      .value("INITIAL", UnseenRows::kInitial)
      .value("ZEROS", UnseenRows::kZeros)
      .finalize();
  py::class_<Feature>(m, "Feature")
      .def(py::init<uint16_t, Pooling, UnseenRows, size_t, size_t>(), py::arg("table"), py::arg("pooling"),
           py::arg("unseen"), py::arg("key"), py::arg("column"));
  py::class_<Lookup>(m, "Lookup")
      .def(py::init([](std::vector<Feature> features, Address ids, size_t num_ids, Address lengths, size_t keys,
                       size_t batch, Address bags, Address weights) {
             return Store::MakeLookup(std::move(features),
                                      {At<const int64_t>(ids), At<const int64_t>(lengths), At<const float>(weights),
                                       num_ids, keys, batch, At<const int64_t>(bags)});
           }),
           py::arg("features"), py::arg("ids"), py::arg("num_ids"), py::arg("lengths"), py::arg("keys"),
           py::arg("batch"), py::arg("bags"), py::arg("weights"))
      .def_property_readonly("num_ids", [](const Lookup& lookup) { return lookup.batch.num_ids; });
}

// A piece of a store's output memory, returned when Python drops it.
class OutputBuffer {
 public:
  OutputBuffer(const Store& store, size_t floats)
      : pool_(store.outputs()), floats_(floats), pages_(pool_->Take(floats * sizeof(float))) {}
  ~OutputBuffer() { pool_->GiveBack(std::move(pages_)); }
  OutputBuffer(const OutputBuffer&) = delete;
  OutputBuffer& operator=(const OutputBuffer&) = delete;

  py::buffer_info Describe() { return {static_cast<float*>(pages_.get()), static_cast<py::ssize_t>(floats_)}; }

 private:
  std::shared_ptr<BufferPool> pool_;
  size_t floats_;
  Pages pages_;
};

void RegisterStore(py::module_& m) {
  py::class_<OutputBuffer, Held<OutputBuffer>>(m, "OutputBuffer", py::buffer_protocol())
      .def(py::init<const Store&, size_t>())
      .def_buffer(&OutputBuffer::Describe);

  py::class_<Scan, Held<Scan>>(m, "Scan")
      .def(py::init<Store&, uint16_t>(), ReleaseGil())
      .def("next", &Scan::Next, ReleaseGil())
      .def("next_payloads", &Scan::NextPayloads, ReleaseGil());

  py::class_<RowStoreStats>(m, "RowStoreStats")
      .def_readonly("disk_bytes", &RowStoreStats::disk_bytes)
      .def_readonly("memory_bytes", &RowStoreStats::memory_bytes)
      .def_readonly("bytes_written", &RowStoreStats::bytes_written);
  py::class_<RowCounts>(m, "RowCounts")
      .def_readonly("read", &RowCounts::read)
      .def_readonly("written", &RowCounts::written);
  py::class_<TableState>(m, "TableState")
      .def_readonly("iter", &TableState::iter)
      .def_readonly("rows", &TableState::rows);
  py::class_<TableStats>(m, "TableStats")
      .def_readonly("hits", &TableStats::hits)
      .def_readonly("misses", &TableStats::misses)
      .def_readonly("cached_rows", &TableStats::cached_rows);

  py::class_<Store, Held<Store>>(m, "Store")
      .def(py::init(&OpenStore), py::arg("path"), py::arg("create"), py::arg("in_memory"), py::arg("options"),
           ReleaseGil())
      .def("check_table", &Store::CheckTable, ReleaseGil())
      .def("open_table", &Store::OpenTable, ReleaseGil())
      .def("set_optimizer", &Store::SetOptimizer, ReleaseGil())
      .def("iter", &Store::iter, ReleaseGil())
      .def("rows", &Store::rows, ReleaseGil())
      .def("payload_size", [](Store& s, uint16_t table) { return s.layout(table).payload_size(); })
      .def("state_size", [](Store& s, uint16_t table) { return s.layout(table).state_size; })
      .def(
          "forward",
          [](Store& s, Lookup& lookup, Address out, size_t stride) { s.Forward(&lookup, At<float>(out), stride); },
          ReleaseGil())
      .def(
          "backward",
          [](Store& s, const std::vector<std::tuple<Lookup*, Address, size_t>>& parts, float grad_scale, bool skip) {
            std::vector<GradientPart> gradients;
            for (const auto& [lookup, grad, stride] : parts) {
              gradients.push_back({lookup, At<const float>(grad), stride});
            }
            const py::gil_scoped_release release;
            return s.Backward(gradients, grad_scale, skip ? NonFinite::kSkip : NonFinite::kRaise);
          },
          py::arg("parts"), py::arg("grad_scale"), py::arg("skip_nonfinite"))
      .def("prefetch", &Store::Prefetch, ReleaseGil())
      .def(
          "weight_gradient",
          [](Store& s, Lookup& lookup, Address grad, size_t stride, Address weight_grad) {
            s.WeightGradient(&lookup, At<const float>(grad), stride, At<float>(weight_grad));
          },
          ReleaseGil())
      .def(
          "get",
          [](Store& s, uint16_t table, Address ids, size_t n, UnseenRows unseen, Address weights) {
            s.Get(table, Ids(ids, n), unseen, At<float>(weights));
          },
          ReleaseGil())
      .def(
          "set",
          [](Store& s, uint16_t table, Address ids, size_t n, Address weights, Address state) {
            s.Set(table, Ids(ids, n), At<const float>(weights), At<const float>(state));
          },
          ReleaseGil())
      .def(
          "delete", [](Store& s, uint16_t table, Address ids, size_t n) { s.Delete(table, Ids(ids, n)); }, ReleaseGil())
      .def(
          "contains",
          [](Store& s, uint16_t table, Address ids, size_t n, Address contains) {
            s.Contains(table, Ids(ids, n), At<uint8_t>(contains));
          },
          ReleaseGil())
      .def("flush", &Store::Flush, ReleaseGil())
      .def("checkpoint", &Store::Checkpoint, py::arg("path"), py::arg("link"), ReleaseGil())
      .def("begin_checkpoint", &Store::BeginCheckpoint, ReleaseGil())
      .def("write_checkpoint", &Store::WriteCheckpoint, py::arg("path"), py::arg("link"), ReleaseGil())
      .def("abandon_checkpoint", &Store::AbandonCheckpoint, ReleaseGil())
      .def("close", &Store::Close, ReleaseGil())
      .def("table_stats", &Store::table_stats, ReleaseGil())
      .def("row_store_stats", &Store::row_store_stats, ReleaseGil())
      .def("row_counts", &Store::row_counts, ReleaseGil())
      .def("cache_memory_bytes", &Store::cache_memory_bytes, ReleaseGil())
      .def_property_readonly("instruction_set", &Store::instruction_set);
}

py::bytes KeyBytes(const Key& key) { return py::bytes(key.view()); }

void RegisterKeys(py::module_& m) {
  m.attr("KEY_BYTES") = kKeySize;
  const auto numbered = [](uint32_t table, bool deletions) { return deletions ? table | kDeletionBit : table; };
  m.def(
      "first_key", [=](uint32_t table, bool deletions) { return KeyBytes(FirstKey(numbered(table, deletions))); },
      py::arg("table"), py::arg("deletions"));
  m.def(
      "last_key", [=](uint32_t table, bool deletions) { return KeyBytes(LastKey(numbered(table, deletions))); },
      py::arg("table"), py::arg("deletions"));
  m.def("decode_id", [](std::string_view key) { return DecodeId(KeyOfBytes(key).view()); }, py::arg("key"));
}

void RegisterSalvage(py::module_& m) {
  py::class_<TableFile>(m, "TableFile")
      .def_readonly("name", &TableFile::name)
      .def_readonly("size", &TableFile::size)
      .def_property_readonly("smallest", [](const TableFile& f) { return py::bytes(f.smallest); })
      .def_property_readonly("largest", [](const TableFile& f) { return py::bytes(f.largest); })
      .def_readonly("oldest", &TableFile::oldest)
      .def_readonly("newest", &TableFile::newest);
  py::class_<MalformedRecords>(m, "MalformedRecords")
      .def_property_readonly("first", [](const MalformedRecords& r) { return KeyBytes(r.first); })
      .def_property_readonly("last", [](const MalformedRecords& r) { return KeyBytes(r.last); })
      .def_readonly("reason", &MalformedRecords::reason);
  py::class_<RecordTally>(m, "RecordTally")
      .def_readonly("records", &RecordTally::records)
      .def_readonly("last_step", &RecordTally::last_step);

  py::class_<RecordWriter, Held<RecordWriter>>(m, "RecordWriter")
      .def(py::init([](const std::string& scratch) {
             LeaveForkedChildrenAtExit();
             return Held<RecordWriter>(new RecordWriter(scratch));
           }),
           py::arg("scratch"), ReleaseGil())
      .def("finish", &RecordWriter::Finish, py::arg("path"), ReleaseGil());
  py::class_<RecordReader, Held<RecordReader>>(m, "RecordReader")
      .def(py::init([](const std::string& path, std::map<uint32_t, size_t> payload_sizes) {
             LeaveForkedChildrenAtExit();
             return Held<RecordReader>(new RecordReader(path, std::move(payload_sizes)));
           }),
           py::arg("path"), py::arg("payload_sizes"), ReleaseGil())
      .def(
          "seek", [](RecordReader& r, std::string_view key) { return r.Seek(KeyOfBytes(key)); }, ReleaseGil())
      .def("read", &RecordReader::Read, py::arg("n"), py::arg("writer"), ReleaseGil())
      .def_property_readonly("path", &RecordReader::path)
      .def_property_readonly("error", &RecordReader::error)
      .def_property_readonly("last_key",
                             [](const RecordReader& r) -> std::optional<py::bytes> {
                               if (r.last_key() == nullptr) return std::nullopt;
                               return KeyBytes(*r.last_key());
                             })
      .def_property_readonly("tallies", &RecordReader::tallies)
      .def_property_readonly("malformed", &RecordReader::malformed);

  m.def("payload_size", [](const TableSchema& schema) { return schema.layout().payload_size(); });
  m.def("verify_log_file", &VerifyLogFile, py::arg("path"), ReleaseGil());
  m.def("verify_table_file", &VerifyTableFile, py::arg("path"), ReleaseGil());
  m.def("list_table_files", &ListTableFiles, py::arg("path"), ReleaseGil());
  m.def("rebuild_rows", &RebuildRocksDb, py::arg("path"), ReleaseGil());
  m.def("link_or_copy_rows", &LinkOrCopyRocksDb, py::arg("source"), py::arg("target"), ReleaseGil());
}

}  // namespace
}  // namespace damo

PYBIND11_MODULE(_core, m) {
  m.doc() = "The engine of damo_torchrec. Not a public interface.";
  m.attr("LEAST_MEMORY_BUDGET") = damo::kLeastMemoryBudget;
  m.attr("BLOCK_BYTES") = damo::kBlockBytes;
  damo::py::register_local_exception_translator(damo::TranslateError);
  damo::RegisterOptions(m);
  damo::RegisterLookup(m);
  damo::RegisterStore(m);
  damo::RegisterKeys(m);
  damo::RegisterSalvage(m);
  damo::RegisterServing(m);
}
