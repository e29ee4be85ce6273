#include "addon/js_errors.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>

namespace attention_bias::addon {

namespace {

constexpr uint32_t kShownElements = 8;
constexpr size_t kShownCharacters = 60;

// At most kShownCharacters bytes of a text, in one line.
std::string shown(const std::string& text) {
  size_t cut = std::min(text.size(), kShownCharacters);
  while (cut > 0 && cut < text.size() && (text[cut] & 0xC0) == 0x80) --cut;  // not within a UTF-8 character
  std::string result;
  for (size_t i = 0; i < cut; ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c != 0x7f) {
      result += text[i];
      continue;
    }
    char escaped[8];
    snprintf(escaped, sizeof escaped, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\u%04x", c);
    result += escaped;
  }
  return cut < text.size() ? result + "…" : result;
}

std::string quoted(const std::string& text) { return "\"" + shown(text) + "\""; }

std::string with_article(const std::string& name) {
  const bool vowel = !name.empty() && std::strchr("AEIOaeio", name[0]) != nullptr;
  return (vowel ? "an " : "a ") + name;
}

std::string describe_array(const Napi::Array& array, bool nested) {
  const uint32_t length = array.Length();
  if (nested || length > kShownElements) return "an array of " + std::to_string(length);
  std::string text = "[";
  for (uint32_t i = 0; i < length; ++i) {
    const Napi::Value element = array.Get(i);
    text += i > 0 ? ", " : "";
    text += element.IsArray() ? describe_array(element.As<Napi::Array>(), true) : describe(element);
  }
  return text + "]";
}

}  // namespace

Napi::Error to_js(Napi::Env env, ErrorCode code, const char* message) {
  Napi::Error result = Napi::Error::New(env, message);
  result.Set("code", Napi::String::New(env, error_code_name(code)));
  return result;
}

Napi::Error to_js(Napi::Env env, const std::exception& exception) {
  if (const Error* error = dynamic_cast<const Error*>(&exception)) {
    return to_js(env, error->code(), error->what());
  }
  // A request that std::vector refuses by its size is one of memory too.
  if (dynamic_cast<const std::bad_alloc*>(&exception) || dynamic_cast<const std::length_error*>(&exception)) {
    return to_js(
        env, ErrorCode::kMemory,
        "expected memory for an operation's scratch but received none from the system: free some, or "
        "let fewer operations run at once");
  }
  return to_js(env, ErrorCode::kDevice, exception.what());
}

std::string describe(Napi::Value value) {
  switch (value.Type()) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
    case napi_number:
      return value.ToString().Utf8Value();
    case napi_string:
      return quoted(value.As<Napi::String>().Utf8Value());
    case napi_symbol:
      return "a symbol";
    case napi_bigint:
      return "a bigint";
    case napi_function:
      return "a function";
    default:
      break;
  }
  if (value.IsArray()) return describe_array(value.As<Napi::Array>(), false);
  const Napi::Value constructor = value.As<Napi::Object>().Get("constructor");
  if (!constructor.IsFunction()) return "an object";
  const Napi::Value name = constructor.As<Napi::Object>().Get("name");
  const std::string text = name.IsString() ? name.As<Napi::String>().Utf8Value() : "";
  return text.empty() || text == "Object" ? "an object" : with_article(shown(text));
}

}  // namespace attention_bias::addon
