#include "bindings/buffers.h"

#include <cstring>

namespace nb = nanobind;

namespace kvcommons::bindings {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

[[noreturn]] void refuse_kind(const char* argument, nb::handle object, const std::string& detail) {
  refuse(std::string(argument) + " is a " + nb::inst_name(object).c_str() + detail +
         ": pass a C-contiguous buffer of u32, i32 or i64, or a list of ints");
}

[[noreturn]] void refuse_value(const char* argument, std::size_t at, const std::string& value) {
  refuse(std::string(argument) + "[" + std::to_string(at) + "] is " + value +
         ", outside 0..4294967295: pass ids as the engine counts them");
}

template <typename T>
void convert(const char* argument, const T* items, std::size_t count, std::vector<std::uint32_t>* out) {
  T all_bits = 0;
  for (std::size_t i = 0; i < count; ++i) all_bits |= items[i];
  constexpr std::uint64_t kMax = 0xFFFFFFFFu;
  if ((static_cast<std::uint64_t>(all_bits) & ~kMax) != 0) {  // a sign or a bit too high is in one of them: find it
    for (std::size_t i = 0; i < count; ++i) {
      if ((static_cast<std::uint64_t>(items[i]) & ~kMax) != 0) refuse_value(argument, i, std::to_string(items[i]));
    }
  }
  if constexpr (sizeof(T) != sizeof(std::uint32_t)) {
    out->resize(count);
    for (std::size_t i = 0; i < count; ++i) (*out)[i] = static_cast<std::uint32_t>(items[i]);
  }
}

}  // namespace

Buffer::Buffer(const char* argument, nb::handle object) {
  if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) == 0) return;
  PyErr_Clear();
  throw nb::value_error((std::string(argument) + " is a " + nb::inst_name(object).c_str() +
                         " that gives no C-contiguous buffer: pass bytes, a memoryview or a contiguous array")
                            .c_str());
}

Buffer::~Buffer() { PyBuffer_Release(&view_); }

U32Array::U32Array(const char* argument, nb::handle object) {
  if (PyObject_CheckBuffer(object.ptr())) {
    buffer_.emplace(argument, object);
    const std::string format = buffer_->format();
    const char kind = format.empty() ? '?' : format.back();
    const bool is_signed = std::strchr("ilqn", kind) != nullptr;
    const bool swapped = format.front() == '>' || format.front() == '!';
    if (swapped || (!is_signed && std::strchr("ILQN", kind) == nullptr)) {
      refuse_kind(argument, object, " of format \"" + format + "\"");
    }
    take_items(argument, buffer_->data(), buffer_->bytes() / buffer_->item_bytes(), buffer_->item_bytes(), is_signed);
  } else if (!take_dlpack(argument, object)) {
    take_sequence(argument, object);
  }
}

bool U32Array::take_dlpack(const char* argument, nb::handle object) {
  if (!nb::hasattr(object, "__dlpack__")) return false;
  Tensor tensor;
  if (!nb::try_cast(object, tensor, false)) refuse_kind(argument, object, " not contiguous in this machine's memory");
  const auto dtype = tensor.dtype();
  const bool is_signed = dtype.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Int);
  if ((!is_signed && dtype.code != static_cast<std::uint8_t>(nb::dlpack::dtype_code::UInt)) || dtype.lanes != 1) {
    refuse_kind(argument, object, " of another kind than integers");
  }
  tensor_.emplace(std::move(tensor));
  take_items(argument, tensor_->data(), tensor_->size(), dtype.bits / 8u, is_signed);
  return true;
}

void U32Array::take_items(const char* argument, const void* data, std::size_t count, std::size_t item_bytes,
                          bool is_signed) {
  if (item_bytes == sizeof(std::uint32_t)) {
    if (is_signed) convert(argument, static_cast<const std::int32_t*>(data), count, &converted_);
    values_ = {static_cast<const std::uint32_t*>(data), count};
    return;
  }
  if (item_bytes != sizeof(std::uint64_t)) {
    refuse(std::string(argument) + " has items of " + std::to_string(item_bytes) +
           " bytes: pass u32, i32 or i64, or a list of ints");
  }
  if (is_signed) {
    convert(argument, static_cast<const std::int64_t*>(data), count, &converted_);
  } else {
    convert(argument, static_cast<const std::uint64_t*>(data), count, &converted_);
  }
  values_ = converted_;
}

void U32Array::take_sequence(const char* argument, nb::handle object) {
  if (nb::isinstance<nb::str>(object) || !PySequence_Check(object.ptr())) refuse_kind(argument, object, "");
  const nb::object fast = nb::steal(PySequence_Fast(object.ptr(), "not a sequence"));
  if (!fast.is_valid()) throw nb::python_error();
  const bool is_list = PyList_Check(fast.ptr()) != 0;
  const auto count = static_cast<std::size_t>(PySequence_Size(fast.ptr()));
  converted_.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto at = static_cast<Py_ssize_t>(i);
    PyObject* item = is_list ? PyList_GetItem(fast.ptr(), at) : PyTuple_GetItem(fast.ptr(), at);  // borrowed
    if (item == nullptr) throw nb::python_error();
    const long long value = PyLong_AsLongLong(item);
    if (value == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      refuse_value(argument, i, nb::repr(item).c_str());
    }
    if ((static_cast<std::uint64_t>(value) & ~std::uint64_t{0xFFFFFFFFu}) != 0) {
      refuse_value(argument, i, std::to_string(value));
    }
    converted_[i] = static_cast<std::uint32_t>(value);
  }
  values_ = converted_;
}

Key key_argument(const char* argument, const nb::bytes& value) {
  if (value.size() != kKeyBytes) {
    refuse(std::string(argument) + " has " + std::to_string(value.size()) + " bytes, not " + std::to_string(kKeyBytes) +
           ": pass a whole SHA-256 digest");
  }
  Key key;
  std::memcpy(key.bytes.data(), value.c_str(), kKeyBytes);
  return key;
}

std::vector<Key> keys_argument(const char* argument, const nb::bytes& value) {
  if (value.size() % kKeyBytes != 0) {
    refuse(std::string(argument) + " has " + std::to_string(value.size()) + " bytes, no multiple of " +
           std::to_string(kKeyBytes) + ": pass whole keys one after the other");
  }
  std::vector<Key> keys(value.size() / kKeyBytes);
  if (!keys.empty()) std::memcpy(keys.data(), value.c_str(), value.size());
  return keys;
}

}  // namespace kvcommons::bindings
