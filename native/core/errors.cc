#include "core/errors.h"

namespace attention_bias {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kShape:
      return "ERR_SHAPE";
    case ErrorCode::kDtype:
      return "ERR_DTYPE";
    case ErrorCode::kValue:
      return "ERR_VALUE";
    case ErrorCode::kTerm:
      return "ERR_TERM";
    case ErrorCode::kDevice:
      return "ERR_DEVICE";
    case ErrorCode::kMemory:
      return "ERR_MEMORY";
    case ErrorCode::kAborted:
      return "ERR_ABORTED";
    case ErrorCode::kDisposed:
      return "ERR_DISPOSED";
  }
  return "ERR_VALUE";
}

Error expected(ErrorCode code, const std::string& what, const std::string& name,
               const std::string& received) {
  return Error(code, "expected " + what + " for " + name + " but received " + received);
}

}  // namespace attention_bias
