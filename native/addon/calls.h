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

// The inputs of `attentionBackward`, but for results of the forward pass.
struct BackwardCall {
  AttentionCall attention;
  const TensorView* grad_out;

  explicit BackwardCall(Fields* arguments);
  // Checks them, with no memory for the gradients yet.
  BackwardProblem problem(std::unique_ptr<Program>* program) const;
};

// The inputs of `deformable`.
struct DeformableCall {
  const TensorView *value, *sampling_locations, *attention_weights;
  std::vector<std::vector<int64_t>> spatial_shapes;

  explicit DeformableCall(Fields* arguments);
  DeformableProblem problem() const;
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
// Outputs `query`, `key` and `value`, and one by the path of each learnable tensor, as bias[0].bias.
Compute read_attention_backward(Fields* arguments, Outputs* outputs);
Compute read_bias(Fields* arguments, Outputs* outputs);
Compute read_linear(Fields* arguments, Outputs* outputs);
Compute read_multihead(Fields* arguments, Outputs* outputs);
Compute read_router(Fields* arguments, Outputs* outputs);
Compute read_router_backward(Fields* arguments, Outputs* outputs);
Compute read_project(Fields* arguments, Outputs* outputs);
Compute read_deformable(Fields* arguments, Outputs* outputs);
Compute read_deformable_backward(Fields* arguments, Outputs* outputs);

}  // namespace attention_bias::addon
