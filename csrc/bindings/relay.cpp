// What a router does with each piece of a streamed answer: uvloop calls these two methods straight, and Python only
// where something is out of the ordinary. Short work, so the GIL is kept.
#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "core/stream_relay.h"

namespace nb = nanobind;

namespace {

using kvcommons::StreamRelay;

// One connection to an engine.
class Reader {
 public:
  Reader(nb::bytearray space, nb::object received) : space_(std::move(space)), received_(std::move(received)) {}

  [[nodiscard]] const nb::bytearray& space() const { return space_; }

  void updated(std::size_t count) {
    const std::string_view piece = begin_of(count);
    // Nothing may be passed by, and a socket that was closed may be somebody else's by now.
    const bool may_send =
        is_waiting_.is_valid() && nb::cast<std::size_t>(is_waiting_()) == 0 && !nb::cast<bool>(is_closing_());
    const std::int64_t sent = may_send ? relay.pass_on(piece) : StreamRelay::kNotPlain;
    if (sent == static_cast<std::int64_t>(count)) return;
    const std::string_view rest = piece.substr(sent < 0 ? 0 : static_cast<std::size_t>(sent));
    const nb::bytes copy(rest.data(), rest.size());
    if (sent < 0) {
      received_(copy);
    } else {
      write_(copy);
    }
  }

  bool aim(const nb::object& client, int fd, std::uint64_t left) {
    if (!relay.aim(fd, left)) return false;
    is_waiting_ = client.attr("get_write_buffer_size");
    is_closing_ = client.attr("is_closing");
    write_ = client.attr("write");
    return true;
  }

  void stop() {
    is_waiting_.reset();
    is_closing_.reset();
    write_.reset();
  }

  // For Python's collector: whom `received` calls owns this.
  int each(visitproc visit, void* arg) const {
    Py_VISIT(received_.ptr());
    Py_VISIT(is_waiting_.ptr());
    Py_VISIT(is_closing_.ptr());
    Py_VISIT(write_.ptr());
    return 0;
  }

  void clear() {
    stop();
    received_.reset();
  }

  StreamRelay relay;

 private:
  [[nodiscard]] std::string_view begin_of(std::size_t bytes) const {
    if (bytes > space_.size()) {
      throw nb::value_error(("nbytes is " + std::to_string(bytes) + " and the space has " +
                             std::to_string(space_.size()) + " bytes: pass no more than were read into it")
                                .c_str());
    }
    return {static_cast<const char*>(space_.data()), bytes};
  }

  nb::bytearray space_;
  nb::object received_;
  nb::object is_waiting_;  // of the client that pieces go to
  nb::object is_closing_;
  nb::object write_;
};

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return nb::inst_ready(self) ? nb::inst_ptr<Reader>(self)->each(visit, arg) : 0;
}

int clear(PyObject* self) {
  if (nb::inst_ready(self)) nb::inst_ptr<Reader>(self)->clear();
  return 0;
}

PyType_Slot slots[] = {
    {Py_tp_traverse, reinterpret_cast<void*>(&traverse)}, {Py_tp_clear, reinterpret_cast<void*>(&clear)}, {0, nullptr}};

}  // namespace

void bind_relay(nb::module_& module);
void bind_relay(nb::module_& module) {
  using nb::literals::operator""_a;
  nb::class_<Reader>(module, "StreamRelay", nb::type_slots(slots))
      .def(nb::init<nb::bytearray, nb::object>(), "space"_a, "received"_a)
      .def(
          "get_buffer", [](const Reader& self, const nb::handle&) { return self.space(); }, "sizehint"_a)
      .def("buffer_updated", &Reader::updated, "nbytes"_a)
      .def("begin",
           [](Reader& self) {
             self.stop();
             self.relay.begin();
           })
      .def("aim", &Reader::aim, "client"_a, "fd"_a, "left"_a)
      .def("stop", &Reader::stop)
      .def(
          "note", [](Reader& self, const nb::bytes& piece) { self.relay.note({piece.c_str(), piece.size()}); },
          "piece"_a)
      .def("account",
           [](const Reader& self) {
             const std::string_view tail = self.relay.tail();
             return nb::make_tuple(self.relay.relayed(), self.relay.pieces(), nb::bytes(tail.data(), tail.size()));
           })
      .def_prop_ro("left", [](const Reader& self) { return self.relay.left(); })
      .def_prop_ro("pieces", [](const Reader& self) { return self.relay.pieces(); });
}
