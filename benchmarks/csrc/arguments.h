// A command line of the form `COMMAND WORD... --name VALUE... --flag...`.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace damo::benchmarks {

// Its methods throw kInvalidArgument for what is missing, unknown, or not a number.
class Arguments {
 public:
  // What follows a command's name. `options` take a value, `flags` none.
  Arguments(int argc, char** argv, const std::set<std::string_view>& options, const std::set<std::string_view>& flags);

  const std::vector<std::string>& words() const { return words_; }
  bool Has(std::string_view flag) const { return flags_.contains(flag); }
  // A whole number above 0; without `fallback`, it has to be there.
  size_t Count(std::string_view option, std::optional<size_t> fallback = {}) const;
  // A number above 0, which has to be there.
  double Number(std::string_view option) const;

 private:
  std::vector<std::string> words_;
  std::map<std::string, std::string, std::less<>> values_;
  std::set<std::string, std::less<>> flags_;
};

}  // namespace damo::benchmarks
