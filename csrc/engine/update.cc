#include "engine/update.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/status.h"
#include "engine/admission.h"

namespace damo {
namespace {

// Where rows have a life, what that has to know of a row is read before it is updated: for so many rows at a time,
// which stay in the processor's cache from one to the other, and are fetched so many rows ahead.
constexpr size_t kRowsAtOnce = 512, kRowsAhead = 16, kLine = 64;

void Fetch(const char* row, size_t bytes) {
  for (size_t offset = 0; offset < bytes; offset += kLine) __builtin_prefetch(row + offset, 1);
}

}  // namespace

Updater::Updater(CachedTables* rows, const Compute& compute, RowFinder* finder, Capture* capture, size_t work_bytes)
    : rows_(rows),
      tables_(rows->tables),
      cache_(rows->cache),
      compute_(compute),
      finder_(finder),
      capture_(capture),
      work_bytes_(work_bytes),
      groups_(static_cast<size_t>(compute.threads->threads())) {}

template <class F>
auto Updater::WithPlan(std::span<const GradientPart> parts, float grad_scale, F f) {
  if (!(std::abs(grad_scale) > 0) || !std::isfinite(grad_scale)) {
    throw Error(ErrorCode::kInvalidArgument, "grad_scale must be finite and not 0, got " + std::to_string(grad_scale));
  }
  cache_.BeginOperation();
  Plan plan = MakePlan(parts, grad_scale);
  std::vector<Lookup*> lookups;
  for (const GradientPart& part : parts) lookups.push_back(part.lookup);
  if (PlanGroups(lookups, &plan)) return f(&plan);
  try {
    finder_->PinAll(lookups);
    PlanSums(&plan);
    auto result = f(&plan);
    cache_.UnpinAll();
    return result;
  } catch (...) {
    cache_.UnpinAll();
    throw;
  }
}

bool Updater::Update(std::span<const GradientPart> parts, float grad_scale, NonFinite policy, const LifeStep& lives) {
  return WithPlan(parts, grad_scale,
                  [&](Plan* plan) DAMO_REQUIRES(store_mutex) { return CheckAndApply(parts, policy, lives, plan); });
}

std::string Updater::FindFault(std::span<const GradientPart> parts, float grad_scale) {
  return WithPlan(parts, grad_scale, [&](Plan* plan) DAMO_REQUIRES(store_mutex) { return FindFault(parts, plan); });
}

// All that can fail, and all that allocates, comes before the first row changes; but for what several stores have to
// say to each other at the end.
bool Updater::CheckAndApply(std::span<const GradientPart> parts, NonFinite policy, const LifeStep& lives, Plan* plan) {
  const std::string fault = FindFault(parts, plan);
  if (!fault.empty()) {
    if (policy == NonFinite::kSkip) return false;
    throw Error(ErrorCode::kNonFinite, fault);
  }
  BeginLives(*plan, lives);
  KeepRows(plan);
  Apply(lives, plan);
  return true;
}

Updater::Plan Updater::MakePlan(std::span<const GradientPart> parts, float grad_scale) {
  Plan plan;
  plan.gradients.grad_scale = grad_scale;
  plan.tables = std::vector<OfTable>(tables_.size());
  for (const GradientPart& part : parts) {
    plan.gradients.parts.push_back({part.lookup, part.grad, PlacesOf(*part.lookup, tables_, part.stride)});
    for (const Feature& feature : part.lookup->features) {
      if (feature.use != LookupUse::kTraining) {
        throw Error(ErrorCode::kInvalidArgument, "a lookup that is not for training cannot update rows");
      }
      plan.tables[feature.table].involved = true;
      plan.tables[feature.table].ids += part.lookup->ids_of(feature);
      plan.ids += part.lookup->ids_of(feature);
    }
  }
  for (size_t t = 0; t < tables_.size(); ++t) {
    const TableSchema& schema = tables_[t].schema;
    if (plan.tables[t].involved && schema.iter == UINT32_MAX) {
      throw Error(ErrorCode::kInvalidArgument,
                  "table \"" + schema.name + "\" has had 4294967295 updates, the most there can be");
    }
  }
  return plan;
}

// Shares that the threads need to finish together.
size_t Updater::LeastShares(const Plan& plan, size_t table) const {
  const size_t threads = groups_.size();
  return plan.tables[table].ids * 2 * threads > plan.ids && threads > 1 ? threads : 1;
}

// `sizes`: of a table's shares.
void Updater::AddWork(uint16_t table, std::span<const size_t> sizes, Plan* plan) {
  const TableSchema& schema = tables_[table].schema;
  for (size_t share = 0; share < sizes.size(); ++share) {
    plan->work.push_back({{table, share, sizes.size()}, sizes[share], MakeStep(schema.optimizer, schema.iter + 1)});
  }
}

// Finds the rows and plans to group their ids, unless that takes too much memory; returns whether it does not.
bool Updater::PlanGroups(std::span<Lookup* const> lookups, Plan* plan) {
  const size_t most_ids = work_bytes_ / groups_.size() / GroupedGradients::kBytesPerId;
  for (const Lookup* lookup : lookups) {
    if (!finder_->KeepsSlots(*lookup)) return false;
  }
  for (size_t t = 0; t < tables_.size(); ++t) {
    if (plan->tables[t].ids / LeastShares(*plan, t) > most_ids) return false;
  }
  const auto found = [&](const Lookup* lookup) DAMO_REQUIRES(store_mutex) { return lookup->epoch == cache_.epoch(); };
  if (!std::all_of(lookups.begin(), lookups.end(), found)) finder_->ResolveAll(lookups);
  size_t most = 0;
  int dim = 0;
  for (uint16_t t = 0; t < tables_.size(); ++t) {
    if (!plan->tables[t].involved) continue;
    AddWork(t, GroupedGradients::CountIds(t, LeastShares(*plan, t), plan->gradients), plan);
    dim = std::max(dim, tables_[t].layout.dim);
  }
  for (const Work& work : plan->work) most = std::max(most, work.size);
  if (most > most_ids) {
    plan->work.clear();
    return false;
  }
  for (GroupedGradients& groups : groups_) groups.Reserve(most, dim);
  SortWork(plan);
  return true;
}

// Plans sums of the rows that are pinned.
void Updater::PlanSums(Plan* plan) {
  std::vector<std::vector<size_t>> rows(tables_.size(), std::vector<size_t>(1, 0));  // by table, then share
  cache_.ForEachPinned([&](uint16_t table, int64_t) { ++rows[table][0]; });
  const size_t threads = groups_.size();
  for (uint16_t t = 0; t < tables_.size(); ++t) {
    const size_t bytes = SummedGradients::BytesFor(rows[t][0], tables_[t].layout.dim);
    rows[t].assign(std::max(LeastShares(*plan, t), bytes * threads / work_bytes_ + 1), 0);
  }
  cache_.ForEachPinned([&](uint16_t table, int64_t id) {
    ++rows[table][SummedGradients::ShareOf(HashTag(table, id), rows[table].size())];
  });
  for (uint16_t t = 0; t < tables_.size(); ++t) {
    if (plan->tables[t].involved) AddWork(t, rows[t], plan);
  }
  size_t bytes = 0;
  for (const Work& work : plan->work) {
    bytes = std::max(bytes, SummedGradients::BytesFor(work.size, tables_[work.share.table].layout.dim));
  }
  for (size_t thread = 0; thread < threads; ++thread) plan->sums.emplace_back(bytes);
  SortWork(plan);
}

// Large ones first, so that the threads finish together.
void Updater::SortWork(Plan* plan) {
  std::stable_sort(plan->work.begin(), plan->work.end(), [&](const Work& a, const Work& b) { return a.size > b.size; });
}

// Calls f(index of the work, the gradients of its rows) on all threads. Allocates nothing once it has begun.
template <class F>
void Updater::ForEachWork(Plan* plan, F f) {
  compute_.threads->ParallelFor(plan->work.size(), [&](size_t w, int thread) DAMO_REQUIRES(store_mutex) {
    const size_t t = static_cast<size_t>(thread);
    const Work& work = plan->work[w];
    f(w, plan->sums.empty() ? groups_[t].Gather(work.share, plan->gradients, *rows_)
                            : plan->sums[t].Gather(work.share, plan->gradients, *rows_, work.size));
  });
}

std::string Updater::FindFault(std::span<const GradientPart> parts, Plan* plan) {
  float largest = std::abs(GradientBound(parts, plan->gradients.grad_scale, *rows_, compute_));
  // Half of the largest float leaves room for rounding.
  if (!(largest < std::numeric_limits<float>::max() / 2)) {
    std::string fault = FindNonFinite(plan, &largest);
    if (!fault.empty()) return fault;
  }
  const bool sure = std::all_of(plan->work.begin(), plan->work.end(), [&](const Work& work) DAMO_REQUIRES(store_mutex) {
    return StaysFinite(work.step, tables_[work.share.table].bounds.get(), largest);
  });
  return sure ? std::string() : FindOverflow(plan);
}

namespace {

std::string FirstOf(const std::vector<std::string>& faults) {
  const auto found = std::find_if(faults.begin(), faults.end(), [](const std::string& f) { return !f.empty(); });
  return found == faults.end() ? std::string() : *found;
}

}  // namespace

// Sets `largest` to the largest absolute value of a row's gradient.
std::string Updater::FindNonFinite(Plan* plan, float* largest) {
  std::vector<std::string> faults(plan->work.size());
  std::vector<float> largest_of(plan->work.size(), 0);
  ForEachWork(plan, [&](size_t w, const RowGradients& gradients) DAMO_REQUIRES(store_mutex) {
    faults[w] = DescribeNonFinite(plan->work[w].share.table, gradients, *rows_, &largest_of[w]);
  });
  *largest = largest_of.empty() ? 0 : *std::max_element(largest_of.begin(), largest_of.end());
  return FirstOf(faults);
}

std::string Updater::FindOverflow(Plan* plan) {
  std::vector<std::string> faults(plan->work.size());
  ForEachWork(plan, [&](size_t w, const RowGradients& gradients) DAMO_REQUIRES(store_mutex) {
    const Work& work = plan->work[w];
    faults[w] = DescribeOverflow(work.share.table, gradients, work.step, *rows_, *compute_.kernels);
  });
  return FirstOf(faults);
}

// For a capture that is under way; waits until it can take them.
void Updater::KeepRows(Plan* plan) {
  if (!capture_->keeps()) return;
  size_t bytes = 0;
  for (const Work& work : plan->work) {
    bytes += work.size * (tables_[work.share.table].layout.payload_size() + sizeof(RowWrite));
  }
  capture_->AwaitRoom(bytes);
  if (!capture_->keeps()) return;
  ForEachWork(
      plan, [&](size_t, const RowGradients& gradients) DAMO_REQUIRES(store_mutex) { capture_->Keep(gradients.rows); });
}

namespace {

const SharedTable* Find(std::span<const SharedTable> shared, size_t table) {
  const auto found = std::find_if(shared.begin(), shared.end(), [&](const auto& one) { return one.table == table; });
  return found == shared.end() ? nullptr : &*found;
}

}  // namespace

// Those that are shared come last, in the order that all stores have.
void Updater::BeginLives(const Plan& plan, const LifeStep& lives) {
  for (size_t t = 0; t < tables_.size(); ++t) {
    TableLife* const life = tables_[t].life.get();
    if (life == nullptr) continue;
    if (!plan.tables[t].involved) {
      life->PassTime(lives.clock);
    } else if (Find(lives.shared, t) == nullptr) {
      life->BeginStep(tables_[t].schema.iter + 1, plan.tables[t].ids, lives.clock);
    }
  }
  for (const SharedTable& shared : lives.shared) {
    const Table& table = tables_[shared.table];
    if (!plan.tables[shared.table].involved) continue;
    table.life->BeginStep(table.schema.iter + 1, shared.census, lives.clock, shared.exchange);
  }
}

void Updater::Apply(const LifeStep& lives, Plan* plan) {
  ForEachWork(plan, [&](size_t w, const RowGradients& gradients) DAMO_REQUIRES(store_mutex) {
    ApplyTo(plan->work[w], gradients, &plan->tables[plan->work[w].share.table]);
  });
  for (uint16_t t = 0; t < tables_.size(); ++t) {
    if (plan->tables[t].involved && Find(lives.shared, t) == nullptr) EndStep(t, plan->tables[t], nullptr);
  }
  for (const SharedTable& shared : lives.shared) {
    if (plan->tables[shared.table].involved) EndStep(shared.table, plan->tables[shared.table], shared.exchange);
  }
}

void Updater::ApplyTo(const Work& work, const RowGradients& g, OfTable* counts) {
  Table& table = tables_[work.share.table];
  for (Slot slot : g.rows) cache_.MarkSegmentDirty(slot);
  const auto apply = [&](size_t begin, size_t end) DAMO_REQUIRES(store_mutex) {
    if (begin == end) return;
    const ApplyResult applied = compute_.kernels->apply[static_cast<size_t>(table.schema.optimizer.kind)](
        {cache_.arena(), g.rows.data() + begin, g.begin + begin, g.occurrences, end - begin, table.layout.dim,
         work.step, table.schema.iter + 1, g.buffer, table.layout.weight_type, table.schema.initializer.stream_key});
    counts->created.fetch_add(static_cast<int64_t>(applied.created), std::memory_order_relaxed);
    table.bounds.Add(applied.bounds);
  };
  if (table.life == nullptr) return apply(0, g.rows.size());
  LifeTally tally(table.life.get(), /*alone=*/work.share.shares == 1);
  size_t begin = 0;
  for (size_t r = 0; r < g.rows.size(); ++r) {
    if (r + kRowsAhead < g.rows.size()) Fetch(cache_.Row(g.rows[r + kRowsAhead]), table.layout.row_size());
    if (r - begin == kRowsAtOnce) {
      apply(begin, r);
      begin = r;
    }
    if (Admit(table, cache_.Row(g.rows[r]), g.ids_of(r), table.schema.iter + 1, &tally)) continue;
    apply(begin, r);
    begin = r + 1;
  }
  apply(begin, g.rows.size());
}

void Updater::EndStep(uint16_t t, const OfTable& counts, const LifeExchange& exchange) {
  Table& table = tables_[t];
  ++table.schema.iter;
  cache_.SetIter(t, table.schema.iter);
  if (table.life == nullptr) {
    table.schema.rows += counts.created.load();
    return;
  }
  const Ladder before = table.life->ladder();
  exchange ? table.life->EndStep(exchange) : table.life->EndStep();
  table.schema.rows = static_cast<int64_t>(table.life->rows());
  if (!(table.life->ladder() == before)) cache_.InvalidateSlots();  // some may be of rows that are dead now
}

size_t Updater::memory_bytes() const {
  return std::accumulate(groups_.begin(), groups_.end(), size_t{0},
                         [](size_t bytes, const GroupedGradients& groups) { return bytes + groups.memory_bytes(); });
}

}  // namespace damo
