// What the front end sends: the bytes that the root half decodes.
#include "tests/fuzz/codec_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  jobworker::CheckDatagram<jobworker::Request>({reinterpret_cast<const char*>(data), size});
  return 0;
}
