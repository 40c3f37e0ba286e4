// Proof that a process is dead: a pidfd, which never names another process, becomes readable when its process has
// ended.
#pragma once

#include <sys/types.h>

#include "socket.h"

namespace kvcommons {

// How the proof was got; each is weaker than the one before.
enum class ProofSource {
  Socket /* SO_PEERPIDFD */,
  Pid /* pidfd_open(SO_PEERCRED) */,
  Sent /* by the peer itself */,
  None
};

struct ProcessProof {
  UniqueFd pidfd;
  ProofSource source = ProofSource::None;
};

// The proof for the process that connected. `sent` is what it passed along, used only where the kernel gives nothing.
ProcessProof prove_peer(int socket, pid_t peer_pid, UniqueFd sent);

UniqueFd open_pidfd(pid_t pid);
[[nodiscard]] bool is_pidfd(int fd);
[[nodiscard]] bool process_ended(int pidfd);
// The pid as seen from here; 0 if it ended, is invisible or the descriptor is no pidfd.
pid_t pid_of(int pidfd);

}  // namespace kvcommons
