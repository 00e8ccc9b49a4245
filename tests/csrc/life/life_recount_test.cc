// A life whose rows are counted anew.
#include "life/life_recount.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "base/status.h"
#include "life/table_life.h"
#include "testing/errors.h"

namespace damo {
namespace {

using testing::ExpectError;

// Ids 0 to 9, of which id i was seen last at step i + 1, by a table in which rows go after 5 steps; and an id without a
// row.
std::unique_ptr<TableLife> TenIds() {
  LifeOptions options;
  options.idle = {{.steps = 5}};
  auto life = std::make_unique<TableLife>(options, 0, 0);
  for (uint32_t step = 1; step <= 10; ++step) {
    life->BeginStep(step, 2, 0);
    life->Add({step, 1}, step - 1);
    if (step == 9) life->AddSighting({step, 1});
    life->EndStep();
  }
  return life;
}

TEST(LifeRecount, IsTheSameLifeOfTheSameRows) {
  const std::unique_ptr<TableLife> life = TenIds();
  const std::string bytes = life->Serialize();
  LifeRecount recount(bytes, 10);
  uint64_t living = 0;
  for (uint32_t step = 1; step <= 10; ++step) living += recount.Count({step, 1}, step - 1, /*sighting=*/false) ? 1 : 0;
  EXPECT_TRUE(recount.Count({9, 1}, 99, /*sighting=*/true));
  EXPECT_LT(living, 10u);
  EXPECT_EQ(living, life->rows());
  EXPECT_EQ(recount.rows(), life->rows());
  EXPECT_EQ(recount.rows_before(), life->rows());
  EXPECT_EQ(recount.Serialize(), bytes);
}

TEST(LifeRecount, HasTheRowsThatAreLeftAndTheSameLadder) {
  const std::unique_ptr<TableLife> life = TenIds();
  LifeRecount recount(life->Serialize(), 10);
  EXPECT_TRUE(recount.Count({10, 1}, 9, /*sighting=*/false));
  EXPECT_FALSE(recount.Count({1, 1}, 0, /*sighting=*/false));
  const TableLife left(recount.Serialize(), life->options());
  EXPECT_EQ(left.rows(), 1u);
  EXPECT_EQ(left.sighted(), 0u);
  EXPECT_EQ(left.ladder(), life->ladder());
  EXPECT_EQ(left.counts(), life->counts());
}

TEST(LifeRecount, TakesRowsThatAreNewerThanTheLife) {
  const std::unique_ptr<TableLife> life = TenIds();
  LifeRecount recount(life->Serialize(), 50);
  EXPECT_TRUE(recount.Count({50, 1}, 1, /*sighting=*/false));
  TableLife later(recount.Serialize(), life->options());
  later.BeginStep(51, 0, 0);
  later.EndStep();
  EXPECT_EQ(later.rows(), 1u);
}

TEST(LifeWithout, IsThatOfWhichRowsWereRemoved) {
  const std::unique_ptr<TableLife> life = TenIds();
  const uint64_t rows = life->rows();
  LifeWithout without(life->Serialize());
  EXPECT_TRUE(without.Remove({10, 1}, 9, /*sighting=*/false));
  EXPECT_TRUE(without.Remove({9, 1}, 99, /*sighting=*/true));
  EXPECT_FALSE(without.Remove({1, 1}, 0, /*sighting=*/false));
  EXPECT_EQ(without.rows(), rows - 1);
  life->Remove({10, 1}, 9);
  life->RemoveSighting({9, 1});
  EXPECT_EQ(without.Serialize(), life->Serialize());
}

TEST(LifeWithout, RefusesRowsThatItDoesNotCount) {
  LifeWithout without(TenIds()->Serialize());
  ExpectError(ErrorCode::kCorruption, {"of others", "id 3", "step 10"},
              [&] { without.Remove({10, 9}, 3, /*sighting=*/false); });
  EXPECT_TRUE(without.Remove({9, 1}, 99, /*sighting=*/true));
  ExpectError(ErrorCode::kCorruption, {"of others", "id 99"}, [&] { without.Remove({9, 1}, 99, /*sighting=*/true); });
  ExpectError(ErrorCode::kCorruption, {"the life of rows"}, [] { LifeWithout("no life"); });
}

TEST(LifeRecount, RefusesWhatIsNoLife) {
  ExpectError(ErrorCode::kCorruption, {"the life of rows"}, [] { LifeRecount("no life", 1); });
}

}  // namespace
}  // namespace damo
