// The life of a table whose rows come from several stores that had some of them each.
#pragma once

#include <string>
#include <vector>

namespace damo {

// A life that counts no rows yet, and by which none is dead that lives by its own of these `lives`, as
// TableLife::Serialize left them; what is dead by its own may live by it. With `counts`, it has counted what all of
// them have counted so far, else nothing. Throws kCorruption, and kInvalidArgument if there are none or they go by
// different rules.
std::string CombineLives(const std::vector<std::string>& lives, bool counts);

}  // namespace damo
