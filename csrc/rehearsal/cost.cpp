#include "rehearsal/cost.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace gpualloc::rehearsal {

CostTable::CostTable(std::vector<CostPoint> points) : points_(std::move(points)) {
  const auto in_order = [](const CostPoint& a, const CostPoint& b) { return a.bytes < b.bytes; };
  const auto same = [](const CostPoint& a, const CostPoint& b) { return a.bytes == b.bytes; };
  if (points_.empty() || !std::is_sorted(points_.begin(), points_.end(), in_order) ||
      std::adjacent_find(points_.begin(), points_.end(), same) != points_.end()) {
    throw std::invalid_argument("cost table: expected at least one point, in ascending order of bytes");
  }
  for (const auto& [bytes, cost] : points_) {
    for (const double figure : {bytes, cost.latency_s, cost.transfer_s, cost.demand, cost.cpu_s}) {
      if (!(figure >= 0) || !std::isfinite(figure)) {
        throw std::invalid_argument("cost table: expected finite figures of at least 0, got " + std::to_string(figure));
      }
    }
  }
}

Cost CostTable::at(int64_t bytes) const {
  const auto x = static_cast<double>(bytes);
  if (x <= points_.front().bytes || points_.size() == 1) return points_.front().cost;
  auto upper = std::upper_bound(points_.begin(), points_.end(), x, [](double value, const CostPoint& point) { return value < point.bytes; });
  if (upper == points_.end()) --upper;
  const CostPoint &low = *std::prev(upper), &high = *upper;
  const double share = (x - low.bytes) / (high.bytes - low.bytes);
  const auto between = [share](double a, double b) { return std::max(0.0, a + share * (b - a)); };
  return {between(low.cost.latency_s, high.cost.latency_s), between(low.cost.transfer_s, high.cost.transfer_s),
          std::min(1.0, between(low.cost.demand, high.cost.demand)), between(low.cost.cpu_s, high.cost.cpu_s)};
}

Cost cost_of(const CostTables& tables, const std::string& operation, const std::string& dtype, int64_t bytes) {
  auto found = tables.find(operation + "/" + dtype);
  if (found == tables.end()) found = tables.find(operation);
  if (found == tables.end()) throw std::invalid_argument("the link model has no cost of " + operation);
  return found->second.at(bytes);
}

}  // namespace gpualloc::rehearsal
