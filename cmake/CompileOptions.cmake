# One interface target with the warnings, the hardening and the sanitizers of every target of ours.
add_library(jobworker_options INTERFACE)
target_include_directories(jobworker_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_definitions(jobworker_options INTERFACE JOBWORKER_VERSION="${PROJECT_VERSION}")
target_compile_options(jobworker_options INTERFACE
  -Wall -Wextra -Wpedantic -Werror -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor -Wold-style-cast
  -Wimplicit-fallthrough -Wformat=2 -Wundef)

set(CMAKE_POSITION_INDEPENDENT_CODE ON)
include(CheckPIESupported)
check_pie_supported()

if(JOBWORKER_SANITIZE)
  target_compile_options(jobworker_options INTERFACE
    -fsanitize=${JOBWORKER_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(jobworker_options INTERFACE -fsanitize=${JOBWORKER_SANITIZE})
  # It looks at memory through pipes, and takes a process without a free descriptor for one with a broken object.
  target_compile_options(jobworker_options INTERFACE -fno-sanitize=vptr)
else()
  # -U first: some distributions' compilers predefine a level.
  target_compile_options(jobworker_options INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
endif()
target_compile_definitions(jobworker_options INTERFACE _GLIBCXX_ASSERTIONS)
target_compile_options(jobworker_options INTERFACE
  -fstack-protector-strong -fstack-clash-protection -fcf-protection=full)
target_link_options(jobworker_options INTERFACE
  -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack -Wl,--as-needed)
