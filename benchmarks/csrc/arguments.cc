#include "arguments.h"

#include <charconv>

#include "base/status.h"

namespace damo::benchmarks {
namespace {

[[noreturn]] void Refuse(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

template <class T>
T Positive(std::string_view option, const std::string& text) {
  T number{};
  const char* const end = text.data() + text.size();
  const auto [parsed, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || parsed != end || !(number > 0)) {
    Refuse(std::string(option) + " must be a number above 0, got \"" + text + "\"");
  }
  return number;
}

}  // namespace

Arguments::Arguments(int argc, char** argv, const std::set<std::string_view>& options,
                     const std::set<std::string_view>& flags) {
  for (int i = 0; i < argc; ++i) {
    const std::string argument = argv[i];
    if (!argument.starts_with("--")) {
      words_.push_back(argument);
    } else if (flags.contains(argument)) {
      flags_.insert(argument);
    } else if (!options.contains(argument)) {
      Refuse("unknown option " + argument);
    } else if (i + 1 == argc) {
      Refuse(argument + " needs a value");
    } else {
      values_[argument] = argv[++i];
    }
  }
}

size_t Arguments::Count(std::string_view option, std::optional<size_t> fallback) const {
  const auto found = values_.find(option);
  if (found != values_.end()) return Positive<size_t>(option, found->second);
  if (!fallback) Refuse(std::string(option) + " is missing");
  return *fallback;
}

double Arguments::Number(std::string_view option) const {
  const auto found = values_.find(option);
  if (found == values_.end()) Refuse(std::string(option) + " is missing");
  return Positive<double>(option, found->second);
}

}  // namespace damo::benchmarks
