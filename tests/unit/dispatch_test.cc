#include "broker/dispatch.h"

#include <gtest/gtest.h>

namespace jobworker {
namespace {

// The rules in words, beside the table in broker/dispatch.h: each of its cells is compared.
bool Allowed(State state, RequestType request) {
  switch (request) {
    case RequestType::kHello: return state == State::kNewPeer;
    case RequestType::kPing:
    case RequestType::kWhoIs: return state != State::kNewPeer;
    case RequestType::kStart: return state == State::kAbsent;
    case RequestType::kSignal:
    case RequestType::kKill:
    case RequestType::kUsage: return state != State::kNewPeer && state != State::kAbsent;
    case RequestType::kForget: return state == State::kEnded;
  }
  return false;
}

TEST(Dispatch, EveryCellOfTheTable) {
  size_t cells = 0;
  for (uint8_t state = 0; state < std::size(kAllowed); ++state) {
    for (uint8_t request = 0; request < std::variant_size_v<Request>; ++request, ++cells) {
      EXPECT_EQ(IsAllowed(State{state}, RequestType{request}), Allowed(State{state}, RequestType{request}))
          << int{state} << " " << int{request};
    }
  }
  EXPECT_EQ(cells, 48U);
}

template <size_t... index>
constexpr bool TypesFollowTheVariant(std::index_sequence<index...>) {
  return ((static_cast<size_t>(std::variant_alternative_t<index, Request>::kType) == index) && ...);
}

// The broker takes a request's column from its place in the variant.
static_assert(TypesFollowTheVariant(std::make_index_sequence<std::variant_size_v<Request>>{}));

}  // namespace
}  // namespace jobworker
