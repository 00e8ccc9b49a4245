// Errors as values.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace damo::testing {

// The error that `call` throws, as code and message.
inline std::optional<Error> ErrorOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

// Expects `call` to throw this code with a message that has every one of `parts` in it.
inline void ExpectError(ErrorCode code, const std::vector<std::string>& parts, const std::function<void()>& call) {
  const std::optional<Error> error = ErrorOf(call);
  ASSERT_TRUE(error.has_value()) << "nothing was thrown";
  EXPECT_EQ(error->code(), code) << error->what();
  for (const std::string& part : parts) {
    EXPECT_NE(std::string(error->what()).find(part), std::string::npos) << error->what() << "\nlacks: " << part;
  }
}

}  // namespace damo::testing
