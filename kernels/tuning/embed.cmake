# Writes the C++ that kernels/tuning/shipped.h declares.
#
#   cmake -DSOURCE_DIR=<root> -DOUT=<file> -P embed.cmake
cmake_minimum_required(VERSION 3.25)

# Appends to `var` the file and, each once, every file of ours that it includes.
function(collect_includes file var)
  set(found ${${var}})
  if(file IN_LIST found)
    return()
  endif()
  list(APPEND found ${file})
  file(STRINGS ${SOURCE_DIR}/${file} lines REGEX "^[ \t]*#[ \t]*include[ \t]*\"")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "^[^\"]*\"([^\"]*)\".*" "\\1" header "${line}")
    collect_includes(${header} found)
  endforeach()
  set(${var} ${found} PARENT_SCOPE)
endfunction()

# The code of a file as it counts for a build id: comments and spaces change no kernel.
function(read_code file var)
  file(READ ${SOURCE_DIR}/${file} text)
  string(REGEX REPLACE "//[^\n]*" "" text "${text}")
  string(REGEX REPLACE "[ \t\r\n]+" "" text "${text}")
  set(${var} "${text}" PARENT_SCOPE)
endfunction()

file(GLOB sources RELATIVE ${SOURCE_DIR} ${SOURCE_DIR}/kernels/cuda/*.cu)
file(GLOB configs RELATIVE ${SOURCE_DIR} ${SOURCE_DIR}/kernels/cuda/*_config.h)
set(ids "")
foreach(config IN LISTS configs)
  set(files "")
  foreach(source IN LISTS sources)
    set(closure "")
    collect_includes(${source} closure)
    if(config IN_LIST closure)
      list(APPEND files ${closure})
    endif()
  endforeach()
  list(REMOVE_DUPLICATES files)
  list(SORT files)
  set(all "")
  foreach(file IN LISTS files)
    read_code(${file} code)
    string(APPEND all "${file}\n${code}\n")
  endforeach()
  string(SHA256 hash "${all}")
  string(SUBSTRING ${hash} 0 16 id)
  string(REGEX REPLACE "^kernels/cuda/(.*)_config\\.h$" "\\1" op ${config})
  string(APPEND ids "    {\"${op}\", \"${id}\"},\n")
endforeach()

file(GLOB stores RELATIVE ${SOURCE_DIR} ${SOURCE_DIR}/kernels/tuning/*.tuning)
set(shipped "")
foreach(store IN LISTS stores)
  file(READ ${SOURCE_DIR}/${store} text)
  string(APPEND shipped "    {\"${store}\", R\"tuning(${text})tuning\"},\n")
endforeach()

set(cc "// Written by kernels/tuning/embed.cmake.
#include \"kernels/tuning/shipped.h\"

namespace nibble {
namespace {

struct BuildId {
  std::string_view op, id;
};
constexpr BuildId kBuildIds[] = {
${ids}};
constexpr ShippedFile kShippedFiles[] = {
${shipped}};

}  // namespace

std::string_view TuningBuildId(std::string_view op) {
  for (const BuildId& entry : kBuildIds) {
    if (entry.op == op) return entry.id;
  }
  return \"\";
}

std::span<const ShippedFile> ShippedTuningFiles() { return kShippedFiles; }

}  // namespace nibble
")
# An unchanged file keeps its time, so that nothing is built again.
file(WRITE ${OUT}.new "${cc}")
file(COPY_FILE ${OUT}.new ${OUT} ONLY_IF_DIFFERENT)
