// What every decoder of the boundary protocol is held to, whatever the bytes.
#pragma once
#include <cstdlib>
#include <string>
#include <string_view>

#include "common/broker_protocol.h"

namespace jobworker {

// A datagram that decodes has exactly one form: encoding the message gives the same bytes again. So no byte of it can
// be read in two ways, and nothing that was read gets lost.
template <class Variant>
void CheckDatagram(std::string_view datagram) {
  const std::optional<Variant> message = Decode<Variant>(datagram);
  if (!message) return;
  const std::string again = std::visit([](const auto& known) { return Encode(known); }, *message);
  if (again != datagram || !Decode<Variant>(again)) std::abort();
}

}  // namespace jobworker
