//! What the control path does with a queue: its turn when memory is short, time-outs, its end, aborts,
//! events.

use std::rc::Rc;

use corebay_core::units::Time;
use corebay_nvme::spec::status::Status;
use tracing::{debug, info};

use super::{Done, EntryId, Pumped, Queue, QueueControl, Stage, Wire};
use crate::{environment::Environment, fabrics, limits::SQUEEZE_AFTER, memory::HostShare};

impl<E: Environment, W: Wire> Queue<E, W> {
    /// Ends the Asynchronous Event Requests without completing them, as a controller reset does.
    pub fn forget_parked(&self) {
        let parked = std::mem::take(&mut *self.parked.borrow_mut());
        for id in parked {
            self.release(id);
        }
    }

    /// True where a controller reset has come after the commands that are outstanding here.
    pub(super) fn is_reset(&self) -> bool {
        let controller = self.binding().map(|binding| &binding.controller);
        controller.is_some_and(|controller| !controller.lifecycle.is_ready())
    }
}

impl<E: Environment, W: Wire> QueueControl for Queue<E, W> {
    fn pump(self: Rc<Self>, memory: bool) -> Pumped {
        let slot = self.pump_slot();
        if slot == Pumped::Started {
            return slot;
        }
        if memory {
            match self.pump_memory() {
                Pumped::Nothing => {}
                other => return other,
            }
        } else if !self.waiting_for_memory.borrow().is_empty() {
            return Pumped::NoMemory;
        }
        if slot == Pumped::Nothing {
            self.in_turn.set(false);
        }
        slot
    }

    fn admitted(self: Rc<Self>, id: EntryId) {
        self.with_entry(id, |entry| {
            assert_eq!(
                entry.stage,
                Stage::Limit,
                "who waits for limits has its entry"
            );
        });
        self.limits_passed(1);
        self.go_on(id);
    }

    fn housekeeping(self: Rc<Self>, now: Time) {
        let pace = self.wire.housekeeping(now);
        if let Some(why) = pace.close {
            self.close(why);
            return;
        }
        self.stalled_for.set(pace.stalled_for);
        self.forsake_first(now);
        let holds = self.held_bytes.get() != 0;
        self.share().note(pace.moved, pace.stalled_for, holds);
        match self.binding() {
            None => {
                if now.since(self.opened) > crate::limits::CONNECT_TIMEOUT {
                    self.close("it did not connect in time");
                }
            }
            Some(binding) => {
                if binding.qid == 0 && binding.controller.keep_alive_expired(now) {
                    info!(
                        host = %binding.controller.host_nqn,
                        cntlid = binding.controller.cntlid,
                        "keep alive timeout of {} ms expired",
                        binding.controller.keep_alive_ms()
                    );
                    self.close("keep alive timeout");
                    return;
                }
                if self.draining.get() {
                    self.drain();
                }
            }
        }
    }

    fn squeeze(self: Rc<Self>, share: &Rc<HostShare>) {
        let holds = self.held_bytes.get() != 0;
        if holds && self.stalled_for.get() >= SQUEEZE_AFTER && Rc::ptr_eq(self.share(), share) {
            self.close("the host stalls, and others wait for the memory it holds");
        }
    }

    fn close(self: Rc<Self>, why: &'static str) {
        if self.closed.replace(true) {
            return;
        }
        debug!(queue = self.key.0, core = %self.core.id(), why, "closing a connection");
        self.wire.close();
        self.fused_first.set(None);
        self.core.pacer.leave(self.key, None);
        self.limits_passed(self.limited.get());
        self.waiting_for_memory.borrow_mut().clear();
        self.share().leave_line(self.key);
        self.waiting_for_slot.borrow_mut().clear();
        self.parked.borrow_mut().clear();
        let left = self.entries.borrow().not_running();
        for id in left {
            self.release(id);
        }
        self.core.remove_queue(self.key);
        let Some(binding) = self.binding() else {
            return;
        };
        let controller = &binding.controller;
        if self.running.get() > 0 {
            controller.quiesce_begins();
        }
        controller.remove_queue(binding.qid);
        if binding.qid == 0 {
            fabrics::end_association(&self.core, controller, why);
        }
    }

    fn drain(self: Rc<Self>) {
        self.draining.set(true);
        let outstanding = self.entries.borrow().in_use() - self.parked.borrow().len();
        // The admin queue's end is the association's: it goes last.
        let others = self.binding().is_some_and(|binding| {
            binding.qid == 0
                && binding
                    .controller
                    .queues()
                    .iter()
                    .any(|queue| queue.qid != 0)
        });
        if outstanding == 0 && !others {
            self.close("the target drains");
        }
    }

    fn abort(self: Rc<Self>, cid: u16) -> bool {
        let Some((id, stage, fused)) = self.entries.borrow().find(cid).map(|(id, entry)| {
            (
                id,
                entry.stage,
                entry.partner.is_some() || self.fused_first.get() == Some(id),
            )
        }) else {
            return false;
        };
        match stage {
            _ if fused => false,
            Stage::Limit => {
                self.core.pacer.leave(self.key, Some(id));
                self.limits_passed(1);
                self.finish(id, Done::status(Status::ABORT_REQUESTED));
                true
            }
            Stage::Memory | Stage::Slot => {
                self.forget_waiting(id);
                self.finish(id, Done::status(Status::ABORT_REQUESTED));
                true
            }
            Stage::Data => {
                // The host may be sending its data: they are taken, and then it is answered. That
                // comes after this answer, so it is no immediate abort.
                self.with_entry(id, |entry| entry.aborted = true);
                false
            }
            Stage::Parked => {
                self.parked.borrow_mut().retain(|parked| *parked != id);
                self.finish(id, Done::status(Status::ABORT_REQUESTED));
                true
            }
            Stage::Partner | Stage::Running | Stage::Responding | Stage::Free => false,
        }
    }

    fn deliver_events(self: Rc<Self>) {
        let Some(binding) = self.binding() else {
            return;
        };
        loop {
            let Some(id) = self.parked.borrow().front().copied() else {
                return;
            };
            let Some(event) = binding.controller.take_event() else {
                return;
            };
            self.parked.borrow_mut().pop_front();
            self.finish(id, Done::with_result(u64::from(event.result())));
        }
    }
}
