// The operations' arguments by name (lib/device.ts), and what each makes of them.
#pragma once

#include <memory>
#include <vector>

#include "addon/operation.h"
#include "addon/terms.h"

namespace attention_bias::addon {

// The inputs of `attention`. The tensors' pointers are there after Arguments::resolve.
struct AttentionCall {
  const TensorView *query, *key, *value;
  double scale;
  Precision precision;
  std::vector<AddTerm> terms;

  explicit AttentionCall(Fields* arguments);
  // Checks them. The program is the problem's bias.
  AttentionProblem problem(std::unique_ptr<Program>* program) const;
};

// The inputs of `bias`.
struct BiasCall {
  Shape shape;
  std::vector<AddTerm> terms;

  explicit BiasCall(Fields* arguments);
  std::unique_ptr<Program> program() const;
};

// The inputs of `multihead`.
struct MultiheadCall {
  MultiheadTensors tensors;
  int64_t heads;
  bool identity;
  Precision precision;
  std::vector<AddTerm> terms;

  explicit MultiheadCall(Fields* arguments);
  // Checks them. The program is the problem's bias.
  MultiheadProblem problem(std::unique_ptr<Program>* program) const;
};

// Of Backend::prepare and self_test; ERR_DEVICE with what is wrong.
Compute read_prepare(Fields* arguments, Outputs* outputs);
Compute read_self_test(Fields* arguments, Outputs* outputs);
// `source` into another tensor.
Compute read_copy(Fields* arguments, Outputs* outputs);
Compute read_attention(Fields* arguments, Outputs* outputs);
Compute read_bias(Fields* arguments, Outputs* outputs);
Compute read_linear(Fields* arguments, Outputs* outputs);
Compute read_multihead(Fields* arguments, Outputs* outputs);
Compute read_router(Fields* arguments, Outputs* outputs);
Compute read_project(Fields* arguments, Outputs* outputs);

}  // namespace attention_bias::addon
