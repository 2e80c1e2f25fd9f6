#include "cpu/exchange.h"

#include <cstddef>
#include <cstring>

namespace gpualloc::cpu {

const Exchangers* all_exchangers() {
  static const struct Sets {
    Exchangers list[4] = {};  // the last one stays empty and ends the list
    Sets() {
      const Exchangers* const known[] = {
#ifdef GPUALLOC_X86
          &avx512_exchangers, &avx2_exchangers,
#endif
          &scalar_exchangers};
      size_t count = 0;
      for (const Converters* runs = all_converters(); runs->isa != nullptr; ++runs) {
        for (const Exchangers* set : known) {
          if (std::strcmp(set->isa, runs->isa) == 0) list[count++] = *set;
        }
      }
    }
  } sets;
  return sets.list;
}

const Exchangers& exchangers() { return all_exchangers()[0]; }

}  // namespace gpualloc::cpu
