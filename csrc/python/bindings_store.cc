// The Python module damo_torchrec._core: the store.
#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/open.h"
#include "engine/store.h"
#include "python/bindings.h"

namespace damo {
namespace {

Ladder MakeLadder(const std::array<Position, kLadderClasses>& positions) {
  Ladder ladder;
  for (size_t i = 0; i < positions.size(); ++i) ladder.Raise(i, positions[i]);
  return ladder;
}

using GivenMean = std::optional<std::vector<float>>;

MeanRow ToMeanRow(const GivenMean& mean) { return mean ? std::make_shared<const std::vector<float>>(*mean) : nullptr; }

std::span<const int64_t> Ids(Address address, size_t n) { return {At<const int64_t>(address), n}; }

using AddressedParts = std::vector<std::tuple<Lookup*, Address, size_t>>;  // lookups, with the gradients of theirs

std::vector<GradientPart> ToParts(const AddressedParts& parts) {
  std::vector<GradientPart> gradients;
  for (const auto& [lookup, grad, stride] : parts) gradients.push_back({lookup, At<const float>(grad), stride});
  return gradients;
}

// Tables, with the census of all stores that have rows of them.
using AddressedShares = std::vector<std::pair<uint16_t, LifeCensus>>;

// As Python hands over bytes, and gets a list of them. `unlocked`: by whose thread it is called.
LifeExchange ToExchange(const py::object& exchange, WithoutGil* unlocked) {
  return [&exchange, unlocked](const std::string& own) {
    std::vector<std::string> all;
    unlocked->WithGil([&] { all = exchange(py::bytes(own)).cast<std::vector<std::string>>(); });
    return all;
  };
}

std::vector<SharedTable> ToShared(const AddressedShares& shares, const LifeExchange& exchange) {
  std::vector<SharedTable> shared;
  for (const auto& [table, census] : shares) shared.push_back({table, census, exchange});
  return shared;
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

  // The same with state and headers.
  size_t NextRows(Address ids, Address weights, Address state, Address headers, size_t n) {
    const size_t dim = static_cast<size_t>(layout_.dim), state_size = static_cast<size_t>(layout_.state_size);
    return Fill(n, [&](size_t i, int64_t id, const char* payload) {
      At<int64_t>(ids)[i] = id;
      DecodeWeights(layout_.weight_type, layout_.dim, payload, At<float>(weights) + i * dim);
      std::memcpy(At<float>(state) + i * state_size, payload + layout_.weight_bytes(), sizeof(float) * state_size);
      At<RowHeader>(headers)[i] = PayloadHeader(payload, layout_);
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

// Hands out what was seen of a table's ids that have no row, in their order, a batch at a time.
class SightingScan {
 public:
  SightingScan(Store& store, uint16_t table) : sightings_(store.ScanSightings(table)) {}

  // Fills at most `n` ids and headers; how many there were.
  size_t Next(Address ids, Address headers, size_t n) {
    size_t i = 0;
    int64_t id;
    const char* payload;
    for (; i < n && sightings_->Next(&id, &payload); ++i) {
      At<int64_t>(ids)[i] = id;
      At<RowHeader>(headers)[i] = PayloadHeader(payload, sizeof(RowHeader));
    }
    return i;
  }

 private:
  std::unique_ptr<RowIterator> sightings_;
};

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

}  // namespace

void RegisterLookup(py::module_& m) {
  py::native_enum<Pooling>(m, "Pooling", "enum.Enum")
      .value("SUM", Pooling::kSum)
      .value("MEAN", Pooling::kMean)
      .finalize();
  py::native_enum<UnseenRows>(m, "UnseenRows", "enum.Enum")
      .value("INITIAL", UnseenRows::kInitial)
      .value("ZEROS", UnseenRows::kZeros)
      .value("MEAN", UnseenRows::kMean)
      .finalize();
  py::native_enum<LookupUse>(m, "LookupUse", "enum.Enum")
      .value("TRAINING", LookupUse::kTraining)
      .value("EVALUATION", LookupUse::kEvaluation)
      .value("BY_ID", LookupUse::kById)
      .finalize();
  py::class_<Feature>(m, "Feature")
      .def(py::init([](uint16_t table, Pooling pooling, UnseenRows unseen, size_t key, size_t column, LookupUse use,
                       const GivenMean& mean) {
             return Feature{table, pooling, unseen, key, column, use, ToMeanRow(mean)};
           }),
           py::arg("table"), py::arg("pooling"), py::arg("unseen"), py::arg("key"), py::arg("column"), py::arg("use"),
           py::arg("mean") = py::none());
  py::class_<Lookup>(m, "Lookup")
      .def(py::init([](std::vector<Feature> features, Address ids, size_t num_ids, Address lengths, size_t keys,
                       size_t batch, Address bags, Address weights) {
             return MakeLookup(std::move(features),
                               {At<const int64_t>(ids), At<const int64_t>(lengths), At<const float>(weights), num_ids,
                                keys, batch, At<const int64_t>(bags)});
           }),
           py::arg("features"), py::arg("ids"), py::arg("num_ids"), py::arg("lengths"), py::arg("keys"),
           py::arg("batch"), py::arg("bags"), py::arg("weights"))
      .def_property_readonly("num_ids", [](const Lookup& lookup) { return lookup.batch.num_ids; });
}

GivenMean FromMeanRow(const MeanRow& mean) { return mean == nullptr ? std::nullopt : GivenMean(*mean); }

// What calls of a store give back.
static void RegisterResults(py::module_& m) {
  py::class_<OutputBuffer, Held<OutputBuffer>>(m, "OutputBuffer", py::buffer_protocol())
      .def(py::init<const Store&, size_t>(), ReleaseGil())
      .def_buffer(&OutputBuffer::Describe);

  py::class_<Scan, Held<Scan>>(m, "Scan")
      .def(py::init<Store&, uint16_t>(), ReleaseGil())
      .def("next", &Scan::Next, ReleaseGil())
      .def("next_rows", &Scan::NextRows, ReleaseGil())
      .def("next_payloads", &Scan::NextPayloads, ReleaseGil());

  py::class_<SightingScan, Held<SightingScan>>(m, "SightingScan")
      .def(py::init<Store&, uint16_t>(), ReleaseGil())
      .def("next", &SightingScan::Next, ReleaseGil());

  py::class_<RowStoreStats>(m, "RowStoreStats")
      .def_readonly("disk_bytes", &RowStoreStats::disk_bytes)
      .def_readonly("memory_bytes", &RowStoreStats::memory_bytes)
      .def_readonly("bytes_written", &RowStoreStats::bytes_written)
      .def_readonly("dead_bytes", &RowStoreStats::dead_bytes)
      .def_readonly("reclaimed_records", &RowStoreStats::reclaimed_records)
      .def_readonly("reclaimed_bytes", &RowStoreStats::reclaimed_bytes)
      .def_readonly("reclaim_lacks_space", &RowStoreStats::reclaim_lacks_space);
  py::class_<RowCounts>(m, "RowCounts")
      .def_readonly("read", &RowCounts::read)
      .def_readonly("written", &RowCounts::written);
  py::class_<TableState>(m, "TableState")
      .def_readonly("iter", &TableState::iter)
      .def_readonly("rows", &TableState::rows)
      .def_property_readonly("life", [](const TableState& state) -> std::optional<py::bytes> {
        return state.life ? std::optional(py::bytes(*state.life)) : std::nullopt;
      });
  py::class_<LifeStats>(m, "LifeStats")
      .def_readonly("rows", &LifeStats::rows)
      .def_readonly("sighted", &LifeStats::sighted)
      .def_readonly("counts", &LifeStats::counts)
      .def_readonly("ladder", &LifeStats::ladder)
      .def_readonly("memory_bytes", &LifeStats::memory_bytes)
      .def_readonly("clock_gap", &LifeStats::clock_gap);
  py::class_<Missed>(m, "Missed").def_readonly("ids", &Missed::ids).def_readonly("rows", &Missed::rows);
  py::class_<CacheProfileCounts>(m, "CacheProfileCounts")
      .def_readonly("ids", &CacheProfileCounts::ids)
      .def_readonly("lookups", &CacheProfileCounts::lookups)
      .def_readonly("fresh", &CacheProfileCounts::fresh)
      .def_readonly("first", &CacheProfileCounts::first)
      .def_readonly("missed", &CacheProfileCounts::missed);
  py::class_<CacheProfileReport>(m, "CacheProfileReport")
      .def_readonly("counts", &CacheProfileReport::counts)
      .def_readonly("budgets", &CacheProfileReport::budgets)
      .def_readonly("warm", &CacheProfileReport::warm)
      .def_readonly("shift", &CacheProfileReport::shift)
      .def_readonly("sampled_ids", &CacheProfileReport::sampled_ids);
  m.def("rows_within", &RowsWithin, py::arg("memory_budget"), py::arg("payload_bytes"));
  py::class_<LookupStats>(m, "LookupStats")
      .def_readonly("hits", &LookupStats::hits)
      .def_readonly("prefetched", &LookupStats::prefetched)
      .def_readonly("late", &LookupStats::late)
      .def_readonly("misses", &LookupStats::misses);
  py::class_<TableStats>(m, "TableStats")
      .def_readonly("lookups", &TableStats::lookups)
      .def_readonly("cached_rows", &TableStats::cached_rows);
}

void RegisterStore(py::module_& m) {
  RegisterResults(m);
  py::class_<Store, Held<Store>>(m, "Store")
      .def(py::init([](const std::string& path, bool create, bool in_memory, const StoreOptions& options,
                       std::vector<std::string> logs, std::vector<TableSchema> tables) {
             const CheckpointJournal journal{std::move(logs), std::move(tables)};
             const WithoutGil unlocked;
             return Held<Store>(OpenStore(path, create, in_memory, options, journal).release());
           }),
           py::arg("path"), py::arg("create"), py::arg("in_memory"), py::arg("options"),
           py::arg("logs") = std::vector<std::string>(), py::arg("tables") = std::vector<TableSchema>())
      .def("check_table", &Store::CheckTable, ReleaseGil())
      .def("open_table", py::overload_cast<const TableSchema&>(&Store::OpenTable), ReleaseGil())
      .def("open_table",
           py::overload_cast<const TableSchema&, const std::string&, const LifeOptions&>(&Store::OpenTable),
           py::arg("schema"), py::arg("life"), py::arg("life_options"), ReleaseGil())
      .def("set_life", &Store::SetLife, py::arg("table"), py::arg("options"), py::arg("clock"), ReleaseGil())
      .def(
          "follow",
          [](Store& s, uint16_t table, const std::array<Position, kLadderClasses>& positions) {
            s.Follow(table, MakeLadder(positions));
          },
          py::arg("table"), py::arg("positions"), ReleaseGil())
      .def("life_stats", &Store::life_stats, ReleaseGil())
      .def("life_bytes",
           [](Store& s, uint16_t table) -> std::optional<py::bytes> {
             const std::optional<std::string> life = [&] {
               const WithoutGil unlocked;
               return s.life_bytes(table);
             }();
             return life ? std::optional(py::bytes(*life)) : std::nullopt;
           })
      .def("preview_life", &Store::PreviewLife, py::arg("table"), py::arg("options"),
           py::arg("lives") = std::vector<std::string>(), ReleaseGil())
      .def("drop_table", &Store::DropTable, py::arg("number"), ReleaseGil())
      .def("reclaim_table", &Store::ReclaimTable, py::arg("number"), ReleaseGil())
      .def("set_reclaimable_deletions", &Store::SetReclaimableDeletions, py::arg("number"), py::arg("before"),
           ReleaseGil())
      .def("rename_table", &Store::RenameTable, ReleaseGil())
      .def("set_optimizer", &Store::SetOptimizer, ReleaseGil())
      .def("iter", &Store::iter, ReleaseGil())
      .def("rows", &Store::rows, ReleaseGil())
      .def(
          "payload_size", [](Store& s, uint16_t table) { return s.layout(table).payload_size(); }, ReleaseGil())
      .def(
          "state_size", [](Store& s, uint16_t table) { return s.layout(table).state_size; }, ReleaseGil())
      .def(
          "forward",
          [](Store& s, Lookup& lookup, Address out, size_t stride) { s.Forward(&lookup, At<float>(out), stride); },
          ReleaseGil())
      .def(
          "find_fault",
          [](Store& s, const AddressedParts& parts, float grad_scale) {
            const std::vector<GradientPart> gradients = ToParts(parts);
            const WithoutGil unlocked;
            return s.FindFault(gradients, grad_scale);
          },
          py::arg("parts"), py::arg("grad_scale"))
      .def(
          "backward",
          [](Store& s, const AddressedParts& parts, float grad_scale, bool skip, double clock,
             const AddressedShares& shares, const py::object& exchange) {
            const std::vector<GradientPart> gradients = ToParts(parts);
            WithoutGil unlocked;
            const std::vector<SharedTable> shared = ToShared(shares, ToExchange(exchange, &unlocked));
            return s.Backward(gradients, grad_scale, skip ? NonFinite::kSkip : NonFinite::kRaise, clock, shared);
          },
          py::arg("parts"), py::arg("grad_scale"), py::arg("skip_nonfinite"), py::arg("clock") = 0.0,
          py::arg("shared") = AddressedShares(), py::arg("exchange") = py::none())
      .def(
          "life_census",
          [](Store& s, uint16_t table, const AddressedParts& parts) {
            const std::vector<GradientPart> gradients = ToParts(parts);
            const WithoutGil unlocked;
            return s.CensusOf(table, gradients);
          },
          py::arg("table"), py::arg("parts"))
      .def(
          "may_exchange",
          [](Store& s, const AddressedShares& shares, double clock) {
            return s.MayExchange(ToShared(shares, nullptr), clock);
          },
          py::arg("shared"), py::arg("clock"), ReleaseGil())
      .def("life_digest", &Store::LifeDigest, py::arg("table"), ReleaseGil())
      .def("align_life", &Store::AlignLife, py::arg("table"), py::arg("lives"), ReleaseGil())
      .def("prefetch", &Store::Prefetch, ReleaseGil())
      .def(
          "weight_gradient",
          [](Store& s, Lookup& lookup, Address grad, size_t stride, Address weight_grad) {
            s.WeightGradient(&lookup, At<const float>(grad), stride, At<float>(weight_grad));
          },
          ReleaseGil())
      .def(
          "get",
          [](Store& s, uint16_t table, Address ids, size_t n, UnseenRows unseen, Address weights,
             const GivenMean& mean) { s.Get(table, Ids(ids, n), unseen, At<float>(weights), ToMeanRow(mean)); },
          ReleaseGil(), py::arg("table"), py::arg("ids"), py::arg("n"), py::arg("unseen"), py::arg("weights"),
          py::arg("mean") = py::none())
      .def(
          "mean", [](Store& s, uint16_t table) { return *s.Mean(table); }, ReleaseGil())
      .def(
          "known_mean", [](Store& s, uint16_t table) { return FromMeanRow(s.KnownMean(table)); }, ReleaseGil())
      .def(
          "set",
          [](Store& s, uint16_t table, Address ids, size_t n, Address weights, Address state) {
            s.Set(table, Ids(ids, n), At<const float>(weights), At<const float>(state));
          },
          ReleaseGil())
      .def(
          "set_copies",
          [](Store& s, uint16_t table, Address ids, size_t n, Address weights, Address headers) {
            s.SetCopies(table, Ids(ids, n), At<const float>(weights), At<const RowHeader>(headers));
          },
          py::arg("table"), py::arg("ids"), py::arg("n"), py::arg("weights"), py::arg("headers"), ReleaseGil())
      .def(
          "set_state",
          [](Store& s, uint16_t table, Address ids, size_t n, Address state) {
            s.SetState(table, Ids(ids, n), At<const float>(state));
          },
          ReleaseGil())
      .def(
          "describe",
          [](Store& s, uint16_t table, Address ids, size_t n, Address state, Address headers, Address contains) {
            s.Describe(table, Ids(ids, n), At<float>(state), At<RowHeader>(headers), At<uint8_t>(contains));
          },
          py::arg("table"), py::arg("ids"), py::arg("n"), py::arg("state"), py::arg("headers"), py::arg("contains"),
          ReleaseGil())
      .def(
          "initial_weights",
          [](Store& s, uint16_t table, Address ids, size_t n, Address weights) {
            s.InitialWeights(table, Ids(ids, n), At<float>(weights));
          },
          ReleaseGil())
      .def(
          "add_rows",
          [](Store& s, uint16_t table, Address ids, size_t n, Address weights, Address state, Address headers) {
            s.AddRows(table, Ids(ids, n), At<const float>(weights), At<const float>(state),
                      At<const RowHeader>(headers));
          },
          ReleaseGil())
      .def(
          "add_sightings",
          [](Store& s, uint16_t table, Address ids, size_t n, Address headers) {
            s.AddSightings(table, Ids(ids, n), At<const RowHeader>(headers));
          },
          ReleaseGil())
      .def(
          "delete", [](Store& s, uint16_t table, Address ids, size_t n) { s.Delete(table, Ids(ids, n)); }, ReleaseGil())
      .def(
          "erase", [](Store& s, uint16_t table, Address ids, size_t n) { return s.Erase(table, Ids(ids, n)); },
          ReleaseGil())
      .def(
          "contains",
          [](Store& s, uint16_t table, Address ids, size_t n, Address contains) {
            s.Contains(table, Ids(ids, n), At<uint8_t>(contains));
          },
          ReleaseGil())
      .def("flush", &Store::Flush, ReleaseGil())
      .def("flush_part", &Store::FlushPart, py::arg("first"), ReleaseGil())
      .def("checkpoint", &Store::Checkpoint, py::arg("path"), py::arg("link"), ReleaseGil())
      .def("begin_checkpoint", &Store::BeginCheckpoint, ReleaseGil())
      .def("write_checkpoint", &Store::WriteCheckpoint, py::arg("path"), py::arg("link"), ReleaseGil())
      .def("abandon_checkpoint", &Store::AbandonCheckpoint, ReleaseGil())
      .def("close", &Store::Close, ReleaseGil())
      .def("table_stats", &Store::table_stats, ReleaseGil())
      .def("reset_lookup_stats", &Store::ResetLookupStats, ReleaseGil())
      .def("cache_profile", &Store::cache_profile, ReleaseGil())
      .def("row_store_stats", &Store::row_store_stats, ReleaseGil())
      .def("row_counts", &Store::row_counts, ReleaseGil())
      .def("cache_memory_bytes", &Store::cache_memory_bytes, ReleaseGil())
      .def("work_memory_bytes", &Store::work_memory_bytes, ReleaseGil())
      .def("require_disk", &Store::RequireDisk, ReleaseGil())
      .def_property_readonly("disk_used", &Store::disk_used)
      .def_property_readonly("instruction_set", &Store::instruction_set);
}

}  // namespace damo
