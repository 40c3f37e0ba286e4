// What drivers of remote stores are written against: they take jobs, and say what came of them. A call that waits or
// copies releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/buffers.h"
#include "core/tiers/remote_port.h"

namespace nb = nanobind;

namespace {

using kvcommons::bindings::Buffer;
using kvcommons::tiers::RemoteAnswer;
using kvcommons::tiers::RemoteJob;
using kvcommons::tiers::RemoteOp;
using kvcommons::tiers::RemoteOutcome;
using kvcommons::tiers::RemotePort;

const char* op_name(RemoteOp op) {
  switch (op) {
    case RemoteOp::Put:
      return "put";
    case RemoteOp::Get:
      return "get";
    case RemoteOp::Ask:
      return "ask";
    case RemoteOp::Remove:
      return "remove";
    case RemoteOp::Clear:
      return "clear";
    case RemoteOp::Ping:
      return "ping";
  }
  return "unknown";
}

RemoteOutcome outcome_of(const std::string& name) {
  if (name == "ok") return RemoteOutcome::Ok;
  if (name == "exists") return RemoteOutcome::Exists;
  if (name == "missing") return RemoteOutcome::Missing;
  if (name == "full") return RemoteOutcome::Full;
  if (name == "failed") return RemoteOutcome::Failed;
  if (name == "unreachable") return RemoteOutcome::Unreachable;
  throw std::invalid_argument("outcome '" + name + "': give one of ok, exists, missing, full, failed, unreachable");
}

// (id, op, names, bytes, ttl_ms, time_out_ms), or None.
nb::object take(RemotePort& port, unsigned lane, std::uint32_t wait_ms) {
  RemoteJob job;
  bool taken = false;
  {
    nb::gil_scoped_release release;
    taken = port.take(lane, wait_ms, &job);
  }
  if (!taken) return nb::none();
  nb::list names;
  for (const std::string& name : job.names) names.append(nb::str(name.c_str(), name.size()));
  return nb::make_tuple(job.id, op_name(job.op), names, job.bytes, job.ttl_ms, job.time_out_ms);
}

// The bytes of a put, or None if it is not wanted any more.
nb::object object(RemotePort& port, std::uint64_t id, std::size_t bytes) {
  nb::object made = nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bytes)));
  if (!made.is_valid()) throw nb::python_error();
  auto* out = reinterpret_cast<std::byte*>(PyBytes_AsString(made.ptr()));  // nobody else has it yet
  bool wanted = false;
  {
    nb::gil_scoped_release release;
    wanted = port.object(id, out);
  }
  return wanted ? made : nb::none();
}

void done(RemotePort& port, std::uint64_t id, const std::string& outcome, const nb::object& content,
          const std::vector<std::uint64_t>& sizes, std::string why) {
  RemoteAnswer answer{outcome_of(outcome), {}, sizes, 0, std::move(why)};
  if (content.is_none()) {
    nb::gil_scoped_release release;
    return port.done(id, answer);
  }
  const Buffer buffer("content", content);
  answer.object = {static_cast<const std::byte*>(buffer.data()), buffer.bytes()};
  nb::gil_scoped_release release;
  port.done(id, answer);
}

}  // namespace

void bind_remote(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<RemotePort>(module, "RemotePort")
      .def_prop_ro("name", [](RemotePort& port) { return std::string(port.name()); })
      .def_prop_ro("lanes", [](RemotePort& port) { return port.lanes(); })
      .def_prop_ro("closed",
                   [](RemotePort& port) {
                     nb::gil_scoped_release release;
                     return port.closed();
                   })
      .def("take", &take, "lane"_a, "wait_ms"_a)
      .def("object", &object, "id"_a, "bytes"_a)
      .def("done", &done, "id"_a, "outcome"_a, "content"_a = nb::none(), "sizes"_a = std::vector<std::uint64_t>{},
           "why"_a = "");
}
