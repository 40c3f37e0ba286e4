// The one binding of csrc: each area binds itself in a file of its own; here they become one module.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_hash(nb::module_& module);
void bind_remote(nb::module_& module);
void bind_node(nb::module_& module);
void bind_client(nb::module_& module);
void bind_transfer(nb::module_& module);
void bind_text(nb::module_& module);
void bind_relay(nb::module_& module);
void bind_eviction(nb::module_& module);
void bind_codec(nb::module_& module);
void bind_gpu(nb::module_& module);

NB_MODULE(_native, module) {
  bind_hash(module);
  bind_remote(module);
  bind_node(module);
  bind_client(module);
  bind_transfer(module);
  bind_text(module);
  bind_relay(module);
  bind_eviction(module);
  bind_codec(module);
  bind_gpu(module);
}
