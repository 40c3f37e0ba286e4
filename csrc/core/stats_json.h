// One list of the counters' names, for the STAT reply and for the daemon's metrics.
#pragma once

#include <string>
#include <string_view>

#include "store.h"

namespace kvcommons {

template <typename Visit>
void visit_counters(const StoreStats& s, Visit visit) {
#define KVCOMMONS_COUNTER(name) visit(std::string_view(#name), s.name)
  KVCOMMONS_COUNTER(arena_bytes);
  KVCOMMONS_COUNTER(used_bytes);
  KVCOMMONS_COUNTER(free_bytes);
  KVCOMMONS_COUNTER(slabs);
  KVCOMMONS_COUNTER(slabs_free);
  KVCOMMONS_COUNTER(chunks);
  KVCOMMONS_COUNTER(slots_free);
  KVCOMMONS_COUNTER(slots_filling);
  KVCOMMONS_COUNTER(slots_sealed);
  KVCOMMONS_COUNTER(slots_draining);
  KVCOMMONS_COUNTER(slots_quarantined);
  KVCOMMONS_COUNTER(sessions);
  KVCOMMONS_COUNTER(leases_pending);
  KVCOMMONS_COUNTER(leases_copying);
  KVCOMMONS_COUNTER(fingerprints);
  KVCOMMONS_COUNTER(pinned_chunks);
  KVCOMMONS_COUNTER(lookups);
  KVCOMMONS_COUNTER(lookup_chunks);
  KVCOMMONS_COUNTER(hit_chunks);
  KVCOMMONS_COUNTER(reserved);
  KVCOMMONS_COUNTER(committed);
  KVCOMMONS_COUNTER(aborted);
  KVCOMMONS_COUNTER(evicted);
  KVCOMMONS_COUNTER(cleared);
  KVCOMMONS_COUNTER(reserve_full);
  KVCOMMONS_COUNTER(reserve_busy);
  KVCOMMONS_COUNTER(reserve_exists);
  KVCOMMONS_COUNTER(leases_revoked);
  KVCOMMONS_COUNTER(checksum_failures);
  KVCOMMONS_COUNTER(events_dropped);
  KVCOMMONS_COUNTER(text_keys_dropped);
  KVCOMMONS_COUNTER(sessions_unresolved);
  KVCOMMONS_COUNTER(engines);
  KVCOMMONS_COUNTER(cold_starts);
  KVCOMMONS_COUNTER(slabs_taken_back);
  KVCOMMONS_COUNTER(shadow_asked_chunks);
  KVCOMMONS_COUNTER(shadow_hit_chunks_lru);
  KVCOMMONS_COUNTER(shadow_hit_chunks_s3fifo);
  KVCOMMONS_COUNTER(shadow_hit_chunks_cost);
  KVCOMMONS_COUNTER(shadow_one_in);
  KVCOMMONS_COUNTER(shadow_dropped);
  KVCOMMONS_COUNTER(eviction_policy);
  KVCOMMONS_COUNTER(eviction_policy_changes);
  KVCOMMONS_COUNTER(hinted_chunks);
  KVCOMMONS_COUNTER(expired_chunks);
#undef KVCOMMONS_COUNTER
}
static_assert(sizeof(StoreStats) == 45 * sizeof(std::uint64_t), "a counter is missing above");

// {"name":1,...}: `visit_all` calls its argument with each name and value.
template <typename VisitAll>
std::string counters_json(VisitAll visit_all) {
  std::string json = "{";
  visit_all([&](std::string_view name, std::uint64_t value) {
    if (json.size() > 1) json += ',';
    json.append("\"").append(name).append("\":").append(std::to_string(value));
  });
  return json += '}';
}

}  // namespace kvcommons
