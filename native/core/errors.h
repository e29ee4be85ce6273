// Errors of the native code: a code that TypeScript sees as AttentionBiasError.code, and the package's one
// sentence.
#pragma once

#include <stdexcept>
#include <string>

namespace attention_bias {

enum class ErrorCode { kShape, kDtype, kValue, kTerm, kDevice, kMemory, kAborted, kDisposed };

// The name in lib/errors.ts.
const char* error_code_name(ErrorCode code);

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// "expected WHAT for NAME but received RECEIVED"
Error expected(ErrorCode code, const std::string& what, const std::string& name, const std::string& received);

}  // namespace attention_bias
