#include "peers/store_source.h"

#include "xxh3.h"

namespace kvcommons::peers {

using wire::Answer;

void StoreSource::locate(const wire::LocateRequest& request, wire::LocatedReply* out) {
  std::uint32_t here = 0;
  for (const Key& key : request.keys) {
    const std::size_t before = out->places.size();
    for (const ShardSpec& shard : request.shards) {
      Borrowed borrowed;
      if (!store_->borrow(request.head.fingerprint, key, shard.rect, &borrowed)) break;
      store_->give_back(borrowed);
      if (borrowed.payload_bytes != shard.slot_bytes) break;
      out->places.push_back({borrowed.payload_bytes, borrowed.slot.generation, 0});
    }
    if (out->places.size() != before + request.shards.size()) {
      out->places.resize(before);
      break;
    }
    ++here;
  }
  out->head.chunks = here;
  if (here < request.keys.size() && config_.bring) {
    SessionSpec spec;
    spec.fingerprint = request.head.fingerprint;
    spec.chunk_tokens = request.head.chunk_tokens;
    spec.shards = request.shards;
    out->head.coming = config_.bring(spec, request.keys, here);
  }
}

Answer StoreSource::lend(const Key& fingerprint, const wire::Item& item, Lent* out) {
  auto borrowed = std::make_unique<Borrowed>();
  if (!store_->borrow(fingerprint, item.key, item.rect, borrowed.get())) return Answer::Missing;
  // From here on whoever lets go of the last hold gives it back.
  Borrowed& b = *borrowed.release();
  out->hold = std::shared_ptr<void>(static_cast<void*>(&b), [store = store_](void* held) {
    const std::unique_ptr<Borrowed> last(static_cast<Borrowed*>(held));
    store->give_back(*last);
  });
  if (item.generation != wire::kAnyGeneration && b.slot.generation != item.generation) return Answer::Gone;
  out->generation = b.slot.generation;
  out->data = config_.arena + b.slot.offset_bytes;
  const std::uint64_t checksum = b.checksum != 0 ? b.checksum : xxh3_64(out->data, b.payload_bytes);
  out->meta = {{fingerprint, item.key, item.rect},
               b.parent,
               b.tenant,
               b.payload_bytes,
               checksum,
               b.chunk_tokens,
               0,
               b.text_keys};
  return Answer::Ok;
}

Answer StoreSource::take(const wire::ShardHead&, Room*) { return Answer::Denied; }

std::uint64_t StoreSource::remove(const wire::RemoveRequest&) { return 0; }

}  // namespace kvcommons::peers
