// Sends and receives of a virtual group.
#include <ATen/ATen.h>

#include <algorithm>
#include <deque>

#include "rehearsal/virtual_group.h"
#include "rehearsal/virtual_work.h"

namespace gpualloc::rehearsal {
namespace {

constexpr double kStrayDeviation = 0.01;  // of what is received without a message to send back: small, so that training goes on

}  // namespace

// The peer does as this rank does: the nth receive comes with what it sends when this rank sends for the nth time. A receive that is
// waited for before that, as in a pipeline's later stages, starts then.
struct VirtualGroup::Mailbox {
  std::mutex mutex;
  int sends_ahead = 0;
  std::deque<std::shared_ptr<std::function<void()>>> receives;  // not started
};

void VirtualGroup::check_peer(int peer, const char* name) const {
  TORCH_CHECK_VALUE(peer >= 0 && peer < size_ && peer != rank_, name, ": peer ", peer, " is not another rank of a group of ", size_);
}

at::Tensor VirtualGroup::last_sent(int peer) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = sent_.find(peer);
  return found == sent_.end() ? at::Tensor() : found->second;
}

VirtualGroup::Operation VirtualGroup::message(c10d::OpType type, at::Tensor tensor, int peer) const {
  const bool is_send = type == c10d::OpType::SEND, on_network = options_.peer_on_network[static_cast<size_t>(peer)];
  Operation operation;
  operation.type = type;
  operation.tensors = operation.results = {tensor};
  operation.bytes = bytes_of(tensor);
  operation.traffic = traffic_of(on_network ? "network_point_to_point" : "point_to_point", tensor, operation.bytes);
  operation.traffic.link = on_network ? kNetworkLink : kNodeLink;
  operation.traffic.out = is_send;
  operation.traffic.in = !is_send;
  operation.peer = peer;
  if (!is_send) {
    operation.move = [this, tensor, peer, self = c10::intrusive_ptr<const VirtualGroup>::reclaim_copy(this)]() mutable {
      const at::Tensor sent = last_sent(peer);
      if (sent.defined() && sent.nbytes() == tensor.nbytes() && sent.device() == tensor.device()) {
        tensor.view(-1).view(at::kByte).copy_(sent.view(-1).view(at::kByte));
      } else if (tensor.is_floating_point()) {
        tensor.normal_(0, kStrayDeviation);
      } else {
        tensor.zero_();
      }
    };
  }
  return operation;
}

VirtualGroup::Work VirtualGroup::send(Tensors& tensors, int peer, int tag) {
  check_peer(peer, "send");
  const at::Tensor tensor = single(tensors, "send");
  Operation operation = message(c10d::OpType::SEND, tensor, peer);
  std::shared_ptr<std::function<void()>> receive;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    sent_[peer] = tensor.detach();
    if (tensor.is_cpu()) {
      Mailbox& mailbox = *mailboxes_.try_emplace({peer, tag}, std::make_shared<Mailbox>()).first->second;
      const std::lock_guard<std::mutex> mailbox_lock(mailbox.mutex);
      if (mailbox.receives.empty()) {
        ++mailbox.sends_ahead;
      } else {
        receive = std::move(mailbox.receives.front());
        mailbox.receives.pop_front();
      }
    }
  }
  if (receive != nullptr) (*receive)();
  if (tensor.is_cpu()) return run_on_host(std::move(operation), nullptr);
  return run(std::move(operation));
}

VirtualGroup::Work VirtualGroup::recv(Tensors& tensors, int peer, int tag) {
  check_peer(peer, "recv");
  const at::Tensor tensor = single(tensors, "recv");
  Operation operation = message(c10d::OpType::RECV, tensor, peer);
  if (!tensor.is_cpu()) return run(std::move(operation));

  const auto work = c10::make_intrusive<VirtualWork>(rank_, operation.type, operation.results, std::nullopt);
  work->source_ = peer;
  const auto started = std::make_shared<std::once_flag>();
  add_to_totals(operation.bytes, operation.traffic.cost.latency_s + operation.traffic.cost.transfer_s);
  const auto submit = [work, started, operation = std::move(operation)] {
    std::call_once(*started, [&] {
      HostLinks::instance().submit(operation.traffic, nullptr, [] {},
                                   [work, move = operation.move] {
                                     try {
                                       const at::AutoDispatchBelowADInplaceOrView below_autograd;
                                       move();
                                       work->complete();
                                     } catch (...) {
                                       work->fail(std::current_exception());
                                     }
                                   });
    });
  };
  std::shared_ptr<Mailbox> mailbox;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    mailbox = mailboxes_.try_emplace({peer, tag}, std::make_shared<Mailbox>()).first->second;
  }
  const auto waiting = std::make_shared<std::function<void()>>(submit);
  bool has_message = false;
  {
    const std::lock_guard<std::mutex> lock(mailbox->mutex);
    has_message = mailbox->sends_ahead > 0;
    if (has_message) {
      --mailbox->sends_ahead;
    } else {
      mailbox->receives.push_back(waiting);
    }
  }
  if (has_message) {
    submit();
    return work;
  }
  work->start_when_waited_for = [mailbox, weak = std::weak_ptr<std::function<void()>>(waiting)] {
    std::shared_ptr<std::function<void()>> receive;
    {
      const std::lock_guard<std::mutex> lock(mailbox->mutex);
      const auto found = std::find(mailbox->receives.begin(), mailbox->receives.end(), weak.lock());
      if (found == mailbox->receives.end()) return;
      receive = std::move(*found);
      mailbox->receives.erase(found);
    }
    (*receive)();
  };
  return work;
}

VirtualGroup::Work VirtualGroup::recvAnysource(Tensors& tensors, int tag) { return recv(tensors, rank_ == 0 ? 1 % size_ : 0, tag); }

}  // namespace gpualloc::rehearsal
