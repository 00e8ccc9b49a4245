// The Python module damo_torchrec._core: rows for serving.
#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "engine/store.h"
#include "python/bindings.h"
#include "serving/perfect_hash.h"
#include "serving/row_dtype.h"
#include "serving/serving_rows.h"
#include "storage/row_changes.h"

namespace damo {
namespace {

Held<RowSnapshot> TakeSnapshot(Store& store, const std::vector<uint16_t>& tables) {
  const WithoutGil unlocked;
  return Held<RowSnapshot>(new RowSnapshot(store.TakeSnapshot(tables)));
}

std::vector<TableState> States(const RowSnapshot& snapshot) {
  std::vector<TableState> states;
  for (const RowSnapshot::Table& table : snapshot.tables()) states.push_back(table.state);
  return states;
}

// `progress` may raise; so do signals.
ServingTable Add(ServingRows& rows, const RowSnapshot& snapshot, size_t position, const RowFilter& filter,
                 const py::function& progress) {
  WithoutGil unlocked;
  return rows.Add(snapshot, position, filter, [&](uint64_t taken) {
    unlocked.WithGil([&] {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      progress(taken);
    });
  });
}

// Fills at most `n` ids and rows that changed, with their headers, unless those are nullptr; how many there were.
size_t NextRows(RowChanges& changes, Address ids, Address weights, Address headers, size_t n) {
  const RowLayout& layout = changes.layout();
  size_t i = 0;
  const char* payload;
  for (; i < n && changes.NextRow(At<int64_t>(ids) + i, &payload); ++i) {
    DecodeWeights(layout.weight_type, layout.dim, payload, At<float>(weights) + i * static_cast<size_t>(layout.dim));
    if (headers != 0) At<RowHeader>(headers)[i] = PayloadHeader(payload, layout);
  }
  return i;
}

size_t NextDeleted(RowChanges& changes, Address ids, size_t n) {
  size_t i = 0;
  int64_t id;
  for (; i < n && changes.NextDeleted(&id); ++i) At<int64_t>(ids)[i] = id;
  return i;
}

// For each part an int64, its middle row, and a float64, its scale.
py::bytes Parts(const ServingRows& rows) {
  static_assert(sizeof(HashPart) == sizeof(int64_t) + sizeof(double));
  const std::vector<HashPart>& parts = rows.parts();
  return py::bytes(reinterpret_cast<const char*>(parts.data()), parts.size() * sizeof(HashPart));
}

}  // namespace

void RegisterServing(py::module_& m) {
  py::tuple constants(std::size(kPerfectHashConstants));
  for (size_t i = 0; i < constants.size(); ++i) constants[i] = kPerfectHashConstants[i];
  m.attr("PERFECT_HASH_CONSTANTS") = constants;
  m.attr("PERFECT_HASH_PART_BITS") = kPartBits;
  m.attr("LEAST_SERVING_MEMORY") = kLeastServingMemory;

  py::class_<RowSnapshot, Held<RowSnapshot>>(m, "RowSnapshot")
      .def(py::init(&TakeSnapshot), py::arg("store"), py::arg("tables"))
      .def_property_readonly("states", &States)
      .def("mean", &RowSnapshot::Mean, ReleaseGil())
      .def("ladder",
           [](const RowSnapshot& snapshot, size_t position) { return snapshot.tables().at(position).ladder; });

  py::class_<RowChanges, Held<RowChanges>>(m, "RowChanges")
      .def(py::init([](const RowSnapshot& snapshot, size_t position, uint32_t since) {
             const WithoutGil unlocked;
             return Held<RowChanges>(new RowChanges(&snapshot, position, since));
           }),
           py::arg("snapshot"), py::arg("position"), py::arg("since"), py::keep_alive<1, 2>())
      .def("next_rows", &NextRows, py::arg("ids"), py::arg("weights"), py::arg("headers"), py::arg("n"), ReleaseGil())
      .def("next_deleted", &NextDeleted, py::arg("ids"), py::arg("n"), ReleaseGil());

  py::class_<RowDtypeFacts>(m, "RowDtype")
      .def_readonly("name", &RowDtypeFacts::name)
      .def_readonly("suffix", &RowDtypeFacts::suffix)
      .def_readonly("onnx_type", &RowDtypeFacts::onnx_type)
      .def_readonly("weight_bytes", &RowDtypeFacts::weight_bytes)
      .def_readonly("scaled", &RowDtypeFacts::scaled);
  py::tuple dtypes(kRowDtypes.size());
  for (size_t i = 0; i < dtypes.size(); ++i) dtypes[i] = FactsOf(kRowDtypes[i]);
  m.attr("ROW_DTYPES") = dtypes;

  py::class_<RowFilter>(m, "RowFilter")
      .def(py::init<>())
      .def_readwrite("min_count", &RowFilter::min_count)
      .def_readwrite("min_last_step", &RowFilter::min_last_step)
      .def_readwrite("top_n", &RowFilter::top_n);
  py::class_<ServingTable>(m, "ServingTable")
      .def_property_readonly("first_bucket", [](const ServingTable& table) { return table.hash.first_bucket; })
      .def_property_readonly("bucket_mask", [](const ServingTable& table) { return table.hash.bucket_mask; })
      .def_readonly("rows", &ServingTable::rows)
      .def_readonly("faint_rows", &ServingTable::faint_rows);
  py::class_<ServingRows, Held<ServingRows>>(m, "ServingRows")
      .def(py::init([](std::string directory, std::string prefix, int dim, std::string_view dtype, size_t shard_rows,
                       size_t memory_bytes, int num_threads) {
             const WithoutGil unlocked;
             return Held<ServingRows>(new ServingRows({std::move(directory), std::move(prefix), dim,
                                                       RowDtypeNamed(dtype), shard_rows, memory_bytes, num_threads}));
           }),
           py::arg("directory"), py::arg("prefix"), py::arg("dim"), py::arg("dtype"), py::arg("shard_rows"),
           py::arg("memory_bytes"), py::arg("num_threads"))
      .def("add", &Add, py::arg("snapshot"), py::arg("position"), py::arg("row_filter"), py::arg("progress"))
      .def("finish", &ServingRows::Finish, ReleaseGil())
      .def_property_readonly("num_rows", &ServingRows::num_rows)
      .def_property_readonly("num_buckets", &ServingRows::num_buckets)
      .def_property_readonly("num_shards", &ServingRows::num_shards)
      .def_property_readonly("parts", &Parts);
}

}  // namespace damo
