# Writes the C++ that holds the recipes of policies/recipes.
#
#   cmake -DSOURCE_DIR=<root> -DOUT=<file> -P embed.cmake
cmake_minimum_required(VERSION 3.25)

file(GLOB recipes ${SOURCE_DIR}/policies/recipes/*.yaml)
list(SORT recipes)
set(shipped "")
foreach(recipe IN LISTS recipes)
  get_filename_component(name ${recipe} NAME_WE)
  file(READ ${recipe} text)
  string(APPEND shipped "    {\"${name}\", R\"recipe(${text})recipe\"},\n")
endforeach()

set(cc "// Written by policies/embed.cmake.
#include \"policies/recipe.h\"

namespace nibble {
namespace {

constexpr ShippedRecipe kShippedRecipes[] = {
${shipped}};

}  // namespace

std::span<const ShippedRecipe> ShippedRecipes() { return kShippedRecipes; }

}  // namespace nibble
")
# An unchanged file keeps its time, so that nothing is built again.
file(WRITE ${OUT}.new "${cc}")
file(COPY_FILE ${OUT}.new ${OUT} ONLY_IF_DIFFERENT)
