// The one error type of the core. A function that cannot do what it was asked throws `Error`; "not found" is never an
// error and is reported through a return value. bindings.cc translates codes into Python exceptions in one function.
#pragma once

#include <stdexcept>
#include <string>

namespace damo {

enum class ErrorCode {
  kInvalidArgument,  // the call was wrong: what was expected and received is in the message
  kCorruption,       // stored bytes are not what was written
  kIo,               // the operating system or RocksDB refused a read or a write
  kOutOfSpace,       // the disk, or a quota, is full
  kSchemaMismatch,   // a table or a store exists with another schema
  kNonFinite,        // a gradient is NaN or infinite
  kClosed,           // the store is closed, or belongs to another process since a fork
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace damo
