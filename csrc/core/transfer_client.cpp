// A transfer on a real client.
#include <utility>

#include "client.h"
#include "lease_port.h"
#include "transfer.h"

namespace kvcommons {
namespace {

class ClientPort final : public LeasePort {
 public:
  explicit ClientPort(std::shared_ptr<Client> client) : client_(std::move(client)) {}

  bool ensure_connected() override { return client_->ensure_connected(); }

  [[nodiscard]] Attachment attachment() const override {
    // The three are read one by one: the same attach before and after makes them belong together.
    for (;;) {
      const std::uint64_t before = client_->attach_count();
      Attachment out = {.arena = client_->arena(), .arena_bytes = client_->arena_bytes(), .attach = before};
      if (client_->attach_count() == before) return out;
    }
  }

  [[nodiscard]] std::uint64_t slot_bytes() const override { return client_->slot_bytes(); }

  Status begin(LeaseId lease, std::vector<SlotRef>* out) override { return client_->begin(lease, out); }
  Status release(LeaseId lease) override { return client_->release(lease); }
  Status reserve(std::uint64_t tenant, const Key& parent, std::span<const Key> keys, std::vector<Reservation>* out,
                 std::uint32_t hints) override {
    return client_->reserve(tenant, parent, keys, out, hints);
  }
  Status commit(std::span<const CommitItem> items, std::uint32_t* accepted) override {
    return client_->commit(items, accepted);
  }
  Status abort(std::span<const SlotRef> slots) override { return client_->abort(slots); }
  void upkeep() override { client_->upkeep(); }
  void copy_started() override { client_->copy_started(); }
  void copy_finished() override { client_->copy_finished(); }

 private:
  std::shared_ptr<Client> client_;
};

}  // namespace

std::shared_ptr<LeasePort> client_port(std::shared_ptr<Client> client) {
  return std::make_shared<ClientPort>(std::move(client));
}

Transfer::Transfer(std::shared_ptr<Client> client, TransferConfig config)
    : Transfer(client_port(std::move(client)), std::move(config)) {}

}  // namespace kvcommons
