// The life of a table whose rows come from several stores that had some of them each, or still have.
#pragma once

#include <string>
#include <vector>

#include "life/life_bytes.h"

namespace damo {

// A life that counts no rows yet, and by which none is dead that lives by its own of these `lives`, as
// TableLife::Serialize left them; what is dead by its own may live by it. With `counts`, it has counted what all of
// them have counted so far, else nothing. Throws kCorruption, and kInvalidArgument if there are none or they go by
// different rules.
std::string CombineLives(const std::vector<std::string>& lives, bool counts);

// What all of these lives count, which go by the same edges and ladder. Throws kCorruption, and kInvalidArgument if
// there are none, or they do not.
LifeState SumOfLives(const std::vector<std::string>& lives);

// A life that counts no rows yet, for the store whose life is `own`: the same for all stores but for what has come and
// gone, which is their own. By it is dead what is dead by any of them. Throws as CombineLives.
std::string AlignedLife(const std::string& own, const std::vector<std::string>& lives);

}  // namespace damo
