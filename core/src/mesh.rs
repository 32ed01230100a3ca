//! Messages between cores: one single-producer, single-consumer ring for each ordered pair.
//!
//! Invariants:
//! - Messages from one core to another arrive once each, in the order they were sent.
//! - A full ring delays, it never drops: what does not fit waits on the sender's side. Only the
//!   control path sends, and each of its operations has a bounded number of messages under way.
//! - A core that sleeps is woken: it says that it sleeps before it looks at its rings for the last
//!   time, and a sender looks for that after it has written.

use std::{
    cell::RefCell,
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
};

use rustix::event::{EventfdFlags, eventfd};

use crate::units::CoreId;

/// How a sleeping core is woken.
#[derive(Debug)]
struct Bell {
    sleeping: AtomicBool,
    eventfd: Option<OwnedFd>,
}

#[derive(Debug)]
struct Outgoing<M> {
    ring: rtrb::Producer<M>,
    waiting: VecDeque<M>,
}

/// One core's end of the mesh.
#[derive(Debug)]
pub struct Port<M> {
    core: CoreId,
    outgoing: Vec<RefCell<Outgoing<M>>>,
    incoming: Vec<RefCell<rtrb::Consumer<M>>>,
    bells: Arc<[Bell]>,
}

/// Whether cores of a mesh sleep, and so must be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeups {
    /// By eventfd: cores are threads of a machine.
    Eventfd,
    /// Not needed: somebody else decides which core turns next (a simulator).
    None,
}

/// A mesh of `cores` ports, whose rings take `capacity` messages each.
///
/// # Errors
/// Where an eventfd cannot be had.
pub fn mesh<M: Send>(
    cores: usize,
    capacity: usize,
    wakeups: Wakeups,
) -> std::io::Result<Vec<Port<M>>> {
    let mut bells = Vec::with_capacity(cores);
    for _ in 0..cores {
        let eventfd = match wakeups {
            Wakeups::Eventfd => Some(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            Wakeups::None => None,
        };
        bells.push(Bell {
            sleeping: AtomicBool::new(false),
            eventfd,
        });
    }
    let bells: Arc<[Bell]> = bells.into();
    let mut ports: Vec<Port<M>> = (0..cores)
        .map(|core| Port {
            core: CoreId(core),
            outgoing: Vec::with_capacity(cores),
            incoming: Vec::with_capacity(cores),
            bells: bells.clone(),
        })
        .collect();
    for from in 0..cores {
        for to in 0..cores {
            let (ring, consumer) = rtrb::RingBuffer::new(capacity);
            let outgoing = Outgoing {
                ring,
                waiting: VecDeque::new(),
            };
            ports[from].outgoing.push(RefCell::new(outgoing));
            ports[to].incoming.push(RefCell::new(consumer));
        }
    }
    Ok(ports)
}

impl<M: Send> Port<M> {
    /// Which core's end this is.
    #[must_use]
    pub fn core(&self) -> CoreId {
        self.core
    }

    /// The cores of the mesh.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.outgoing.len()
    }

    /// Sends a message to `to`, which may be this core.
    pub fn send(&self, to: CoreId, message: M) {
        let mut outgoing = self.outgoing[to.0].borrow_mut();
        outgoing.waiting.push_back(message);
        outgoing.push_waiting();
        drop(outgoing);
        self.ring_bell(to);
    }

    /// The next message from any core.
    pub fn receive(&self) -> Option<M> {
        self.incoming
            .iter()
            .find_map(|ring| ring.borrow_mut().pop().ok())
    }

    /// Sends what did not fit earlier; true where something still waits.
    pub fn push_waiting(&self) -> bool {
        let mut left = false;
        for (to, outgoing) in self.outgoing.iter().enumerate() {
            let mut outgoing = outgoing.borrow_mut();
            if !outgoing.waiting.is_empty() {
                outgoing.push_waiting();
                left |= !outgoing.waiting.is_empty();
                drop(outgoing);
                self.ring_bell(CoreId(to));
            }
        }
        left
    }

    /// Says that this core is about to sleep; false where messages are there.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        self.bells[self.core.0]
            .sleeping
            .store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !self.push_waiting() && self.incoming.iter().all(|ring| ring.borrow().is_empty())
    }

    /// Says that this core is awake.
    pub fn awake(&self) {
        let bell = &self.bells[self.core.0];
        bell.sleeping.store(false, Ordering::Relaxed);
        if let Some(eventfd) = &bell.eventfd {
            let mut count = [0; 8];
            let _ = rustix::io::read(eventfd, &mut count);
        }
    }

    /// What becomes readable when another core has sent a message to this one while it slept.
    #[must_use]
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.bells[self.core.0].eventfd.as_ref().map(AsFd::as_fd)
    }

    /// A handle with which any thread can wake this core.
    #[must_use]
    pub fn waker(&self) -> CoreWaker {
        CoreWaker {
            bells: self.bells.clone(),
            core: self.core,
        }
    }

    fn ring_bell(&self, to: CoreId) {
        fence(Ordering::SeqCst);
        self.bells[to.0].ring();
    }
}

impl<M> Outgoing<M> {
    fn push_waiting(&mut self) {
        while let Some(message) = self.waiting.pop_front() {
            if let Err(rtrb::PushError::Full(message)) = self.ring.push(message) {
                self.waiting.push_front(message);
                break;
            }
        }
    }
}

impl Bell {
    fn ring(&self) {
        if self.sleeping.load(Ordering::Relaxed)
            && let Some(eventfd) = &self.eventfd
        {
            // Fails only where the counter is full, and then the core is being woken already.
            let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
        }
    }
}

/// Wakes a core from any thread, for work that does not come over the mesh (signals, helper
/// threads).
#[derive(Clone, Debug)]
pub struct CoreWaker {
    bells: Arc<[Bell]>,
    core: CoreId,
}

impl CoreWaker {
    /// Wakes the core if it sleeps. Call it after the work has been made visible.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        self.bells[self.core.0].ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_delays_and_keeps_the_order() {
        let ports = mesh::<u32>(2, 2, Wakeups::None).unwrap();
        for message in 0..5 {
            ports[0].send(CoreId(1), message);
        }
        let mut got = Vec::new();
        while let Some(message) = ports[1].receive() {
            got.push(message);
            ports[0].push_waiting();
        }
        assert_eq!(got, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_sleeping_core_is_woken_once_it_said_so() {
        let ports = mesh::<u32>(2, 8, Wakeups::Eventfd).unwrap();
        assert!(ports[1].prepare_sleep());
        ports[0].send(CoreId(1), 1);
        let fd = ports[1].wake_fd().unwrap();
        let mut fds = [rustix::event::PollFd::new(
            &fd,
            rustix::event::PollFlags::IN,
        )];
        let timeout = rustix::event::Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1));
        ports[1].awake();
        assert!(!ports[1].prepare_sleep(), "a message waits");
    }
}
