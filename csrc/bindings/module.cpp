// The one binding of csrc: each area binds itself in a file of its own; here they become one module.
#include <nanobind/nanobind.h>

#include "core/wire.h"

namespace nb = nanobind;

// Weak, so that a build without one of the areas still gives the others.
[[gnu::weak]] void bind_hash(nb::module_& module);
[[gnu::weak]] void bind_node(nb::module_& module);
[[gnu::weak]] void bind_client(nb::module_& module);
[[gnu::weak]] void bind_transfer(nb::module_& module);

NB_MODULE(_native, module) {
  for (auto* bind : {&bind_hash, &bind_node, &bind_client, &bind_transfer}) {
    if (bind != nullptr) bind(module);
  }
}
