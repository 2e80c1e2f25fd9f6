#include "ddp/plan.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "exchange_format.h"

namespace gpualloc {
namespace {

constexpr int kMaxSlices = 4;  // of a transfer on one communicator

double numel_of(const Transfer& transfer, const Buckets& buckets) {
  double numel = 0;
  for (int i = transfer.first; i <= transfer.last; ++i) numel += static_cast<double>(buckets[i].numel);
  return numel;
}

double transfer_s(const Transfer& transfer, const Buckets& buckets, const Figures& figures) {
  const LinkModel& link = figures.links[static_cast<size_t>(transfer.wire)];
  return link.latency_s * transfer.slices + numel_of(transfer, buckets) * bytes_per_element(transfer.wire) / link.bytes_per_s;
}

// Whether buckets [first, last] may be one transfer on this wire.
bool may_travel_together(int first, int last, Wire wire, const Buckets& buckets) {
  if (first == last) return buckets[first].narrowable || wire == Wire::fp32;
  if (wire == Wire::int8) return false;  // its blocks of elements would straddle buckets
  return buckets[first].narrowable && buckets[last].narrowable && buckets[first].device == buckets[last].device;
}

}  // namespace

const char* name_of(Wire wire) {
  switch (wire) {
    case Wire::fp32: return "fp32";
    case Wire::fp16: return "fp16";
    case Wire::bf16: return "bf16";
    case Wire::int8: return "int8";
  }
  return "";
}

Wire parse_wire(const std::string& name) {
  for (const Wire wire : {Wire::fp32, Wire::fp16, Wire::bf16, Wire::int8}) {
    if (name == name_of(wire)) return wire;
  }
  throw std::invalid_argument("wire: expected fp32, fp16, bf16 or int8, got " + name);
}

double bytes_per_element(Wire wire) {
  switch (wire) {
    case Wire::fp32: return 4;
    case Wire::fp16:
    case Wire::bf16: return 2;
    case Wire::int8: return 1 + 4.0 / kInt8Block;
  }
  return 0;
}

LinkModel fit_link(const std::vector<LinkSample>& samples) {
  // Minimise sum((latency + bytes * inverse_rate - t)^2). Not the relative error: transfers that ended together count as nothing for
  // all but the first of them, and only their sum tells the rate.
  const double w = static_cast<double>(samples.size());
  double wb = 0, wbb = 0, wt = 0, wbt = 0;
  for (const LinkSample& sample : samples) {
    wb += sample.bytes;
    wbb += sample.bytes * sample.bytes;
    wt += sample.seconds;
    wbt += sample.bytes * sample.seconds;
  }
  const double determinant = w * wbb - wb * wb;
  double latency = 0, inverse_rate = wbb > 0 ? wbt / wbb : 0;
  if (determinant > 1e-9 * w * wbb) {
    latency = (wt * wbb - wbt * wb) / determinant;
    inverse_rate = (w * wbt - wb * wt) / determinant;
    if (latency < 0) latency = 0, inverse_rate = wbt / wbb;
    if (inverse_rate < 0) latency = wt / w, inverse_rate = 0;
  }
  constexpr double kFastest = 1e15;  // bytes a second: not measurable
  return {latency, inverse_rate > 1 / kFastest ? 1 / inverse_rate : kFastest};
}

double finish_s(const Plan& plan, const Buckets& buckets, const Figures& figures) {
  double end = 0;
  for (const Transfer& transfer : plan) {
    end = std::max(end, figures.ready_s[transfer.last]) + transfer_s(transfer, buckets, figures);
  }
  return end;
}

Plan plain_plan(const Buckets& buckets, Wire wire) {
  Plan plan;
  for (int i = 0; i < static_cast<int>(buckets.size()); ++i) plan.push_back({i, i, buckets[i].narrowable ? wire : Wire::fp32});
  return plan;
}

Plan joined_plan(const Buckets& buckets, Wire wire, int64_t max_bytes) {
  Plan plan;
  for (const Transfer& next : plain_plan(buckets, wire)) {
    const Transfer joined{plan.empty() ? next.first : plan.back().first, next.last, wire};
    const bool is_small = numel_of(joined, buckets) * bytes_per_element(wire) <= static_cast<double>(max_bytes);
    if (!plan.empty() && is_small && may_travel_together(joined.first, joined.last, wire, buckets)) {
      plan.back() = joined;
    } else {
      plan.push_back(next);
    }
  }
  return plan;
}

Plan best_plan(const Buckets& buckets, const Figures& figures, const std::vector<Wire>& wires, double tolerance) {
  const int count = static_cast<int>(buckets.size());
  // The link being free earlier is never worse, so the earliest end after the first j buckets is all that counts.
  std::vector<double> end(count + 1, std::numeric_limits<double>::infinity());
  std::vector<Transfer> last(count + 1, {0, 0, Wire::fp32});
  end[0] = 0;
  for (int j = 1; j <= count; ++j) {
    for (const Wire wire : wires) {
      for (int i = j - 1; i >= 0; --i) {
        const Transfer transfer{i, j - 1, buckets[j - 1].narrowable ? wire : Wire::fp32};
        if (!may_travel_together(i, j - 1, transfer.wire, buckets)) break;
        const double finish = std::max(end[i], figures.ready_s[j - 1]) + transfer_s(transfer, buckets, figures);
        if (finish < end[j]) end[j] = finish, last[j] = transfer;
      }
    }
  }
  Plan plan;
  for (int j = count; j > 0; j = plan.back().first) plan.push_back(last[j]);
  std::reverse(plan.begin(), plan.end());
  if (std::find(wires.begin(), wires.end(), Wire::fp32) == wires.end()) return plan;
  const double limit = finish_s(plan, buckets, figures) * (1 + tolerance);
  for (Transfer& transfer : plan) {
    const Wire narrow = transfer.wire;
    transfer.wire = Wire::fp32;
    if (finish_s(plan, buckets, figures) > limit) transfer.wire = narrow;
  }
  return plan;
}

Plan on_lanes(Plan plan, const Buckets& buckets, int lanes, int64_t min_slice_bytes) {
  for (Transfer& transfer : plan) {
    transfer.lanes = lanes;
    const bool is_large = numel_of(transfer, buckets) * bytes_per_element(transfer.wire) >= static_cast<double>(lanes * min_slice_bytes);
    if (transfer.first == transfer.last && buckets[transfer.first].narrowable && is_large) transfer.slices = lanes;
  }
  return plan;
}

Plan sliced_plan(Plan plan, const Buckets& buckets, int64_t min_slice_bytes) {
  Transfer& transfer = plan.back();
  if (transfer.first == transfer.last && transfer.wire != Wire::fp32) {
    const double slices = numel_of(transfer, buckets) * bytes_per_element(transfer.wire) / static_cast<double>(min_slice_bytes);
    transfer.slices = std::clamp(static_cast<int>(slices), transfer.slices, std::max(kMaxSlices, transfer.slices));
  }
  return plan;
}

}  // namespace gpualloc
