// The Python module damo_torchrec._core: damaged rows.
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/table.h"
#include "life/life_combined.h"
#include "life/life_recount.h"
#include "python/bindings.h"
#include "row/key.h"
#include "storage_rocksdb/rocksdb_erase.h"
#include "storage_rocksdb/rocksdb_exit.h"
#include "storage_rocksdb/rocksdb_log_reader.h"
#include "storage_rocksdb/rocksdb_salvage.h"
#include "storage_rocksdb/rocksdb_store.h"

namespace damo {
namespace {

py::bytes KeyBytes(const Key& key) { return py::bytes(key.view()); }

// Rows of tables without a life live.
RecordReader::Lives LivesOf(std::map<uint32_t, std::shared_ptr<LifeRecount>> lives) {
  if (lives.empty()) return nullptr;
  return [lives = std::move(lives)](uint32_t table, int64_t id, RowHeader header, bool sighting) {
    const auto found = lives.find(table);
    return found == lives.end() || found->second->Count(header, id, sighting);
  };
}

// The same of rows that lived by the first of the two lives of a table, by which the second counts them.
RecordReader::Lives LivesOf(std::map<uint32_t, std::shared_ptr<LifeRecount>> lives,
                            std::map<uint32_t, std::shared_ptr<LifeRecount>> counts) {
  if (counts.empty()) return LivesOf(std::move(lives));
  const RecordReader::Lives before = LivesOf(std::move(lives)), now = LivesOf(std::move(counts));
  return [=](uint32_t table, int64_t id, RowHeader header, bool sighting) {
    return (before == nullptr || before(table, id, header, sighting)) && now(table, id, header, sighting);
  };
}

// Takes what there is out of the lives of tables, and tells whether it lived.
RecordReader::Lives TakenOut(std::map<uint32_t, std::shared_ptr<LifeWithout>> lives) {
  return [lives = std::move(lives)](uint32_t table, int64_t id, RowHeader header, bool sighting) {
    const auto found = lives.find(table);
    return found == lives.end() || found->second->Remove(header, id, sighting);
  };
}

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

}  // namespace

void RegisterSalvage(py::module_& m) {
  RegisterKeys(m);
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
      .def_readonly("dead", &RecordTally::dead)
      .def_readonly("sightings", &RecordTally::sightings)
      .def_readonly("last_step", &RecordTally::last_step);

  py::class_<LifeRecount, std::shared_ptr<LifeRecount>>(m, "LifeRecount")
      .def(py::init([](std::string_view bytes, uint32_t iter) { return std::make_shared<LifeRecount>(bytes, iter); }),
           py::arg("bytes"), py::arg("iter"))
      .def_property_readonly("rows", &LifeRecount::rows)
      .def_property_readonly("rows_before", &LifeRecount::rows_before)
      .def_property_readonly("bytes", [](const LifeRecount& recount) { return py::bytes(recount.Serialize()); });

  m.def(
      "combine_lives",
      [](const std::vector<std::string>& lives, bool counts) { return py::bytes(CombineLives(lives, counts)); },
      py::arg("lives"), py::arg("counts"));

  py::class_<LifeWithout, std::shared_ptr<LifeWithout>>(m, "LifeWithout")
      .def(py::init([](std::string_view bytes) { return std::make_shared<LifeWithout>(bytes); }), py::arg("bytes"))
      .def_property_readonly("rows", &LifeWithout::rows)
      .def_property_readonly("bytes", [](const LifeWithout& life) { return py::bytes(life.Serialize()); });

  py::class_<RecordWriter, Held<RecordWriter>>(m, "RecordWriter")
      .def(py::init([](const std::string& scratch) {
             const WithoutGil unlocked;
             LeaveForkedChildrenAtExit();
             return Held<RecordWriter>(new RecordWriter(scratch));
           }),
           py::arg("scratch"))
      .def("finish", &RecordWriter::Finish, py::arg("path"), ReleaseGil());
  py::class_<RecordReader, Held<RecordReader>>(m, "RecordReader")
      .def(py::init([](const std::string& path, std::map<uint32_t, size_t> payload_sizes,
                       std::map<uint32_t, std::shared_ptr<LifeRecount>> lives,
                       std::map<uint32_t, std::shared_ptr<LifeRecount>> counts) {
             const WithoutGil unlocked;
             LeaveForkedChildrenAtExit();
             return Held<RecordReader>(
                 new RecordReader(path, std::move(payload_sizes), LivesOf(std::move(lives), std::move(counts))));
           }),
           py::arg("path"), py::arg("payload_sizes"),
           py::arg("lives") = std::map<uint32_t, std::shared_ptr<LifeRecount>>(),
           py::arg("counts") = std::map<uint32_t, std::shared_ptr<LifeRecount>>())
      .def(
          "seek", [](RecordReader& r, std::string_view key) { return r.Seek(KeyOfBytes(key)); }, ReleaseGil())
      .def("read", &RecordReader::Read, py::arg("n"), py::arg("writer"), ReleaseGil())
      .def(
          "read_share",
          [](RecordReader& r, size_t n, RecordWriter* writer, uint64_t rank, uint64_t world_size) {
            if (rank >= world_size) throw Error(ErrorCode::kInvalidArgument, "expected a rank below the world size");
            return r.ReadShare(n, writer, {rank, world_size});
          },
          py::arg("n"), py::arg("writer"), py::arg("rank"), py::arg("world_size"), ReleaseGil())
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
  py::class_<FoundRows>(m, "FoundRows")
      .def_readonly("held", &FoundRows::held)
      .def_readonly("rows", &FoundRows::rows)
      .def_readonly("files", &FoundRows::files);
  m.def(
      "find_rows",
      [](const std::string& rows, const std::vector<std::string>& logs, const std::string& no_logs,
         const IdsByTable& wanted, std::map<uint32_t, std::shared_ptr<LifeWithout>> lives) {
        return FindRows(rows, logs, no_logs, wanted, TakenOut(std::move(lives)));
      },
      py::arg("rows"), py::arg("logs"), py::arg("no_logs"), py::arg("wanted"),
      py::arg("lives") = std::map<uint32_t, std::shared_ptr<LifeWithout>>(), ReleaseGil());
  m.def("erase_rows", &EraseRows, py::arg("rows"), py::arg("logs"), py::arg("found"), py::arg("steps"), py::arg("to"),
        ReleaseGil());
  m.def("link_or_copy_rows", &LinkOrCopyRocksDb, py::arg("source"), py::arg("target"), py::arg("logs") = true,
        ReleaseGil());
}

}  // namespace damo
