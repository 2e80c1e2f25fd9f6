// What a collective costs on a modelled link, by its bytes: points from Python, straight lines between them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace gpualloc::rehearsal {

struct Cost {
  double latency_s = 0;   // before the link moves anything
  double transfer_s = 0;  // alone on its link
  double demand = 1;      // share of the link's bandwidth that it takes then
  double cpu_s = 0;       // of the host's CPU, over the transfer
};

struct CostPoint {
  double bytes;
  Cost cost;
};

class CostTable {
 public:
  // At least one, in ascending order of bytes, finite and not below 0; else throws std::invalid_argument.
  explicit CostTable(std::vector<CostPoint> points);
  Cost at(int64_t bytes) const;  // beyond the last point as between the last two

 private:
  std::vector<CostPoint> points_;
};

// Operation -> its table: "all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "all_to_all", "gather", "scatter",
// "point_to_point" between peers of a node, "network_point_to_point" between nodes. "all_reduce/float16" and the like come first
// for tensors of that type.
using CostTables = std::map<std::string, CostTable>;

// Throws std::invalid_argument for an operation without a table.
Cost cost_of(const CostTables& tables, const std::string& operation, const std::string& dtype, int64_t bytes);

}  // namespace gpualloc::rehearsal
