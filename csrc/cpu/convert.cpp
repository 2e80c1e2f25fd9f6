#include "cpu/convert.h"

#include <cstddef>

namespace gpualloc::cpu {

const Converters* all_converters() {
  static const struct Sets {
    Converters list[4] = {};  // the last one stays empty and ends the list
    Sets() {
      size_t count = 0;
#ifdef GPUALLOC_X86
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512dq")) {
        list[count++] = avx512_converters;
      }
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) list[count++] = avx2_converters;
#endif
      list[count++] = scalar_converters;
    }
  } sets;
  return sets.list;
}

const Converters& converters() { return all_converters()[0]; }

}  // namespace gpualloc::cpu
