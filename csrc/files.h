// The few file operations that durability needs. All throw kOutOfSpace if the disk or a quota is full, kInvalidArgument
// if something exists that was to be made, else kIo; messages name the path and give the system's reason.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace damo {

// Waits until the file's bytes, or the directory's entries, are on the device.
void Sync(const std::string& path);

// Makes a synced file of these bytes. REQUIRES: `path` does not exist.
void WriteFile(const std::string& path, std::string_view contents);

// Makes a synced copy of a file's first `size` bytes. REQUIRES: `to` does not exist, `from` has at least `size` bytes.
void CopyFile(const std::string& from, const std::string& to, uint64_t size);

// Makes `to` a second name of the file `from`. False if the file system cannot: another device, no hard links, too
// many.
bool LinkFile(const std::string& from, const std::string& to);

// Makes the directory `path`, has `fill` fill it, and syncs it and its parent. If anything throws, removes it again.
// REQUIRES: `path` does not exist, its parent does.
void BuildDirectory(const std::string& path, const std::function<void()>& fill);

}  // namespace damo
