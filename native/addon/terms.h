// Bias terms as JavaScript writes them: plain objects whose `type` picks the term (lib/terms.ts).
#pragma once

#include <functional>
#include <vector>

#include "addon/arguments.h"
#include "core/program.h"

namespace attention_bias::addon {

// Adds a term that was read to a program; on any thread, after Arguments::resolve.
using AddTerm = std::function<void(Program*)>;

// Reads the array of terms in field `name`. ERR_TERM for an unknown type, or an unknown or missing field.
std::vector<AddTerm> read_terms(Fields* arguments, const char* name);

}  // namespace attention_bias::addon
