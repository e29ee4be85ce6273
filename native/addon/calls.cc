#include "addon/calls.h"

#include <cmath>

namespace attention_bias::addon {

namespace {

double read_scale(Fields* arguments) {
  const double scale = arguments->number("scale", NAN);
  if (std::isnan(scale) && arguments->has("scale")) {
    throw expected(ErrorCode::kValue, "a finite number", "scale", "NaN");
  }
  return scale;
}

Precision read_precision(Fields* arguments) {
  return static_cast<Precision>(arguments->choice("precision", {"f32", "tf32", "bf16"}));
}

std::unique_ptr<Program> build(const Extent& extent, const std::vector<AddTerm>& terms) {
  auto program = std::make_unique<Program>(extent);
  for (const AddTerm& add : terms) add(program.get());
  return program;
}

// What the host could not check of the terms' tensors.
void check_values(Backend* backend, const Program& program, AbortFlag abort) {
  if (!program.device_checks().empty()) backend->check_values(program.device_checks(), abort);
}

}  // namespace

AttentionCall::AttentionCall(Fields* arguments)
    : query(arguments->tensor("query")),
      key(arguments->tensor("key")),
      value(arguments->tensor("value")),
      scale(read_scale(arguments)),
      precision(read_precision(arguments)) {
  if (arguments->has("bias")) terms = read_terms(arguments, "bias");
}

AttentionProblem AttentionCall::problem(std::unique_ptr<Program>* program) const {
  AttentionProblem problem = attention_problem(*query, *key, *value, scale);
  problem.precision = precision;
  *program = build(problem.extent, terms);
  problem.bias = program->get();
  return problem;
}

BackwardCall::BackwardCall(Fields* arguments)
    : attention(arguments), grad_out(arguments->tensor("gradOut")) {}

BackwardProblem BackwardCall::problem(std::unique_ptr<Program>* program) const {
  BackwardProblem problem;
  problem.attention = attention.problem(program);
  require_grad_out(*grad_out, problem.attention);
  problem.grad_out = grad_out->f32();
  return problem;
}

DeformableCall::DeformableCall(Fields* arguments)
    : value(arguments->tensor("value")),
      sampling_locations(arguments->tensor("samplingLocations")),
      attention_weights(arguments->tensor("attentionWeights")),
      spatial_shapes(arguments->integer_lists("spatialShapes")) {}

DeformableProblem DeformableCall::problem() const {
  return deformable_problem(*value, spatial_shapes, *sampling_locations, *attention_weights);
}

MultiheadCall::MultiheadCall(Fields* arguments)
    : tensors{arguments->tensor("query"),
              arguments->tensor("key"),
              arguments->tensor("value"),
              arguments->optional_tensor("queryPos"),
              arguments->optional_tensor("keyPos"),
              arguments->tensor("inProjWeight"),
              arguments->optional_tensor("inProjBias"),
              arguments->tensor("outProjWeight"),
              arguments->optional_tensor("outProjBias")},
      heads(arguments->integer("heads")),
      identity(arguments->boolean("identity", false)),
      precision(read_precision(arguments)) {
  if (arguments->has("bias")) terms = read_terms(arguments, "bias");
}

MultiheadProblem MultiheadCall::problem(std::unique_ptr<Program>* program) const {
  MultiheadProblem problem = multihead_problem(tensors, heads);
  problem.identity = identity;
  problem.precision = precision;
  *program = build(problem.extent, terms);
  problem.bias = program->get();
  return problem;
}

BiasCall::BiasCall(Fields* arguments) : shape(arguments->shape("shape")) {
  if (shape.size() != 4) throw expected(ErrorCode::kShape, "[B, H, Q, K]", "shape", to_string(shape));
  terms = read_terms(arguments, "bias");
}

std::unique_ptr<Program> BiasCall::program() const {
  return build({shape[0], shape[1], shape[2], shape[3]}, terms);
}

Compute read_prepare(Fields*, Outputs*) {
  return [](Backend* backend, Outputs*, AbortFlag) { backend->prepare(); };
}

Compute read_self_test(Fields*, Outputs*) {
  return [](Backend* backend, Outputs*, AbortFlag) {
    const std::string wrong = backend->self_test();
    if (!wrong.empty()) throw Error(ErrorCode::kDevice, wrong);
  };
}

Compute read_copy(Fields* arguments, Outputs* outputs) {
  const TensorView* source = arguments->tensor("source");
  outputs->declare("out", arguments);
  outputs->declare_place(arguments, nullptr);
  return [source](Backend* backend, Outputs* outputs, AbortFlag abort) {
    const int64_t bytes =
        element_count(source->shape, source->name) * static_cast<int64_t>(dtype_bytes(source->dtype));
    void* out = outputs->take("out", source->shape, "as the source's", source->dtype);
    backend->copy(out, source->data, bytes, abort);
  };
}

Compute read_attention(Fields* arguments, Outputs* outputs) {
  const AttentionCall call(arguments);
  outputs->declare("out", arguments);
  outputs->declare("lse", arguments);
  outputs->declare_place(arguments, call.query);
  return [call](Backend* backend, Outputs* outputs, AbortFlag abort) {
    std::unique_ptr<Program> program;
    AttentionProblem problem = call.problem(&program);
    check_values(backend, *program, abort);
    const Extent& e = problem.extent;
    problem.out = outputs->take("out", {e.batch, e.heads, e.queries, problem.value_dim}, "[B, H, Q, Dv]");
    problem.lse = outputs->take("lse", {e.batch, e.heads, e.queries}, "[B, H, Q]");
    backend->attention(problem, abort);
  };
}

Compute read_attention_backward(Fields* arguments, Outputs* outputs) {
  const BackwardCall call(arguments);
  const TensorView *out = arguments->optional_tensor("out"), *lse = arguments->optional_tensor("lse");
  if (!out != !lse) throw expected(ErrorCode::kValue, "both or none", "out and lse", "one of them");
  const bool of_terms = arguments->boolean("termGradients", true);
  outputs->declare_place(arguments, call.attention.query);
  return [=](Backend* backend, Outputs* outputs, AbortFlag abort) {
    std::unique_ptr<Program> program;
    BackwardProblem problem = call.problem(&program);
    AttentionProblem& p = problem.attention;
    check_values(backend, *program, abort);
    const Extent& e = p.extent;
    if (out) {
      require_results(*out, *lse, p);
      p.out = static_cast<float*>(out->data);
      p.lse = static_cast<float*>(lse->data);
    }
    problem.grad_query = outputs->make("query", {e.batch, e.heads, e.queries, p.head_dim});
    problem.grad_key = outputs->make("key", {e.batch, e.heads, e.keys, p.head_dim});
    problem.grad_value = outputs->make("value", {e.batch, e.heads, e.keys, p.value_dim});
    if (of_terms) {
      for (const Learnable& learnable : program->learnables()) {
        problem.grad_terms.push_back(outputs->make(learnable.tensor.name, learnable.tensor.shape));
      }
    }
    backend->attention_backward(problem, abort);
  };
}

Compute read_bias(Fields* arguments, Outputs* outputs) {
  const BiasCall call(arguments);
  const DType dtype = arguments->dtype("dtype", {DType::kFloat32, DType::kBfloat16});
  outputs->declare("out", arguments);
  outputs->declare_place(arguments, nullptr);
  return [call, dtype](Backend* backend, Outputs* outputs, AbortFlag abort) {
    const std::unique_ptr<Program> program = call.program();
    check_values(backend, *program, abort);
    BiasProblem problem;
    problem.bias = program.get();
    problem.dtype = dtype;
    problem.out = outputs->take("out", bias_shape(*program), "[1|B, 1|H, Q, K]", dtype);
    backend->bias(problem, abort);
  };
}

Compute read_linear(Fields* arguments, Outputs* outputs) {
  const TensorView *input = arguments->tensor("input"), *weight = arguments->tensor("weight"),
                   *bias = arguments->optional_tensor("bias");
  outputs->declare("out", arguments);
  outputs->declare_place(arguments, input);
  return [=](Backend* backend, Outputs* outputs, AbortFlag abort) {
    LinearProblem problem = linear_problem(*input, *weight, bias);
    Shape shape = input->shape;
    shape.back() = problem.outputs;
    problem.out = outputs->take("out", shape, "[.., N]");
    backend->linear(problem, abort);
  };
}

Compute read_multihead(Fields* arguments, Outputs* outputs) {
  const MultiheadCall call(arguments);
  outputs->declare("out", arguments);
  outputs->declare_place(arguments, call.tensors.query);
  return [call](Backend* backend, Outputs* outputs, AbortFlag abort) {
    std::unique_ptr<Program> program;
    MultiheadProblem problem = call.problem(&program);
    check_values(backend, *program, abort);
    const Extent& e = problem.extent;
    problem.out = outputs->take("out", {e.batch, e.queries, problem.features}, "[B, Q, E]");
    backend->multihead(problem, abort);
  };
}

Compute read_router(Fields* arguments, Outputs* outputs) {
  const TensorView *features = arguments->tensor("features"), *weight = arguments->tensor("weight"),
                   *bias = arguments->tensor("bias");
  const bool outputs_first = arguments->boolean("outputsFirst", false);
  outputs->declare("out", arguments);
  outputs->declare_place(arguments, features);
  return [=](Backend* backend, Outputs* outputs, AbortFlag abort) {
    RouterProblem problem = router_problem(*features, *weight, *bias);
    problem.outputs_first = outputs_first;
    const int64_t b = features->shape[0], q = features->shape[1], m = problem.outputs;
    problem.out = outputs_first ? outputs->take("out", {m, b, q}, "[M, B, Q]")
                                : outputs->take("out", {b, q, m}, "[B, Q, M]");
    backend->router(problem, abort);
  };
}

Compute read_router_backward(Fields* arguments, Outputs* outputs) {
  const TensorView *features = arguments->tensor("features"), *weight = arguments->tensor("weight"),
                   *bias = arguments->tensor("bias"), *grad_out = arguments->tensor("gradOut");
  const bool outputs_first = arguments->boolean("outputsFirst", false);
  for (const char* name : {"features", "weight", "bias"}) outputs->declare(name);
  outputs->declare_place(arguments, features);
  return [=](Backend* backend, Outputs* outputs, AbortFlag abort) {
    RouterBackwardProblem problem;
    problem.router = router_problem(*features, *weight, *bias);
    problem.router.outputs_first = outputs_first;
    const int64_t b = features->shape[0], q = features->shape[1], m = problem.router.outputs;
    if (outputs_first) {
      require(*grad_out, DType::kFloat32, {dim(m), dim(b), dim(q)}, "[M, B, Q]");
    } else {
      require(*grad_out, DType::kFloat32, {dim(b), dim(q), dim(m)}, "[B, Q, M]");
    }
    problem.grad_out = grad_out->f32();
    problem.grad_features = outputs->take("features", features->shape, "[B, Q, E]");
    problem.grad_weight = outputs->take("weight", weight->shape, "[M, E]");
    problem.grad_bias = outputs->take("bias", bias->shape, "[M]");
    backend->router_backward(problem, abort);
  };
}

Compute read_project(Fields* arguments, Outputs* outputs) {
  const TensorView *points = arguments->tensor("referencePoints"),
                   *lidar2img = arguments->tensor("lidar2img");
  outputs->declare("bevCenters");
  outputs->declare("cameraCenters");
  outputs->declare_place(arguments, points);
  return [=, range = arguments->numbers("pointCloudRange"), image_shape = arguments->integers("imageShape"),
          feature_shape = arguments->integers("featureShape"),
          bev_shape = arguments->integers("bevShape")](Backend* backend, Outputs* outputs, AbortFlag abort) {
    ProjectProblem problem =
        project_problem(*points, range, *lidar2img, image_shape, feature_shape, bev_shape);
    backend->check_values({reference_points_check(*points)}, abort);
    problem.bev_centers = outputs->take("bevCenters", {problem.batch, problem.queries, 2}, "[B, Q, 2]");
    problem.camera_centers = outputs->take("cameraCenters", {problem.batch, problem.queries, 3}, "[B, Q, 3]");
    backend->project(problem, abort);
  };
}

Compute read_deformable(Fields* arguments, Outputs* outputs) {
  const DeformableCall call(arguments);
  outputs->declare("out", arguments);
  outputs->declare_place(arguments, call.value);
  return [call](Backend* backend, Outputs* outputs, AbortFlag abort) {
    DeformableProblem problem = call.problem();
    problem.out = outputs->take("out", {problem.batch, problem.queries, problem.heads * problem.head_dim},
                                "[B, Q, H·D]");
    backend->deformable(problem, abort);
  };
}

Compute read_deformable_backward(Fields* arguments, Outputs* outputs) {
  const DeformableCall call(arguments);
  const TensorView* grad_out = arguments->tensor("gradOut");
  const bool deterministic = arguments->boolean("deterministic", false);
  for (const char* name : {"gradValue", "gradSamplingLocations", "gradAttentionWeights"})
    outputs->declare(name);
  outputs->declare_place(arguments, call.value);
  return [=](Backend* backend, Outputs* outputs, AbortFlag abort) {
    DeformableBackwardProblem problem = deformable_backward_problem(call.problem(), *grad_out);
    problem.deterministic = deterministic;
    problem.grad_value = outputs->take("gradValue", call.value->shape, "[B, S, H, D]");
    problem.grad_locations =
        outputs->take("gradSamplingLocations", call.sampling_locations->shape, "[B, Q, H, L, P, 2]");
    problem.grad_weights =
        outputs->take("gradAttentionWeights", call.attention_weights->shape, "[B, Q, H, L, P]");
    backend->deformable_backward(problem, abort);
  };
}

}  // namespace attention_bias::addon
