// A device that works for a while and leaves the cores to the host: an XLA custom call that sleeps.
// A callback into Python would not do: programs with one are dispatched synchronously on CPU, and
// wait for Python's lock.
#include <chrono>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

ffi::Error Sleep(float seconds, ffi::Buffer<ffi::S32> step, ffi::ResultBuffer<ffi::F32> zero) {
  std::this_thread::sleep_for(std::chrono::duration<float>(seconds));
  zero->typed_data()[0] = 0.0f;
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    mmx_sleep, Sleep,
    ffi::Ffi::Bind().Attr<float>("seconds").Arg<ffi::Buffer<ffi::S32>>().Ret<ffi::Buffer<ffi::F32>>());
