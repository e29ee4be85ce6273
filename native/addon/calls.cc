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

std::unique_ptr<Program> build(const Extent& extent, const std::vector<AddTerm>& terms) {
  auto program = std::make_unique<Program>(extent);
  for (const AddTerm& add : terms) add(program.get());
  return program;
}

}  // namespace

AttentionCall::AttentionCall(Fields* arguments)
    : query(arguments->tensor("query")),
      key(arguments->tensor("key")),
      value(arguments->tensor("value")),
      scale(read_scale(arguments)),
      precision(static_cast<Precision>(arguments->choice("precision", {"f32", "tf32", "bf16"}))) {
  if (arguments->has("bias")) terms = read_terms(arguments, "bias");
}

AttentionProblem AttentionCall::problem(std::unique_ptr<Program>* program) const {
  AttentionProblem problem = attention_problem(*query, *key, *value, scale);
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

Compute read_attention(Fields* arguments, Outputs* outputs) {
  const AttentionCall call(arguments);
  outputs->declare("out", arguments);
  outputs->declare("lse", arguments);
  return [call](Backend* backend, Outputs* outputs, AbortFlag abort) {
    std::unique_ptr<Program> program;
    AttentionProblem problem = call.problem(&program);
    const Extent& e = problem.extent;
    problem.out = outputs->take("out", {e.batch, e.heads, e.queries, problem.value_dim}, "[B, H, Q, Dv]");
    problem.lse = outputs->take("lse", {e.batch, e.heads, e.queries}, "[B, H, Q]");
    backend->attention(problem, abort);
  };
}

Compute read_bias(Fields* arguments, Outputs* outputs) {
  const BiasCall call(arguments);
  outputs->declare("out", arguments);
  return [call](Backend* backend, Outputs* outputs, AbortFlag abort) {
    const std::unique_ptr<Program> program = call.program();
    BiasProblem problem;
    problem.bias = program.get();
    problem.out = outputs->take("out", bias_shape(*program), "[1|B, 1|H, Q, K]");
    backend->bias(problem, abort);
  };
}

Compute read_router(Fields* arguments, Outputs* outputs) {
  const TensorView *features = arguments->tensor("features"), *weight = arguments->tensor("weight"),
                   *bias = arguments->tensor("bias");
  outputs->declare("out", arguments);
  return [=](Backend* backend, Outputs* outputs, AbortFlag abort) {
    RouterProblem problem = router_problem(*features, *weight, *bias);
    problem.out =
        outputs->take("out", {features->shape[0], features->shape[1], problem.outputs}, "[B, Q, M]");
    backend->router(problem, abort);
  };
}

Compute read_project(Fields* arguments, Outputs* outputs) {
  const TensorView *points = arguments->tensor("referencePoints"),
                   *lidar2img = arguments->tensor("lidar2img");
  outputs->declare("bevCenters");
  outputs->declare("cameraCenters");
  return [=, range = arguments->numbers("pointCloudRange"), image_shape = arguments->integers("imageShape"),
          feature_shape = arguments->integers("featureShape"),
          bev_shape = arguments->integers("bevShape")](Backend* backend, Outputs* outputs, AbortFlag abort) {
    ProjectProblem problem =
        project_problem(*points, range, *lidar2img, image_shape, feature_shape, bev_shape);
    require_reference_points(problem, points->name);
    problem.bev_centers = outputs->take("bevCenters", {problem.batch, problem.queries, 2}, "[B, Q, 2]");
    problem.camera_centers = outputs->take("cameraCenters", {problem.batch, problem.queries, 3}, "[B, Q, 3]");
    backend->project(problem, abort);
  };
}

}  // namespace attention_bias::addon
