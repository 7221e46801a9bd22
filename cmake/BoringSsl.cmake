# What scripts/boringssl has built, and all else but libc and libsystemd linked in: programs that run on any Linux of that age.
# Defines the targets that the system's packages define otherwise.
if(NOT EXISTS ${JOBWORKER_BORINGSSL}/sources)
  message(FATAL_ERROR "There is no BoringSSL in ${JOBWORKER_BORINGSSL}: run scripts/boringssl")
endif()

function(static_library target)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "" "NAMES;INCLUDE")
  set(found)
  foreach(name IN LISTS ARG_NAMES)
    # The system has a libgrpc.a and a libssl.a too.
    set(library ${JOBWORKER_BORINGSSL}/lib/lib${name}.a)
    if(NOT EXISTS ${library})
      unset(library)
      find_library(library NAMES lib${name}.a NO_CACHE REQUIRED)
    endif()
    list(APPEND found ${library})
  endforeach()
  list(JOIN found "," found)
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_link_libraries(${target} INTERFACE "$<LINK_GROUP:RESCAN,${found}>" ${CMAKE_DL_LIBS})
  target_include_directories(${target} BEFORE INTERFACE ${ARG_INCLUDE})
endfunction()

file(GLOB absl RELATIVE /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE} /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/libabsl_*.a)
list(TRANSFORM absl REPLACE "^lib(.*)\\.a$" "\\1")
static_library(PkgConfig::GRPC INCLUDE ${JOBWORKER_BORINGSSL}/include
  NAMES grpc++ grpc gpr upb address_sorting ssl crypto re2 cares protobuf z ${absl})
static_library(PkgConfig::OPENSSL INCLUDE ${JOBWORKER_BORINGSSL}/include NAMES ssl crypto)
static_library(PkgConfig::LIBCAP NAMES cap)
static_library(PkgConfig::LIBSECCOMP NAMES seccomp)
add_link_options(-static-libstdc++ -static-libgcc)
