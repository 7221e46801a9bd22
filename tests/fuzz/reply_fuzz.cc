// What the broker sends: the bytes that the front end decodes.
#include "tests/fuzz/codec_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  jobworker::CheckDatagram<jobworker::Reply>({reinterpret_cast<const char*>(data), size});
  return 0;
}
