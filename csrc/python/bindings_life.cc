// The Python module damo_torchrec._core: how long rows live.
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "life/life_options.h"
#include "life/table_life.h"
#include "python/bindings.h"
#include "row/ladder.h"

namespace damo {
namespace {

// Steps, seconds and below_count of each rule. Throws kInvalidArgument.
LifeOptions MakeLifeOptions(uint32_t sightings, double probability, uint32_t within_steps,
                            const std::vector<std::tuple<uint32_t, double, uint64_t>>& idle, uint64_t min_rows,
                            std::optional<uint64_t> max_rows, std::optional<uint64_t> keep_rows, uint32_t credit) {
  LifeOptions options;
  options.sightings = sightings;
  options.probability = probability;
  options.within_steps = within_steps;
  for (const auto& [steps, seconds, below_count] : idle) options.idle.push_back({steps, seconds, below_count});
  options.min_rows = min_rows;
  options.max_rows = max_rows.value_or(kNoLimit);
  options.keep_rows = keep_rows.value_or(max_rows ? *max_rows - *max_rows / 16 : kNoLimit);
  options.credit = credit;
  CheckLifeOptions(options);
  return options;
}

std::array<Position, kLadderClasses> PositionsOf(const Ladder& ladder) {
  std::array<Position, kLadderClasses> positions;
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = ladder.position(i);
  return positions;
}

}  // namespace

void RegisterLife(py::module_& m) {
  py::class_<LifeOptions>(m, "LifeOptions")
      .def(py::init(&MakeLifeOptions), py::kw_only(), py::arg("sightings") = 1, py::arg("probability") = 1.0,
           py::arg("within_steps") = 0, py::arg("idle") = std::vector<std::tuple<uint32_t, double, uint64_t>>(),
           py::arg("min_rows") = 0, py::arg("max_rows") = py::none(), py::arg("keep_rows") = py::none(),
           py::arg("credit") = 0);
  py::class_<LifeCensus>(m, "LifeCensus")
      .def(py::init<uint64_t, uint64_t, uint64_t>(), py::arg("ids"), py::arg("rows"), py::arg("newest"))
      .def_readonly("ids", &LifeCensus::ids)
      .def_readonly("rows", &LifeCensus::rows)
      .def_readonly("newest", &LifeCensus::newest);
  py::class_<Ladder>(m, "Ladder").def_property_readonly("positions", &PositionsOf);
  py::class_<LifeCounts>(m, "LifeCounts")
      .def_readonly("created", &LifeCounts::created)
      .def_readonly("expired", &LifeCounts::expired)
      .def_readonly("cut", &LifeCounts::cut)
      .def_readonly("forgotten_sightings", &LifeCounts::forgotten_sightings);
}

}  // namespace damo
