#include "tiers/codec_tier.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <utility>

#include "xxh3.h"

namespace kvcommons::tiers {
namespace {

using kvcodec::CodecId;
using kvcodec::CodecSpec;
using kvcodec::CodecStatus;
using kvcodec::KvShape;

constexpr std::chrono::milliseconds kInnerRetry{2};
constexpr int kEncoderNice = 10;  // what is written behind waits for the engines, not they for it

std::uint64_t rounded(std::uint64_t bytes) { return (bytes + kSlotAlignBytes - 1) / kSlotAlignBytes * kSlotAlignBytes; }

bool lossy(const CodecSpec& codec) {
  const kvcodec::CodecInfo* info = kvcodec::codec_info(codec.id);
  return info != nullptr && info->lossy;
}

class Stopwatch {
 public:
  explicit Stopwatch(std::atomic<std::uint64_t>* into) : into_(into) {}
  ~Stopwatch() {
    const auto passed = std::chrono::steady_clock::now() - began_;
    into_->fetch_add(static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(passed).count()));
  }
  Stopwatch(const Stopwatch&) = delete;  // it would count twice

 private:
  std::atomic<std::uint64_t>* into_;
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

}  // namespace

// A batch of gets on its way in: encoded payloads lie in blocks of the pool until they are decoded into the caller's.
struct CodecTier::Decode {
  std::vector<GetItem> items;
  std::vector<AlignedPool::Block> blocks;  // empty: the item was read to where it belongs
  std::vector<GetResult> results;
  GetDone done;
  std::uint64_t bytes = 0;
  std::atomic<std::size_t> left{0};
};

CodecTier::CodecTier(std::shared_ptr<Tier> inner, KvLayouts* layouts, const CodecTierConfig& config)
    : config_(config),
      inner_(std::move(inner)),
      layouts_(layouts),
      pool_(config.encode_bytes_max / 2 + config.decode_bytes_max / 4) {
  encoder_ = std::thread([this] { encode_loop(); });
  const std::uint32_t half = std::clamp(std::thread::hardware_concurrency() / 2, 1u, 4u);
  for (std::uint32_t i = 0; i < (config_.decoders == 0 ? half : config_.decoders); ++i) {
    decoders_.emplace_back([this] { decode_loop(); });
  }
}

CodecTier::~CodecTier() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    encodes_changed_.notify_all();
  }
  encoder_.join();
  {
    std::unique_lock lock(mutex_);  // the tier behind answers all that it has taken
    ended_changed_.wait(lock, [this] { return under_way_ == 0; });
    ending_ = true;
    decodes_changed_.notify_all();
  }
  for (std::thread& decoder : decoders_) decoder.join();
}

bool CodecTier::admit(std::uint64_t* waiting, std::uint64_t bytes, std::uint64_t bytes_max, std::size_t items) {
  const std::lock_guard lock(mutex_);
  if (closing_ || (*waiting > 0 && *waiting + bytes > bytes_max)) {
    counters_.refused_busy += items;
    return false;
  }
  *waiting += bytes;
  ++under_way_;
  return true;
}

void CodecTier::ended(std::uint64_t* waiting, std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  *waiting -= bytes;
  --under_way_;
  ended_changed_.notify_all();
}

// ---- out --------------------------------------------------------------------------------------------------------

bool CodecTier::put(std::vector<PutItem> batch, PutDone done) {
  return put_as(config_.codec, std::move(batch), std::move(done));
}

bool CodecTier::put_as(const CodecSpec& codec, std::vector<PutItem> batch, PutDone done) {
  if (codec.id == CodecId::None) return inner_->put(std::move(batch), std::move(done));
  std::uint64_t bytes = 0;
  for (const PutItem& item : batch) bytes += item.meta.payload_bytes;
  if (!admit(&encode_bytes_, bytes, config_.encode_bytes_max, batch.size())) return false;
  const std::lock_guard lock(mutex_);
  encodes_.push_back({codec, std::move(batch), std::move(done), bytes});
  encodes_changed_.notify_one();
  return true;
}

void CodecTier::encode_loop() {
  // Not granted in every container: then it competes as all others do.
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), kEncoderNice);
  for (std::unique_lock lock(mutex_);;) {
    encodes_changed_.wait(lock, [this] { return closing_ || !encodes_.empty(); });
    if (encodes_.empty()) return;
    Encode job = std::move(encodes_.front());
    encodes_.pop_front();
    const bool closing = closing_;
    lock.unlock();
    const std::uint64_t bytes = job.bytes;
    if (closing) {
      job.done(std::vector<TierStatus>(job.items.size(), TierStatus::Closed));
      ended(&encode_bytes_, bytes);
    } else {
      encode_batch(std::move(job));
    }
    lock.lock();
  }
}

void CodecTier::encode_batch(Encode job) {
  const auto buffers = std::make_shared<Buffers>();
  const auto statuses = std::make_shared<std::vector<TierStatus>>(job.items.size(), TierStatus::Ok);
  std::vector<PutItem> items;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < job.items.size(); ++i) {
    (*statuses)[i] = encode_item(job.codec, &job.items[i], buffers.get());
    if ((*statuses)[i] != TierStatus::Ok) continue;
    items.push_back(std::move(job.items[i]));
    places.push_back(i);
  }
  const PutDone taker = [this, buffers, statuses, places, done = std::move(job.done),
                         bytes = job.bytes](std::span<const TierStatus> got) {
    for (std::size_t i = 0; i < places.size(); ++i) (*statuses)[places[i]] = got[i];
    for (AlignedPool::Block& block : buffers->blocks) pool_.give_back(std::move(block));
    buffers->blocks.clear();
    done(*statuses);
    ended(&encode_bytes_, bytes);
  };
  if (items.empty()) return taker({});
  submit(items, taker);
}

// The tier behind may have no room in its queue for a while.
void CodecTier::submit(const std::vector<PutItem>& items, const PutDone& done) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(config_.inner_busy_ms_max);
  while (!inner_->put(items, done)) {
    std::unique_lock lock(mutex_);
    const bool closing = encodes_changed_.wait_for(lock, kInnerRetry, [this] { return closing_; });
    lock.unlock();
    if (!closing && std::chrono::steady_clock::now() < until) continue;
    return done(std::vector<TierStatus>(items.size(), closing ? TierStatus::Closed : TierStatus::Busy));
  }
}

// What is used of `wanted` for this shard, with its shape: None where it stays as it is.
CodecSpec CodecTier::codec_for(const CodecSpec& wanted, const ShardMeta& meta, KvShape* shape) {
  const auto layout = layouts_->find(meta.id.fingerprint);
  const auto known = layout ? shape_of(*layout, meta.chunk_tokens, meta.id.rect, meta.payload_bytes) : std::nullopt;
  if (lossy(wanted) && layouts_->allows(meta.id.fingerprint, wanted)) {
    if (known && kvcodec::why_not(wanted, *known).empty()) {
      *shape = *known;
      return wanted;
    }
    ++counters_.layout_unknown;
  }
  const auto any = known ? known : flat_shape(meta.payload_bytes);
  if (!any) return {};
  *shape = *any;
  return {CodecId::Lossless, 0};
}

TierStatus CodecTier::encode_item(const CodecSpec& wanted, PutItem* item, Buffers* buffers) {
  ShardMeta& meta = item->meta;
  std::uint64_t here = 0;
  inner_->find(std::span(&meta.id, 1), std::span(&here, 1));
  if (here != 0 && !item->replace) return TierStatus::Ok;  // the tier says so without a write
  const std::span raw(item->data, meta.payload_bytes);
  if (item->data == nullptr || raw.empty() || meta.codec != 0) return TierStatus::Failed;
  KvShape shape;
  CodecSpec codec = codec_for(wanted, meta, &shape);
  if (codec.id == CodecId::None) {
    ++counters_.kept_raw;
    return TierStatus::Ok;
  }
  const Stopwatch watch(&counters_.encode_us);
  // A wrong byte would be right for ever after.
  if (xxh3_64(raw.data(), raw.size()) != meta.checksum) return TierStatus::Failed;
  AlignedPool::Block block;
  kvcodec::CodecResult result;
  try {
    const std::uint64_t room =
        std::max(kvcodec::encoded_bytes_max(codec, shape), kvcodec::encoded_bytes_max({CodecId::Lossless, 0}, shape));
    block = pool_.take(room);
    result = kvcodec::encode(codec, shape, raw, {block.data(), block.bytes()});
    if (result.status == CodecStatus::NotFinite) {
      ++counters_.not_finite;
      codec = {CodecId::Lossless, 0};
      result = kvcodec::encode(codec, shape, raw, {block.data(), block.bytes()});
    }
  } catch (const std::bad_alloc&) {
    return TierStatus::Busy;
  }
  if (result.status != CodecStatus::Ok || rounded(result.bytes) >= rounded(raw.size())) {
    ++counters_.kept_raw;  // no zstd here, or nothing gained
    pool_.give_back(std::move(block));
    return TierStatus::Ok;
  }
  std::memset(block.data() + result.bytes, 0, rounded(result.bytes) - result.bytes);
  meta.raw_bytes = meta.payload_bytes;
  meta.payload_bytes = result.bytes;
  meta.checksum = xxh3_64(block.data(), result.bytes);
  meta.codec = static_cast<std::uint16_t>(codec.id);
  meta.codec_group = static_cast<std::uint16_t>(codec.group);
  item->data = block.data();
  ++counters_.encoded;
  counters_.encoded_raw_bytes += meta.raw_bytes;
  counters_.encoded_bytes += meta.payload_bytes;
  buffers->blocks.push_back(std::move(block));
  return TierStatus::Ok;
}

// ---- in ---------------------------------------------------------------------------------------------------------

bool CodecTier::get(std::vector<GetItem> batch, GetDone done) {
  const auto decode = std::make_shared<Decode>();
  decode->blocks.resize(batch.size());
  std::vector<GetItem> items = batch;
  std::vector<std::uint64_t> room(batch.size());
  ShardMeta meta;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    // What is too large for the caller is refused by the tier behind, as it refuses what is not encoded.
    const bool encoded = inner_->describe(batch[i].id, &meta) && meta.codec != 0;
    if (encoded && meta.raw_bytes <= batch[i].room_bytes) room[i] = rounded(meta.payload_bytes);
    if (encoded && meta.raw_bytes > batch[i].room_bytes) items[i].room_bytes = 0;
    decode->bytes += room[i];
  }
  if (!admit(&decode_bytes_, decode->bytes, config_.decode_bytes_max, batch.size())) return false;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    if (room[i] == 0) continue;
    try {
      decode->blocks[i] = pool_.take(room[i]);
    } catch (const std::bad_alloc&) {
      ended(&decode_bytes_, decode->bytes);
      return false;
    }
    items[i].data = decode->blocks[i].data();
    items[i].room_bytes = decode->blocks[i].bytes();
  }
  decode->items = std::move(batch);
  decode->done = std::move(done);
  const bool taken =
      inner_->get(std::move(items), [this, decode](std::span<const GetResult> results) { got(decode, results); });
  if (taken) return true;
  for (AlignedPool::Block& block : decode->blocks) {
    if (block.data() != nullptr) pool_.give_back(std::move(block));
  }
  ended(&decode_bytes_, decode->bytes);
  return false;
}

// On a thread of the tier behind: only what is as it was is answered here.
void CodecTier::got(const DecodePtr& decode, std::span<const GetResult> results) {
  decode->results.assign(results.begin(), results.end());
  std::vector<std::size_t> wait;
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (results[i].status == TierStatus::Ok && (results[i].meta.codec != 0 || decode->blocks[i].data() != nullptr)) {
      wait.push_back(i);
    }
  }
  if (wait.empty()) {
    for (AlignedPool::Block& block : decode->blocks) {
      if (block.data() != nullptr) pool_.give_back(std::move(block));
    }
    decode->done(decode->results);
    return ended(&decode_bytes_, decode->bytes);
  }
  decode->left = wait.size();
  const std::lock_guard lock(mutex_);
  for (const std::size_t i : wait) decodes_.emplace_back(decode, i);
  decodes_changed_.notify_all();
}

void CodecTier::decode_loop() {
  for (std::unique_lock lock(mutex_);;) {
    decodes_changed_.wait(lock, [this] { return ending_ || !decodes_.empty(); });
    if (decodes_.empty()) return;
    const auto [decode, item] = std::move(decodes_.front());
    decodes_.pop_front();
    lock.unlock();
    decode_item(*decode, item);
    if (decode->left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      for (AlignedPool::Block& block : decode->blocks) {
        if (block.data() != nullptr) pool_.give_back(std::move(block));
      }
      decode->done(decode->results);
      ended(&decode_bytes_, decode->bytes);
    }
    lock.lock();
  }
}

// Its form may have changed between the question and the read: what lies in the caller's buffer is moved out of it
// first, what was read as it is into a block is moved to where it belongs.
void CodecTier::decode_item(Decode& decode, std::size_t i) {
  GetResult& result = decode.results[i];
  ShardMeta& meta = result.meta;
  const GetItem& item = decode.items[i];
  AlignedPool::Block& block = decode.blocks[i];
  const Stopwatch watch(&counters_.decode_us);
  const auto fail = [&](TierStatus status) { result = {status, {}}; };
  if (memory_bytes(meta) > item.room_bytes) return fail(TierStatus::Failed);
  if (meta.codec == 0) {
    std::memcpy(item.data, block.data(), meta.payload_bytes);
    return;
  }
  if (block.data() == nullptr) {
    try {
      block = pool_.take(meta.payload_bytes);
    } catch (const std::bad_alloc&) {
      return fail(TierStatus::Busy);
    }
    std::memcpy(block.data(), item.data, meta.payload_bytes);
  }
  const CodecSpec codec{static_cast<CodecId>(meta.codec), meta.codec_group};
  if (lossy(codec) && !layouts_->allows(meta.id.fingerprint, codec)) {
    ++counters_.lossy_refused;
    return fail(TierStatus::Missing);
  }
  const std::span<const std::byte> payload(block.data(), meta.payload_bytes);
  kvcodec::PayloadHeader header;
  kvcodec::CodecResult done = kvcodec::parse_header(payload, &header);
  const bool ours = done.status == CodecStatus::Ok && header.spec == codec && header.raw_bytes == meta.raw_bytes;
  if (ours) done = kvcodec::decode(payload, header.shape, {item.data, meta.raw_bytes});
  if (!ours || done.status != CodecStatus::Ok) {
    ++counters_.decode_failed;
    const bool missing = done.status == CodecStatus::NoLibrary;  // nothing is wrong with it
    if (!missing) (void)inner_->remove(std::span(&meta.id, 1));
    return fail(missing ? TierStatus::Failed : TierStatus::Corrupt);
  }
  ++counters_.decoded;
  counters_.decoded_raw_bytes += meta.raw_bytes;
  counters_.decoded_bytes += meta.payload_bytes;
  meta.checksum = header.raw_checksum != 0 ? header.raw_checksum : xxh3_64(item.data, meta.raw_bytes);
  meta.payload_bytes = std::exchange(meta.raw_bytes, 0);
  meta.codec = meta.codec_group = 0;
}

// ---- counters ---------------------------------------------------------------------------------------------------

TierStats CodecTier::stats() const {
  TierStats stats = inner_->stats();
  stats.corrupt += counters_.decode_failed.load();
  stats.refused_busy += counters_.refused_busy.load();
  return stats;
}

CodecStats CodecTier::codec_stats() const {
  const Counters& c = counters_;
  return {c.encoded,           c.encoded_raw_bytes, c.encoded_bytes, c.encode_us, c.decoded,
          c.decoded_raw_bytes, c.decoded_bytes,     c.decode_us,     c.kept_raw,  c.layout_unknown,
          c.not_finite,        c.decode_failed,     c.lossy_refused};
}

}  // namespace kvcommons::tiers
