# Where everything goes, in two components: client and server. The units name the places of this prefix; /etc, /run and
# /var/lib are the system's.
set(JOBWORKER_UNIT_DIR lib/systemd/system CACHE STRING "Where systemd's units are installed")
set(UNITS ${CMAKE_CURRENT_BINARY_DIR}/systemd)
# When it is installed, because only then is --prefix known.
install(CODE "
  set(from \"${CMAKE_SOURCE_DIR}/scripts/systemd\")
  set(CMAKE_INSTALL_FULL_SBINDIR \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_SBINDIR}\")
  set(CMAKE_INSTALL_FULL_LIBEXECDIR \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBEXECDIR}\")
  foreach(unit IN ITEMS jobworker.service jobworker-broker.service)
    configure_file(\${from}/\${unit}.in ${UNITS}/\${unit} @ONLY)
  endforeach()" COMPONENT server)
configure_file(scripts/systemd/jobworker-jobs.service ${UNITS}/jobworker-jobs.service COPYONLY)
configure_file(scripts/systemd/sysusers.conf ${UNITS}/sysusers.conf COPYONLY)
configure_file(scripts/systemd/tmpfiles.conf ${UNITS}/tmpfiles.conf COPYONLY)

install(TARGETS jobworker RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT client)

install(TARGETS jobserver jobbroker RUNTIME DESTINATION ${CMAKE_INSTALL_SBINDIR} COMPONENT server)
install(PROGRAMS scripts/make-certs DESTINATION ${CMAKE_INSTALL_SBINDIR} RENAME jobworker-certs COMPONENT server)
install(PROGRAMS scripts/systemd/make-directories DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/jobworker COMPONENT server)
install(FILES ${UNITS}/jobworker.service ${UNITS}/jobworker-broker.service ${UNITS}/jobworker-jobs.service
  DESTINATION ${JOBWORKER_UNIT_DIR} COMPONENT server)
install(FILES ${UNITS}/sysusers.conf DESTINATION lib/sysusers.d RENAME jobworker.conf COMPONENT server)
install(FILES ${UNITS}/tmpfiles.conf DESTINATION lib/tmpfiles.d RENAME jobworker.conf COMPONENT server)
# What the operator has written stays.
install(CODE [[
  foreach(name IN ITEMS users policy)
    if(NOT EXISTS "$ENV{DESTDIR}/etc/jobworker/${name}")
      file(INSTALL "${from}/${name}" DESTINATION /etc/jobworker)
    endif()
  endforeach()]] COMPONENT server)
