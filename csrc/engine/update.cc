#include "engine/update.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "base/status.h"

namespace damo {

Updater::Updater(CachedTables* rows, const Compute& compute, RowFinder* finder, Capture* capture)
    : rows_(rows),
      tables_(rows->tables),
      cache_(rows->cache),
      compute_(compute),
      finder_(finder),
      capture_(capture),
      gradients_(static_cast<size_t>(compute.threads->threads())) {}

bool Updater::Update(std::span<const GradientPart> parts, float grad_scale, NonFinite policy) {
  if (!(std::abs(grad_scale) > 0) || !std::isfinite(grad_scale)) {
    throw Error(ErrorCode::kInvalidArgument, "grad_scale must be finite and not 0, got " + std::to_string(grad_scale));
  }
  cache_.BeginOperation();
  FindRows(parts);
  const Plan plan = MakePlan(parts, grad_scale);
  // All that can fail happens before the first row changes.
  if (!StaysFinite(parts, plan, policy)) return false;
  AwaitReserve(plan);
  Apply(plan);
  return true;
}

void Updater::FindRows(std::span<const GradientPart> parts) {
  std::vector<Lookup*> lookups;
  bool slots_valid = true;
  for (const GradientPart& part : parts) {
    lookups.push_back(part.lookup);
    slots_valid &= part.lookup->epoch == cache_.epoch();
  }
  if (!slots_valid) finder_->ResolveAll(lookups);
}

Updater::Plan Updater::MakePlan(std::span<const GradientPart> parts, float grad_scale) {
  Plan plan;
  plan.grad_scale = grad_scale;
  plan.involved.assign(tables_.size(), false);
  plan.ids_of_table.assign(tables_.size(), 0);
  size_t total = 0;
  for (const GradientPart& part : parts) {
    plan.parts.push_back({part.lookup, part.grad, PlacesOf(*part.lookup, tables_, part.stride)});
    for (const Feature& feature : part.lookup->features) {
      if (feature.unseen != UnseenRows::kInitial) {
        throw Error(ErrorCode::kInvalidArgument, "a lookup that reads unseen rows as zeros cannot update rows");
      }
      plan.involved[feature.table] = true;
      plan.ids_of_table[feature.table] += part.lookup->ids_of(feature);
      total += part.lookup->ids_of(feature);
    }
  }
  const size_t threads = static_cast<size_t>(compute_.threads->threads());
  for (size_t t = 0; t < tables_.size(); ++t) {
    if (!plan.involved[t]) continue;
    const TableSchema& schema = tables_[t].schema;
    if (schema.iter == UINT32_MAX) {
      throw Error(ErrorCode::kInvalidArgument,
                  "table \"" + schema.name + "\" has had 4294967295 updates, the most there can be");
    }
    const size_t shares = plan.ids_of_table[t] * 2 * threads > total && threads > 1 ? threads : 1;
    for (size_t share = 0; share < shares; ++share) {
      plan.work.push_back({{static_cast<uint16_t>(t), share, shares}, MakeStep(schema.optimizer, schema.iter + 1)});
    }
  }
  // Large ones first, so that the threads finish together.
  const auto ids_of = [&](const Work& work) { return plan.ids_of_table[work.share.table] / work.share.shares; };
  std::stable_sort(plan.work.begin(), plan.work.end(),
                   [&](const Work& a, const Work& b) { return ids_of(a) > ids_of(b); });
  return plan;
}

bool Updater::StaysFinite(std::span<const GradientPart> parts, const Plan& plan, NonFinite policy) {
  std::string fault;
  float largest = std::abs(GradientBound(parts, plan.grad_scale, *rows_, compute_));
  // Half of the largest float leaves room for rounding.
  if (!(largest < std::numeric_limits<float>::max() / 2)) fault = FindNonFinite(plan, &largest);
  const bool sure = std::all_of(plan.work.begin(), plan.work.end(), [&](const Work& work) DAMO_REQUIRES(store_mutex) {
    return damo::StaysFinite(work.step, tables_[work.share.table].bounds.get(), largest);
  });
  if (fault.empty() && !sure) fault = FindOverflow(plan);
  if (fault.empty()) return true;
  if (policy == NonFinite::kSkip) return false;
  throw Error(ErrorCode::kNonFinite, fault);
}

namespace {

std::string FirstOf(const std::vector<std::string>& faults) {
  const auto found = std::find_if(faults.begin(), faults.end(), [](const std::string& f) { return !f.empty(); });
  return found == faults.end() ? std::string() : *found;
}

}  // namespace

std::string Updater::FindNonFinite(const Plan& plan, float* largest) {
  std::vector<std::string> faults(plan.work.size());
  std::vector<float> largest_of(plan.work.size(), 0);
  compute_.threads->ParallelFor(plan.work.size(), [&](size_t w, int thread) DAMO_REQUIRES(store_mutex) {
    RowGradients* gradients = &gradients_[static_cast<size_t>(thread)];
    const TableShare& share = plan.work[w].share;
    GatherGradients(share, plan.parts, plan.grad_scale, *rows_, gradients);
    faults[w] = DescribeNonFinite(share.table, *gradients, *rows_, &largest_of[w]);
  });
  *largest = largest_of.empty() ? 0 : *std::max_element(largest_of.begin(), largest_of.end());
  return FirstOf(faults);
}

std::string Updater::FindOverflow(const Plan& plan) {
  std::vector<std::string> faults(plan.work.size());
  compute_.threads->ParallelFor(plan.work.size(), [&](size_t w, int thread) DAMO_REQUIRES(store_mutex) {
    const auto& [share, step] = plan.work[w];
    RowGradients* gradients = &gradients_[static_cast<size_t>(thread)];
    GatherGradients(share, plan.parts, plan.grad_scale, *rows_, gradients);
    faults[w] = DescribeOverflow(share.table, *gradients, step, *rows_, *compute_.kernels);
  });
  return FirstOf(faults);
}

// Waits until the rows of this update can be kept for a capture that is under way.
void Updater::AwaitReserve(const Plan& plan) {
  if (!capture_->keeps()) return;
  size_t bytes = 0;
  for (size_t t = 0; t < tables_.size(); ++t) {
    bytes += plan.ids_of_table[t] * (tables_[t].layout.payload_size() + sizeof(RowWrite));
  }
  capture_->AwaitRoom(bytes);
}

void Updater::Apply(const Plan& plan) {
  const bool keeps = capture_->keeps();
  std::vector<std::atomic<int64_t>> created(tables_.size());
  compute_.threads->ParallelFor(plan.work.size(), [&](size_t w, int thread) DAMO_REQUIRES(store_mutex) {
    const auto& [share, step] = plan.work[w];
    RowGradients* g = &gradients_[static_cast<size_t>(thread)];
    GatherGradients(share, plan.parts, plan.grad_scale, *rows_, g);
    const Table& table = tables_[share.table];
    if (keeps) capture_->Keep(g->rows);
    for (Slot slot : g->rows) cache_.MarkSegmentDirty(slot);
    const ApplyResult applied = compute_.kernels->apply[static_cast<size_t>(table.schema.optimizer.kind)](
        {cache_.arena(), g->rows.data(), g->begin.data(), g->occurrences.data(), g->rows.size(), table.layout.dim, step,
         table.schema.iter + 1, g->buffer.data(), table.layout.weight_type, table.schema.initializer.stream_key});
    created[share.table].fetch_add(static_cast<int64_t>(applied.created), std::memory_order_relaxed);
    tables_[share.table].bounds.Add(applied.bounds);
  });
  for (size_t t = 0; t < tables_.size(); ++t) {
    tables_[t].schema.iter += plan.involved[t] ? 1 : 0;
    cache_.SetIter(static_cast<uint16_t>(t), tables_[t].schema.iter);
    tables_[t].schema.rows += created[t].load();
  }
}

void Updater::WeightGradient(Lookup* lookup, const float* grad, size_t stride, float* weight_grad) {
  cache_.BeginOperation();
  if (lookup->epoch != cache_.epoch()) finder_->ResolveAll(std::span(&lookup, 1));
  std::fill_n(weight_grad, lookup->batch.num_ids, 0.0f);
  // Features that share a key add to the same weights: one feature after the other.
  std::vector<float> of_feature;
  const std::vector<Place> places = PlacesOf(*lookup, tables_, stride);
  for (size_t f = 0; f < lookup->features.size(); ++f) {
    const Feature& feature = lookup->features[f];
    of_feature.assign(lookup->ids_of(feature), 0);
    const Unit all{lookup, &feature, 0, lookup->bags(feature), 0};
    compute_.kernels->weight_grad({BagsOf(all, *rows_), grad + places[f].offset, places[f].stride, of_feature.data()});
    float* to = weight_grad + lookup->bag_offsets(feature)[0];
    for (size_t i = 0; i < of_feature.size(); ++i) to[i] += of_feature[i];
  }
}

}  // namespace damo
